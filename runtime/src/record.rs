//! The records of threads: who is on which side of the transition.
//!
//! Read and written by the worker, by dispatchers ([`crate::arch`]) and by threads that are being born
//! ([`crate::birth`]). Nothing here locks, allocates from an arena, or waits; [`Directory::ensure_own`]
//! may run on any thread and in a signal handler.
//!
//! # Protocol
//!
//! A record is found from the thread id by arithmetic: no thread has to register, and a record that
//! nobody wrote (all zero) says "not switched". Chunks are never unmapped once the directory names
//! them, so a thread that was preempted between finding its record and adding to it adds to valid
//! memory, whenever it runs on.
//!
//! The *word* holds side and passes together. A thread adds 1 to its passes before it reads its side
//! (one locked instruction: a full barrier). The worker reads the word, proves that the thread was off
//! the processor from then on until its stack was copied, and changes the side by compare-and-swap on
//! the whole word. If the thread passed any dispatcher in between, the swap fails; if it did not, it
//! cannot have entered a function of the transition, and what the stack said is still true.
//! The add is 32 bits wide, so it never carries into the side (it wraps after 2^32 passes; to do harm it
//! would have to wrap exactly between two reads with the thread off the processor all the while).
//!
//! The kernel uses thread ids again. A newborn thread may find the side of a dead one: it has no frame of
//! any patched function yet, so either side is right for it.
//!
//! # Safety
//!
//! Chunks come from `mmap`, zeroed, and stay for the life of the process.
#![allow(unsafe_code)]

use crate::sys::Errno;
use crate::sys::mem;
use crate::word::Word;
use core::ptr::null_mut;
use core::sync::atomic::{AtomicPtr, AtomicU64, Ordering};
use suture_abi::dispatch::{CHUNKS, RECORDS_PER_CHUNK, Record, passes, side, word};

/// Bytes of one chunk.
pub const CHUNK_LEN: u64 = RECORDS_PER_CHUNK as u64 * size_of::<Record>() as u64;

/// The directory of chunks. In `.bss`: costs nothing before the first transition.
#[repr(transparent)]
#[derive(Debug)]
pub struct Directory([AtomicPtr<Record>; CHUNKS]);

/// The directory of the process.
pub static DIRECTORY: Directory = Directory([const { AtomicPtr::new(null_mut()) }; CHUNKS]);

/// Stands in for chunks for which there is no memory. All ids that are equal modulo the size of a chunk share
/// one of its records, so nobody is moved who uses them: the worker makes a chunk for a thread it knows, and only it
/// puts a chunk in the place of this one. Written by the worker, once.
pub static STAND_IN: AtomicPtr<Record> = AtomicPtr::new(null_mut());

impl Directory {
    /// Where it is, for readers outside.
    pub fn addr(&self) -> u64 {
        self.0.as_ptr().expose_provenance() as u64
    }

    fn entry(&self, tid: u32) -> Option<&AtomicPtr<Record>> {
        self.0.get((tid / RECORDS_PER_CHUNK) as usize)
    }

    /// The word of a thread's record; `None` if it has none of its own.
    pub fn find(&self, tid: u32) -> Option<&AtomicU64> {
        self.find_record(tid).map(|record| &record.word)
    }

    /// The record of a thread; `None` if it has none of its own.
    pub fn find_record(&self, tid: u32) -> Option<&Record> {
        // pairs with: the release half of `put`
        let chunk = self.entry(tid)?.load(Ordering::Acquire);
        if chunk.is_null() || chunk == STAND_IN.load(Ordering::Relaxed) {
            return None;
        }
        Some(record_of(chunk, tid))
    }

    /// The word of a thread's record, made if there is none. Only the worker may call it: whoever has used a
    /// record that stands in keeps the side it gave, and nobody else moves those meanwhile.
    pub fn ensure(&self, tid: u32) -> Result<&AtomicU64, Errno> {
        self.make(tid, true, 0).map(|record| &record.word)
    }

    /// The record of the calling thread, made if there is none, with all of its chunk on a side; `None` if there is
    /// no memory, and the chunk that stands in is named then.
    pub fn ensure_own(&self, tid: u32, side: u32) -> Option<&Record> {
        match self.make(tid, false, side) {
            Ok(record) => Some(record),
            Err(_) => {
                let entry = self.entry(tid)?;
                put(entry, null_mut(), STAND_IN.load(Ordering::Acquire));
                // Somebody may have had more luck.
                self.find_record(tid)
            }
        }
    }

    fn make(&self, tid: u32, replaces: bool, to: u32) -> Result<&Record, Errno> {
        if let Some(record) = self.find_record(tid) {
            return Ok(record);
        }
        let entry = self.entry(tid).ok_or(crate::sys::EINVAL)?;
        let seen = entry.load(Ordering::Acquire);
        let stands_in = !seen.is_null() && seen == STAND_IN.load(Ordering::Relaxed);
        if stands_in && !replaces {
            return Err(crate::sys::ENOMEM);
        }
        let fresh = map_chunk()?;
        if stands_in || to != 0 {
            for i in 0..RECORDS_PER_CHUNK {
                // Whoever has used a shared record keeps the side it gave.
                let to = if stands_in { side(in_chunk(seen, i).load(Ordering::Relaxed)) } else { to };
                in_chunk(fresh, i).store(word(to, 0), Ordering::Relaxed);
            }
        }
        let put = (seen.is_null() || stands_in) && put(entry, seen, fresh);
        if !put {
            // SAFETY: nobody has seen the fresh chunk.
            let _ = unsafe { mem::unmap(fresh.expose_provenance() as u64, CHUNK_LEN) };
        }
        // Put by us or by somebody else: entries never go back to "none".
        self.find_record(tid).ok_or(crate::sys::EAGAIN)
    }

    /// All chunks that exist, with the id of their first record.
    pub fn chunks(&self) -> impl Iterator<Item = (u32, &[Record])> {
        let stand_in = STAND_IN.load(Ordering::Relaxed);
        let ids = (0..).step_by(RECORDS_PER_CHUNK as usize);
        ids.zip(&self.0).filter_map(move |(first, entry)| {
            // After the worker's store of how the transition stands.
            let chunk = entry.load(Ordering::SeqCst);
            if chunk.is_null() || chunk == stand_in {
                return None;
            }
            // SAFETY: a chunk has this many records and is never unmapped; records are atomics.
            Some((first, unsafe { core::slice::from_raw_parts(chunk, RECORDS_PER_CHUNK as usize) }))
        })
    }

    /// Maps the chunk that stands in. Only the worker may call it.
    pub fn prepare_stand_in(&self) -> Result<(), Errno> {
        if STAND_IN.load(Ordering::Relaxed).is_null() {
            STAND_IN.store(map_chunk()?, Ordering::Release);
        }
        Ok(())
    }

    /// The records that stand in.
    pub fn shared(&self) -> impl Iterator<Item = &AtomicU64> {
        let stand_in = STAND_IN.load(Ordering::Relaxed);
        let ids = if stand_in.is_null() { 0..0 } else { 0..RECORDS_PER_CHUNK };
        ids.map(move |tid| in_chunk(stand_in, tid))
    }
}

fn record_of<'a>(chunk: *mut Record, tid: u32) -> &'a Record {
    let record = chunk.wrapping_add((tid % RECORDS_PER_CHUNK) as usize);
    // SAFETY: inside the chunk, which is never unmapped; its fields are atomics.
    unsafe { &*record }
}

fn in_chunk<'a>(chunk: *mut Record, tid: u32) -> &'a AtomicU64 {
    &record_of(chunk, tid).word
}

/// Names a chunk in the directory unless somebody was faster.
fn put(entry: &AtomicPtr<Record>, seen: *mut Record, chunk: *mut Record) -> bool {
    // pairs with: `find`, and the load in every dispatcher; before the owner's load of how the transition stands
    entry.compare_exchange(seen, chunk, Ordering::SeqCst, Ordering::Acquire).is_ok()
}

fn map_chunk() -> Result<*mut Record, Errno> {
    mem::map_anywhere(CHUNK_LEN).map(|at| core::ptr::with_exposed_provenance_mut(at as usize))
}

/// Puts a thread on a side if it passed no dispatcher since `seen` was read.
pub fn move_to(record: &impl Word<u64>, seen: u64, to: u32) -> bool {
    // pairs with: the locked add in every dispatcher
    record.compare_exchange(seen, word(to, passes(seen)), Ordering::AcqRel, Ordering::Relaxed).is_ok()
}

/// Puts a thread on a side whatever it does meanwhile. Makes every look that is under way void.
pub fn set_side(record: &impl Word<u64>, to: u32) {
    let mut seen = record.load(Ordering::Relaxed);
    loop {
        let next = word(to, passes(seen).wrapping_add(1));
        match record.compare_exchange(seen, next, Ordering::AcqRel, Ordering::Relaxed) {
            Ok(_) => return,
            Err(now) => seen = now,
        }
    }
}

/// Counts a pass: whoever read the word before finds it changed.
pub fn fence(record: &impl Word<u64>) {
    // The passes are the upper half: what they carry is lost, and never reaches the side.
    record.fetch_add(word(0, 1), Ordering::AcqRel);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passes_never_reach_the_side() {
        let record = AtomicU64::new(word(7, u32::MAX));
        fence(&record);
        assert_eq!(record.load(Ordering::Relaxed), word(7, 0));
    }

    #[test]
    fn a_pass_in_between_voids_the_move() {
        let record = AtomicU64::new(word(0, 3));
        let seen = record.load(Ordering::Relaxed);
        fence(&record);
        assert!(!move_to(&record, seen, 9));
        assert_eq!(side(record.load(Ordering::Relaxed)), 0);
        assert!(move_to(&record, word(0, 4), 9));
        assert_eq!(record.load(Ordering::Relaxed), word(9, 4));
    }

    #[test]
    fn records_of_all_ids_are_found_and_apart() {
        let directory: Box<Directory> = Box::new(Directory([const { AtomicPtr::new(null_mut()) }; CHUNKS]));
        let ids = [0, 1, 1023, 1024, 4_194_303];
        for id in ids {
            assert!(directory.find(id).is_none() || id == 1 || id == 1023, "{id}");
            set_side(directory.ensure(id).unwrap(), id + 1);
        }
        for id in ids {
            assert_eq!(side(directory.find(id).unwrap().load(Ordering::Relaxed)), id + 1);
        }
        assert_eq!(directory.ensure(1 << 22).unwrap_err(), crate::sys::EINVAL);
        assert_eq!(directory.chunks().map(|(first, _)| first).collect::<Vec<_>>(), [0, 1024, 4_193_280]);
    }
}
