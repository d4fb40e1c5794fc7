//! Lifting the limit on threads for the instant in which one is made.
//!
//! The order makes it safe to die at any moment: the limit is lifted when the thread that is to make
//! the clone is already on its way to the entry and still held; the entry puts it back right after.
//!
//! # Safety
//! `prlimit(2)` with plain structs of ours.
#![allow(unsafe_code)]

use super::proc::{self, Limit};
use std::io;

/// `RLIMIT_NPROC` of a process, as it is to be again.
#[derive(Clone, Copy, Debug)]
pub struct ThreadLimit(Limit);

impl ThreadLimit {
    /// Reads it; `None` when it limits nothing.
    #[must_use]
    pub fn of(pid: i32) -> Option<Self> {
        proc::limit(pid, "Max processes").filter(|limit| limit.soft != u64::MAX).map(Self)
    }

    /// Soft and hard limit.
    #[must_use]
    pub fn words(self) -> [u64; 2] {
        [self.0.soft, self.0.hard]
    }

    /// Whether a thread more could be had by lifting it, or without, for a process of that many threads.
    /// (Other processes of the user count as well; that shows when the thread is made.)
    #[must_use]
    pub fn leaves_room(self, threads: u64) -> bool {
        threads < self.0.soft.max(self.0.hard) || may_raise_limits()
    }

    /// Lifts it as far as we may.
    ///
    /// # Errors
    /// `EPERM` when the hard limit would have to be raised, or it is the limit of another user's process,
    /// without `CAP_SYS_RESOURCE`.
    pub fn lift(self, pid: i32) -> io::Result<()> {
        match set(pid, libc::RLIM_INFINITY) {
            Err(_) if self.0.soft < self.0.hard => set(pid, self.0.hard),
            done => done,
        }
    }
}

fn set(pid: i32, limit: u64) -> io::Result<()> {
    let new = libc::rlimit { rlim_cur: limit, rlim_max: limit };
    // SAFETY: a live structure to be read, and a null pointer where one could be written.
    let done = unsafe { libc::prlimit(pid, libc::RLIMIT_NPROC, &raw const new, std::ptr::null_mut()) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Whether this process has `CAP_SYS_RESOURCE`.
fn may_raise_limits() -> bool {
    const CAP_SYS_RESOURCE: u64 = 24;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|l| l.strip_prefix("CapEff:"));
    let effective = effective.and_then(|caps| u64::from_str_radix(caps.trim(), 16).ok());
    effective.is_some_and(|caps| caps >> CAP_SYS_RESOURCE & 1 != 0)
}
