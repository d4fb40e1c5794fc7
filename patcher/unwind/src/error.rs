//! Why a walk was given up.

use crate::Register;
use crate::height::NoHeight;
use thiserror::Error;

/// Why a stack could not be walked to its end.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Unreliable {
    /// The program counter lies in no loaded object: code made at run time, or a stack that is none.
    #[error("no object is loaded at {pc:#x}")]
    NoModule {
        /// Program counter of the frame.
        pc: u64,
    },
    /// No frame description covers it.
    #[error("{module} has no call frame information at {pc:#x}{}", in_symbol(symbol.as_ref()))]
    NoCfi {
        /// Object.
        module: String,
        /// Function, where a symbol names it.
        symbol: Option<String>,
        /// Program counter of the frame.
        pc: u64,
    },
    /// The runtime's own code without descriptions: a stub, a dispatcher, a copy of displaced
    /// instructions. The thread has not decided yet, or is inside old code.
    #[error("it is in code of the runtime at {pc:#x}")]
    InRuntimeArena {
        /// Program counter of the frame.
        pc: u64,
    },
    /// A rule needs a register that is not known.
    #[error("the frame at {pc:#x} depends on {register}, which is not known")]
    UnknownRegister {
        /// Program counter of the frame.
        pc: u64,
        /// The register.
        register: Register,
    },
    /// The frame needs a register that is not known, and the code does not tell its place either.
    #[error("the frame at {pc:#x} depends on {register}, which is not known, and {why}")]
    NoHeight {
        /// Program counter of the frame.
        pc: u64,
        /// The register.
        register: Register,
        /// Why the height of the stack is not known from the code.
        why: NoHeight,
    },
    /// A return address that follows no call.
    #[error("no call stands in front of the return address {pc:#x}")]
    NotACall {
        /// The return address.
        pc: u64,
    },
    /// A rule cannot be followed.
    #[error("the call frame information at {pc:#x} cannot be followed")]
    BadRule {
        /// Program counter of the frame.
        pc: u64,
    },
    /// The stack cannot be read there.
    #[error("the stack cannot be read at {addr:#x}")]
    Memory {
        /// Address.
        addr: u64,
    },
    /// The stack pointer did not move up.
    #[error("the frame at {pc:#x} does not lie above the one it called")]
    NotAscending {
        /// Program counter of the frame.
        pc: u64,
    },
    /// More frames than anybody has.
    #[error("the stack has more than {limit} frames")]
    TooDeep {
        /// The limit.
        limit: usize,
    },
}

fn in_symbol(symbol: Option<&String>) -> String {
    symbol.map(|name| format!(" ({name})")).unwrap_or_default()
}
