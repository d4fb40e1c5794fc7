//! A process the command works on.

pub mod books;
pub mod condition;
pub mod inside;
pub mod lock;
pub mod runtime;
pub mod select;
pub mod watch;
pub mod worker;

use crate::error::Error;
use crate::sys::memory::ProcessMemory;
use crate::sys::proc::{self, ProcessFacts};
use crate::sys::time::{Backoff, Deadline};
use runtime::Runtime;
use std::cell::OnceCell;
use std::time::Duration;
use suture_elf::MapsSnapshot;

/// One process, opened for reading and writing its memory.
#[derive(Debug)]
pub struct Target {
    /// What `/proc` said when it was opened.
    pub facts: ProcessFacts,
    /// Its memory.
    pub memory: ProcessMemory,
    /// Thread through which `/proc` shows the address space: the main thread, or any other one when
    /// that has called `pthread_exit` and is a zombie without memory.
    pub via: i32,
    filtered: OnceCell<bool>,
    /// The runtime in it, once it was found there ([`runtime::of`]).
    runtime: OnceCell<Runtime>,
}

impl Target {
    /// Opens a process.
    ///
    /// # Errors
    /// No such process, a zombie, no rights.
    pub fn open(pid: i32) -> Result<Self, Error> {
        let facts = proc::facts(pid).map_err(|e| Error::from_proc(pid, &e))?;
        if facts.kernel {
            return Err(Error::KernelThread { pid });
        }
        let via = living_thread(pid, &facts).ok_or(Error::Vanished { pid })?;
        let memory = ProcessMemory::open(via).map_err(|e| Error::from_proc(pid, &e))?;
        Ok(Self { facts, memory, via, filtered: OnceCell::new(), runtime: OnceCell::new() })
    }

    /// Whether a thread of it could be borrowed. To be asked before anything is written.
    ///
    /// # Errors
    /// As [`condition::check`].
    pub fn check_enterable(&self) -> Result<(), Error> {
        condition::check(self)
    }

    /// Whether any thread was under system call filters when that was first asked. They are a thread's, and a
    /// call that they refuse may end the process.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn is_filtered(&self) -> Result<bool, Error> {
        if let Some(known) = self.filtered.get() {
            return Ok(*known);
        }
        let pid = self.pid();
        let tids = proc::threads(pid).map_err(|e| self.ended_or(Error::from_proc(pid, &e)))?;
        let filtered = tids.into_iter().any(|tid| proc::seccomp_mode(tid).is_some_and(|mode| mode != 0));
        Ok(*self.filtered.get_or_init(|| filtered))
    }

    /// Whether [`Target::is_filtered`] was asked, and it was not.
    #[must_use]
    pub fn is_known_unfiltered(&self) -> bool {
        self.filtered.get() == Some(&false)
    }

    /// Process id.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.facts.pid
    }

    /// A fresh snapshot of the memory map.
    ///
    /// # Errors
    /// When the process is gone or out of reach.
    pub fn maps(&self) -> Result<MapsSnapshot, Error> {
        let pid = self.pid();
        let text = self.memory.maps().map_err(|e| Error::from_proc(pid, &e))?;
        if text.is_empty() {
            self.still_there()?;
        }
        MapsSnapshot::parse(&text).map_err(|e| Error::Unreadable { pid, what: e.to_string() })
    }

    /// Whether the process is still the one that was opened, and still runs the same program.
    ///
    /// # Errors
    /// [`Error::Vanished`] or [`Error::Executed`] when it is not.
    pub fn still_there(&self) -> Result<(), Error> {
        let pid = self.pid();
        let lives = match proc::facts(pid) {
            // A main thread that called pthread_exit is a zombie while the others live.
            Ok(now) => now.start_time == self.facts.start_time && (now.state != 'Z' || now.threads > 1),
            Err(_) => false,
        };
        if !lives {
            return Err(Error::Vanished { pid });
        }
        if self.memory.is_there() {
            return Ok(());
        }
        // Memory goes before the threads do: a process that ends has none while it is still listed.
        let other = proc::threads(pid).unwrap_or_default().into_iter().any(has_memory);
        Err(if other { Error::Executed { pid } } else { Error::Vanished { pid } })
    }

    /// The reason of a failure: that the process ended or executed another program, if it did, else
    /// `error`. A process that ends fails each step in its own way.
    #[must_use]
    pub fn ended_or(&self, error: Error) -> Error {
        // One that was killed has memory until its threads have noticed; the kernel is about to finish.
        let deadline = Deadline::after(Duration::from_secs(1));
        let mut backoff = Backoff::default();
        while self.still_there().is_ok() && proc::is_killed(self.via) && !deadline.passed() {
            backoff.pause();
        }
        self.still_there().err().unwrap_or(error)
    }
}

/// Whether the process of a thread has any memory.
fn has_memory(tid: i32) -> bool {
    proc::maps(tid).is_ok_and(|maps| !maps.is_empty())
}

/// The main thread if it lives, else the first other one that does.
fn living_thread(pid: i32, facts: &ProcessFacts) -> Option<i32> {
    if facts.state != 'Z' {
        return Some(pid);
    }
    let others = proc::threads(pid).ok()?.into_iter().filter(|&tid| tid != pid);
    others
        .into_iter()
        .find(|&tid| proc::thread_facts(pid, tid).is_some_and(|t| !matches!(t.state, 'Z' | 'X')))
}
