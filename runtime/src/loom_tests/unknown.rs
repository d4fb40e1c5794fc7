//! A thread that nobody knows, made by a raw `clone` while the transition closes, with a record that its number's
//! last owner left off the goal ([`crate::transition::settle`]). No reading ever shows it: the kernel may leave a
//! thread out of each.

use super::{N, check, pass};
use crate::record::{move_to, set_side};
use loom::sync::Arc;
use loom::sync::atomic::AtomicU64;
use loom::sync::atomic::Ordering::{AcqRel, Acquire};
use loom::thread;
use suture_abi::dispatch::side;

struct Process {
    word: AtomicU64,
    /// The thread exists.
    exists: AtomicU64,
}

impl Process {
    fn new(exists: bool) -> Self {
        Self { word: AtomicU64::new(0), exists: AtomicU64::new(exists.into()) }
    }

    /// The kernel is asked for the thread by its number: it holds a lock.
    fn exists(&self) -> bool {
        self.exists.fetch_add(0, AcqRel) != 0
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Without {
    Nothing,
    /// Records of unknown threads are left alone.
    Settling,
    /// They are put to the goal whatever was noted.
    Comparing,
    /// Nobody asks whether their owners exist.
    Asking,
}

/// The worker's part of the end; true if it is one.
fn close(p: &Process, without: Without) -> bool {
    let noted = p.word.load(Acquire);
    if without != Without::Asking && p.exists() {
        return side(p.word.load(Acquire)) == N;
    }
    match without {
        Without::Settling => true,
        Without::Comparing => {
            set_side(&p.word, N);
            true
        }
        _ => move_to(&p.word, noted, N) || side(p.word.load(Acquire)) == N,
    }
}

fn closing(without: Without) {
    check(move || {
        let p = Arc::new(Process::new(false));
        let other = {
            let p = p.clone();
            thread::spawn(move || {
                p.exists.fetch_add(1, AcqRel);
                // Into a function, and from there into another.
                let first = pass(&p.word);
                (first, pass(&p.word))
            })
        };
        let closed = close(&p, without);
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

/// One that was inside the old function before its record was noted, and passes nothing until the end.
fn inside(without: Without) {
    check(move || {
        let p = Process::new(true);
        let closed = close(&p, without);
        assert!(!closed || pass(&p.word) != N, "wrong side: mixes old and new");
    });
}

#[test]
fn an_unknown_thread_inside_of_old_code_is_found() {
    inside(Without::Nothing);
}

#[test]
#[should_panic(expected = "wrong side")]
fn control_nobody_asks_whether_it_exists() {
    inside(Without::Asking);
}
