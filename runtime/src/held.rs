//! Why threads hold a transition up: what the last look at each came to.
//!
//! For people only; nothing depends on it. Written by the worker, read by any thread, in a handler, too.
//!
//! # Protocol
//!
//! The note is one word of the thread's record ([`suture_abi::dispatch::Record`]), so it is whole whenever it is read,
//! and the record is never unmapped. The thread's name is written before the first note (release) and read after it
//! (acquire), and stays until the note is taken back. A thread that ends and gives its number to another one between
//! a note and its reading is reported under its old name.
//!
//! A note counts only while its thread is off the goal of the transition that runs: so whoever moves the thread takes
//! the note back with the same store, by whatever way. What is left of earlier transitions is wiped when threads
//! begin to move.

use crate::record::DIRECTORY;
use core::sync::atomic::Ordering;
use suture_abi::block::{PHASE_RUNNING, TransitionRow};
use suture_abi::dispatch::{Record, side};

/// Bytes of a thread's name, as the kernel has it.
pub const NAME: usize = 16;

/// Why a thread is not moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// It runs, or may run unseen.
    Running,
    /// What looks like an address of searched code is on its stack: that.
    On(u64),
    /// Its stack cannot be judged from inside.
    Unclear,
    /// Nobody has looked: that is left to the command.
    Unseen,
}

/// A thread that is off the goal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pending {
    /// Its number.
    pub tid: u32,
    /// Its name, NUL padded; empty if that was not to be had.
    pub name: [u8; NAME],
    /// Why.
    pub why: Why,
}

/// Addresses of user space have 47 bits.
const ADDRESS: u64 = (1 << 48) - 1;
const RUNNING: u64 = 1 << 48;
const ON: u64 = 2 << 48;
const UNCLEAR: u64 = 3 << 48;
const UNSEEN: u64 = 4 << 48;

/// Notes why the owner of a record is not moved. Its name is asked for once.
pub fn note(record: &Record, why: Why, name: impl FnOnce() -> [u8; NAME]) {
    let word = match why {
        Why::Running => RUNNING,
        Why::On(at) => ON | at & ADDRESS,
        Why::Unclear => UNCLEAR,
        Why::Unseen => UNSEEN,
    };
    // Written by the worker alone.
    if record.held.load(Ordering::Relaxed) == 0 {
        let name = name();
        for (place, bytes) in record.name.iter().zip(name.as_chunks::<8>().0) {
            place.store(u64::from_le_bytes(*bytes), Ordering::Relaxed);
        }
    }
    // pairs with: `of`
    record.held.store(word, Ordering::Release);
}

/// Notes that nobody has looked at the owner of a record, unless somebody has.
pub fn note_unseen(record: &Record) {
    if record.held.load(Ordering::Relaxed) == 0 {
        note(record, Why::Unseen, || [0; NAME]);
    }
}

/// Takes a note back.
pub fn forget(record: &Record) {
    if record.held.load(Ordering::Relaxed) != 0 {
        record.held.store(0, Ordering::Relaxed);
    }
}

/// Takes all notes back.
pub fn forget_all() {
    DIRECTORY.chunks().for_each(|(_, records)| records.iter().for_each(forget));
}

fn of(record: &Record) -> Option<(Why, [u8; NAME])> {
    // pairs with: `note`
    let word = record.held.load(Ordering::Acquire);
    let why = match word & !ADDRESS {
        RUNNING => Why::Running,
        ON => Why::On(word & ADDRESS),
        UNCLEAR => Why::Unclear,
        UNSEEN => Why::Unseen,
        _ => return None,
    };
    let mut name = [0; NAME];
    for (bytes, place) in name.as_chunks_mut::<8>().0.iter_mut().zip(&record.name) {
        *bytes = place.load(Ordering::Relaxed).to_le_bytes();
    }
    Some((why, name))
}

/// Calls `each` with every thread that is off the goal of a transition and was not found clear, in order of their
/// numbers.
pub fn pending(t: &TransitionRow, mut each: impl FnMut(Pending)) {
    if t.phase != PHASE_RUNNING {
        return;
    }
    for (first, records) in DIRECTORY.chunks() {
        for (tid, record) in (first..).zip(records) {
            let is_there = (side(record.word.load(Ordering::Relaxed)) == t.id) == t.to_switched();
            if let Some((why, name)) = of(record).filter(|_| !is_there) {
                each(Pending { tid, name, why });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::sync::atomic::{AtomicU32, AtomicU64};

    #[test]
    fn a_note_is_read_as_it_was_written() {
        let zero = || AtomicU64::new(0);
        let record = Record {
            word: zero(),
            look_at: AtomicU32::new(0),
            may_look: AtomicU32::new(0),
            held: zero(),
            name: [zero(), zero()],
            spare: [0; 6],
        };
        assert_eq!(of(&record), None);
        let name = *b"worker-15-chars\0";
        for why in [Why::Running, Why::On(0x7fff_ffff_f123), Why::Unclear, Why::Unseen] {
            note(&record, why, || name);
            assert_eq!(of(&record), Some((why, name)));
        }
        note(&record, Why::Running, || unreachable!("it is known"));
        note_unseen(&record);
        assert_eq!(of(&record), Some((Why::Running, name)), "somebody has looked");
        forget(&record);
        assert_eq!(of(&record), None);
        note_unseen(&record);
        assert_eq!(of(&record), Some((Why::Unseen, [0; NAME])));
    }
}
