//! The callback that runs, for people.

use super::field;
use crate::error::Error;
use crate::target::{Target, books};
use serde::Serialize;
use std::mem::offset_of;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use suture_abi::event::word::spelling;
use suture_abi::host::{GIVEN, Host, RUNNING};
use suture_elf::{Addr, Memory};

/// A callback that has not returned yet.
#[derive(Clone, Debug, Serialize)]
pub struct Callback {
    /// `pre_patch`, `post_patch`, `pre_unpatch`, `post_unpatch` or `shadow_dtor`.
    pub phase: &'static str,
    /// Name of its patch.
    pub patch: String,
    /// Number of its state.
    pub state: u64,
    /// Thread it runs on.
    pub tid: u32,
    /// Nanoseconds since 1970 when it was started.
    pub since_ns: u64,
}

impl std::fmt::Display for Callback {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let since = now.saturating_sub(Duration::from_nanos(self.since_ns));
        let Self { phase, patch, state, tid, .. } = self;
        write!(
            f,
            "{phase} of state {state:#x} of {patch} has been running on thread {tid} for {:.1} s",
            since.as_secs_f64()
        )
    }
}

/// The callback that runs in a process.
///
/// # Errors
/// When the process is gone.
pub fn at_work(target: &Target, block: Addr) -> Result<Option<Callback>, Error> {
    let word = |offset| books::word(target, block, field(offset));
    let quad = |offset| {
        let at = block + field(offset) as u64;
        target.memory.read_u64(at).map_err(|e| Error::from_memory(target, e))
    };
    if !matches!(word(offset_of!(Host, state))?, GIVEN | RUNNING) {
        return Ok(None);
    }
    let patch = word(offset_of!(Host, patch))?;
    Ok(Some(Callback {
        phase: spelling(word(offset_of!(Host, kind))?),
        patch: books::read(target, block)?.name_of(patch),
        state: quad(offset_of!(Host, subject))?,
        tid: word(offset_of!(Host, tid))?,
        since_ns: quad(offset_of!(Host, since_ns))?,
    }))
}
