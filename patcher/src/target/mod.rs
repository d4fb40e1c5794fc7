//! A process the command works on.

pub mod books;
pub mod lock;
pub mod runtime;
pub mod select;

use crate::error::Error;
use crate::sys::memory::ProcessMemory;
use crate::sys::proc::{self, ProcessFacts};
use crate::sys::time::{Backoff, Deadline};
use std::fs;
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
}

impl Target {
    /// Opens a process.
    ///
    /// # Errors
    /// No such process, a zombie, no rights.
    pub fn open(pid: i32) -> Result<Self, Error> {
        let facts = proc::facts(pid).map_err(|e| Error::from_proc(pid, &e))?;
        let via = living_thread(pid, &facts).ok_or(Error::Vanished { pid })?;
        let memory = ProcessMemory::open(via).map_err(|e| Error::from_proc(pid, &e))?;
        Ok(Self { facts, memory, via })
    }

    /// Whether a thread of it could be stopped. To be asked before anything is written.
    ///
    /// # Errors
    /// [`Error::Traced`] naming the tracer.
    pub fn check_untraced(&self) -> Result<(), Error> {
        let pid = self.pid();
        let now = proc::facts(pid).map_err(|e| Error::from_proc(pid, &e))?;
        if now.tracer == 0 || now.tracer == std::process::id().cast_signed() {
            return Ok(());
        }
        let by = proc::facts(now.tracer).map_or_else(|_| "?".into(), |f| f.comm);
        Err(Error::Traced { pid, tracer: now.tracer, by })
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
        let text = proc::maps(self.via).map_err(|e| Error::from_proc(pid, &e))?;
        MapsSnapshot::parse(&text).map_err(|e| Error::Unreadable { pid, what: e.to_string() })
    }

    /// Whether the process is still the one that was opened.
    ///
    /// # Errors
    /// [`Error::Vanished`] when it is not.
    pub fn still_there(&self) -> Result<(), Error> {
        let pid = self.pid();
        match proc::facts(pid) {
            Ok(now) if now.start_time == self.facts.start_time && now.state != 'Z' => Ok(()),
            // A main thread that called pthread_exit is a zombie while the others live.
            Ok(now) if now.start_time == self.facts.start_time && now.threads > 1 => Ok(()),
            _ => Err(Error::Vanished { pid }),
        }
    }

    /// The reason of a failure: that the process ended, if it did, else `error`. A process that ends
    /// fails each step in its own way.
    #[must_use]
    pub fn ended_or(&self, error: Error) -> Error {
        // Memory goes before the threads do: of a process that is being killed nothing can be read
        // any more while it is still listed. The kernel is about to finish that.
        let deadline = Deadline::after(Duration::from_secs(1));
        let mut backoff = Backoff::default();
        let has_memory = || fs::read(format!("/proc/{}/maps", self.via)).is_ok_and(|maps| !maps.is_empty());
        while !has_memory() && self.still_there().is_ok() && !deadline.passed() {
            backoff.pause();
        }
        self.still_there().err().unwrap_or(error)
    }
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
