//! One short stop of one thread: SEIZE, INTERRUPT, look, change, let go.
//!
//! The rules (`PTRACE_SEIZE` never sends a signal; only the stop that INTERRUPT asked for counts;
//! signals that arrive meanwhile are passed on; every wait has a deadline) follow `ptrace(2)`.
//!
//! A thread that dies while it is traced stays until its tracer has waited for it, and an exec of its
//! process waits as long. So a [`StoppedThread`] that cannot be let go any more is waited for.
//!
//! A thread that was asked to stop and does not (an uninterruptible wait) cannot be asked to forget it. The
//! kernel lets it go when the *thread of ours* that asked it ends; so who asks ends soon after.
//!
//! # Safety
//! All requests name a thread id and take plain numbers or buffers of ours.
#![allow(unsafe_code)]

use super::proc;
use super::time::Deadline;
use super::urgent::await_child;
use crate::seccomp::bpf::Instruction;
use std::io;
use std::time::Duration;
use suture_runtime::worker::SYNCHRONOUS;

/// Registers of a stopped thread, as `PTRACE_GETREGS` gives them.
pub type Registers = libc::user_regs_struct;

const PTRACE_SEIZE: libc::c_uint = 0x4206;
const PTRACE_INTERRUPT: libc::c_uint = 0x4207;
const PTRACE_GETSIGMASK: libc::c_uint = 0x420a;
const PTRACE_SETSIGMASK: libc::c_uint = 0x420b;
const PTRACE_SECCOMP_GET_FILTER: libc::c_uint = 0x420c;
const PTRACE_GET_RSEQ_CONFIGURATION: libc::c_uint = 0x420f;
const NT_X86_SHSTK: usize = 0x204;
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
    Stopped,
    /// The kernel refused.
    Os(io::Error),
}

fn seize(tid: i32) -> Result<(), StopError> {
    request(PTRACE_SEIZE, tid, 0, 0).map_err(|e| match e.raw_os_error() {
        Some(libc::ESRCH) => StopError::Gone,
        // What the kernel says of a thread that has ended and is still there, too.
        Some(libc::EPERM) if has_ended(tid) => StopError::Gone,
        _ => StopError::Os(e),
    })
}

fn has_ended(tid: i32) -> bool {
    matches!(proc::state(tid, tid), None | Some('Z' | 'X'))
}

/// A thread that was asked to stop, and then is held in a ptrace stop. Dropping it lets the thread go on,
/// unchanged unless registers were set. While it is held no signal reaches the thread.
#[derive(Debug)]
pub struct StoppedThread {
    tid: i32,
    /// A stop was seen; before it there is nothing to let go.
    stopped: bool,
    detached: bool,
}

impl StoppedThread {
    /// Asks one thread to stop.
    ///
    /// # Errors
    /// [`StopError::Gone`], or what the kernel says.
    pub fn ask(tid: i32) -> Result<Self, StopError> {
        seize(tid)?;
        let asked = Self { tid, stopped: false, detached: false };
        request(PTRACE_INTERRUPT, tid, 0, 0).map_err(|_| StopError::Gone)?;
        Ok(asked)
    }

    /// Waits until the thread has stopped; false when it has not by then. Only a thread that has
    /// stopped may be asked for anything below.
    ///
    /// # Errors
    /// See [`StopError`]. On error the thread runs on as before.
    pub fn await_stop(&mut self, deadline: Deadline) -> Result<bool, StopError> {
        loop {
            let mut status = 0;
            // SAFETY: `status` is ours.
            let got = unsafe { libc::waitpid(self.tid, &raw mut status, libc::__WALL | libc::WNOHANG) };
            match got {
                0 if deadline.passed() => return Ok(false),
                0 => await_child(Duration::from_micros(500)),
                n if n == self.tid && libc::WIFSTOPPED(status) => {
                    let (signal, event) = (libc::WSTOPSIG(status), status >> 16);
                    self.stopped = true;
                    match (signal, event) {
                        (libc::SIGTRAP, PTRACE_EVENT_STOP) => return Ok(true),
                        (_, PTRACE_EVENT_STOP) => return Err(StopError::Stopped),
                        // A signal on its way to the program: pass it on and wait for our own stop.
                        (other, _) => {
                            self.stopped = false;
                            let passed = request(libc::PTRACE_CONT, self.tid, 0, other as usize);
                            passed.map_err(|_| StopError::Gone)?;
                        }
                    }
                }
                // It ended, and this was its end; or there is no such thread of ours.
                _ => {
                    self.detached = true;
                    return Err(StopError::Gone);
                }
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

    /// Whether the thread has a shadow stack.
    #[must_use]
    pub fn has_shadow_stack(&self) -> bool {
        let mut pointer = 0u64;
        let mut place = libc::iovec { iov_base: (&raw mut pointer).cast(), iov_len: 8 };
        // Refused where the kernel or the processor has none, or the thread does not use it.
        request(libc::PTRACE_GETREGSET, self.tid, NT_X86_SHSTK, (&raw mut place).addr()).is_ok()
    }

    /// Address of the thread's area for restartable sequences (`struct rseq`), if it has registered one.
    ///
    /// # Errors
    /// When the thread was killed meanwhile.
    pub fn rseq_area(&self) -> io::Result<Option<u64>> {
        /// `struct ptrace_rseq_configuration`.
        #[repr(C)]
        #[derive(Default)]
        struct Configuration {
            area: u64,
            size: u32,
            signature: u32,
            flags: u32,
            pad: u32,
        }
        let mut found = Configuration::default();
        let size = size_of::<Configuration>();
        match request(PTRACE_GET_RSEQ_CONFIGURATION, self.tid, size, (&raw mut found).addr()) {
            Ok(()) => Ok((found.area != 0).then_some(found.area)),
            // Kernels before 5.13 cannot be asked, and their C libraries register none.
            Err(e) if e.raw_os_error() == Some(libc::EIO) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Writes one word of the process's memory, whatever the page's protection is.
    ///
    /// # Errors
    /// When nothing is mapped there, or the thread was killed meanwhile.
    pub fn poke(&self, addr: u64, word: u64) -> io::Result<()> {
        let number = |n: u64| usize::try_from(n).map_err(|_| io::Error::from_raw_os_error(libc::EFAULT));
        request(libc::PTRACE_POKETEXT, self.tid, number(addr)?, number(word)?)
    }

    /// How many seccomp filters the thread has. A thread can get more, never fewer.
    ///
    /// # Errors
    /// `EACCES` without `CAP_SYS_ADMIN`, or when we run under a filter ourselves.
    pub fn seccomp_filter_count(&self) -> io::Result<usize> {
        let mut count = 0;
        while self.seccomp_filter_length(count)?.is_some() {
            count += 1;
        }
        Ok(count)
    }

    /// Instructions of the filter with that index, the newest first; `None` behind the last.
    fn seccomp_filter_length(&self, index: usize) -> io::Result<Option<usize>> {
        // SAFETY: with a null buffer the request only returns the filter's length.
        let length = unsafe { libc::ptrace(PTRACE_SECCOMP_GET_FILTER, self.tid, index, 0) };
        match usize::try_from(length) {
            Ok(length) => Ok(Some(length)),
            Err(_) => match io::Error::last_os_error() {
                e if e.raw_os_error() == Some(libc::ENOENT) => Ok(None),
                // Not in filter mode.
                e if e.raw_os_error() == Some(libc::EINVAL) => Ok(None),
                e => Err(e),
            },
        }
    }

    /// Reads the thread's seccomp filters, newest first.
    ///
    /// # Errors
    /// As [`StoppedThread::seccomp_filter_count`].
    pub fn seccomp_filters(&self) -> io::Result<Vec<Vec<Instruction>>> {
        let mut filters = Vec::new();
        while let Some(length) = self.seccomp_filter_length(filters.len())? {
            let mut raw = vec![libc::sock_filter { code: 0, jt: 0, jf: 0, k: 0 }; length];
            request(PTRACE_SECCOMP_GET_FILTER, self.tid, filters.len(), raw.as_mut_ptr().addr())?;
            let program = raw.iter().map(|i| Instruction { code: i.code, jt: i.jt, jf: i.jf, k: i.k });
            filters.push(program.collect());
        }
        Ok(filters)
    }

    /// Lets the thread run on with the registers it has now.
    ///
    /// # Errors
    /// When the thread was killed meanwhile.
    pub fn release(mut self) -> io::Result<()> {
        self.let_go()
    }

    fn let_go(&mut self) -> io::Result<()> {
        if std::mem::replace(&mut self.detached, true) {
            return Ok(());
        }
        let done = request(libc::PTRACE_DETACH, self.tid, 0, 0);
        if done.is_err() && self.stopped {
            self.reap();
        }
        done
    }

    /// Waits for the end of a thread that was killed in its stop.
    fn reap(&self) {
        let deadline = Deadline::after(Duration::from_secs(1));
        let mut status = 0;
        loop {
            // SAFETY: `status` is ours.
            let got = unsafe { libc::waitpid(self.tid, &raw mut status, libc::__WALL | libc::WNOHANG) };
            match got {
                0 if !deadline.passed() => await_child(Duration::from_micros(500)),
                // Another stop: it lives after all and can be let go.
                n if n == self.tid && libc::WIFSTOPPED(status) => {
                    let _ = request(libc::PTRACE_DETACH, self.tid, 0, 0);
                    return;
                }
                _ => return,
            }
        }
    }
}

impl Drop for StoppedThread {
    fn drop(&mut self) {
        // Nothing to report to: a thread that cannot be let go is dead already, and if this
        // process dies the kernel detaches.
        let _ = self.let_go();
    }
}

/// What happened to a traced thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Nothing.
    Nothing,
    /// It is held just before this signal is delivered.
    Signal(i32),
}

/// A thread that runs on while it is traced, so that its signals are seen first. Ends with [`Traced::end`], or with the thread
/// of ours that began it.
#[derive(Debug)]
pub struct Traced {
    tid: i32,
}

impl Traced {
    /// Begins, without a stop.
    ///
    /// # Errors
    /// [`StopError::Gone`], or what the kernel says.
    pub fn begin(tid: i32) -> Result<Self, StopError> {
        seize(tid).map(|()| Self { tid })
    }

    /// What happened since.
    ///
    /// # Errors
    /// [`StopError::Gone`] when it ended, [`StopError::Stopped`] in a group stop, in which it stays.
    pub fn event(&mut self) -> Result<Event, StopError> {
        const PTRACE_LISTEN: libc::c_uint = 0x4208;
        let mut status = 0;
        // SAFETY: `status` is ours.
        let got = unsafe { libc::waitpid(self.tid, &raw mut status, libc::__WALL | libc::WNOHANG) };
        match got {
            0 => Ok(Event::Nothing),
            n if n == self.tid && libc::WIFSTOPPED(status) => match (libc::WSTOPSIG(status), status >> 16) {
                (signal, 0) => Ok(Event::Signal(signal)),
                (libc::SIGTRAP, _) => {
                    // The end of a group stop.
                    let _ = request(libc::PTRACE_CONT, self.tid, 0, 0);
                    Ok(Event::Nothing)
                }
                _ => {
                    let _ = request(PTRACE_LISTEN, self.tid, 0, 0);
                    Err(StopError::Stopped)
                }
            },
            _ => Err(StopError::Gone),
        }
    }

    /// Delivers the signal it is held before.
    ///
    /// # Errors
    /// When the thread was killed meanwhile.
    pub fn pass(&self, signal: i32) -> io::Result<()> {
        request(libc::PTRACE_CONT, self.tid, 0, signal as usize)
    }

    /// Takes the signal away and lets the thread go on elsewhere, with the signal's number as its argument and
    /// the signals that an instruction raises unblocked.
    ///
    /// # Errors
    /// When the thread was killed meanwhile.
    pub fn send_to(&self, rip: u64, signal: i32) -> io::Result<()> {
        let held = StoppedThread { tid: self.tid, stopped: true, detached: true };
        let regs = held.registers()?;
        let rdi = u64::from(signal.unsigned_abs());
        let orig_rax = u64::MAX;
        held.set_registers(&Registers { rip, rdi, orig_rax, ..regs })?;
        held.set_signal_mask(!SYNCHRONOUS)?;
        request(libc::PTRACE_CONT, self.tid, 0, 0)
    }

    /// Stops the thread so that it can be let go; dropping the result does that. `None`: it has ended, or does not stop
    /// by then.
    #[must_use]
    pub fn end(self, deadline: Deadline) -> Option<StoppedThread> {
        let mut held = StoppedThread { tid: self.tid, stopped: false, detached: false };
        request(PTRACE_INTERRUPT, self.tid, 0, 0).ok()?;
        match held.await_stop(deadline) {
            Ok(true) => Some(held),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The kernel refuses to trace it as it refuses a stranger.
    #[test]
    fn a_thread_that_has_ended_is_gone_and_not_forbidden() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = child.id();
        let mut info = std::mem::MaybeUninit::<libc::siginfo_t>::zeroed();
        // SAFETY: the kernel writes one siginfo_t; the child stays a zombie.
        let seen =
            unsafe { libc::waitid(libc::P_PID, pid, info.as_mut_ptr(), libc::WEXITED | libc::WNOWAIT) };
        assert_eq!(seen, 0);
        let asked = StoppedThread::ask(pid.cast_signed());
        assert!(matches!(asked, Err(StopError::Gone)), "{asked:?}");
        child.wait().unwrap();
    }
}
