//! Being on a particular processor for a moment.
//!
//! # Safety
//! Affinity calls on the calling thread with plain structs of ours.
#![allow(unsafe_code)]

use std::io;

/// The calling thread on one processor until dropped.
#[derive(Debug)]
pub struct Pinned {
    before: libc::cpu_set_t,
}

impl Pinned {
    /// Moves there.
    ///
    /// # Errors
    /// `EINVAL` when it is off, or not among those we may use.
    pub fn to(processor: usize) -> io::Result<Self> {
        let size = size_of::<libc::cpu_set_t>();
        if processor >= 8 * size {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        // SAFETY: all-zero is the empty set; the calls read and write one set of the size given, and the
        // number was checked against it.
        unsafe {
            let (mut before, mut one): (libc::cpu_set_t, libc::cpu_set_t) =
                (std::mem::zeroed(), std::mem::zeroed());
            libc::CPU_SET(processor, &mut one);
            let done = libc::sched_getaffinity(0, size, &raw mut before) == 0
                && libc::sched_setaffinity(0, size, &raw const one) == 0;
            if done { Ok(Self { before }) } else { Err(io::Error::last_os_error()) }
        }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: as above; going back to what was allowed needs no right.
        unsafe {
            libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const self.before);
        }
    }
}
