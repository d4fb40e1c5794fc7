//! A thread looks at its own stack.
//!
//! A thread that calls redirected functions all the time is hardly ever met asleep, and a stop from outside
//! finds it inside of one nearly always. But it comes through a dispatcher itself, and there it knows best:
//! it stands at the entry of a function, with its whole stack above. If nothing searched is on it, the
//! thread moves itself, and takes the new side with this very call. (The kernel does the same in
//! `cond_resched`.)
//!
//! Runs on threads of the program, in a signal handler too, anywhere. No lock, no allocation, little stack;
//! memory is read through the kernel, so that a strange stack ends the look instead of the program.
//!
//! # Protocol
//!
//! As births ([`crate::birth`]): the record's word is read first, then how the transition stands, then the
//! stack; the move is a compare-and-swap from the word. While the worker closes a transition no thread moves
//! itself, and the worker adds to the passes of every thread after it has said so: either the thread's swap
//! came before, and the worker's last readings see its side, or it fails.
//!
//! Memory is read by a system call that a filter may answer with the end of the program. So a thread only looks
//! when it is known to be under no filters: the worker asks about those that it did not find blocked, and remembers
//! it in their records for the one transition. A record's next owner does not inherit that: a newborn takes it back
//! before its own code runs, the worker when it has found the last one dead. (What is left is a thread made by a raw
//! clone whose number is used again between two readings, after all others were.) A filter that is set later is not
//! seen. In a process that cannot read its own `/proc` the command asks about all threads.
//!
//! The table of what is searched is immutable and kept until every thread was seen outside of all dispatchers
//! in a later transition.
//!
//! # Safety
//!
//! Reached from dispatchers only, with the thread's own record (records are never unmapped, and their fields
//! are atomics).
#![allow(unsafe_code)]

use super::ends::{self, StackEnds};
use super::searched::{Late, with_contexts};
use crate::arch;
use crate::birth;
use crate::block::BLOCK;
use crate::books::{Books, BooksError};
use crate::late;
use crate::list;
use crate::record::{DIRECTORY, move_to};
use crate::stacks;
use crate::sys::task::copy_some;
use crate::sys::thread;
use alloc_crate::vec::Vec;
use core::ptr::null;
use core::sync::atomic::{AtomicPtr, AtomicU32, Ordering};
use suture_abi::block::TransitionRow;
use suture_abi::dispatch::{Record, passes, side, word};
use suture_scan::{End, Hit, Interval, Ranges, Scanner, Step};

/// What is searched in a direction of a transition: transition and direction, the count of objects that came late
/// for which it holds, number of intervals, the intervals. Written by the worker, read by every thread.
static TABLE: AtomicPtr<u64> = AtomicPtr::new(null::<u64>().cast_mut());

/// Not 0: the command found no thread of the program under filters. Written by the worker.
static ALL_MAY_LOOK: AtomicU32 = AtomicU32::new(0);

/// Number of the main thread.
static MAIN: AtomicU32 = AtomicU32::new(0);

/// The words of a table.
pub fn table(books: &Books, t: &TransitionRow) -> Result<Vec<u64>, BooksError> {
    // Before the places are read: what comes meanwhile makes the table stale, whether it is in it or not.
    let epoch = BLOCK.late_epoch().load(Ordering::SeqCst);
    let late::Known { bases, code } = late::known(books)?;
    let intervals = with_contexts(books, t, arch::path(), &Late { bases: &bases, code: &code })?;
    let mut words = Vec::new();
    list::push(&mut words, word(t.id, u32::from(t.to_switched())))?;
    list::push(&mut words, epoch)?;
    list::push(&mut words, intervals.len() as u64)?;
    for interval in intervals {
        list::push(&mut words, interval.first)?;
        list::push(&mut words, interval.last)?;
    }
    Ok(words)
}

/// Says whether every thread may look at itself.
pub fn let_all_look(all: bool) {
    ALL_MAY_LOOK.store(u32::from(all), Ordering::Relaxed);
}

/// Whether a thread may look at itself.
pub fn may_look(record: &Record, transition: u32) -> bool {
    ALL_MAY_LOOK.load(Ordering::Relaxed) != 0 || record.may_look.load(Ordering::Relaxed) == transition
}

/// Shows a table that was kept, 0 = nobody looks from in here.
pub fn show(addr: u64) {
    MAIN.store(thread::getpid(), Ordering::Relaxed);
    // pairs with: the load in `look_at_self`
    TABLE.store(core::ptr::with_exposed_provenance_mut(addr as usize), Ordering::Release);
}

/// The intervals of the table that is shown, if it is of that transition and direction.
pub fn shown(t: &TransitionRow) -> Option<&'static [Interval]> {
    current()
        .filter(|(head, _)| *head == word(t.id, u32::from(t.to_switched())))
        .map(|(_, intervals)| intervals)
}

/// Whether the table knows of every object that was there when the call began. To be asked *after* a stack was
/// looked at: whoever is in code of an object was so after the object had been counted.
pub fn is_complete() -> bool {
    let table = TABLE.load(Ordering::Acquire).cast_const();
    // SAFETY: as in `current`.
    // pairs with: the count of a loading thread, before any code of its object runs
    table.is_null() || unsafe { table.wrapping_add(1).read() } == BLOCK.late_epoch().load(Ordering::SeqCst)
}

fn current() -> Option<(u64, &'static [Interval])> {
    let table = TABLE.load(Ordering::Acquire).cast_const();
    if table.is_null() {
        return None;
    }
    // SAFETY: a table that is shown is complete, never changes and outlives every thread that reads it; an
    // `Interval` is two words.
    unsafe {
        let (head, count) = (table.read(), table.wrapping_add(2).read() as usize);
        Some((head, core::slice::from_raw_parts(table.wrapping_add(3).cast(), count)))
    }
}

/// A thread at the goal looks again after so many passes: only a transition that is turned round, which has
/// the worker write it, brings that about earlier.
const AT_GOAL: u32 = 1 << 30;

/// The thread's own look. `sp` points at the return address of the function that was called.
pub extern "C" fn look_at_self(record: &Record, sp: u64) {
    let seen = record.word.load(Ordering::SeqCst);
    // A record that stands in is not this thread's alone, and one that stood in no longer tells its side.
    let own = DIRECTORY.find_record(arch::own_thread_id()).is_some_and(|own| core::ptr::eq(own, record));
    let Some((head, intervals)) = current().filter(|_| own && birth::is_open()) else {
        later(record, seen, 64);
        return;
    };
    let (transition, to_switched) = (side(head), passes(head) != 0);
    if (side(seen) == transition) == to_switched {
        later(record, seen, AT_GOAL);
        return;
    }
    if !may_look(record, transition) {
        later(record, seen, 64);
        return;
    }
    // Of changing length, so that it does not meet the same function of a cycle each time.
    later(record, seen, (passes(seen).wrapping_mul(0x9e37_79b9) >> 29).wrapping_add(3));
    let goal = if to_switched { transition } else { 0 };
    let clear = Ranges::new(intervals).is_ok_and(|ranges| own_stack_is_clear(sp, &ranges));
    if clear && !stacks::any() && is_complete() {
        let moved = move_to(&record.word, seen, goal);
        BLOCK.moved().by_themselves.fetch_add(u64::from(moved), Ordering::Relaxed);
    }
}

fn later(record: &Record, seen: u64, distance: u32) {
    record.look_at.store(passes(seen).wrapping_add(distance), Ordering::Relaxed);
}

fn own_stack_is_clear(sp: u64, ranges: &Ranges<'_>) -> bool {
    // Asked of the kernel: a child made by a raw fork has its parent's in memory.
    let pid = thread::getpid();
    let tid = arch::own_thread_id();
    let ends = StackEnds::known();
    let is_main = tid == MAIN.load(Ordering::Relaxed) && ends.main > sp;
    is_main && scan(pid, sp, End::Address(ends.main), ranges).is_some()
        || scan(pid, sp, ends.block(tid), ranges).is_some_and(|at| ends.is_block(pid, at))
}

/// Words that are read at a time: the buffer lies on the program's stack.
const WORDS: usize = 32;
/// Pieces of a stack that are looked at: 64 KiB. Threads with deeper ones are looked at by others.
const PIECES: usize = 256;

/// Where a stack ends that is clean.
fn scan(pid: u32, sp: u64, end: End, ranges: &Ranges<'_>) -> Option<u64> {
    let mut hits = [Hit::default(); 1];
    let mut scanner = Scanner::new(ranges, &mut hits, sp, end);
    let mut words = [0u64; WORDS];
    for _ in 0..PIECES {
        let Ok(count) = copy_some(pid, scanner.next(), &mut words) else { return None };
        // The caller is searched code more often than not: no need to go on.
        let step = scanner.feed(words.get(..count).unwrap_or_default());
        if step == Step::Ended || scanner.has_hit() || count == 0 {
            break;
        }
    }
    ends::clean(&scanner.finish())
}
