//! Stacks that the program has registered: those of its coroutines.
//!
//! No thread was started on them, so nobody finds them by looking at threads. A library of coroutines says
//! where they are with `suture_stack_register` (`include/suture.h`); the command reads the table from outside.
//!
//! | field | who writes | who reads |
//! |---|---|---|
//! | [`Stacks`] | registering threads | worker, threads that look at themselves, command |
//! | [`Slot`] | the thread that took it by compare-and-swap of `version` | command |
//!
//! A slot is free, taken or used, by its version modulo 4; every change of hands moves it on. Fields of a used
//! slot do not change: a reader that finds the same version before and after has read them together.

use core::sync::atomic::{AtomicU32, AtomicU64};

/// Slots of one chunk.
pub const SLOTS: usize = 256;
/// Chunks at most: 65 536 stacks.
pub const CHUNKS: usize = 256;

/// [`Slot::version`] modulo 4: nobody's.
pub const FREE: u32 = 0;
/// [`Slot::version`] modulo 4: being filled.
pub const TAKEN: u32 = 1;
/// [`Slot::version`] modulo 4: a registered stack.
pub const USED: u32 = 2;
/// [`Slot::version`] modulo 4: being given back.
pub const LEAVING: u32 = 3;

/// The table.
#[repr(C)]
#[derive(Debug)]
pub struct Stacks {
    /// Stacks that are registered, and those about to be.
    pub count: AtomicU64,
    /// Addresses of chunks of [`SLOTS`] slots, 0 = none. Chunks are made in order and never unmapped.
    pub chunks: [AtomicU64; CHUNKS],
}

/// A registered stack.
#[repr(C)]
#[derive(Debug)]
pub struct Slot {
    /// Version, see [`FREE`] and the others.
    pub version: AtomicU32,
    /// Must be 0.
    pub reserved: AtomicU32,
    /// Lowest address.
    pub low: AtomicU64,
    /// Address after the highest.
    pub high: AtomicU64,
    /// Address of the word that holds the stack pointer while nothing runs on the stack, or 0.
    pub saved: AtomicU64,
    /// Address of the word that holds the stack pointer of whoever resumed what runs on the stack, or 0.
    pub resumer: AtomicU64,
}

const _: () = assert!(size_of::<Slot>() == 40);
const _: () = assert!(size_of::<Stacks>() == 8 * (1 + CHUNKS));
