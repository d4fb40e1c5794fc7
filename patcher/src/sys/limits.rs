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

fn prlimit(pid: i32, new: Option<&libc::rlimit>, old: Option<&mut libc::rlimit>) -> io::Result<()> {
    let new = new.map_or(std::ptr::null(), std::ptr::from_ref);
    let old = old.map_or(std::ptr::null_mut(), std::ptr::from_mut);
    // SAFETY: both pointers are null or point to a live rlimit.
    let done = unsafe { libc::prlimit(pid, libc::RLIMIT_NPROC, new, old) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
