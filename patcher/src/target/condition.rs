//! What state a process is in, as far as that decides whether a thread of it can be borrowed.
//!
//! Asked before anything in the process is touched. None of it is final: a process can be stopped, frozen or
//! traced a moment later, so every wait has a deadline and asks again when it has passed.

use super::Target;
use crate::error::Error;
use crate::sys::proc::{self, ProcessFacts};
use crate::sys::time::{Backoff, Deadline};
use crate::sys::{cgroup, kcmp};
use std::fs::File;
use std::io::Read;
use std::time::Duration;

/// Refuses a process whose threads cannot be borrowed as they are now.
///
/// # Errors
/// The reason.
pub fn check(target: &Target) -> Result<(), Error> {
    let pid = target.pid();
    let now = proc::facts(pid).map_err(|e| Error::from_proc(pid, &e))?;
    if is_narrow(target.via) {
        return Err(Error::Narrow { pid });
    }
    check_now(target)?;
    if now.shadow_stack {
        return Err(Error::ShadowStack { pid });
    }
    match now.tracer {
        0 => Ok(()),
        tracer if tracer == std::process::id().cast_signed() => Ok(()),
        tracer => Err(traced(pid, tracer)),
    }
}

/// The part of [`check`] that the stop of a thread would not find out by itself.
///
/// # Errors
/// The reason.
pub fn check_now(target: &Target) -> Result<(), Error> {
    if let Some(parent) = vfork_parent(&target.facts) {
        return Err(Error::VforkChild { pid: target.pid(), parent });
    }
    check_runs(target)
}

/// A stop or a freeze that is over by then was none: shells and checkpoint tools do that.
const PATIENCE: Duration = Duration::from_millis(100);

/// Refuses a process that does not run at all.
///
/// # Errors
/// [`Error::Stopped`], [`Error::Frozen`].
pub fn check_runs(target: &Target) -> Result<(), Error> {
    let (pid, deadline, mut backoff) = (target.pid(), Deadline::after(PATIENCE), Backoff::default());
    loop {
        let stopped = proc::state(pid, target.via) == Some('T');
        let frozen = cgroup::frozen(pid);
        match frozen {
            None if !stopped => return Ok(()),
            _ if !deadline.passed() => backoff.pause(),
            Some(cgroup) => return Err(Error::Frozen { pid, cgroup }),
            None => return Err(Error::Stopped { pid }),
        }
    }
}

/// Refuses a process that is known to have no room for a thread and a descriptor more.
///
/// # Errors
/// [`Error::NoThread`], [`Error::NoChannel`].
pub fn check_room(target: &Target) -> Result<(), Error> {
    let pid = target.pid();
    if cgroup::full(pid).is_some() {
        return Err(Error::NoThread { pid, errno: libc::EAGAIN });
    }
    match proc::limit(pid, "Max open files") {
        Some(limit) if limit.soft == 0 => Err(Error::NoChannel { pid, errno: libc::EMFILE }),
        _ => Ok(()),
    }
}

/// The error that names a tracer.
pub fn traced(pid: i32, tracer: i32) -> Error {
    let by = proc::facts(tracer).map_or_else(|_| "?".into(), |f| f.comm);
    Error::Traced { pid, tracer, by }
}

/// Whether the program has 32-bit addresses (i386, or x32).
fn is_narrow(pid: i32) -> bool {
    let mut head = [0; 5];
    let read = File::open(format!("/proc/{pid}/exe")).and_then(|mut f| f.read_exact(&mut head));
    read.is_ok() && head == *b"\x7fELF\x01"
}

/// The parent, if the process lives in its memory: a child made by vfork, which the parent waits for. What
/// were done to the child would be done to the parent.
fn vfork_parent(facts: &ProcessFacts) -> Option<i32> {
    // 0: its parent is in a pid namespace that is not ours to see.
    let parent = (facts.parent != 0).then_some(facts.parent)?;
    let shared = kcmp::same_memory(facts.pid, parent).unwrap_or_else(|_| waits_in_vfork(parent));
    shared.then_some(parent)
}

/// Without the kernel's word: a parent that waits in vfork or in a clone waits for one of its children.
fn waits_in_vfork(parent: i32) -> bool {
    let threads = proc::threads(parent).unwrap_or_default();
    threads.iter().filter_map(|&tid| proc::thread_facts(parent, tid)).any(|t| t.waits_for_vfork())
}
