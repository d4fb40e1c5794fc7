//! One short stop of one thread: SEIZE, INTERRUPT, look, change, let go.
//!
//! The rules (`PTRACE_SEIZE` never sends a signal; only the stop that INTERRUPT asked for counts;
//! signals that arrive meanwhile are passed on; every wait has a deadline) follow `ptrace(2)`.
//!
//! # Safety
//! All requests name a thread id and take plain numbers or buffers of ours.
#![allow(unsafe_code)]

use super::time::Deadline;
use super::urgent::await_child;
use crate::seccomp::bpf::Instruction;
use std::io;
use std::time::Duration;

/// Registers of a stopped thread, as `PTRACE_GETREGS` gives them.
pub type Registers = libc::user_regs_struct;

const PTRACE_SEIZE: libc::c_uint = 0x4206;
const PTRACE_INTERRUPT: libc::c_uint = 0x4207;
const PTRACE_GETSIGMASK: libc::c_uint = 0x420a;
const PTRACE_SETSIGMASK: libc::c_uint = 0x420b;
const PTRACE_SECCOMP_GET_FILTER: libc::c_uint = 0x420c;
const PTRACE_EVENT_STOP: i32 = 128;

fn request(op: libc::c_uint, tid: i32, addr: usize, data: usize) -> io::Result<()> {
    // SAFETY: callers below pass numbers, or addresses of buffers large enough for the request.
    let done = unsafe { libc::ptrace(op, tid, addr, data) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Why a thread could not be stopped.
#[derive(Debug)]
pub enum StopError {
    /// The thread, or the process, ended.
    Gone,
    /// The whole process is in a group stop (SIGSTOP and its kin); it stays so.
    Stopped(i32),
    /// It did not stop within the deadline (uninterruptible sleep).
    Deadline,
    /// The kernel refused.
    Os(io::Error),
}

/// A thread held in a ptrace stop. Dropping it lets the thread go on, unchanged unless registers
/// were set. While it is held no signal reaches the thread.
#[derive(Debug)]
pub struct StoppedThread {
    tid: i32,
    detached: bool,
}

impl StoppedThread {
    /// Seizes and stops one thread.
    ///
    /// # Errors
    /// See [`StopError`]. On error the thread runs on as before.
    pub fn stop(tid: i32, deadline: Deadline) -> Result<Self, StopError> {
        request(PTRACE_SEIZE, tid, 0, 0).map_err(|e| match e.raw_os_error() {
            Some(libc::ESRCH) => StopError::Gone,
            _ => StopError::Os(e),
        })?;
        let held = Self { tid, detached: false };
        request(PTRACE_INTERRUPT, tid, 0, 0).map_err(|_| StopError::Gone)?;
        loop {
            let mut status = 0;
            // SAFETY: `status` is ours.
            let got = unsafe { libc::waitpid(tid, &raw mut status, libc::__WALL | libc::WNOHANG) };
            match got {
                0 if deadline.passed() => return Err(StopError::Deadline),
                0 => await_child(Duration::from_micros(500)),
                n if n == tid && libc::WIFSTOPPED(status) => {
                    let (signal, event) = (libc::WSTOPSIG(status), status >> 16);
                    match (signal, event) {
                        (libc::SIGTRAP, PTRACE_EVENT_STOP) => return Ok(held),
                        (stop, PTRACE_EVENT_STOP) => return Err(StopError::Stopped(stop)),
                        // A signal on its way to the program: pass it on and wait for our own stop.
                        (other, _) => {
                            request(libc::PTRACE_CONT, tid, 0, other as usize).map_err(|_| StopError::Gone)?
                        }
                    }
                }
                _ => return Err(StopError::Gone),
            }
        }
    }

    /// The thread's number.
    #[must_use]
    pub fn tid(&self) -> i32 {
        self.tid
    }

    /// Reads the general registers.
    ///
    /// # Errors
    /// When the thread was killed meanwhile.
    pub fn registers(&self) -> io::Result<Registers> {
        // SAFETY: all-zero is a valid value of this plain struct.
        let mut regs: Registers = unsafe { std::mem::zeroed() };
        request(libc::PTRACE_GETREGS, self.tid, 0, (&raw mut regs).addr())?;
        Ok(regs)
    }

    /// Sets the general registers.
    ///
    /// # Errors
    /// When the thread was killed meanwhile.
    pub fn set_registers(&self, regs: &Registers) -> io::Result<()> {
        request(libc::PTRACE_SETREGS, self.tid, 0, std::ptr::from_ref(regs).addr())
    }

    /// Reads the signal mask.
    ///
    /// # Errors
    /// When the thread was killed meanwhile.
    pub fn signal_mask(&self) -> io::Result<u64> {
        let mut mask = 0u64;
        request(PTRACE_GETSIGMASK, self.tid, 8, (&raw mut mask).addr())?;
        Ok(mask)
    }

    /// Sets the signal mask.
    ///
    /// # Errors
    /// When the thread was killed meanwhile.
    pub fn set_signal_mask(&self, mask: u64) -> io::Result<()> {
        request(PTRACE_SETSIGMASK, self.tid, 8, (&raw const mask).addr())
    }

    /// Reads the thread's seccomp filters, newest first.
    ///
    /// # Errors
    /// `EACCES` without `CAP_SYS_ADMIN`, or when we run under a filter ourselves.
    pub fn seccomp_filters(&self) -> io::Result<Vec<Vec<Instruction>>> {
        let mut filters = Vec::new();
        loop {
            let index = filters.len();
            // SAFETY: with a null buffer the request only returns the filter's length.
            let count = unsafe { libc::ptrace(PTRACE_SECCOMP_GET_FILTER, self.tid, index, 0) };
            let Ok(count) = usize::try_from(count) else {
                let error = io::Error::last_os_error();
                return if error.raw_os_error() == Some(libc::ENOENT) { Ok(filters) } else { Err(error) };
            };
            let mut raw = vec![libc::sock_filter { code: 0, jt: 0, jf: 0, k: 0 }; count];
            request(PTRACE_SECCOMP_GET_FILTER, self.tid, index, raw.as_mut_ptr().addr())?;
            let program = raw.iter().map(|i| Instruction { code: i.code, jt: i.jt, jf: i.jf, k: i.k });
            filters.push(program.collect());
        }
    }

    /// Lets the thread run on with the registers it has now.
    ///
    /// # Errors
    /// When the thread was killed meanwhile.
    pub fn release(mut self) -> io::Result<()> {
        self.detached = true;
        request(libc::PTRACE_DETACH, self.tid, 0, 0)
    }
}

impl Drop for StoppedThread {
    fn drop(&mut self) {
        if !self.detached {
            // Nothing to report to: a thread that cannot be let go is dead already, and if this
            // process dies the kernel detaches.
            let _ = request(libc::PTRACE_DETACH, self.tid, 0, 0);
        }
    }
}
