//! Waits whose time-out the kernel would start again.
//!
//! `epoll_wait`, `sigtimedwait` and `semtimedop` answer a stop with −EINTR, and are made again with the
//! time-out they were made with. If such a thread is the only one, the call is made again with the time
//! that is left: written into the register, or into a `struct timespec` beside the entry that the register
//! is pointed at.
//!
//! Nothing tells how long a call has been waiting, but the scheduler tells when the thread ran last. A
//! thread that ran in between without leaving the call makes the rest too long, never too short. That it is
//! still the same call is known by its arguments, its place and the number of times the thread has gone to
//! sleep: once more, in our stop.
//!
//! A register of the program is changed by that, so it is only done where nobody looks at it again: in the
//! wrappers of a C library, whose callers expect argument registers to be lost.
//!
//! A call on a socket with a time-out of its own (`SO_RCVTIMEO`, `SO_SNDTIMEO`) has no register for it, and the
//! socket's option is everybody's who uses the socket. There the thread waits in the entry for the rest of the
//! time, with `ppoll`, and makes the call when what it waits for has come.

use crate::sys::proc::{self, Blocked, ThreadFacts};
use crate::sys::ptrace::Registers;
use crate::sys::socket::{self, Side};
use crate::target::Target;
use std::time::{Duration, Instant};
use suture_elf::{Addr, MapsSnapshot, Memory};

/// Where a call has its time-out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Milliseconds in the fourth argument.
    Millis,
    /// A pointer to a `struct timespec` in the argument with that index.
    Timespec(usize),
    /// Of the socket that is the first argument.
    Socket(Side),
}

/// A thread asleep in such a call, looked at before it is stopped.
#[derive(Clone, Copy, Debug)]
pub struct Asleep {
    call: Blocked,
    place: Place,
    timeout: Duration,
    /// How long it had slept at `looked`.
    slept: Duration,
    looked: Instant,
    switches: u64,
}

/// How the call is to be made again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rest {
    /// This in the fourth argument.
    Millis(u64),
    /// A pointer to this in the argument with that index.
    Timespec(usize, [u64; 2]),
    /// Not before there is something for it, or this time is over.
    Wait {
        /// The socket and what is waited for, a `struct pollfd`.
        wait: u64,
        /// How long.
        left: [u64; 2],
        /// What the call results in then.
        over: i32,
    },
}

impl Asleep {
    /// Looks at a thread; `None` when there is nothing to be done for it, or nothing is known.
    #[must_use]
    pub fn look(target: &Target, thread: &ThreadFacts) -> Option<Self> {
        let call = thread.call?;
        let place = place(call.nr)?;
        let timeout = match place {
            Place::Millis => Duration::from_millis(u64::try_from(call.args[3] as i32).ok()?),
            Place::Timespec(arg) => {
                let at = Addr(call.args[arg]);
                let (sec, nsec) = (target.memory.read_u64(at).ok()?, target.memory.read_u64(at + 8).ok()?);
                Duration::new(sec, u32::try_from(nsec).ok().filter(|n| *n < 1_000_000_000)?)
            }
            Place::Socket(side) => {
                let fd = i32::try_from(call.args[0]).ok()?;
                // None: it waits for ever.
                socket::timeout(target.pid(), fd, side).ok().filter(|time| !time.is_zero())?
            }
        };
        if !matches!(place, Place::Socket(_)) && !in_libc(&target.maps().ok()?, Addr(call.pc)) {
            return None;
        }
        let sleep = proc::sleep(target.pid(), thread.tid)?;
        let slept = proc::slept(target.pid(), thread.tid, &sleep)?;
        let looked = Instant::now();
        // Read before the rest: it must have been in this very sleep at all of these looks.
        let same = proc::blocked(target.pid(), thread.tid) == Some(call);
        same.then_some(Self { call, place, timeout, slept, looked, switches: sleep.switches })
    }

    /// What is left of the time-out of the thread, now stopped with these registers. `None`: it is not the
    /// call that was looked at.
    #[must_use]
    pub fn rest(&self, target: &Target, tid: i32, regs: &Registers) -> Option<Rest> {
        let args = [regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8, regs.r9];
        let now = Blocked { nr: regs.orig_rax, args, sp: regs.rsp, pc: regs.rip };
        let switches = proc::sleep(target.pid(), tid)?.switches;
        (now == self.call && switches == self.switches + 1).then(|| {
            rest(&self.call, self.place, self.timeout.saturating_sub(self.slept + self.looked.elapsed()))
        })
    }
}

fn place(nr: u64) -> Option<Place> {
    match nr {
        // epoll_wait, epoll_pwait
        232 | 281 => Some(Place::Millis),
        // semtimedop, epoll_pwait2
        220 | 441 => Some(Place::Timespec(3)),
        // rt_sigtimedwait
        128 => Some(Place::Timespec(2)),
        // read, readv, recvfrom, recvmsg, accept, accept4
        0 | 19 | 45 | 47 | 43 | 288 => Some(Place::Socket(Side::Receive)),
        // write, writev, sendto, sendmsg, connect
        1 | 20 | 44 | 46 | CONNECT => Some(Place::Socket(Side::Send)),
        _ => None,
    }
}

const CONNECT: u64 = 42;

/// A rest, for the call. Milliseconds are rounded up: a wait may be late, never early.
fn rest(call: &Blocked, place: Place, left: Duration) -> Rest {
    let timespec = [left.as_secs(), u64::from(left.subsec_nanos())];
    match place {
        Place::Millis => {
            let millis = left.as_millis() + u128::from(!left.subsec_nanos().is_multiple_of(1_000_000));
            Rest::Millis(u64::try_from(millis).unwrap_or(u64::MAX))
        }
        Place::Timespec(arg) => Rest::Timespec(arg, timespec),
        Place::Socket(side) => {
            let events = if side == Side::Receive { libc::POLLIN } else { libc::POLLOUT };
            let wait = call.args[0] & 0xffff_ffff | u64::from(events.cast_unsigned()) << 32;
            let over = if call.nr == CONNECT { -libc::EINPROGRESS } else { -libc::EAGAIN };
            Rest::Wait { wait, left: timespec, over }
        }
    }
}

/// Whether an address is in the code of a C library.
fn in_libc(maps: &MapsSnapshot, at: Addr) -> bool {
    let region = maps.regions.iter().find(|r| r.exec && (r.start..r.end).contains(&at.0));
    let path = region.and_then(|r| r.path.as_deref()).unwrap_or_default();
    let name = path.rsplit('/').next().unwrap_or_default();
    ["libc.so", "libc-2", "libpthread", "ld-musl"].iter().any(|libc| name.starts_with(libc))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rest_is_never_shorter_than_what_is_left() {
        let call = |nr, fd| Blocked { nr, args: [fd, 0, 0, 0, 0, 0], sp: 0, pc: 0 };
        let millis = |left| rest(&call(232, 5), Place::Millis, left);
        assert_eq!(millis(Duration::from_micros(99_000)), Rest::Millis(99));
        assert_eq!(millis(Duration::from_micros(99_001)), Rest::Millis(100));
        assert_eq!(millis(Duration::ZERO), Rest::Millis(0));
        let left = Duration::new(3, 7);
        assert_eq!(rest(&call(128, 0), Place::Timespec(2), left), Rest::Timespec(2, [3, 7]));
        let socket = |nr| rest(&call(nr, 5), place(nr).unwrap(), left);
        let of = |events: u64, over| Rest::Wait { wait: 5 | events << 32, left: [3, 7], over };
        assert_eq!(socket(45), of(1, -libc::EAGAIN), "recvfrom");
        assert_eq!(socket(44), of(4, -libc::EAGAIN), "sendto");
        assert_eq!(socket(42), of(4, -libc::EINPROGRESS), "connect");
    }

    #[test]
    fn only_calls_of_a_c_library_are_changed() {
        let maps = "1000-2000 r-xp 00000000 00:01 5 /usr/lib/x86_64-linux-gnu/libc.so.6\n\
                    3000-4000 r-xp 00000000 00:01 6 /usr/bin/program\n\
                    5000-6000 r--p 00000000 00:01 5 /usr/lib/x86_64-linux-gnu/libc.so.6\n";
        let maps = MapsSnapshot::parse(maps).unwrap();
        let is = |at| in_libc(&maps, Addr(at));
        assert!(is(0x1000) && is(0x1fff) && !is(0x2000) && !is(0x3000) && !is(0x5000));
    }
}
