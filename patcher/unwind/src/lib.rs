//! A strict walk of a thread's stack by call frame information, from outside.
//!
//! Made for decisions, not for profiles: a frame that no FDE covers, a rule on a register whose value
//! is not known, a read that fails — each ends the walk as [`Unreliable`] instead of a guess. Only a
//! frame whose return address is *undefined* (what `_start` and `clone` say) proves the end of the
//! stack.
//!
//! Pure: memory comes through [`suture_elf::Memory`], objects through [`Module`].
#![deny(unsafe_code)]

mod expression;
mod module;
mod registers;
mod walk;

pub use module::Module;
pub use registers::{Register, Registers};
pub use walk::{Frame, FrameKind, Unreliable, Unwinder};
