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

/// A chunk of records that does not exist before the closing.
struct Unborn {
    now: Now<AtomicU64>,
    /// The directory names it.
    named: AtomicU64,
    word: AtomicU64,
}

type First = fn(&Unborn);

/// A thread that nobody made a ticket for passes its first dispatcher while the worker closes. The worker finds its
/// record in the directory, or the thread starts at the goal.
fn first_pass(first: First) {
    check(move || {
        let p = Arc::new(Unborn {
            now: Now::new(AtomicU64::new(0)),
            named: AtomicU64::new(0),
            word: AtomicU64::new(0),
        });
        p.now.open(N);
        let thread = {
            let p = p.clone();
            thread::spawn(move || first(&p))
        };
        p.now.close(N, true);
        // Loom knows no order of all that is `SeqCst`: an addition stands for the load.
        let found = p.named.fetch_add(0, SeqCst) != 0;
        thread.join().unwrap();
        assert!(found || side(p.word.load(Acquire)) == N, "off the goal, and nobody knows");
    });
}

#[test]
fn a_thread_without_a_record_is_at_the_goal_or_found() {
    first_pass(|p| {
        _ = p.named.compare_exchange(0, 1, SeqCst, Relaxed);
        p.now.settle_first(&p.word);
    });
}

#[test]
#[should_panic(expected = "nobody knows")]
fn control_the_thread_reads_how_it_stands_before_it_is_named() {
    first_pass(|p| {
        p.now.settle_first(&p.word);
        _ = p.named.compare_exchange(0, 1, SeqCst, Relaxed);
    });
}
