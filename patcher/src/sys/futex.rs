//! Shared futexes, for the channel.
//!
//! # Safety
//! `futex(2)` only compares and sleeps; the word is a live reference for the length of the call.
#![allow(unsafe_code)]

use std::sync::atomic::AtomicU32;
use std::time::Duration;

/// Sleeps until `word` is woken, is no longer `value`, or `span` has passed.
pub fn wait(word: &AtomicU32, value: u32, span: Duration) {
    let timeout = libc::timespec {
        tv_sec: libc::time_t::try_from(span.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_nsec: i64::from(span.subsec_nanos()),
    };
    // SAFETY: `word` and `timeout` outlive the call. Not FUTEX_PRIVATE: the page is shared.
    unsafe {
        libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAIT, value, &raw const timeout, 0, 0);
    }
}

/// Wakes everybody who sleeps on `word`.
pub fn wake(word: &AtomicU32) {
    // SAFETY: `word` outlives the call.
    unsafe {
        libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, i32::MAX, 0, 0, 0);
    }
}
