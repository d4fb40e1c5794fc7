//! A strict walk of a thread's stack by call frame information, from outside.
//!
//! Made for decisions, not for profiles: a frame that no FDE covers, a rule on a register whose value
//! is not known, a read that fails — each ends the walk as [`Unreliable`] instead of a guess. Only a
//! frame whose return address is *undefined* (what `_start` and `clone` say) proves the end of the
//! stack, and the walk says which end it is ([`Bottom`]).
//!
//! A walk can start from the stack pointer and the program counter alone. Where a frame is described by
//! a register that is not known then, its place is computed from the code (`height.rs`); with that
//! the frames are the same, or the walk is refused.
//!
//! Pure: memory comes through [`suture_elf::Memory`], objects through [`Module`].
#![deny(unsafe_code)]

mod cfi;
mod error;
mod expression;
mod facts;
mod height;
mod memory;
mod module;
mod registers;
mod step;
mod table;
mod walk;

pub use error::Unreliable;
pub use height::NoHeight;
pub use memory::StackCopy;
pub use module::Module;
pub use registers::{Register, Registers};
pub use walk::{Bottom, Frame, FrameKind, Unwinder, Walk};
