//! Being scheduled at once while a thread of somebody else's is held.
//!
//! Between the stop and the release the target's thread waits for this process. On a machine with
//! more work than processors that was up to 0.3 s of other people's time slices.
//!
//! # Safety
//! Scheduling calls on the calling thread with plain structs of ours.
#![allow(unsafe_code)]

use std::time::Duration;

/// Real-time priority of the calling thread until dropped; nothing where that is not permitted.
#[derive(Debug)]
pub struct Urgent {
    before: Option<(i32, libc::sched_param)>,
}

impl Urgent {
    /// Begins.
    #[must_use]
    pub fn begin() -> Self {
        let mut param = libc::sched_param { sched_priority: 0 };
        // SAFETY: thread 0 is the calling one; `param` is ours.
        let before = unsafe {
            let policy = libc::sched_getscheduler(0);
            let known = policy >= 0 && libc::sched_getparam(0, &raw mut param) == 0;
            let urgent = libc::sched_param { sched_priority: 1 };
            let done = known && libc::sched_setscheduler(0, libc::SCHED_RR, &raw const urgent) == 0;
            done.then_some((policy, param))
        };
        Self { before }
    }
}

impl Drop for Urgent {
    fn drop(&mut self) {
        if let Some((policy, param)) = self.before {
            // SAFETY: as above; going back to what it was needs no right.
            unsafe {
                libc::sched_setscheduler(0, policy, &raw const param);
            }
        }
    }
}

/// Keeps the kernel's notice of a stopped thread pending, so that [`await_child`] can sleep on it.
/// To be called once, before the process has a second thread.
pub fn keep_child_notices() {
    // SAFETY: `set` is initialised by sigemptyset before use.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGCHLD);
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
    }
}

/// Sleeps until some traced thread changed its state, at most `span`. Several threads may wait: the
/// notice wakes one of them, the others look again after `span`.
pub fn await_child(span: Duration) {
    let timeout = libc::timespec { tv_sec: 0, tv_nsec: i64::from(span.subsec_nanos()) };
    // SAFETY: as above; a null info is allowed.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGCHLD);
        libc::sigtimedwait(&raw const set, std::ptr::null_mut(), &raw const timeout);
    }
}
