//! Whether code that is to be left is live on a thread's stack.
//!
//! A transition switches a thread when none of the *searched* code is live on its stack. This library
//! decides that from what somebody else has read: the thread's registers, the process's memory and objects. It
//! makes no system call. Every rule of the decision stands here, with its reason.
//!
//! | step | what | here |
//! |---|---|---|
//! | 1 | quick look at every word of the stack, up to its proven end | [`scan`], [`ends`] |
//! | 2 | exact walk where step 1 found something or proved nothing | [`suture_unwind::Unwinder`] |
//! | 3 | stacks of coroutines that the program told of | [`registered`] |
//! | 4 | the verdict | [`StackCheck`] |
//! | 5 | once per transition: stacks that no thread stands on | [`hidden`], [`hints`] |
//!
//! Which code is searched is a table of intervals, made from the books of the runtime
//! (`suture_runtime::transition::searched`), since the worker inside the process looks for the same.
#![deny(unsafe_code)]

pub mod ends;
mod entry;
pub mod hidden;
pub mod hints;
pub mod registered;
pub mod scan;
mod verdict;

pub use entry::beneath;
pub use verdict::{By, Doubt, Place, Refusal, StackCheck};
