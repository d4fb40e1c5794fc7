//! Lifting the limit on threads for the instant in which one is made.
//!
//! The order makes it safe to die at any moment: the limit is lifted when the thread that is to make
//! the clone is already on its way to the entry and still held; the entry puts it back right after.
//!
//! # Safety
//! `prlimit(2)` with plain structs of ours.
#![allow(unsafe_code)]

use std::io;

/// `RLIMIT_NPROC` of a process, as it is to be again.
#[derive(Clone, Copy, Debug)]
pub struct ThreadLimit(libc::rlimit);

impl ThreadLimit {
    /// Reads it; `None` when it limits nothing.
    ///
    /// # Errors
    /// When the process is gone or out of reach.
    pub fn of(pid: i32) -> io::Result<Option<Self>> {
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        prlimit(pid, None, Some(&mut limit))?;
        Ok((limit.rlim_cur != libc::RLIM_INFINITY).then_some(Self(limit)))
    }

    /// Soft and hard limit.
    #[must_use]
    pub fn words(self) -> [u64; 2] {
        [self.0.rlim_cur, self.0.rlim_max]
    }

    /// Whether a thread more could be had by lifting it, or without, for a process of that many threads. (Other
    /// processes of the user count as well; that shows when the thread is made.)
    #[must_use]
    pub fn leaves_room(self, threads: u64) -> bool {
        threads < self.0.rlim_cur.max(self.0.rlim_max) || may_raise_limits()
    }

    /// Lifts it as far as we may.
    ///
    /// # Errors
    /// `EPERM` when the hard limit would have to be raised without `CAP_SYS_RESOURCE`.
    pub fn lift(self, pid: i32) -> io::Result<()> {
        let wanted = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
        let within = libc::rlimit { rlim_cur: self.0.rlim_max, rlim_max: self.0.rlim_max };
        match prlimit(pid, Some(&wanted), None) {
            Err(_) if self.0.rlim_cur < self.0.rlim_max => prlimit(pid, Some(&within), None),
            done => done,
        }
    }
}

/// Whether this process has `CAP_SYS_RESOURCE`.
fn may_raise_limits() -> bool {
    const CAP_SYS_RESOURCE: u64 = 24;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|l| l.strip_prefix("CapEff:"));
    let effective = effective.and_then(|caps| u64::from_str_radix(caps.trim(), 16).ok());
    effective.is_some_and(|caps| caps >> CAP_SYS_RESOURCE & 1 != 0)
}

fn prlimit(pid: i32, new: Option<&libc::rlimit>, old: Option<&mut libc::rlimit>) -> io::Result<()> {
    let new = new.map_or(std::ptr::null(), std::ptr::from_ref);
    let old = old.map_or(std::ptr::null_mut(), std::ptr::from_mut);
    // SAFETY: both pointers are null or point to a live rlimit.
    let done = unsafe { libc::prlimit(pid, libc::RLIMIT_NPROC, new, old) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
