//! The seccomp filters of threads that may be borrowed.
//!
//! Filters are a thread's, not the process's, and the worker inherits those of the thread that makes it.
//! They are read in a stop of their own and run while the thread goes on; a thread can only get more of
//! them, so that their number tells in the next stop whether what was found still holds.

use crate::error::Error;
use crate::seccomp;
use crate::sys::proc;
use crate::sys::ptrace::StoppedThread;
use crate::target::Target;
use std::collections::HashMap;
use std::io;

/// Why a thread's filters do not let the errand through.
#[derive(Clone, Debug)]
pub enum Refusal {
    /// They refuse this call.
    Call(&'static str),
    /// They cannot be read.
    Unreadable(i32),
    /// Strict mode: no call but read, write and the ends of a thread and of a handler.
    Strict,
}

impl Refusal {
    /// As an error about the process.
    pub fn error(&self, target: &Target) -> Error {
        let pid = target.pid();
        match self {
            Self::Call(call) => Error::Seccomp { pid, call: (*call).to_owned() },
            Self::Strict => {
                Error::Seccomp { pid, call: "anything but read, write and exit (strict mode)".into() }
            }
            Self::Unreadable(errno) => {
                Error::SeccompUnreadable { pid, source: io::Error::from_raw_os_error(*errno) }
            }
        }
    }
}

/// What is known of the threads looked at so far.
#[derive(Debug)]
pub struct Filters {
    lift: bool,
    /// Filters that let the errand through, by thread: how many they were.
    allowed: HashMap<i32, usize>,
    refused: HashMap<i32, Refusal>,
}

impl Filters {
    /// Nothing is known yet. `lift`: the errand makes one call more.
    pub fn new(lift: bool) -> Self {
        Self { lift, allowed: HashMap::new(), refused: HashMap::new() }
    }

    /// Why a thread cannot be sent.
    pub fn refusal(&self, tid: i32) -> Option<&Refusal> {
        self.refused.get(&tid)
    }

    /// Some refusal.
    pub fn any_refusal(&self) -> Option<&Refusal> {
        self.refused.values().next()
    }

    /// Looks at a thread before it is stopped: in strict mode there is no filter to be read.
    pub fn look_before(&mut self, tid: i32) -> Option<&'static str> {
        const STRICT: u32 = 1;
        let strict = proc::seccomp_mode(tid) == Some(STRICT);
        strict.then(|| self.refused.insert(tid, Refusal::Strict)).map(|_| "in strict seccomp mode")
    }

    /// Whether a stopped thread may be sent; else its filters have been read and are to be judged when it
    /// is let go.
    ///
    /// # Errors
    /// When the thread was killed meanwhile.
    pub fn look(&mut self, held: &StoppedThread) -> io::Result<Look> {
        let count = match held.seccomp_filter_count() {
            Ok(0) => return Ok(Look::Free),
            Ok(count) => count,
            // Without the right to read filters, whether there are any is known from /proc.
            Err(e) if e.raw_os_error() == Some(libc::EACCES) => {
                if proc::seccomp_mode(held.tid()) != Some(0) {
                    self.refused.insert(held.tid(), Refusal::Unreadable(libc::EACCES));
                    return Ok(Look::Refused);
                }
                return Ok(Look::Free);
            }
            Err(e) => return Err(e),
        };
        if self.allowed.get(&held.tid()) == Some(&count) {
            return Ok(Look::Allowed);
        }
        held.seccomp_filters().map(Look::Judge)
    }

    /// Judges filters that were read.
    pub fn judge(&mut self, tid: i32, filters: &[seccomp::Filter]) {
        match seccomp::refused(filters, self.lift) {
            Some(call) => self.refused.insert(tid, Refusal::Call(call)).map(drop),
            None => self.allowed.insert(tid, filters.len()).map(drop),
        };
    }
}

/// What a look at a stopped thread gave.
#[derive(Debug)]
pub enum Look {
    /// It has no filters.
    Free,
    /// It may be sent.
    Allowed,
    /// It may not.
    Refused,
    /// To be judged.
    Judge(Vec<seccomp::Filter>),
}
