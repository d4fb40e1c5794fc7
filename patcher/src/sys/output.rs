//! Whether somebody still reads the command's output.
//!
//! # Safety
//! `poll` gets one entry of this function.
#![allow(unsafe_code)]

use std::time::Duration;

/// Waits for a while, or until the reader of standard output has closed his end; says whether he has.
#[must_use]
pub fn closes_within(time: Duration) -> bool {
    let mut entry = libc::pollfd { fd: libc::STDOUT_FILENO, events: 0, revents: 0 };
    let ms = i32::try_from(time.as_millis()).unwrap_or(i32::MAX);
    // SAFETY: one entry, which outlives the call; nothing is asked for, so only a hang-up or an error ends the wait.
    unsafe { libc::poll(&raw mut entry, 1, ms) > 0 }
}
