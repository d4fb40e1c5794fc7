//! Who runs the command.
//!
//! # Safety
//! The call takes nothing and cannot fail.
#![allow(unsafe_code)]

/// Effective user id of the command.
#[must_use]
pub fn own() -> u32 {
    // SAFETY: no arguments, no memory.
    unsafe { libc::geteuid() }
}
