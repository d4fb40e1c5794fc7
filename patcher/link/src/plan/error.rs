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

impl LinkError {
    /// What to do, where the message itself does not say it.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        Some(match self {
            Self::Elf(_) | Self::Accept(_) | Self::NeedsLoader => return None,
            Self::Namespaces { .. } | Self::OldFuncNotReplaced { .. } | Self::SlotNotWritable { .. } => {
                return None;
            }
            Self::Descriptor(error) => return error.hint(),
            Self::Function(error) => return function_hint(error),
            Self::Symbols(errors) => return errors.iter().find_map(symbol_hint),
            Self::BuildId { .. } => "make a patch for the build that the process runs",
            Self::LoadedTwice { .. } => "replace functions of the program that call it instead",
            Self::Runtime { .. } => "restart the program with another libsuture.so",
            Self::ReferenceObject { .. } => "apply the patch when the program has loaded that object",
            Self::Expected { .. } => "take the offset from the build that the process runs",
            Self::NoRoom { .. } => "is the process's address space limited (prlimit --as)?",
        })
    }
}

fn function_hint(error: &FunctionError) -> Option<&'static str> {
    use FunctionError as E;
    Some(match error {
        E::Unknown { similar, .. } if !similar.is_empty() => return None,
        E::Stripped { .. } | E::Ambiguous { .. } | E::Same { .. } => return None,
        E::IndirectUnbound { .. } | E::IndirectSeveral { .. } => return None,
        E::Unknown { .. } => "see what it is called with: nm -C, and nm -DC for a stripped file",
        E::NotFunction { .. } => "replace a function; new code can change data itself (SUTURE_SYMBOL)",
        E::Position { .. } => "count from 1, in the order of the symbol table",
        E::Bytes { .. } | E::NotEntry { .. } => "take offset and bytes from the build that the process runs",
    })
}

fn symbol_hint(error: &SymbolError) -> Option<&'static str> {
    use SymbolError as E;
    Some(match error {
        E::Missing { similar, .. } | E::NotInObject { similar, .. } if !similar.is_empty() => return None,
        E::Version { .. } | E::CanGo { .. } | E::Ambiguous { .. } | E::NotInObject { .. } => return None,
        E::Folded { .. } | E::Preempted { .. } | E::TlsPointer { .. } | E::TlsMismatch { .. } => return None,
        E::NoStaticTls { .. } | E::LateIndirect { .. } => return None,
        E::Missing { .. } => {
            "define it in the patch; or, where the object is stripped, install its debug symbols, or use SUTURE_OFFSET"
        }
        E::Position { .. } => "count from 1, in the order of the symbol table",
        E::TlsMissing { .. } => "do not declare it weak",
        E::NoTlsBooks { .. } => "reach the variable through a function of that object",
        E::ResolverAddend { .. } => "call it, or take its address without an offset",
        E::NotInRuntime { .. } => "restart the program, with the runtime that came with this command",
    })
}
