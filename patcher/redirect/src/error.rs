//! Why a function cannot be redirected.

use serde::Serialize;
use suture_elf::Vaddr;
use thiserror::Error;

/// A reason not to redirect a function, or not to use one place of it.
///
/// The numbers in the comments are those of the checker's rules, see the crate documentation.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Error)]
pub enum Refusal {
    /// The address is no code of the object.
    #[error("{0} is not code of this object")]
    NotCode(Vaddr),
    /// Nothing says where the function ends.
    #[error("neither a symbol nor the unwind tables say where it ends")]
    NoSize,
    /// By its nature it cannot be replaced.
    #[error("{name} cannot be replaced: {why}")]
    Nature {
        /// Name, or what it was recognised by.
        name: String,
        /// Why.
        why: &'static str,
    },
    /// An import stub.
    #[error("this is a stub of the procedure linkage table; replace the function it jumps to")]
    PltStub,
    /// Rule 1.
    #[error("its bytes at {at} are {found:02x?} instead of the file's {expected:02x?}: {whose}")]
    Bytes {
        /// First byte that differs.
        at: Vaddr,
        /// What is there.
        found: Vec<u8>,
        /// What the file has.
        expected: Vec<u8>,
        /// A guess at who did it.
        whose: &'static str,
    },
    /// Another object lay here when the entry was patched.
    #[error("its entry belonged to another object, patched before and unloaded since")]
    AnotherObject,
    /// Rule 1: the loader changes its bytes.
    #[error("the loader relocates its bytes at {0}")]
    TextRelocation(Vaddr),
    /// Rule 3.
    #[error("{from} continues at {at}, inside the bytes to be replaced or behind a prologue")]
    Arrival {
        /// Where it arrives.
        at: Vaddr,
        /// What comes there.
        from: Source,
    },
    /// Rule 3.
    #[error("the jump at {0} may go anywhere in it")]
    UnknownJump(Vaddr),
    /// Rule 4: it expects something in a register that no compiler promises.
    #[error("it takes {register} from its callers")]
    LiveIn {
        /// Register, or `flags`.
        register: &'static str,
    },
    /// Rule 4: a caller relies on a register that only the old code leaves alone.
    #[error("its caller {caller} keeps {register} across the call at {at}")]
    LiveAcross {
        /// Function that holds the call.
        caller: String,
        /// The call.
        at: Vaddr,
        /// Register, or `flags`.
        register: &'static str,
    },
    /// Rule 5.
    #[error("the instruction at {at} ({what}) cannot be moved")]
    Instruction {
        /// Where.
        at: Vaddr,
        /// What it is.
        what: &'static str,
    },
    /// Rule 5.
    #[error("the instruction at {at} does not reach its operand from the copy")]
    CopyReach {
        /// Where.
        at: Vaddr,
    },
    /// It is shorter than a jump and has no padding behind it.
    #[error("it is too short ({size} bytes) and has no padding behind it")]
    TooShort {
        /// Its size.
        size: u64,
    },
    /// Rule 6: the store would cross an aligned word.
    #[error("no instruction of its prologue allows a single store")]
    NoStore,
    /// Rule 6: another site owns some of the bytes.
    #[error("the bytes at {0} belong to another redirected function")]
    Overlap(Vaddr),
    /// Rule 7.
    #[error("the page at {page:#x} that its bytes point to is {why}")]
    Target {
        /// Page a stub would have to be at.
        page: u64,
        /// What is wrong with it.
        why: TargetFault,
    },
    /// Rule 7: too many pages.
    #[error("it would be punned page number {count} of the process, the limit is {limit}")]
    TooManyPages {
        /// How many there would be.
        count: usize,
        /// How many there may be.
        limit: usize,
    },
    /// The classes that would fit are switched off.
    #[error("only switched-off classes would fit")]
    ClassesOff,
}

impl Refusal {
    /// Short name for counting.
    #[must_use]
    pub fn rule(&self) -> &'static str {
        match self {
            Self::NotCode(_) => "not code",
            Self::NoSize => "no size",
            Self::Nature { .. } => "nature",
            Self::PltStub => "plt stub",
            Self::Bytes { .. } | Self::TextRelocation(_) | Self::AnotherObject => "bytes",
            Self::Arrival { .. } | Self::UnknownJump(_) => "arrivals",
            Self::LiveIn { .. } => "registers at entry",
            Self::LiveAcross { .. } => "registers of callers",
            Self::Instruction { .. } | Self::CopyReach { .. } => "instruction",
            Self::TooShort { .. } => "too short",
            Self::NoStore => "store",
            Self::Overlap(_) => "overlap",
            Self::Target { .. } | Self::TooManyPages { .. } => "target",
            Self::ClassesOff => "classes",
        }
    }
}

impl Refusal {
    /// What the author of a patch, or whoever applies it, can do.
    #[must_use]
    pub fn hint(&self) -> String {
        const OTHERS: &str = "replace the functions that call it instead, or build the program with -fpatchable-function-entry=16,14";
        match self {
            Self::NotCode(_) => "name a function; new code can change data itself (SUTURE_SYMBOL)".into(),
            Self::NoSize => {
                "install its unstripped build, or replace the functions that call it instead".into()
            }
            Self::Nature { .. } => "replace the functions that call it instead".into(),
            Self::PltStub => {
                "name the library that has the function: SUTURE_OBJECT(\"libNAME.so\", ...)".into()
            }
            Self::Bytes { .. } => {
                "remove the breakpoint, probe or other hook that stands there and try again".into()
            }
            Self::AnotherObject => "restart the program, which then may lie elsewhere".into(),
            Self::TextRelocation(_) => "build that object with -fPIC".into(),
            Self::LiveIn { .. } => "replace the functions that call it instead".into(),
            // Nothing keeps flags.
            Self::LiveAcross { caller, register: "flags", .. } => format!("replace {caller} instead"),
            Self::LiveAcross { caller, .. } => {
                format!("declare the new function SUTURE_PRESERVE (suture.h), or replace {caller} instead")
            }
            Self::Arrival { .. }
            | Self::UnknownJump(_)
            | Self::Instruction { .. }
            | Self::TooShort { .. }
            | Self::NoStore => OTHERS.into(),
            Self::Overlap(_) => {
                "replace only one of the two, or disable the patch that has the other one".into()
            }
            Self::CopyReach { .. } | Self::Target { .. } => {
                format!("restart the program, which then may lie elsewhere; or {OTHERS}")
            }
            Self::TooManyPages { .. } => {
                "replace fewer functions, or raise the sysctl vm.max_map_count".into()
            }
            Self::ClassesOff => "allow more of them with --classes".into(),
        }
    }
}

/// What continues at an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Error, Serialize)]
pub enum Source {
    /// A direct branch.
    #[error("the branch at {0:#x}")]
    Branch(u64),
    /// A symbol or the start of an unwind range.
    #[error("another function")]
    Entry,
    /// A landing pad.
    #[error("an exception")]
    LandingPad,
    /// A jump table of the function.
    #[error("a jump table")]
    Table,
    /// A relocation, or an address taken in code or data.
    #[error("a pointer")]
    Pointer,
}

/// What is wrong with the target of a pun.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Error, Serialize)]
pub enum TargetFault {
    /// Something is mapped there.
    #[error("in use")]
    Taken,
    /// Outside user space.
    #[error("outside user space")]
    Outside,
    /// The break or a stack may grow there.
    #[error("reserved for the heap or a stack")]
    Reserved,
    /// The jump would cross the end of the page.
    #[error("too short for the jump")]
    Straddles,
    /// Nothing that has room for stubs is in reach of it.
    #[error("out of reach of any stub")]
    Reach,
}

/// A plan that cannot be made.
#[derive(Debug, Error)]
pub enum PlanError {
    /// Functions that cannot be redirected, each with the reason of its best candidate.
    #[error("{}", list(.0))]
    Refused(Vec<(String, Refusal)>),
    /// No free address range near an object.
    #[error("no {len} free bytes within reach of {path} (loaded at {base:#x})")]
    NoRoom {
        /// Path of the object.
        path: String,
        /// Where it is.
        base: u64,
        /// How much was needed.
        len: u64,
    },
}

fn list(refused: &[(String, Refusal)]) -> String {
    let lines: Vec<String> =
        refused.iter().map(|(name, why)| format!("cannot redirect {name}: {why}")).collect();
    lines.join("\n")
}
