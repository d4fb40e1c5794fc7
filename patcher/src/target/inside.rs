//! Commands that a callback of a patch has started on its own process.
//!
//! The command that began the transition waits for the callback, and the callback would wait for the command
//! it has started, which waits for its turn: they would stand still until somebody gives up. (The kernel's
//! livepatch deadlocks there.) Looking is allowed, changing is refused at once.

use super::worker::task_dir;
use super::{Target, books, runtime};
use crate::error::Error;
use crate::sys::proc;
use std::mem::offset_of;
use suture_abi::block::RuntimeBlock;
use suture_abi::event::word::spelling;
use suture_abi::host::{GIVEN, Host, RUNNING};

/// Processes between this one and the first one of its container, at most.
const DEEP: usize = 1000;

/// Refuses if this command was started by a callback that runs in the target.
///
/// # Errors
/// [`Error::FromCallback`].
pub fn refuse(target: &Target) -> Result<(), Error> {
    let Some(child) = ancestor_below(target.pid()) else { return Ok(()) };
    let Ok(block) = runtime::block(target) else { return Ok(()) };
    let word = |field: usize| books::word(target, block, offset_of!(RuntimeBlock, host) + field);
    if !matches!(word(offset_of!(Host, state))?, GIVEN | RUNNING) {
        return Ok(());
    }
    let children = |task: &str| std::fs::read_to_string(format!("{task}/children")).unwrap_or_default();
    let host = task_dir(target.pid(), word(offset_of!(Host, tid))?);
    let its = host.is_some_and(|task| children(&task).split_whitespace().any(|c| c.parse() == Ok(child)));
    match its {
        true => {
            Err(Error::FromCallback { pid: target.pid(), callback: spelling(word(offset_of!(Host, kind))?) })
        }
        false => Ok(()),
    }
}

/// The ancestor of this process, or itself, that is a child of `pid`.
fn ancestor_below(pid: i32) -> Option<i32> {
    let mut process = std::process::id().cast_signed();
    for _ in 0..DEEP {
        match proc::parent(process)? {
            parent if parent == pid => return Some(process),
            0 => return None,
            parent => process = parent,
        }
    }
    None
}
