//! The table of shadow variables: who has which key, and who may touch what when.
//!
//! Variables are found by an object's address and a number. Looking one up takes no lock, writes
//! nothing and waits for nobody, so that it can be done on any thread and in any handler, also in one
//! that interrupted an insertion. The table grows while everybody uses it.
//!
//! This is the protocol alone: no memory management, no system call, no unsafe code, generic over its
//! atomics and its [`memory`], so that models can go through its interleavings
//! (`RUSTFLAGS="--cfg loom" cargo test --release -p suture-table`).
//!
//! | module | |
//! |---|---|
//! | [`word`] | the words everything consists of |
//! | [`bucket`] | who is in a bucket: reading and committing |
//! | [`marks`] | who is not in a bucket, in four bytes |
//! | [`levels`] | growth |
//! | [`get`](mod@get) | looking a variable up |
//! | [`insert`](mod@insert), [`remove`](mod@remove) | making and removing a variable |
//! | [`guard`] | memory that waits for readers |
//! | [`hash`], [`atomic`], [`memory`] | what they stand on |
//! | [`control`] | what models leave out |
#![cfg_attr(not(any(test, loom)), no_std)]
#![forbid(unsafe_code)]
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

pub mod atomic;
pub mod bucket;
pub mod control;
pub mod get;
pub mod guard;
pub mod hash;
pub mod insert;
pub mod levels;
pub mod marks;
pub mod memory;
pub mod remove;
pub mod word;

#[cfg(all(test, loom))]
mod loom_marks;
#[cfg(all(test, loom))]
mod loom_tests;
#[cfg(test)]
mod model;
#[cfg(all(test, not(loom)))]
mod tests;
