//! A thread that nobody knows, made by a raw `clone` while the transition closes, with a record that its number's
//! last owner left off the goal ([`crate::transition::settle`]).

use super::{N, check, pass};
use crate::record::{fence, move_to, set_side};
use loom::sync::Arc;
use loom::sync::atomic::AtomicU64;
use loom::sync::atomic::Ordering::{AcqRel, Acquire};
use loom::thread;
use suture_abi::dispatch::side;

struct Process {
    word: AtomicU64,
    /// The thread is in the task directory.
    listed: AtomicU64,
    /// Slots have flipped.
    closed: AtomicU64,
}

impl Process {
    /// A reading of the task directory: the kernel holds a lock.
    fn reads(&self) -> bool {
        self.listed.fetch_add(0, AcqRel) != 0
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Without {
    Nothing,
    /// Records of unknown threads are left alone.
    Settling,
    /// They are put to the goal whatever was noted.
    Comparing,
    /// No reading comes after they are put to the goal.
    Reading,
}

/// The worker's part of the end; true if it is one.
fn close(p: &Process, without: Without) -> bool {
    let noted = p.word.load(Acquire);
    // Who is shown is known from then on, and off the goal.
    if p.reads() {
        return false;
    }
    match without {
        Without::Settling => {}
        Without::Comparing => set_side(&p.word, N),
        _ => _ = move_to(&p.word, noted, N),
    }
    for _ in 0..2 {
        if without != Without::Reading && p.reads() {
            fence(&p.word);
            if side(p.word.load(Acquire)) != N {
                return false;
            }
        }
    }
    true
}

fn closing(without: Without) {
    check(move || {
        let p = Arc::new(Process {
            word: AtomicU64::new(0),
            listed: AtomicU64::new(0),
            closed: AtomicU64::new(0),
        });
        let other = {
            let p = p.clone();
            thread::spawn(move || {
                p.listed.fetch_add(1, AcqRel);
                let first = pass(&p.word);
                (first, pass(&p.word))
            })
        };
        let closed = close(&p, without);
        p.closed.fetch_add(u64::from(closed), AcqRel);
        let (first, second) = other.join().unwrap();
        assert!(first != 0 || second != N, "wrong side: mixes old and new");
        assert!(!closed || first == N && second == N, "wrong side: off the goal after the end");
    });
}

#[test]
fn an_unknown_thread_is_at_the_goal_or_seen() {
    closing(Without::Nothing);
}

#[test]
#[should_panic(expected = "wrong side")]
fn control_unknown_records_are_left_alone() {
    closing(Without::Settling);
}

#[test]
#[should_panic(expected = "wrong side")]
fn control_unknown_records_are_not_compared() {
    closing(Without::Comparing);
}

#[test]
#[should_panic(expected = "wrong side")]
fn control_nobody_reads_again() {
    closing(Without::Reading);
}
