//! What can go wrong while measuring.

use std::io;
use std::path::PathBuf;

/// Why a group of rows could not be measured.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The built command or runtime is not there.
    #[error("{} is missing: run `cargo xtask build` first, or set SUTURE_DIST", .0.display())]
    NotBuilt(PathBuf),
    /// A file operation or a system call failed.
    #[error("cannot {what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// What the system said.
        source: io::Error,
    },
    /// The C compiler refused a target or a patch.
    #[error("cc failed on {file}: {said}")]
    Compiler {
        /// Source file.
        file: String,
        /// Its standard error.
        said: String,
    },
    /// A target did not follow its line protocol.
    #[error("target answered {answer:?} to {question:?}")]
    Answer {
        /// What it was asked.
        question: String,
        /// What came back.
        answer: String,
    },
    /// The command did not do its work.
    #[error("`suture {args}` ended with {status}: {said}")]
    Command {
        /// Its arguments.
        args: String,
        /// How it ended.
        status: String,
        /// Its standard error, or the part of its output that was not understood.
        said: String,
    },
    /// A patch was reported as applied or disabled, and the functions do not behave so.
    #[error("after `{step}` the functions answer {found}, not {wanted}: the row would measure nothing")]
    Behaviour {
        /// What was done.
        step: &'static str,
        /// What the functions should have added up to.
        wanted: f64,
        /// What they added up to.
        found: f64,
    },
    /// A target did not react in time.
    #[error("the target did not {0} within its deadline")]
    Deadline(&'static str),
}

/// Puts what was tried in front of a system error.
pub fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
    let what = what.into();
    |source| Error::Io { what, source }
}
