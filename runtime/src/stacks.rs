//! Stacks that the program registers.
//!
//! Runs on threads of the program, in a signal handler too. No lock, no allocator; a chunk of slots comes from
//! `mmap` and stays.
//!
//! # Why a count is all that is read in here
//!
//! A thread that makes coroutines has frames that no look at its own stack finds. Looks from in here
//! therefore find nobody clear while any stack is registered, and leave all threads to the command, which
//! reads the table. A look reads the thread's record first and the count then. The thread
//! counts its stack before it runs anything on it, so before it passes a dispatcher there. Either the look
//! sees the count, or it read the record before that pass (a locked add, which orders the two), and the swap
//! that it leads to fails.
//!
//! # Safety
//!
//! Chunks come from `mmap`, zeroed, and are never unmapped; all fields are atomics.
#![allow(unsafe_code)]

use crate::sys::{EINVAL, ENOENT, ENOMEM, Errno, mem};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
use suture_abi::stacks::{CHUNKS, FREE, SLOTS, Slot, Stacks, USED};

/// The table of the process. In `.bss`: costs nothing while nobody registers.
pub static STACKS: Stacks =
    Stacks { count: AtomicU64::new(0), chunks: [const { AtomicU64::new(0) }; CHUNKS] };

/// Where the next free slot may be.
static HINT: AtomicU32 = AtomicU32::new(0);

/// Smaller stacks are none.
const SMALLEST: u64 = 256;
const CHUNK_LEN: u64 = (SLOTS * size_of::<Slot>()) as u64;

/// True while any stack is registered.
pub fn any() -> bool {
    // pairs with: the add in `register`, by way of the record that was read before
    STACKS.count.load(Ordering::SeqCst) != 0
}

/// Address of the table, for readers outside.
pub fn addr() -> u64 {
    (&raw const STACKS).expose_provenance() as u64
}

/// Registers a stack; gives its number, from 1.
///
/// The range is `low..high`; `saved` and `resumer` are addresses of words, or 0.
///
/// # Errors
/// `EINVAL` for what is no stack, `ENOMEM` when there is no room for more.
pub fn register(low: u64, high: u64, saved: u64, resumer: u64) -> Result<u32, Errno> {
    let long = low != 0 && low < high && high.wrapping_sub(low) >= SMALLEST;
    if !long || [low, high, saved, resumer].iter().any(|word| !word.is_multiple_of(8)) {
        return Err(EINVAL);
    }
    STACKS.count.fetch_add(1, Ordering::SeqCst);
    let taken = take();
    let Ok((number, slot, version)) = taken else {
        STACKS.count.fetch_sub(1, Ordering::SeqCst);
        return Err(ENOMEM);
    };
    // Whoever reads one of these words reads the version after it as taken.
    fence(Ordering::Release);
    slot.low.store(low, Ordering::Relaxed);
    slot.high.store(high, Ordering::Relaxed);
    slot.saved.store(saved, Ordering::Relaxed);
    slot.resumer.store(resumer, Ordering::Relaxed);
    // pairs with: the reading of the slot by the command (ordered by x86)
    slot.version.store(version.wrapping_add(2), Ordering::Release);
    Ok(number.wrapping_add(1))
}

/// Takes a stack off the table.
///
/// # Errors
/// `ENOENT` when no stack has that number.
pub fn unregister(number: u32) -> Result<(), Errno> {
    let index = number.checked_sub(1).ok_or(ENOENT)?;
    let slot = slot(index, false)?;
    let version = slot.version.load(Ordering::Relaxed);
    let leaving = version.wrapping_add(1);
    let free = version.wrapping_add(2);
    let swap = || slot.version.compare_exchange(version, leaving, Ordering::AcqRel, Ordering::Relaxed);
    if version % 4 != USED || swap().is_err() {
        return Err(ENOENT);
    }
    slot.version.store(free, Ordering::Release);
    HINT.store(index, Ordering::Relaxed);
    STACKS.count.fetch_sub(1, Ordering::SeqCst);
    Ok(())
}

/// Takes a free slot: its index, itself, its version before.
fn take() -> Result<(u32, &'static Slot, u32), Errno> {
    const ALL: u32 = (SLOTS * CHUNKS) as u32;
    let hint = HINT.load(Ordering::Relaxed);
    // From the hint to the end, then from the beginning: chunks exist from the first one on.
    for index in (hint..ALL).chain(0..hint.min(ALL)) {
        let slot = slot(index, true)?;
        let version = slot.version.load(Ordering::Relaxed);
        let taken = version.wrapping_add(1);
        let swap = || slot.version.compare_exchange(version, taken, Ordering::AcqRel, Ordering::Relaxed);
        if version % 4 == FREE && swap().is_ok() {
            HINT.store(index.wrapping_add(1), Ordering::Relaxed);
            return Ok((index, slot, version));
        }
    }
    Err(ENOMEM)
}

/// A slot; its chunk is made if it does not exist and `make` says so.
fn slot(index: u32, make: bool) -> Result<&'static Slot, Errno> {
    let (chunk, at) = (index as usize / SLOTS, index as usize % SLOTS);
    let entry = STACKS.chunks.get(chunk).ok_or(ENOENT)?;
    let mut base = entry.load(Ordering::Acquire);
    if base == 0 {
        if !make {
            return Err(ENOENT);
        }
        let fresh = mem::map_anywhere(CHUNK_LEN)?;
        base = match entry.compare_exchange(0, fresh, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => fresh,
            Err(other) => {
                // SAFETY: nobody has seen the fresh chunk.
                let _ = unsafe { mem::unmap(fresh, CHUNK_LEN) };
                other
            }
        };
    }
    let first: *const Slot = core::ptr::with_exposed_provenance(base as usize);
    // SAFETY: `at` is below the number of slots of a chunk, which is never unmapped; fields are atomics.
    Ok(unsafe { &*first.wrapping_add(at) })
}

/// `suture_stack_register` of `include/suture.h`.
#[unsafe(export_name = "suture_stack_register")]
pub extern "C" fn register_from_c(low: u64, high: u64, saved: u64, resumer: u64) -> i32 {
    match register(low, high, saved, resumer) {
        Ok(number) => number.cast_signed(),
        Err(Errno(errno)) => errno.cast_signed().wrapping_neg(),
    }
}

/// `suture_stack_unregister` of `include/suture.h`.
#[unsafe(export_name = "suture_stack_unregister")]
pub extern "C" fn unregister_from_c(number: i32) -> i32 {
    match unregister(number.cast_unsigned()) {
        Ok(()) => 0,
        Err(Errno(errno)) => errno.cast_signed().wrapping_neg(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;
    use std::sync::Barrier;

    /// One test: the table is the process's.
    #[test]
    fn stacks_come_and_go() {
        for (low, high) in [(0, 0x1000), (0x2000, 0x1000), (0x1000, 0x1008), (0x1001, 0x9000)] {
            assert_eq!(register(low, high, 0, 0), Err(EINVAL));
        }
        assert_eq!(register(0x1000, 0x9000, 4, 0), Err(EINVAL), "a word is aligned");
        assert_eq!(
            (unregister(0), unregister(1), unregister(u32::MAX)),
            (Err(ENOENT), Err(ENOENT), Err(ENOENT))
        );
        assert!(!any());
        let first = register(0x1000, 0x9000, 0x10, 0x18).unwrap();
        let found = slot(first - 1, false).unwrap();
        assert_eq!(found.version.load(Ordering::Relaxed) % 4, USED);
        assert_eq!(found.high.load(Ordering::Relaxed), 0x9000);
        assert!(any());
        assert_eq!((unregister(first), unregister(first)), (Ok(()), Err(ENOENT)));
        assert!(!any());

        // Threads: no number is given twice at a time, and none is lost.
        let (threads, each) = (4, 400);
        let start = Barrier::new(threads);
        let one = |seed: u64| {
            start.wait();
            let register = |i| register(0x1_0000 * (seed + 1), 0x1_0000 * (seed + 2), 0, 8 * i).unwrap();
            let mut mine: Vec<u32> = (0..each).map(register).collect();
            mine.drain(..200).for_each(|number| unregister(number).unwrap());
            mine.extend((0..200).map(register));
            mine
        };
        let all: Vec<u32> = std::thread::scope(|scope| {
            let running: Vec<_> = (0..threads as u64).map(|seed| scope.spawn(move || one(seed))).collect();
            running.into_iter().flat_map(|t| t.join().unwrap()).collect()
        });
        assert_eq!(all.iter().collect::<HashSet<_>>().len(), threads * each as usize);
        assert_eq!(STACKS.count.load(Ordering::Relaxed), threads as u64 * each);
        all.into_iter().for_each(|number| unregister(number).unwrap());
        assert!(!any());
    }
}
