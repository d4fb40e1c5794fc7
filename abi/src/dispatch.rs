//! What a dispatcher reads: the record of the calling thread and the choice of its site.
//!
//! While a transition runs, the slot of each of its sites leads to the site's *dispatcher*. That code
//! finds the record of the thread it runs on, counts the pass, and jumps to one of two functions. Nobody
//! else needs to run for a thread to be on one side or the other.
//!
//! # Records
//!
//! One [`Record`] per thread id, in chunks of [`RECORDS_PER_CHUNK`]; a directory of [`CHUNKS`] pointers
//! covers every id the kernel can give (`PID_MAX_LIMIT`, 2^22). A record is found by arithmetic alone, so
//! no thread has to be visited or to register before it may pass a dispatcher. All zero is a valid
//! record: a thread that was never seen. The thread id comes from the C library's own thread header
//! (`fs:[offset]`, the offset from `_thread_db_pthread_tid`).
//!
//! # Choices
//!
//! Beside its slot each site has a *choice word*: the address of the [`Choice`] of the site's last
//! transition. A choice never changes once it is reachable, so a thread that was preempted inside a
//! dispatcher decides by one transition's numbers, never by a mixture of two.

use core::sync::atomic::{AtomicU32, AtomicU64};

/// Records in one chunk.
pub const RECORDS_PER_CHUNK: u32 = 1024;
/// Entries of the directory.
pub const CHUNKS: usize = 4096;

/// A thread's part in the transition. Alone in its cache line: its owner adds to it at every pass.
#[repr(C, align(64))]
#[derive(Debug)]
pub struct Record {
    /// Low half: *side*, the number of the last transition the thread was switched in. Written by the
    /// worker, and by the thread itself on its way through a dispatcher or before it runs its first code;
    /// by all of them with a compare-and-swap on the whole word. High half: *passes* through any
    /// dispatcher. Written by the thread itself, with a locked 32-bit add, and by the worker to invalidate
    /// what was read before.
    pub word: AtomicU64,
    /// Number of passes at which the thread looks at its own stack and moves itself if it is clear. Written
    /// by the thread; by the worker to have it look soon. A hint: nothing depends on its value.
    pub look_at: AtomicU32,
    /// Number of the transition in which the worker found the thread under no system call filters: in it the
    /// thread may look at its own stack. Written by the worker; by a newborn thread, which has the number of a
    /// dead one perhaps, 0.
    pub may_look: AtomicU32,
    /// What the last look at the thread came to that did not find it clear, for the runtime's own use, or 0. Written
    /// by the worker, read by threads that ask. Nothing depends on it.
    pub held: AtomicU64,
    /// The thread's name, for as long as `held` is not 0. Written and read likewise.
    pub name: [AtomicU64; 2],
    /// Room to the end of the line.
    pub spare: [u32; 6],
}

/// Where the two sides of a site lead in one transition.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// Number of the transition.
    pub id: u32,
    /// Must be 0.
    pub reserved: u32,
    /// Where a thread goes whose side equals `id`.
    pub switched: u64,
    /// Where all other threads go.
    pub unswitched: u64,
}

/// What dispatchers need to know of a process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Constants {
    /// Address of the directory of records ([`crate::block::RuntimeBlock::records`]).
    pub directory: u64,
    /// Where a dispatcher goes when the chunk of its thread does not exist
    /// ([`crate::block::RuntimeBlock::slow_path`]): the address to come back to is in `r10`, `r10` and
    /// `r11` of the program are on the stack, everything else is kept.
    pub slow_path: u64,
    /// Where a dispatcher goes when it is time for the thread to look at its own stack
    /// ([`crate::block::RuntimeBlock::self_look`]): the address to come back to is in `r10`, the record in
    /// `r11`, which is kept; `r10` and `r11` of the program are on the stack, everything else is kept.
    pub self_look: u64,
    /// Offset of the thread id from `fs`.
    pub thread_id: u32,
}

/// Puts a record's word together.
#[must_use]
pub const fn word(side: u32, passes: u32) -> u64 {
    side as u64 | (passes as u64) << 32
}

/// The side in a record's word.
#[must_use]
pub const fn side(word: u64) -> u32 {
    word as u32
}

/// The number of passes in a record's word.
#[must_use]
pub const fn passes(word: u64) -> u32 {
    (word >> 32) as u32
}

const _: () = {
    use core::mem::offset_of;
    // What the assembly of dispatchers counts on.
    assert!(size_of::<Record>() == 64 && offset_of!(Record, word) == 0);
    assert!(offset_of!(Record, look_at) == 8);
    assert!(size_of::<Choice>() == 24 && offset_of!(Choice, id) == 0);
    assert!(offset_of!(Choice, switched) == 8 && offset_of!(Choice, unswitched) == 16);
    assert!(RECORDS_PER_CHUNK as usize * CHUNKS == 1 << 22);
    assert!(RECORDS_PER_CHUNK.is_power_of_two() && CHUNKS.is_power_of_two());
};
