//! Threads and processes that come into being while a transition runs.
//!
//! As in the kernel a child starts on its creator's side. The common body of thread creation in the C
//! library and its `_Fork` are redirected to the handlers here; their slots lead here only while a
//! transition runs. Threads made by a raw `clone` start unswitched and are found by the worker.
//!
//! Runs on the program's threads. No allocation, no lock; `settle` runs before the new thread's own code.
//!
//! # Protocol
//!
//! The creator reads its side, writes a ticket, and creates the thread; the child takes the ticket and
//! puts itself on that side by compare-and-swap. Both may be preempted for any time in between, and the
//! transition may be reversed, or closed, meanwhile:
//!
//! * another transition, or none: the ticket's side means nothing, and is not taken;
//! * *closing* (every thread is where it is to be, the worker is looking for the last time): the child
//!   goes to the goal, whatever its creator's side was. The child reads [`NOW`] *after* its record's word
//!   and swaps that word; the worker stores `NOW` first, then adds to the passes of every record it knows.
//!   So either the child's swap comes before the worker's add, and the worker's reading that follows sees
//!   the side, or the swap fails and the child sees that the transition is closing;
//! * a record that does not exist yet, of a child with a ticket or of a thread that passes its first dispatcher
//!   ([`first_pass`]): it is named in the directory *before* [`NOW`] is read, and the worker lists the directory
//!   *after* it stored `NOW`. So either the worker finds the record, or its owner sees the closing.
//!
//! # Safety
//!
//! The handlers are called with the arguments of the functions they stand for.
#![allow(unsafe_code)]

use crate::arch;
use crate::record::DIRECTORY;
use crate::word::Word;
use core::ffi::c_int;
use core::sync::atomic::{AtomicU64, Ordering};
use suture_abi::batch::{HOOK_FORK, HOOK_PTHREAD_CREATE};
use suture_abi::dispatch::{Record, passes, side, word};

/// The transition as births see it: low half its number (0 = none), high half one of the constants
/// below. Written by the worker only.
#[derive(Debug)]
pub struct Now<W>(W);

/// That of the process.
static NOW: Now<AtomicU64> = Now(AtomicU64::new(0));

/// Children start on their creator's side.
const OPEN: u32 = 0;
/// Children start switched.
const CLOSING_SWITCHED: u32 = 1;
/// Children start unswitched.
const CLOSING_UNSWITCHED: u32 = 2;

impl<W: Word<u64>> Now<W> {
    /// No transition.
    pub const fn new(word: W) -> Self {
        Now(word)
    }

    /// Children start on their creator's side from now on.
    pub fn open(&self, transition: u32) {
        self.0.store(word(transition, OPEN), Ordering::SeqCst);
    }

    /// Children start at the goal from now on.
    pub fn close(&self, transition: u32, to_switched: bool) {
        let how = if to_switched { CLOSING_SWITCHED } else { CLOSING_UNSWITCHED };
        // pairs with: the load in `settle` (see the protocol above)
        self.0.store(word(transition, how), Ordering::SeqCst);
    }

    /// A transition runs and is not being closed.
    pub fn is_open(&self) -> bool {
        let now = self.0.load(Ordering::SeqCst);
        side(now) != 0 && passes(now) == OPEN
    }

    /// No transition runs.
    pub fn end(&self) {
        self.0.store(0, Ordering::SeqCst);
    }

    /// Puts a newborn on a side of `transition`. See the protocol above.
    pub fn settle(&self, record: &impl Word<u64>, transition: u32, switched: bool) {
        loop {
            let seen = record.load(Ordering::SeqCst);
            let now = self.0.load(Ordering::SeqCst);
            if side(now) != transition {
                return;
            }
            let switched = match passes(now) {
                CLOSING_SWITCHED => true,
                CLOSING_UNSWITCHED => false,
                _ => switched,
            };
            let next = word(if switched { transition } else { 0 }, passes(seen).wrapping_add(1));
            if record.compare_exchange(seen, next, Ordering::SeqCst, Ordering::Relaxed).is_ok() {
                return;
            }
        }
    }

    /// The side of those whose records are made now.
    fn first_side(&self) -> u32 {
        let now = self.0.load(Ordering::SeqCst);
        if passes(now) == CLOSING_SWITCHED { side(now) } else { 0 }
    }

    /// Puts a thread without a ticket whose record was just made at the goal if the transition closes.
    pub fn settle_first(&self, record: &impl Word<u64>) {
        // pairs with: the store in `close` (see the protocol above)
        let now = self.0.load(Ordering::SeqCst);
        if side(now) != 0 && passes(now) != OPEN {
            self.settle(record, side(now), false);
        }
    }
}

/// Children start on their creator's side from now on.
pub fn open(transition: u32) {
    NOW.open(transition);
}

/// Children start at the goal from now on.
pub fn close(transition: u32, to_switched: bool) {
    NOW.close(transition, to_switched);
}

/// A transition runs and is not being closed: threads may move themselves.
pub fn is_open() -> bool {
    NOW.is_open()
}

/// No transition runs.
pub fn end() {
    NOW.end();
}

/// Copies of the redirected functions. Written by the worker before a slot leads to a handler.
static ORIGINAL_CREATE: AtomicU64 = AtomicU64::new(0);
/// As [`ORIGINAL_CREATE`].
static ORIGINAL_FORK: AtomicU64 = AtomicU64::new(0);

/// Address of the handler for a hook, 0 for none.
pub fn handler(hook: u32) -> u64 {
    match hook {
        HOOK_PTHREAD_CREATE => create as Create as usize as u64,
        HOOK_FORK => fork as Fork as usize as u64,
        _ => 0,
    }
}

/// Says where the old function of a hook stays callable. To be done before a slot leads to it.
pub fn set_original(hook: u32, copy: u64) {
    match hook {
        // pairs with: the handlers' loads (the slot's release store comes later still)
        HOOK_PTHREAD_CREATE => ORIGINAL_CREATE.store(copy, Ordering::Release),
        HOOK_FORK => ORIGINAL_FORK.store(copy, Ordering::Release),
        _ => {}
    }
}

/// Births that can be under way at a time. One more starts unswitched, like a raw clone.
const TICKETS: usize = 256;

/// What a creator leaves for the thread it creates.
#[derive(Debug)]
struct Ticket {
    start: AtomicU64,
    arg: AtomicU64,
    /// Transition and side of the creator, as a record's word.
    side: AtomicU64,
}

static TICKET: [Ticket; TICKETS] =
    [const { Ticket { start: AtomicU64::new(0), arg: AtomicU64::new(0), side: AtomicU64::new(0) } }; TICKETS];

/// One bit per ticket: taken.
static TAKEN: [AtomicU64; TICKETS / 64] = [const { AtomicU64::new(0) }; TICKETS / 64];

fn take() -> Option<(usize, &'static Ticket)> {
    for (index, taken) in TAKEN.iter().enumerate() {
        loop {
            let seen = taken.load(Ordering::Relaxed);
            let bit = seen.trailing_ones();
            if bit >= 64 {
                break;
            }
            let with = seen | 1u64.wrapping_shl(bit);
            // pairs with: `give_back`, so that the last owner's loads are over
            if taken.compare_exchange(seen, with, Ordering::Acquire, Ordering::Relaxed).is_ok() {
                let number = index.wrapping_mul(64).wrapping_add(bit as usize);
                return TICKET.get(number).map(|ticket| (number, ticket));
            }
        }
    }
    None
}

fn give_back(number: usize) {
    if let Some(taken) = TAKEN.get(number / 64) {
        taken.fetch_and(!1u64.wrapping_shl((number % 64) as u32), Ordering::Release);
    }
}

type Create = extern "C" fn(u64, u64, u64, u64) -> c_int;
type Fork = extern "C" fn() -> c_int;

/// Side of the calling thread in a transition, as 1 (switched) or 0.
fn own_side(transition: u32) -> u32 {
    let record = DIRECTORY.find(arch::own_thread_id());
    record.map_or(0, |r| u32::from(side(r.load(Ordering::Relaxed)) == transition))
}

/// `pthread_create`: the new thread starts on the caller's side.
extern "C" fn create(thread: u64, attr: u64, start: u64, arg: u64) -> c_int {
    let original = ORIGINAL_CREATE.load(Ordering::Acquire);
    if original == 0 {
        return 11; // EAGAIN, as for any lack
    }
    // SAFETY: the copy of the redirected function, which has this type.
    let original: Create = unsafe { core::mem::transmute(original as usize) };
    let now = NOW.0.load(Ordering::Acquire);
    if side(now) == 0 {
        return original(thread, attr, start, arg);
    }
    let Some((number, ticket)) = take() else { return original(thread, attr, start, arg) };
    ticket.start.store(start, Ordering::Relaxed);
    ticket.arg.store(arg, Ordering::Relaxed);
    // pairs with: the load in `settle` (thread creation itself orders them, too)
    ticket.side.store(word(side(now), own_side(side(now))), Ordering::Release);
    let result = original(thread, attr, arch::birth(), number as u64);
    if result != 0 {
        give_back(number);
    }
    result
}

/// Where a new thread goes on: two words, as the psABI returns them in `rax` and `rdx`.
#[repr(C)]
#[derive(Debug)]
pub struct Start {
    routine: u64,
    arg: u64,
}

/// The first thing a thread does that was created while a transition runs.
pub extern "C" fn settle(number: u64) -> Start {
    let Some(ticket) = TICKET.get(number as usize) else { return Start { routine: 0, arg: 0 } };
    let from = ticket.side.load(Ordering::Acquire);
    let start =
        Start { routine: ticket.start.load(Ordering::Relaxed), arg: ticket.arg.load(Ordering::Relaxed) };
    give_back(number as usize);
    let tid = arch::own_thread_id();
    // A thread without memory for a record goes by one that stands in: unswitched, or at the goal in the end.
    if let Some(record) = DIRECTORY.ensure_own(tid, NOW.first_side()) {
        record.may_look.store(0, Ordering::Relaxed);
        NOW.settle(&record.word, side(from), passes(from) != 0);
        enter_on_that_side(record);
    }
    start
}

/// A thread without a record passes a dispatcher: one that nobody made a ticket for, and that no reading has
/// shown. The dispatcher begins anew when this returns.
pub extern "C" fn first_pass() {
    if let Some(record) = DIRECTORY.ensure_own(arch::own_thread_id(), NOW.first_side()) {
        NOW.settle_first(&record.word);
    }
}

/// The first function of a transition that a newborn enters is that of the side it was born on. Its creator has
/// sent it there, perhaps from inside the same function, and its own stack knows nothing of that: it would be
/// found clear and moved at once. From its second pass on it looks at itself like everybody.
fn enter_on_that_side(record: &Record) {
    let born = passes(record.word.load(Ordering::Relaxed));
    record.look_at.store(born.wrapping_add(2), Ordering::Relaxed);
}

/// `_Fork`: the child goes on where its parent was, under another thread id.
extern "C" fn fork() -> c_int {
    let original = ORIGINAL_FORK.load(Ordering::Acquire);
    if original == 0 {
        return -1;
    }
    // SAFETY: the copy of the redirected function, which has this type.
    let original: Fork = unsafe { core::mem::transmute(original as usize) };
    let transition = side(NOW.0.load(Ordering::Acquire));
    if transition == 0 {
        return original();
    }
    let switched = own_side(transition) != 0;
    let child = original();
    // The transition cannot have ended in the child: it has no worker.
    if child == 0
        && let Some(record) = DIRECTORY.ensure_own(arch::own_thread_id(), NOW.first_side())
    {
        record.may_look.store(0, Ordering::Relaxed);
        crate::record::set_side(&record.word, if switched { transition } else { 0 });
    }
    child
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tickets_are_given_once() {
        let mut numbers = Vec::new();
        while let Some((number, _)) = take() {
            numbers.push(number);
        }
        assert_eq!(numbers, (0..TICKETS).collect::<Vec<_>>());
        give_back(77);
        assert_eq!(take().map(|(n, _)| n), Some(77));
        numbers.into_iter().for_each(give_back);
    }

    #[test]
    fn newborns_follow_their_creator_until_the_transition_closes() {
        let record = AtomicU64::new(word(3, 8));
        let now = Now::new(AtomicU64::new(0));
        now.open(9);
        now.settle(&record, 9, true);
        assert_eq!(record.load(Ordering::Relaxed), word(9, 9));
        now.settle(&record, 9, false);
        assert_eq!(record.load(Ordering::Relaxed), word(0, 10));
        now.settle(&record, 8, true);
        assert_eq!(record.load(Ordering::Relaxed), word(0, 10), "a ticket of another transition");
        now.close(9, true);
        now.settle(&record, 9, false);
        assert_eq!(record.load(Ordering::Relaxed), word(9, 11));
        now.close(9, false);
        now.settle(&record, 9, true);
        assert_eq!(record.load(Ordering::Relaxed), word(0, 12));
        now.end();
        now.settle(&record, 9, true);
        assert_eq!(record.load(Ordering::Relaxed), word(0, 12));
    }
}
