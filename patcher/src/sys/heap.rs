//! The command's own heap.
//!
//! # Safety
//! `mallopt` only changes settings of the allocator, before any other thread exists.
#![allow(unsafe_code)]

/// Lets the heap grow in large steps and never shrink: a command lives for milliseconds. By default each
/// thread's heap grows page by page (300 calls of mprotect for one apply), and each larger vector is a
/// mapping of its own.
pub fn grow_in_steps() {
    const STEP: i32 = 4 << 20;
    let settings = [
        (libc::M_ARENA_MAX, 1),
        (libc::M_TOP_PAD, STEP),
        (libc::M_MMAP_THRESHOLD, 32 << 20),
        (libc::M_TRIM_THRESHOLD, i32::MAX),
    ];
    for (setting, value) in settings {
        // SAFETY: called first thing in `main`; a refused setting leaves the default.
        unsafe { libc::mallopt(setting, value) };
    }
}
