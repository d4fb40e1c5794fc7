//! How far a transition is: each thread's side, and who holds it up.

use super::look::{Blocker, Looker, Seen};
use super::records::Records;
use super::threads;
use crate::error::Error;
use crate::host::{Callback, at_work};
use crate::target::Target;
use crate::target::books::Books;
use crate::view::Cache;
use serde::Serialize;
use suture_abi::block::{
    PATCHING, PHASE_COMPLETING, PHASE_INIT, TRANSITION_FORCED, TransitionRow, WAITS_CALLBACK, WAITS_HOST,
    WAITS_THREADS,
};
use suture_abi::dispatch::side;
use suture_elf::Addr;

/// A transition that is going on.
#[derive(Clone, Debug, Serialize)]
pub struct TransitionStatus {
    /// Name of its patch.
    pub patch: String,
    /// `patching` or `unpatching`: where it is going now.
    pub direction: &'static str,
    /// `init`, `running` or `completing`.
    pub phase: &'static str,
    /// What it waits for: `threads`, `a thread to run a callback on`, `a callback`, or nothing.
    pub waits_for: Option<&'static str>,
    /// The callback that runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub callback: Option<Callback>,
    /// It was forced.
    pub forced: bool,
    /// Failed attempts so far.
    pub attempts: u32,
    /// Nanoseconds since 1970 when it was begun.
    pub since_ns: u64,
    /// Threads of the program.
    pub threads: usize,
    /// Threads that are not where they are to be.
    pub pending: usize,
    /// Those of them that a look did not find clear.
    pub blockers: Vec<Blocker>,
}

/// A thread and its state.
#[derive(Clone, Debug, Serialize)]
pub struct ThreadStatus {
    /// Thread id.
    pub tid: i32,
    /// Its name.
    pub name: String,
    /// As the kernel's `patch_state`: −1 no transition, 0 unpatched, 1 patched.
    pub patch_state: i32,
}

/// How far the transition of a process is.
///
/// # Errors
/// When the process is gone.
pub fn transition(
    target: &Target,
    block: Addr,
    books: &Books,
    cache: &Cache,
) -> Result<Option<TransitionStatus>, Error> {
    let Some(t) = books.transition else { return Ok(None) };
    let seen = threads::read(target, books.worker)?;
    let looker = Looker::new(target, books, cache)?;
    let mut pending = 0;
    let mut blockers = Vec::new();
    if let Some(looker) = looker.filter(|_| is_moving(&t)) {
        for thread in &seen {
            match looker.look(*thread) {
                Seen::There | Seen::Gone => {}
                Seen::Clear(_) => pending += 1,
                Seen::Held(why) => {
                    pending += 1;
                    blockers.push(Blocker::new(target.pid(), *thread, &why));
                }
            }
        }
    }
    Ok(Some(TransitionStatus {
        patch: books.name_of(t.patch),
        direction: if t.target == PATCHING { "patching" } else { "unpatching" },
        phase: match t.phase {
            PHASE_INIT => "init",
            PHASE_COMPLETING => "completing",
            _ => "running",
        },
        waits_for: match books.waits_for {
            WAITS_THREADS => Some("threads"),
            WAITS_HOST => Some("a thread to run a callback on"),
            WAITS_CALLBACK => Some("a callback"),
            _ => None,
        },
        callback: at_work(target, block)?,
        forced: t.flags & TRANSITION_FORCED != 0,
        attempts: books.attempts,
        since_ns: t.since_ns,
        threads: seen.len(),
        pending,
        blockers,
    }))
}

fn is_moving(t: &TransitionRow) -> bool {
    t.phase == suture_abi::block::PHASE_RUNNING
}

/// The state of every thread.
///
/// # Errors
/// When the process is gone.
pub fn states(target: &Target, books: &Books) -> Result<Vec<ThreadStatus>, Error> {
    let records = Records::of(books);
    let threads = threads::read(target, books.worker)?.into_iter().map(|thread| ThreadStatus {
        tid: thread.tid,
        name: threads::name(target.pid(), thread.tid),
        // Until it is completing every thread has a side: before it starts, all have the one they are to leave.
        patch_state: books.transition.filter(|t| t.phase != PHASE_COMPLETING).map_or(-1, |t| {
            let word = records.word(target, thread.own).unwrap_or(0);
            // Switched is patched while the patch comes, unpatched while it goes.
            i32::from((side(word) == t.id) == (t.begun == PATCHING))
        }),
    });
    Ok(threads.collect())
}
