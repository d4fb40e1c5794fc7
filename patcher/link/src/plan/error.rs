//! Why a patch cannot be linked into a process.

use crate::accept::AcceptError;
use crate::descriptor::DescriptorError;
use crate::functions::FunctionError;
use crate::lookup::SymbolError;
use suture_elf::{ElfError, Vaddr};
use thiserror::Error;

/// Why a patch cannot be linked into a process.
#[derive(Debug, Error)]
pub enum LinkError {
    /// The file cannot be read.
    #[error(transparent)]
    Elf(#[from] ElfError),
    /// The file is not taken.
    #[error("the patch cannot be used: {0}")]
    Accept(#[from] AcceptError),
    /// The descriptor is wrong.
    #[error("the patch's descriptor is wrong: {0}")]
    Descriptor(#[from] DescriptorError),
    /// The second way of loading is asked for.
    #[error(
        "the patch asks for the program's own loader (SUTURE_WITH_LOADER), which this version cannot use; remove the flag together with what needs it: own thread-local variables, libraries that are not loaded"
    )]
    NeedsLoader,
    /// An object of the patch is another build.
    #[error(
        "{object} is another build than the patch is for: the patch needs build-id {wanted}, the process has {found}"
    )]
    BuildId {
        /// Object.
        object: String,
        /// Build-id in the patch.
        wanted: String,
        /// Build-id in the process, or `none`.
        found: String,
    },
    /// An object is loaded in two namespaces.
    #[error("{object} is loaded more than once (dlmopen); which one the patch means cannot be said")]
    LoadedTwice {
        /// Object.
        object: String,
    },
    /// Objects of two namespaces in one patch.
    #[error("{first} and {second} are in different namespaces (dlmopen); make a patch for each")]
    Namespaces {
        /// One object.
        first: String,
        /// The other.
        second: String,
    },
    /// The runtime cannot patch itself.
    #[error("{object} cannot be patched: it is the runtime that does the patching")]
    Runtime {
        /// Object.
        object: String,
    },
    /// A function cannot be found.
    #[error(transparent)]
    Function(#[from] FunctionError),
    /// Imports cannot be bound.
    #[error("{}", join(.0))]
    Symbols(Vec<SymbolError>),
    /// A reference into an object that is neither loaded nor patched.
    #[error("a reference names {object}, which is not loaded")]
    ReferenceObject {
        /// Object.
        object: String,
    },
    /// A reference to the old body of a function that stays.
    #[error(
        "a reference asks for the old `{name}` of {object}, which the patch does not replace; declare it extern and call it"
    )]
    OldFuncNotReplaced {
        /// Function.
        name: String,
        /// Object.
        object: String,
    },
    /// The bytes an offset reference expects are not there.
    #[error(
        "{object} at {offset} has the bytes {found}, the patch expects {expected}: it is another build, or changed in memory"
    )]
    Expected {
        /// Object.
        object: String,
        /// Offset.
        offset: Vaddr,
        /// Bytes the patch expects.
        expected: String,
        /// Bytes found.
        found: String,
    },
    /// A pointer to be filled in read-only memory.
    #[error("the pointer at {slot} of the patch is in read-only memory; do not declare it const")]
    SlotNotWritable {
        /// The pointer.
        slot: Vaddr,
    },
    /// No free addresses.
    #[error("there is no free range of {len:#x} bytes in the process's address space")]
    NoRoom {
        /// Bytes wanted.
        len: u64,
    },
}

fn join(errors: &[SymbolError]) -> String {
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}
