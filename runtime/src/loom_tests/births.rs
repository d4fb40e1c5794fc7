//! A thread that is born while a transition closes ([`crate::birth`]).

use super::{N, check};
use crate::birth::Now;
use crate::record::fence;
use crate::word::Word;
use loom::sync::Arc;
use loom::sync::atomic::AtomicU64;
use loom::sync::atomic::Ordering::{Acquire, Relaxed, SeqCst};
use loom::thread;
use suture_abi::dispatch::{passes, side, word};

struct Process {
    now: Now<AtomicU64>,
    word: AtomicU64,
}

type Settle = fn(&Process, bool);

/// The child, as it is.
fn settle(p: &Process, switched: bool) {
    p.now.settle(&p.word, N, switched);
}

/// Closes as [`crate::transition::settle`] does for a record it knows, with a child whose record is at the goal
/// still from the number's last owner, and whose creator is not.
fn closing(settle: Settle, fences: bool, to_switched: bool) {
    check(move || {
        let at_goal = if to_switched { N } else { 0 };
        let p =
            Arc::new(Process { now: Now::new(AtomicU64::new(0)), word: AtomicU64::new(word(at_goal, 3)) });
        p.now.open(N);
        let child = {
            let p = p.clone();
            thread::spawn(move || settle(&p, !to_switched))
        };
        p.now.close(N, to_switched);
        if fences {
            fence(&p.word);
        }
        let closed = side(p.word.load(Acquire)) == at_goal;
        child.join().unwrap();
        let stays = side(p.word.load(Acquire)) == at_goal;
        assert!(!closed || stays, "off the goal after the end");
    });
}

#[test]
fn a_child_is_at_the_goal_or_seen() {
    closing(settle, true, true);
    closing(settle, true, false);
}

/// Outside of the end it takes its creator's side, and a ticket of another transition is void.
#[test]
fn a_child_takes_its_creators_side() {
    check(|| {
        let p = Process { now: Now::new(AtomicU64::new(0)), word: AtomicU64::new(0) };
        p.now.open(N);
        p.now.settle(&p.word, N, true);
        assert_eq!(side(p.word.load(Relaxed)), N);
        p.now.settle(&p.word, N - 1, false);
        p.now.end();
        p.now.settle(&p.word, N, false);
        assert_eq!(side(p.word.load(Relaxed)), N);
    });
}

#[test]
#[should_panic(expected = "off the goal after the end")]
fn control_the_passes_are_not_moved() {
    closing(settle, false, true);
}

#[test]
#[should_panic(expected = "off the goal after the end")]
fn control_the_child_reads_how_it_stands_first() {
    let early = |p: &Process, switched: bool| {
        let open = p.now.is_open();
        let seen = Word::load(&p.word, SeqCst);
        let to = if open && !switched { 0 } else { N };
        let next = word(to, passes(seen).wrapping_add(1));
        _ = p.word.compare_exchange(seen, next, SeqCst, Relaxed);
    };
    closing(early, true, true);
}
