//! memfd seals.
//!
//! # Safety
//! `fcntl(2)` on an owned descriptor; no memory is involved.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// Makes the contents of a memfd final: no write, no resize, no further seal.
///
/// # Errors
/// `EBUSY` when somebody still maps it writable, `EPERM` when it does not take seals.
pub fn seal_contents(file: &File) -> io::Result<()> {
    let seals = libc::F_SEAL_WRITE | libc::F_SEAL_GROW | libc::F_SEAL_SHRINK | libc::F_SEAL_SEAL;
    // SAFETY: plain descriptor operation.
    let done = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Whether the contents were made final.
///
/// # Errors
/// `EINVAL` when it is no memfd.
pub fn is_sealed(file: &File) -> io::Result<bool> {
    // SAFETY: plain descriptor operation.
    let seals = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GET_SEALS) };
    if seals < 0 { Err(io::Error::last_os_error()) } else { Ok(seals & libc::F_SEAL_WRITE != 0) }
}

/// Forbids further seals and nothing else.
///
/// # Errors
/// `EPERM` when they are forbidden already.
pub fn forbid_seals(file: &File) -> io::Result<()> {
    // SAFETY: plain descriptor operation.
    let done = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, libc::F_SEAL_SEAL) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Takes the exclusive advisory lock that says "a command is here". Dropped with the descriptor.
///
/// # Errors
/// `EWOULDBLOCK` when another command holds it.
pub fn lock_exclusive(file: &File) -> io::Result<()> {
    // SAFETY: plain descriptor operation.
    let done = unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
