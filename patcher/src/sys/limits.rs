//! Lifting a resource limit of the target for the length of one operation.
//!
//! # Safety
//! `prlimit(2)` with plain structs of ours.
#![allow(unsafe_code)]

use std::io;

/// Puts a lifted limit back when dropped.
#[derive(Debug)]
pub struct LiftedLimit {
    pid: i32,
    resource: libc::__rlimit_resource_t,
    before: libc::rlimit,
}

impl LiftedLimit {
    /// Lifts the number of threads the target's user may have.
    ///
    /// # Errors
    /// `EPERM` when the hard limit would have to be raised without `CAP_SYS_RESOURCE`, or the limit
    /// is not what stands in the way (`EINVAL`).
    pub fn threads(pid: i32) -> io::Result<Self> {
        let resource = libc::RLIMIT_NPROC;
        let mut before = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        prlimit(pid, resource, None, Some(&mut before))?;
        let wanted = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
        let within = libc::rlimit { rlim_cur: before.rlim_max, rlim_max: before.rlim_max };
        if before.rlim_cur == libc::RLIM_INFINITY {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        match prlimit(pid, resource, Some(&wanted), None) {
            Err(_) if before.rlim_cur < before.rlim_max => prlimit(pid, resource, Some(&within), None)?,
            done => done?,
        }
        Ok(Self { pid, resource, before })
    }
}

impl Drop for LiftedLimit {
    fn drop(&mut self) {
        // Fails only when the process is gone.
        let _ = prlimit(self.pid, self.resource, Some(&self.before), None);
    }
}

fn prlimit(
    pid: i32,
    resource: libc::__rlimit_resource_t,
    new: Option<&libc::rlimit>,
    old: Option<&mut libc::rlimit>,
) -> io::Result<()> {
    let new = new.map_or(std::ptr::null(), std::ptr::from_ref);
    let old = old.map_or(std::ptr::null_mut(), std::ptr::from_mut);
    // SAFETY: both pointers are null or point to a live rlimit.
    let done = unsafe { libc::prlimit(pid, resource, new, old) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
