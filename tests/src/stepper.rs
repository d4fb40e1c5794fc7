//! A thread that goes one instruction at a time.
//!
//! # Safety
//!
//! ptrace requests on a thread that this thread of ours has seized, with buffers that outlive the request.
#![allow(unsafe_code)]

use std::io;

/// Registers of a thread between two of its instructions.
pub type Registers = libc::user_regs_struct;

/// A thread that is held between two instructions. Dropping it lets the thread go.
#[derive(Debug)]
pub struct Stepper {
    tid: i32,
    there: bool,
}

impl Stepper {
    /// Stops a thread; `None` when it ends first.
    ///
    /// # Panics
    /// When the kernel forbids it.
    #[must_use]
    pub fn catch(tid: i32) -> Option<Self> {
        match request(libc::PTRACE_SEIZE, tid, 0) {
            Ok(()) => {}
            // The kernel's two words for a thread that has ended.
            Err(e) if matches!(e.raw_os_error(), Some(libc::ESRCH | libc::EPERM)) => return None,
            Err(e) => panic!("cannot trace {tid}: {e}"),
        }
        let mut caught = Self { tid, there: true };
        request(libc::PTRACE_INTERRUPT, tid, 0).ok()?;
        caught.await_stop().then_some(caught)
    }

    /// Lets it do one instruction, a system call with all that it waits for; false when it has ended.
    pub fn step(&mut self) -> bool {
        self.there && request(libc::PTRACE_SINGLESTEP, self.tid, 0).is_ok() && self.await_stop()
    }

    /// Lets it run to the next beginning or end of a system call; false when it has ended.
    pub fn run_to_call(&mut self) -> bool {
        self.there && request(libc::PTRACE_SYSCALL, self.tid, 0).is_ok() && self.await_stop()
    }

    /// Its registers.
    ///
    /// # Panics
    /// When it is gone.
    #[must_use]
    pub fn registers(&self) -> Registers {
        // SAFETY: all-zero is a valid value of this plain structure.
        let mut registers: Registers = unsafe { std::mem::zeroed() };
        let done = request(libc::PTRACE_GETREGS, self.tid, (&raw mut registers).addr());
        done.unwrap_or_else(|e| panic!("cannot read the registers of {}: {e}", self.tid));
        registers
    }

    fn await_stop(&mut self) -> bool {
        let mut status = 0;
        // SAFETY: `status` is ours.
        let got = unsafe { libc::waitpid(self.tid, &raw mut status, libc::__WALL) };
        self.there = got == self.tid && libc::WIFSTOPPED(status);
        self.there
    }
}

impl Drop for Stepper {
    fn drop(&mut self) {
        if self.there {
            // It fails only when the thread is gone.
            let _ = request(libc::PTRACE_DETACH, self.tid, 0);
        }
    }
}

fn request(what: libc::c_uint, tid: i32, data: usize) -> io::Result<()> {
    // SAFETY: plain numbers, or the address of a structure that the caller keeps for the call.
    let done = unsafe { libc::ptrace(what, tid, 0, data) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
