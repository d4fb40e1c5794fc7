//! Which thread to borrow.
//!
//! Any thread will do; what differs is what the stop costs it. The kernel restarts most waits with the time
//! they had left, a few with the whole of it again. Those are asked last.

use super::Place;
use crate::error::Error;
use crate::sys::proc::{self, Blocked, ThreadFacts};
use std::fs;

/// How well a thread suits, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rank {
    /// Sleeps in a call that goes on as if nothing had happened.
    Waits,
    /// Runs.
    Runs,
    /// Sleeps in a call nothing is known of, or on a socket that may have a time-out.
    Unknown,
    /// Sleeps in a call that the kernel would start with its whole time-out again.
    Timed,
}

/// Good candidates that are enough: looking at every thread of a large program costs more than the stop.
const ENOUGH: usize = 4;

/// Threads that can be stopped, most suitable first, and why the others cannot.
#[derive(Debug, Default)]
pub struct Candidates {
    /// Those that can.
    pub fit: Vec<(Rank, ThreadFacts)>,
    /// Reasons of the others.
    pub unfit: Vec<&'static str>,
}

/// Looks at the threads of a process.
///
/// # Errors
/// When the process is gone.
pub fn candidates(pid: i32, place: &dyn Place) -> Result<Candidates, Error> {
    let mut found = Candidates::default();
    for tid in proc::threads(pid).map_err(|e| Error::from_proc(pid, &e))? {
        let Some(thread) = proc::thread_facts(pid, tid) else { continue };
        match unfit(&thread).or_else(|| place.unfit(&thread)) {
            Some(why) => found.unfit.push(why),
            None => found.fit.push((rank(pid, &thread), thread)),
        }
        if found.fit.iter().filter(|(rank, _)| *rank == Rank::Waits).count() == ENOUGH {
            break;
        }
    }
    found.fit.sort_by_key(|(rank, _)| *rank);
    Ok(found)
}

/// Why a thread cannot be stopped, if it cannot.
fn unfit(thread: &ThreadFacts) -> Option<&'static str> {
    match thread.state {
        _ if thread.kernel_made => Some("made by the kernel"),
        'Z' | 'X' => Some("ended"),
        't' => Some("held by a tracer"),
        'D' if thread.waits_for_vfork() => Some("waits for a child made by vfork"),
        'D' => Some("in uninterruptible sleep"),
        _ => None,
    }
}

fn rank(pid: i32, thread: &ThreadFacts) -> Rank {
    match &thread.call {
        _ if thread.state == 'R' => Rank::Runs,
        Some(call) if thread.state == 'S' => rank_call(call, |fd| is_socket(pid, fd)),
        _ => Rank::Unknown,
    }
}

/// What a stop does to a call (Linux 6.18): `-ERESTARTSYS`, `-ERESTARTNOHAND` without a time-out and
/// `-ERESTART_RESTARTBLOCK` go on exactly; select and poll calls write the time that is left where the
/// program gave it; calls that return `-EINTR` with a relative time-out start it again.
fn rank_call(call: &Blocked, is_socket: impl Fn(u64) -> bool) -> Rank {
    let infinite = |endless: bool| if endless { Rank::Waits } else { Rank::Timed };
    match call.nr {
        // poll, select, pselect6, ppoll, nanosleep, clock_nanosleep, futex
        7 | 23 | 270 | 271 | 35 | 230 | 202 => Rank::Waits,
        // pause, rt_sigsuspend, wait4, waitid, semop, msgsnd, msgrcv, fcntl, flock, mq_timedsend,
        // mq_timedreceive
        34 | 130 | 61 | 247 | 65 | 69 | 70 | 72 | 73 | 242 | 243 => Rank::Waits,
        // epoll_wait, epoll_pwait: milliseconds
        232 | 281 => infinite((call.args[3] as i32) < 0),
        // semtimedop, epoll_pwait2
        220 | 441 => infinite(call.args[3] == 0),
        // rt_sigtimedwait
        128 => infinite(call.args[2] == 0),
        // recvmmsg, io_getevents, io_pgetevents
        299 | 208 | 333 => infinite(call.args[4] == 0),
        // io_uring_enter may have a time-out in a structure
        426 => Rank::Timed,
        // read, write, readv, writev: sockets may have time-outs of their own
        0 | 1 | 19 | 20 if !is_socket(call.args[0]) => Rank::Waits,
        _ => Rank::Unknown,
    }
}

fn is_socket(pid: i32, fd: u64) -> bool {
    let leads_to = fs::read_link(format!("/proc/{pid}/fd/{fd}")).unwrap_or_default();
    leads_to.to_string_lossy().starts_with("socket:")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rank_of(nr: u64, args: [u64; 6]) -> Rank {
        rank_call(&Blocked { nr, args, sp: 0, pc: 0 }, |fd| fd == 9)
    }

    #[test]
    fn only_waits_that_lose_no_time_come_first() {
        assert_eq!(rank_of(232, [5, 0, 10, 0xffff_ffff, 0, 0]), Rank::Waits, "epoll_wait for ever");
        assert_eq!(rank_of(232, [5, 0, 10, 100, 0, 0]), Rank::Timed, "epoll_wait for 100 ms");
        assert_eq!(rank_of(128, [1, 0, 0, 8, 0, 0]), Rank::Waits, "sigwaitinfo");
        assert_eq!(rank_of(128, [1, 0, 0x7000, 8, 0, 0]), Rank::Timed, "sigtimedwait");
        assert_eq!(rank_of(202, [1, 0, 0, 0x7000, 0, 0]), Rank::Waits, "the kernel keeps a futex's time");
        assert_eq!(rank_of(0, [3, 0, 0, 0, 0, 0]), Rank::Waits, "read of a pipe");
        assert_eq!(rank_of(0, [9, 0, 0, 0, 0, 0]), Rank::Unknown, "read of a socket");
        assert_eq!(rank_of(45, [9, 0, 0, 0, 0, 0]), Rank::Unknown, "recvfrom");
        assert!(Rank::Waits < Rank::Runs && Rank::Runs < Rank::Unknown && Rank::Unknown < Rank::Timed);
    }

    #[test]
    fn threads_that_cannot_be_stopped_are_left_alone() {
        let thread = |state, nr: Option<u64>| ThreadFacts {
            tid: 1,
            state,
            kernel_made: false,
            call: nr.map(|nr| Blocked { nr, args: [0; 6], sp: 0, pc: 0 }),
        };
        assert_eq!(unfit(&thread('S', Some(0))), None);
        assert_eq!(unfit(&thread('R', None)), None);
        assert!(unfit(&thread('D', Some(56))).is_some_and(|why| why.contains("vfork")));
        assert!(unfit(&thread('D', Some(0))).is_some_and(|why| why.contains("uninterruptible")));
        assert!(unfit(&thread('Z', None)).is_some());
        assert!(unfit(&ThreadFacts { kernel_made: true, ..thread('S', None) }).is_some());
    }
}
