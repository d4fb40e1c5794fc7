//! Killing the command at a moment of its life that is chosen, not hit.
//!
//! The command runs under a tracer that counts the system calls with which it changes something outside
//! of itself, and kills it before or after one of them. A call that it is killed before is not made.
//!
//! # Safety
//!
//! ptrace requests on a child of this thread, with buffers of ours that outlive the request.
#![allow(unsafe_code)]

use crate::dist::dist;
use crate::poll::PATIENCE;
use crate::sys;
use std::io;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus, Stdio};

/// A system call of the command that changes something outside of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// ptrace, with its request.
    Ptrace(u64),
    /// Any other, with its number.
    Call(u64),
}

/// `PTRACE_INTERRUPT`.
pub const INTERRUPT: Act = Act::Ptrace(0x4207);
/// `PTRACE_SETREGS`.
pub const SETREGS: Act = Act::Ptrace(13);
/// `PTRACE_DETACH`.
pub const DETACH: Act = Act::Ptrace(17);
/// A write to the target's memory or to a file it will map.
pub const PWRITE: Act = Act::Call(libc::SYS_pwrite64 as u64);
/// A seal.
pub const FCNTL: Act = Act::Call(libc::SYS_fcntl as u64);

/// Calls that always count.
const ACTS: [i64; 5] =
    [libc::SYS_pwrite64, libc::SYS_process_vm_writev, libc::SYS_ftruncate, libc::SYS_flock, libc::SYS_bind];

/// When to kill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// Never: it runs to its end.
    Never,
    /// When it is about to do the act with this index.
    Before(usize),
    /// When it has done it.
    After(usize),
}

/// How a traced run went.
#[derive(Debug)]
pub struct Run {
    /// What it did, in order, up to its end.
    pub acts: Vec<Act>,
    /// How it ended.
    pub status: ExitStatus,
}

impl Run {
    /// Whether it was killed as asked.
    #[must_use]
    pub fn was_killed(&self) -> bool {
        self.status.signal() == Some(libc::SIGKILL)
    }
}

/// Runs `suture` and kills it at a moment.
///
/// # Panics
/// When it cannot be traced, or does not end.
#[must_use]
pub fn run(args: &[&str], moment: Moment) -> Run {
    let mut command = Command::new(&dist().suture);
    command.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    // SAFETY: between fork and exec two system calls are made, on no memory.
    unsafe {
        command.pre_exec(|| {
            sys::die_with_parent()?;
            done(libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0))
        });
    }
    let child = command.spawn().expect("starting suture").id().cast_signed();
    // Before it is reaped: the thread may start late.
    let watch = sys::watch(child);
    let watchdog = std::thread::spawn(move || {
        let in_time = watch.ends_within(3 * PATIENCE);
        if !in_time {
            sys::kill_if_there(child);
        }
        in_time
    });
    let run = Tracing { child, moment, acts: Vec::new() }.follow();
    assert!(watchdog.join().expect("a watchdog"), "suture {} hangs under its tracer", args.join(" "));
    run
}

/// What it does in a run that nobody disturbs.
///
/// # Panics
/// When it fails.
#[must_use]
pub fn acts(args: &[&str]) -> Vec<Act> {
    let run = run(args, Moment::Never);
    assert!(run.status.success(), "suture {}: {}", args.join(" "), run.status);
    run.acts
}

fn done(result: i64) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

struct Tracing {
    child: i32,
    moment: Moment,
    acts: Vec<Act>,
}

impl Tracing {
    fn follow(mut self) -> Run {
        // Its exec. From here on every thread of it stops at each of its system calls.
        let (_, status) = self.wait();
        assert!(libc::WIFSTOPPED(status), "suture did not start: {status:#x}");
        let options = libc::PTRACE_O_TRACESYSGOOD | libc::PTRACE_O_TRACECLONE | libc::PTRACE_O_EXITKILL;
        let set = self.request(libc::PTRACE_SETOPTIONS, self.child, options as usize);
        set.expect("options of the tracer");
        self.go_on(self.child, 0);
        loop {
            let (tid, status) = self.wait();
            if libc::WIFSTOPPED(status) {
                self.stopped(tid, status);
            } else if tid == self.child {
                return Run { acts: self.acts, status: ExitStatus::from_raw(status) };
            }
        }
    }

    /// The next event of a thread of the command. Events of other tests' children are other threads' to see.
    fn wait(&self) -> (i32, i32) {
        const OF_THIS_THREAD: i32 = 0x2000_0000;
        let mut status = 0;
        // SAFETY: the status lives for the call.
        let tid = unsafe { libc::waitpid(-1, &raw mut status, libc::__WALL | OF_THIS_THREAD) };
        assert!(tid > 0, "no child to wait for: {}", io::Error::last_os_error());
        (tid, status)
    }

    fn stopped(&mut self, tid: i32, status: i32) {
        match (libc::WSTOPSIG(status), status >> 16) {
            (signal, 0) if signal == libc::SIGTRAP | 0x80 => self.at_call(tid),
            // A thread's birth, on both sides.
            (_, event) if event != 0 => self.go_on(tid, 0),
            (libc::SIGSTOP | libc::SIGTRAP, _) => self.go_on(tid, 0),
            (signal, _) => self.go_on(tid, signal),
        }
    }

    fn at_call(&mut self, tid: i32) {
        /// `struct ptrace_syscall_info`, as far as it is looked at.
        #[repr(C)]
        #[derive(Default)]
        struct Info {
            op: u8,
            pad: [u8; 3],
            arch: u32,
            places: [u64; 2],
            nr: u64,
            args: [u64; 6],
            rest: [u64; 2],
        }
        let mut info = Info::default();
        // SAFETY: the kernel writes at most the size given into the structure.
        let got =
            unsafe { libc::ptrace(libc::PTRACE_GET_SYSCALL_INFO, tid, size_of::<Info>(), &raw mut info) };
        let act = match info.op {
            _ if got < 0 => None,
            libc::PTRACE_SYSCALL_INFO_ENTRY => act(info.nr, info.args),
            _ => None,
        };
        if let Some(act) = act {
            self.acts.push(act);
            if self.moment == Moment::Before(self.acts.len() - 1) {
                sys::kill_if_there(self.child);
            }
        }
        // Any exit after the act was begun is after it, but that of another thread may be too early; the
        // act's own thread is the only one that does anything by then.
        if info.op == libc::PTRACE_SYSCALL_INFO_EXIT
            && self.moment == Moment::After(self.acts.len().wrapping_sub(1))
        {
            sys::kill_if_there(self.child);
        }
        self.go_on(tid, 0);
    }

    fn go_on(&self, tid: i32, signal: i32) {
        // Fails for a thread that was killed in its stop.
        let _ = self.request(libc::PTRACE_SYSCALL, tid, signal as usize);
    }

    fn request(&self, request: libc::c_uint, tid: i32, data: usize) -> io::Result<()> {
        // SAFETY: plain numbers.
        done(unsafe { libc::ptrace(request, tid, 0, data) })
    }
}

fn act(nr: u64, args: [u64; 6]) -> Option<Act> {
    const F_ADD_SEALS: u64 = 1033;
    const FUTEX_PRIVATE: u64 = 128;
    let counts = match i64::try_from(nr).ok()? {
        libc::SYS_ptrace => return Some(Act::Ptrace(args[0])),
        libc::SYS_fcntl => args[1] == F_ADD_SEALS,
        // What is shared is shared with the worker; what is private is the command's own.
        libc::SYS_futex => args[1] & FUTEX_PRIVATE == 0,
        libc::SYS_prlimit64 => args[0] != 0,
        nr => ACTS.contains(&nr),
    };
    counts.then_some(Act::Call(nr))
}
