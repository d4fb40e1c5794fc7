//! Whether two processes share their memory.
//!
//! # Safety
//! `kcmp(2)` takes numbers only.
#![allow(unsafe_code)]

use std::io;

const KCMP_VM: i32 = 1;

/// Whether two processes share their memory, as a child made by vfork does with its parent.
///
/// # Errors
/// `ENOSYS` where the kernel was built without it, `EPERM` without ptrace rights over both, `ESRCH`
/// when one is gone.
pub fn same_memory(one: i32, other: i32) -> io::Result<bool> {
    // SAFETY: numbers only.
    let order = unsafe { libc::syscall(libc::SYS_kcmp, one, other, KCMP_VM, 0, 0) };
    if order < 0 { Err(io::Error::last_os_error()) } else { Ok(order == 0) }
}
