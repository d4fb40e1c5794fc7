//! Taking a patch back.

use crate::commit::restore_all;
use crate::description::Description;
use crate::error::Error;
use crate::session::Session;
use crate::target::lock::Exclusive;
use crate::target::{Target, books, runtime};
use serde::Serialize;
use std::time::Instant;
use suture_abi::block::{SITE_ARMED, SiteRow};
use suture_abi::channel::op;

/// What a disable did.
#[derive(Clone, Debug, Serialize)]
pub struct Disabled {
    /// Patch name.
    pub patch: String,
    /// Its functions.
    pub functions: usize,
    /// Entries that got the file's bytes back.
    pub restored: usize,
    /// Entries that keep somebody else's byte (a probe or breakpoint); ours goes when it goes.
    pub left: usize,
    /// Microseconds the borrowed thread was held.
    pub held_us: u64,
    /// Microseconds until it was seen asleep in its call again, if it was.
    pub away_us: Option<u64>,
    /// Threads that were stopped.
    pub stops: u32,
    /// Microseconds from start to end in this process.
    pub wall_us: u64,
}

/// Disables the patch of that name.
///
/// # Errors
/// No process, no runtime, no such patch, or the worker cannot be made.
pub fn disable(target: &Target, name: &str) -> Result<Disabled, Error> {
    let started = Instant::now();
    let pid = target.pid();
    let _alone = Exclusive::take(target)?;
    let block = runtime::find_block(target, &target.maps()?)?;
    let missing = || Error::NotEnabled { pid, name: name.to_owned() };
    // Looked up before anything is touched: a wrong name must not ring the doorbell.
    books::read(target, block)?.patch(name).ok_or_else(missing)?;
    target.check_enterable()?;
    let mut session = Session::open(target)?;
    let books = books::read(target, block)?;
    let Some(patch) = books.patch(name) else {
        session.close()?;
        return Err(missing());
    };
    let functions = books.funcs_of(patch.row.id).count();
    session.expect("disabling", op::DISABLE, [u64::from(patch.row.id), 0, 0, 0], &[])?;
    let idle = idle_sites(&session)?;
    let left = restore_all(&mut session, &idle)?;
    let ring = session.ring;
    session.close()?;
    Ok(Disabled {
        patch: name.to_owned(),
        functions,
        restored: idle.len() - left,
        left,
        held_us: micros(ring.held),
        away_us: ring.away.map(micros),
        stops: ring.stops(),
        wall_us: micros(started.elapsed()),
    })
}

/// Armed sites that no function is on: what a finished disable, or a command that died in one,
/// leaves to be restored.
///
/// # Errors
/// When the process is gone.
pub fn idle_sites(session: &Session<'_>) -> Result<Vec<SiteRow>, Error> {
    let books = books::read(session.target, session.block)?;
    Ok(books.sites.into_iter().filter(|s| s.depth == 0 && s.state == SITE_ARMED && s.hook == 0).collect())
}

/// The patch a user means: a name, or a patch file whose descriptor has the name.
#[must_use]
pub fn matching_name(target: &Target, text: &str) -> Option<String> {
    let block = runtime::find_block(target, &target.maps().ok()?).ok()?;
    let books = books::read(target, block).ok()?;
    if books.patch(text).is_some() {
        return Some(text.to_owned());
    }
    let path = std::fs::canonicalize(text).ok()?.display().to_string();
    let from_file = |d: &[u8]| Description::from_bytes(d).is_some_and(|d| d.file == path);
    books.patches.iter().find(|p| from_file(&p.description)).map(|p| p.name.clone())
}

/// Whole microseconds.
#[must_use]
pub fn micros(span: std::time::Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX)
}
