//! Being with the host while a callback runs.
//!
//! A callback that raises a fault, or aborts, would end the program. The host is traced meanwhile: such a signal is taken
//! away and the host sent to the runtime's `host_abandon`, from where it reports the crash. What cannot be undone
//! is what the callback held: a lock it had taken stays taken.

use super::field;
use crate::error::Error;
use crate::sys::ptrace::{Event, StopError, Traced};
use crate::sys::time::Deadline;
use crate::sys::urgent::await_child;
use crate::target::watch::Watch;
use crate::target::{Target, books};
use std::mem::offset_of;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use suture_abi::block::RuntimeBlock;
use suture_abi::host::{ARRIVED, COMING, GIVEN, Host, LEAVE, NONE, RUNNING};
use suture_elf::{Addr, Memory};

/// Signals with which code that went wrong ends: SIGILL, SIGTRAP, SIGABRT, SIGBUS, SIGFPE, SIGSEGV, SIGSYS.
const CRASHES: [i32; 7] =
    [libc::SIGILL, libc::SIGTRAP, libc::SIGABRT, libc::SIGBUS, libc::SIGFPE, libc::SIGSEGV, libc::SIGSYS];

/// The host, traced.
#[derive(Debug)]
pub struct Guard<'t> {
    target: &'t Target,
    block: Addr,
    /// Thread id of the host, 0 for none.
    tid: u32,
    traced: Option<Traced>,
}

impl<'t> Guard<'t> {
    /// Begins to be with whoever is the host, if there is one. Where tracing is refused callbacks run without.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn new(target: &'t Target, block: Addr) -> Result<Self, Error> {
        let tid = host(target, block)?;
        let traced = (tid != 0).then(|| Traced::begin(tid.cast_signed()).ok()).flatten();
        Ok(Self { target, block, tid, traced })
    }

    /// True if the host is still the same, or there still is none.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn is_current(&self) -> Result<bool, Error> {
        Ok(host(self.target, self.block)? == self.tid)
    }

    /// True while a callback runs.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn is_at_work(&self) -> Result<bool, Error> {
        let state = books::word(self.target, self.block, field(offset_of!(Host, state)))?;
        Ok(matches!(state, GIVEN | RUNNING))
    }

    /// Waits until no callback runs; false when one still does at the deadline, or when interrupted.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn await_callback(&mut self, deadline: Deadline, interrupted: &AtomicBool) -> Result<bool, Error> {
        let mut watch = Watch::new(self.target, deadline);
        while self.is_at_work()? {
            if !watch.look()? || interrupted.load(Ordering::Relaxed) {
                return Ok(false);
            }
            self.pass_events()?;
            await_child(Duration::from_micros(200));
        }
        Ok(true)
    }

    /// Deals with what happened to the host.
    ///
    /// # Errors
    /// When the process is stopped.
    pub fn pass_events(&mut self) -> Result<(), Error> {
        let Some(traced) = &mut self.traced else { return Ok(()) };
        let abandon = offset_of!(RuntimeBlock, host_abandon) as u64;
        match traced.event() {
            Ok(Event::Nothing) => Ok(()),
            Ok(Event::Signal(signal)) if CRASHES.contains(&signal) => {
                let read = self.target.memory.read_u64(self.block + abandon);
                let entry = read.map_err(|e| Error::from_memory(self.target, e))?;
                // Killed meanwhile, when it fails.
                let _ = traced.send_to(entry, signal);
                Ok(())
            }
            Ok(Event::Signal(signal)) => {
                let _ = traced.pass(signal);
                Ok(())
            }
            Err(StopError::Gone) => {
                self.traced = None;
                Ok(())
            }
            Err(StopError::Stopped) => Err(Error::Stopped { pid: self.target.pid() }),
            Err(StopError::Os(e)) => Err(Error::from_ptrace(self.target, &e)),
        }
    }
}

/// Thread id of the host, 0 for none.
fn host(target: &Target, block: Addr) -> Result<u32, Error> {
    let word = |offset| books::word(target, block, field(offset));
    let waits = matches!(word(offset_of!(Host, state))?, NONE | COMING | ARRIVED | LEAVE);
    if waits { Ok(0) } else { word(offset_of!(Host, tid)) }
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        /// How long the host is waited for; in a callback that cannot be interrupted it is let go when the
        /// command ends.
        const SOON: Duration = Duration::from_millis(200);
        if let Some(traced) = self.traced.take()
            && let Some(held) = traced.end(Deadline::after(SOON))
        {
            // When it cannot be hidden the thread is dead.
            let _ = crate::doorbell::hide(&held);
        }
    }
}
