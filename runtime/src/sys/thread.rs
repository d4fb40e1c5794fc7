//! Threads: waiting, masks, barriers, time, exit.
#![allow(unsafe_code)]

use super::raw::syscall;
use super::{Errno, nr};
use core::sync::atomic::AtomicU32;

#[repr(C)]
struct Timespec {
    sec: i64,
    nsec: i64,
}

const FUTEX_WAIT: u64 = 0;
const FUTEX_WAKE: u64 = 1;

/// Waits until `word` is woken, no longer holds `expected`, or `nanos` (< 1 s) are over. Shared futex.
pub fn futex_wait(word: &AtomicU32, expected: u32, nanos: u32) -> Result<(), Errno> {
    futex_wait_at((&raw const *word).addr() as u64, expected, nanos)
}

/// [`futex_wait`] for the four bytes at an address.
pub fn futex_wait_at(word: u64, expected: u32, nanos: u32) -> Result<(), Errno> {
    let timeout = Timespec { sec: 0, nsec: i64::from(nanos) };
    let timeout = (&raw const timeout).expose_provenance() as u64;
    // SAFETY: the kernel reads `timeout`, which outlives the call, and the word if it can.
    unsafe { syscall(nr::FUTEX, [word, FUTEX_WAIT, u64::from(expected), timeout, 0, 0]) }.map(drop)
}

/// Wakes everybody who waits for `word`.
pub fn futex_wake(word: &AtomicU32) {
    futex_wake_at((&raw const *word).addr() as u64);
}

/// [`futex_wake`] for an address.
pub fn futex_wake_at(word: u64) {
    // SAFETY: touches no memory.
    let _ = unsafe { syscall(nr::FUTEX, [word, FUTEX_WAKE, i32::MAX as u64, 0, 0, 0]) };
}

/// Lets `nanos` (< 1 s) pass.
pub fn pause(nanos: u32) {
    // Nobody knows this word: the wait ends with its time. One system call fewer for filters.
    let word = AtomicU32::new(0);
    let _ = futex_wait(&word, 0, nanos);
}

const CLOCK_REALTIME: u64 = 0;
const CLOCK_MONOTONIC: u64 = 1;
const CLOCK_THREAD_CPUTIME_ID: u64 = 3;

fn clock(which: u64) -> u64 {
    let mut now = Timespec { sec: 0, nsec: 0 };
    let place = (&raw mut now).expose_provenance() as u64;
    // SAFETY: the kernel writes one timespec into `now`.
    let _ = unsafe { syscall(nr::CLOCK_GETTIME, [which, place, 0, 0, 0, 0]) };
    (now.sec as u64).wrapping_mul(1_000_000_000).wrapping_add(now.nsec as u64)
}

/// `CLOCK_REALTIME` in nanoseconds.
pub fn realtime() -> u64 {
    clock(CLOCK_REALTIME)
}

/// `CLOCK_MONOTONIC` in nanoseconds.
pub fn monotonic() -> u64 {
    clock(CLOCK_MONOTONIC)
}

/// Processor time of the calling thread in nanoseconds.
pub fn cpu_time() -> u64 {
    clock(CLOCK_THREAD_CPUTIME_ID)
}

/// Thread id of the caller.
pub fn gettid() -> u32 {
    // SAFETY: touches no memory.
    unsafe { syscall(nr::GETTID, [0; 6]) }.map_or(0, |tid| tid as u32)
}

/// Process id of the caller.
pub fn getpid() -> u32 {
    // SAFETY: touches no memory.
    unsafe { syscall(nr::GETPID, [0; 6]) }.map_or(0, |pid| pid as u32)
}

/// Whether a thread of this process, whose number is `pid`, exists. Number 0 is nobody's.
pub fn exists(pid: u32, tid: u32) -> bool {
    // The kernel refuses it as invalid, and that would read as if somebody were there.
    if tid == 0 {
        return false;
    }
    let pid = u64::from(pid);
    // SAFETY: signal 0 is only checked, never sent.
    let found = unsafe { syscall(nr::TGKILL, [pid, u64::from(tid), 0, 0, 0, 0]) };
    found != Err(super::ESRCH)
}

/// Leaves the calling thread, and only it.
///
/// # Safety
///
/// The thread must be the worker: a thread of the program would be gone without its libc knowing.
pub unsafe fn exit_thread() -> ! {
    loop {
        // SAFETY: the caller's promise. The kernel clears the word given to clone afterwards.
        let _ = unsafe { syscall(nr::EXIT, [0; 6]) };
    }
}

const SIG_SETMASK: u64 = 2;

/// Sets the calling thread's signal mask.
pub fn set_mask(mask: u64) -> Result<(), Errno> {
    let place = (&raw const mask).expose_provenance() as u64;
    // SAFETY: the kernel reads 8 bytes of `mask`.
    unsafe { syscall(nr::RT_SIGPROCMASK, [SIG_SETMASK, place, 0, 8, 0, 0]) }.map(drop)
}

const MEMBARRIER_SYNC_CORE: u64 = 1 << 5;
const MEMBARRIER_REGISTER_SYNC_CORE: u64 = 1 << 6;

/// Registers the process for [`sync_core`].
pub fn register_sync_core() -> Result<(), Errno> {
    // SAFETY: touches no memory.
    unsafe { syscall(nr::MEMBARRIER, [MEMBARRIER_REGISTER_SYNC_CORE, 0, 0, 0, 0, 0]) }.map(drop)
}

/// Every thread of the process passes a core-serialising instruction before it runs on.
pub fn sync_core() -> Result<(), Errno> {
    let barrier = || {
        // SAFETY: touches no memory.
        unsafe { syscall(nr::MEMBARRIER, [MEMBARRIER_SYNC_CORE, 0, 0, 0, 0, 0]) }.map(drop)
    };
    match barrier() {
        // Not registered: the constructor was refused (a filter that is gone since, say).
        Err(super::EPERM) => {
            register_sync_core()?;
            barrier()
        }
        other => other,
    }
}
