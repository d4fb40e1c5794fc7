//! The part of Suture that runs inside the patched process.
//!
//! It only *commits* what the command has planned: it maps pages, fills words, flips slots, keeps the
//! books, moves threads from one side of a transition to the other, and answers unwinders. It runs on a
//! thread of its own, the worker, which exists while a command is connected or a transition is going on,
//! and in a few entry points that the program's threads reach: the doorbell and the dispatchers' slow path
//! ([`arch`]), births ([`birth`]) and the unwind answers ([`unwind`]).
//!
//! # Rules
//!
//! * No libc, no `std`, no thread-local storage, no lock or allocator of the program. `fs` points to
//!   a dummy on the worker and to the program's own block on its threads: neither is read here.
//! * System calls are made in [`sys`] only.
//! * Only the worker allocates ([`alloc`]) and changes the books ([`books`]).
//! * Code on the program's threads reads immutable data behind one atomic pointer, may run inside a
//!   signal handler, and never allocates.
//! * Nothing panics. What cannot be done is answered with a reason.
#![cfg_attr(not(test), no_std)]
#![deny(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects
    )
)]

#[cfg(not(target_arch = "x86_64"))]
compile_error!("the runtime knows x86-64 only");

extern crate alloc as alloc_crate;

pub mod alloc;
pub mod arch;
pub mod attributes;
pub mod batch;
pub mod birth;
pub mod block;
pub mod books;
pub mod channel;
pub mod commit;
pub mod events;
pub mod held;
pub mod host;
pub mod init;
pub mod jit;
pub mod late;
pub mod list;
pub mod own_memory;
pub mod publish;
pub mod record;
pub mod reply;
pub mod shadow;
pub mod stacks;
pub mod sys;
pub mod transition;
pub mod unwind;
pub mod word;
pub mod worker;

#[cfg(test)]
mod loom_tests;
