//! The clone that places the runtime, as it can be seen from outside.
//!
//! It sleeps in one of two places of the boot code, and `/proc` says in which: while it waits for the
//! contents of its memfd, and when it has failed.

use super::boot;
use super::cave::Copy;
use crate::error::Error;
use crate::sys::{proc, seal};
use crate::target::Target;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use suture_abi::RUNTIME_SONAME;
use suture_elf::{Addr, Memory};

/// A clone of some command.
#[derive(Clone, Copy, Debug)]
pub struct BootClone {
    pid: i32,
    /// Its thread id.
    pub tid: i32,
}

/// What it is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It waits for the contents of its file.
    Waits,
    /// It could not go on.
    Failed {
        /// At which call.
        step: &'static str,
        /// Why.
        errno: i32,
    },
    /// It works, or was not caught asleep.
    Works,
    /// It has gone.
    Gone,
}

impl BootClone {
    /// A thread of a process that may be one.
    #[must_use]
    pub fn new(pid: i32, tid: i32) -> Self {
        Self { pid, tid }
    }

    /// Threads of the process that have the memfd of a clone, whatever command they belong to.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn living(pid: i32) -> Result<Vec<Self>, Error> {
        let tids = proc::threads(pid).map_err(|e| Error::from_proc(pid, &e))?;
        let clones = tids.into_iter().map(|tid| Self { pid, tid });
        Ok(clones.filter(|clone| clone.has_file()).collect())
    }

    fn has_file(&self) -> bool {
        let to = std::fs::read_link(self.file_path()).unwrap_or_default();
        to.to_str().is_some_and(|to| to.starts_with(&format!("/memfd:{RUNTIME_SONAME}")))
    }

    fn file_path(&self) -> String {
        // The first descriptor of a table of its own.
        format!("/proc/{}/task/{}/fd/0", self.pid, self.tid)
    }

    /// The copy of the boot code that it runs, if it is caught asleep in one.
    #[must_use]
    pub fn runs<'c>(&self, copies: &'c [Copy]) -> Option<&'c Copy> {
        let pc = proc::blocked(self.pid, self.tid)?.pc;
        copies.iter().find(|copy| pc.wrapping_sub(copy.at.0) < boot::code_len() as u64)
    }

    /// What it is doing, if the boot code that it runs is at `code`. One that failed leaves when its reason
    /// was read.
    #[must_use]
    pub fn state(&self, target: &Target, code: Addr) -> State {
        if !std::path::Path::new(&format!("/proc/{}/task/{}", self.pid, self.tid)).exists() {
            return State::Gone;
        }
        let Some(call) = proc::blocked(self.pid, self.tid) else { return State::Works };
        match call.pc.wrapping_sub(code.0) {
            at if at == boot::waits_at() => State::Waits,
            at if at == boot::failed_at() => {
                let word =
                    |below: u64| target.memory.read_u64(Addr(call.sp.wrapping_sub(below))).unwrap_or(0);
                // Failing that it goes later.
                let _ = target.memory.write(Addr(call.sp.wrapping_sub(boot::READ)), &[1]);
                let step = usize::try_from(word(boot::STEP)).ok().and_then(|at| boot::STEPS.get(at).copied());
                State::Failed { step: step.unwrap_or("a call"), errno: word(boot::ERRNO) as i32 }
            }
            _ => State::Works,
        }
    }

    /// Fills and seals its file.
    ///
    /// # Errors
    /// When that cannot be done, for instance because the clone has given up.
    pub fn fill(&self, content: &[u8]) -> io::Result<()> {
        let file = self.open()?;
        file.write_all_at(content, 0)?;
        seal::seal_contents(&file)
    }

    /// Whether its file is sealed, so that it goes on by itself.
    #[must_use]
    pub fn is_filled(&self) -> bool {
        self.open().and_then(|file| seal::is_sealed(&file)).unwrap_or(false)
    }

    /// Tells it to leave, if it still waits.
    pub fn dismiss(&self) {
        // One that is gone, or was filled, needs no telling.
        let _ = self.open().and_then(|file| seal::forbid_seals(&file));
    }

    fn open(&self) -> io::Result<File> {
        OpenOptions::new().read(true).write(true).open(self.file_path())
    }
}
