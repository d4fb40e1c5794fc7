//! What memory is the runtime's own, for searches from outside: books and tables of searched code are full of
//! addresses that look like return addresses.
//!
//! Written by the constructor (the library itself) and by the worker (chunks of its arena).
//!
//! # Safety
//!
//! The linker's symbols for the ends of the library are taken by address only.
#![allow(unsafe_code)]

use core::sync::atomic::{AtomicU64, Ordering};
use suture_abi::block::{OWN_PIECES, OwnMemory, Piece};

/// The list of the process.
pub static OWN: OwnMemory = OwnMemory {
    count: AtomicU64::new(0),
    pieces: [const { Piece { start: AtomicU64::new(0), len: AtomicU64::new(0) } }; OWN_PIECES],
};

unsafe extern "C" {
    static __ehdr_start: u8;
    static _end: u8;
}

/// Notes a piece. Beyond the length of the list none is noted: searches then find what is in it.
pub fn note(start: u64, len: u64) {
    let count = OWN.count.load(Ordering::Relaxed);
    if let Some(piece) = OWN.pieces.get(count as usize) {
        piece.start.store(start, Ordering::Relaxed);
        piece.len.store(len, Ordering::Relaxed);
        OWN.count.store(count.saturating_add(1), Ordering::Release);
    }
}

/// Notes the library itself.
pub fn note_library() {
    let start = (&raw const __ehdr_start).addr() as u64;
    let end = (&raw const _end).addr() as u64;
    note(start, end.saturating_sub(start));
}

/// Address of the list.
pub fn addr() -> u64 {
    (&raw const OWN).expose_provenance() as u64
}
