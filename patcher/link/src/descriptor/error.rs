//! Why a descriptor cannot be used.

use suture_abi::DESCRIPTOR_VERSION;
use suture_elf::Vaddr;
use thiserror::Error;

/// Why a descriptor cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum DescriptorError {
    /// No descriptor.
    #[error("no symbol `suture_patch` is exported; write the patch with SUTURE_PATCH of suture.h")]
    Missing,
    /// Compiled against another contract.
    #[error(
        "compiled for descriptor version {found}, this command knows {ours}; compile the patch with the suture.h of this version"
    )]
    Abi {
        /// Version in the patch.
        found: u32,
        /// Our version.
        ours: u32,
    },
    /// The structure has another size than ours.
    #[error(
        "the descriptor says it has {found} bytes, version {DESCRIPTOR_VERSION} has {ours}; compile the patch with the suture.h of this version"
    )]
    Size {
        /// Size in the patch.
        found: u32,
        /// Our size.
        ours: usize,
    },
    /// A pointer that leads nowhere.
    #[error("{field} points to {addr}, which is outside the patch's file")]
    Dangling {
        /// Which pointer.
        field: String,
        /// Where it points.
        addr: Vaddr,
    },
    /// A pointer to something that is not in the patch.
    #[error("{field} refers to `{symbol}`, which the patch does not define")]
    NotOwn {
        /// Which pointer.
        field: String,
        /// The symbol it is filled with.
        symbol: String,
    },
    /// A pointer that is no pointer: a number no relocation belongs to.
    #[error("{field} is the number {value:#x} instead of an address; link the patch with -shared")]
    NotRelocated {
        /// Which pointer.
        field: String,
        /// The number.
        value: u64,
    },
    /// A structure or slot that is not aligned.
    #[error("{field} points to {addr}, which is not a multiple of 8")]
    Misaligned {
        /// Which pointer.
        field: String,
        /// Where it points.
        addr: Vaddr,
    },
    /// An array without its all-zero entry.
    #[error("{array} does not end; its last entry must be all zero")]
    Unterminated {
        /// Which array.
        array: String,
    },
    /// A string that does not end, or is no UTF-8.
    #[error("{field} is no text, or does not end")]
    BadString {
        /// Which string.
        field: String,
    },
    /// A required pointer is null.
    #[error("{field} is missing")]
    Null {
        /// Which pointer.
        field: String,
    },
    /// The name cannot be one.
    #[error("the patch's name {name:?} is not 1 to 55 characters of A-Z a-z 0-9 _ . -")]
    Name {
        /// The name.
        name: String,
    },
    /// Flags nobody knows.
    #[error("{field} has unknown bits {bits:#x}")]
    Flags {
        /// Which flags.
        field: String,
        /// The bits.
        bits: u64,
    },
    /// A field that must be zero is not, or one that must not be is.
    #[error("{field} is {value}, {expected}")]
    Value {
        /// Which field.
        field: String,
        /// What stands there.
        value: u64,
        /// What should.
        expected: &'static str,
    },
    /// A build-id or byte string that is not hexadecimal.
    #[error("{field} is {text:?}, which is not hexadecimal")]
    Hex {
        /// Which field.
        field: String,
        /// What stands there.
        text: String,
    },
    /// A function that is named by its place in an object that may be any build.
    #[error(
        "the function `{function}` of {object} is named by its offset, which holds for one build only; state it with SUTURE_OBJECT_ID"
    )]
    NoBuildId {
        /// Object.
        object: String,
        /// Function.
        function: String,
    },
    /// Too few bytes to recognise a function by.
    #[error("{field} are fewer than four: give more, so that a wrong offset is noticed")]
    FewBytes {
        /// Which bytes.
        field: String,
    },
    /// The same function twice (`EEXIST`).
    #[error("{object} replaces `{function}` twice")]
    Duplicate {
        /// Object.
        object: String,
        /// Function.
        function: String,
    },
    /// The same object twice.
    #[error("{object} stands in the patch twice; put its functions together")]
    DuplicateObject {
        /// Object.
        object: String,
    },
    /// The same state twice.
    #[error("state {id} stands in the patch twice")]
    DuplicateState {
        /// Id.
        id: u64,
    },
    /// A new function that is no code.
    #[error("{field} at {addr} is not in executable memory of the patch")]
    NotCode {
        /// Which pointer.
        field: String,
        /// Where it points.
        addr: Vaddr,
    },
    /// A slot that cannot be filled.
    #[error("{field} at {addr} is not in writable memory of the patch")]
    NotWritable {
        /// Which pointer.
        field: String,
        /// Where it points.
        addr: Vaddr,
    },
    /// Nobody knows where a new function ends.
    #[error(
        "the size of the new `{function}` is unknown: it has neither a symbol nor unwind tables; do not strip the patch"
    )]
    NoSize {
        /// The replaced function's name.
        function: String,
    },
    /// Nothing to do.
    #[error("the patch replaces nothing: it has no objects and no states")]
    Empty,
}

const GENERATED: &str = "let the macros of suture.h write the descriptor, and do not change it afterwards";

impl DescriptorError {
    /// What to do, where the message itself does not say it.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        use DescriptorError as E;
        Some(match self {
            E::Missing | E::Abi { .. } | E::Size { .. } | E::NotRelocated { .. } | E::Unterminated { .. } => {
                return None;
            }
            E::NoBuildId { .. } | E::FewBytes { .. } | E::DuplicateObject { .. } | E::NoSize { .. } => {
                return None;
            }
            E::Name { .. } => "rename it",
            E::Duplicate { .. } => "replace it once",
            E::DuplicateState { .. } => "give each state an id of its own",
            E::NotOwn { .. } => "only functions of the patch can be new ones: define it there",
            E::NotCode { .. } => "give SUTURE_FUNC a function",
            E::NotWritable { .. } => "do not declare it const",
            E::Empty => "add a SUTURE_OBJECT with functions",
            E::Dangling { .. } | E::Misaligned { .. } | E::BadString { .. } | E::Null { .. } => GENERATED,
            E::Flags { .. } | E::Value { .. } | E::Hex { .. } => GENERATED,
        })
    }
}
