//! A thread that looks at its own stack while the worker turns the transition round and ends it
//! ([`crate::transition::own`], [`crate::transition::settle`]).

use super::{N, check, pass};
use crate::birth::Now;
use crate::record::{fence, move_to};
use loom::sync::Arc;
use loom::sync::atomic::AtomicU64;
use loom::sync::atomic::Ordering::{Acquire, Release, SeqCst};
use loom::thread;
use suture_abi::dispatch::side;

/// The worker's table of what is searched says where threads are to go, too.
const TO_NEW: u64 = 1;
const TO_OLD: u64 = 2;

struct Process {
    now: Now<AtomicU64>,
    word: AtomicU64,
    table: AtomicU64,
}

/// What of the protocol is left out.
#[derive(Clone, Copy, PartialEq)]
enum Without {
    Nothing,
    /// The worker does not move the passes.
    Fence,
    /// The thread reads its word last.
    Order,
}

/// In the order of `look_at_self`: the word, the table, how the transition stands, the stack (which is clear),
/// the swap.
fn look_at_self(p: &Process, without: Without) {
    let seen = p.word.load(SeqCst);
    let to_new = p.table.load(Acquire) == TO_NEW;
    if !p.now.is_open() {
        return;
    }
    let seen = if without == Without::Order { p.word.load(SeqCst) } else { seen };
    move_to(&p.word, seen, if to_new { N } else { 0 });
}

/// The thread passes a dispatcher and looks at itself. Meanwhile the worker turns round and ends the transition,
/// if it sees the thread at the goal, which is the old side now.
fn turning(without: Without) {
    check(move || {
        let p = Arc::new(Process {
            now: Now::new(AtomicU64::new(0)),
            word: AtomicU64::new(0),
            table: AtomicU64::new(TO_NEW),
        });
        p.now.open(N);
        let other = {
            let p = p.clone();
            thread::spawn(move || {
                pass(&p.word);
                look_at_self(&p, without);
                // The next function it calls.
                pass(&p.word)
            })
        };
        p.table.store(TO_OLD, Release);
        p.now.open(N);
        p.now.close(N, false);
        if without != Without::Fence {
            fence(&p.word);
        }
        let closed = side(p.word.load(Acquire)) == 0;
        let next = other.join().unwrap();
        assert!(!closed || next == 0 && side(p.word.load(Acquire)) == 0, "off the goal after the end");
    });
}

#[test]
fn a_thread_does_not_move_itself_after_the_end() {
    turning(Without::Nothing);
}

#[test]
#[should_panic(expected = "off the goal after the end")]
fn control_the_passes_are_not_moved() {
    turning(Without::Fence);
}

#[test]
#[should_panic(expected = "off the goal after the end")]
fn control_the_word_is_read_last() {
    turning(Without::Order);
}
