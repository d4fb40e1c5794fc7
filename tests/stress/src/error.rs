//! What can go wrong in the harness itself (a wrong result is a finding, not an error).

use std::io;

/// A step of the harness that could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Pages could not be placed where the plan needs them.
    #[error("cannot map {len:#x} bytes at {addr:#x}: {source}")]
    Map {
        /// Wanted address.
        addr: u64,
        /// Wanted length.
        len: usize,
        /// What the kernel answered.
        source: io::Error,
    },
    /// The protection of pages could not be changed.
    #[error("cannot change the protection of the pages at {addr:#x}: {source}")]
    Protect {
        /// First address.
        addr: u64,
        /// What the kernel answered.
        source: region::Error,
    },
    /// A jump or a slot lies further away than 32 bits reach.
    #[error("cannot reach {to:#x} from {from:#x} with 32 bits")]
    Reach {
        /// Address after the jump.
        from: u64,
        /// Address wanted.
        to: u64,
    },
    /// The displaced instructions could not be encoded again.
    #[error("cannot relocate the instructions at {entry:#x}: {reason}")]
    Relocate {
        /// Entry of the function.
        entry: u64,
        /// The encoder's reason.
        reason: String,
    },
    /// A site does not satisfy the rule of its class.
    #[error("cannot make a site of class {class} at {site:#x}: {reason}")]
    Site {
        /// Class letter.
        class: char,
        /// Address of the instruction.
        site: u64,
        /// The rule that does not hold.
        reason: &'static str,
    },
    /// A system call failed.
    #[error("cannot {what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What the kernel answered.
        source: io::Error,
    },
    /// A compiled victim could not be built or does not have the shape the control needs.
    #[error("cannot prepare the compiled victim {name}: {reason}")]
    Compiled {
        /// Name of the source.
        name: &'static str,
        /// Compiler's answer, or what was looked for.
        reason: String,
    },
    /// An unarmed victim did not give the old result: the harness itself is at fault.
    #[error("cannot start from a sound baseline: {name} gave {verdict}")]
    Baseline {
        /// The case.
        name: String,
        /// What its call gave.
        verdict: String,
    },
    /// A worker ended before it could show anything.
    #[error("cannot run {0}: the worker gave up, see its message")]
    Unfinished(String),
    /// No case or control has this name.
    #[error("nothing is called {0}")]
    Unknown(String),
}

impl Error {
    /// The error of the system call that just failed.
    pub fn last(what: &'static str) -> Self {
        Self::System { what, source: io::Error::last_os_error() }
    }
}

/// Result of a step of the harness.
pub type Result<T, E = Error> = std::result::Result<T, E>;
