//! Why an ELF object could not be read.

use thiserror::Error;

/// Why an object cannot be used.
#[derive(Debug, Error)]
pub enum ElfError {
    /// The file could not be opened or mapped.
    #[error("cannot read {path}: {source}")]
    Io {
        /// Path as given.
        path: String,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// It is not an ELF file at all.
    #[error("{path} is not an ELF file")]
    NotElf {
        /// Path as given.
        path: String,
    },
    /// It is an ELF file for something else.
    #[error("{path} is a {found} object; only 64-bit little-endian x86-64 objects can be patched")]
    Foreign {
        /// Path as given.
        path: String,
        /// What it is instead.
        found: String,
    },
    /// It is an ELF file, but damaged.
    #[error("{path} is damaged: {what}")]
    Malformed {
        /// Path as given.
        path: String,
        /// Which structure, and what is wrong with it.
        what: String,
    },
}
