//! Models of a bucket's cell and slots alone ([`crate::marks`]): cleaning against everything else, with more threads and
//! preemptions than the whole table allows.

use crate::atomic::Ordering::{AcqRel, Relaxed, Release};
use crate::atomic::{AtomicU32, AtomicU64};
use crate::control::Part;
use crate::loom_tests::{explore, without};
use crate::marks::{self, Marks};
use crate::word::{Block, Slot};
use loom::sync::Arc;
use loom::thread;

/// The marks of everybody here.
fn mark() -> Marks {
    Marks::of(0)
}

/// A cell, two slots that count and one that is free.
struct Bucket {
    cell: AtomicU32,
    slots: [AtomicU64; 3],
}

fn slot(n: u64) -> u64 {
    Slot::of(Block { addr: 32 * n, large: false }, 0).0
}

impl Bucket {
    fn new() -> Arc<Self> {
        let slots = [slot(1), slot(2), Slot::EMPTY.0].map(AtomicU64::new);
        let bucket = Bucket { cell: AtomicU32::new(0), slots };
        marks::set_up(&bucket.cell, mark(), false);
        Arc::new(bucket)
    }

    /// The end of a removal.
    fn remove(&self, k: usize) {
        self.slots[k].store(Slot::EMPTY.0, Release);
        self.clean();
    }

    fn clean(&self) {
        marks::clean(&self.cell, &self.slots);
    }

    /// An insertion up to its commit, and whether it is found after that.
    fn insert(&self) -> bool {
        self.slots[2].compare_exchange(Slot::EMPTY.0, slot(3), AcqRel, Relaxed).unwrap();
        marks::add(&self.cell, mark(), false);
        self.has_it()
    }

    fn has_it(&self) -> bool {
        !marks::read(&self.cell).lacks(mark())
    }

    /// What holds when all are through. `found`: by who inserted it.
    fn is_right_at_the_end(&self, found: bool) {
        assert!(found && self.has_it(), "hidden by cleaning");
        assert!(!marks::read(&self.cell).is_claimed(), "a cell that is never cleaned again");
    }
}

fn spawn<R: 'static>(bucket: &Arc<Bucket>, f: impl FnOnce(&Bucket) -> R + 'static) -> thread::JoinHandle<R> {
    let bucket = bucket.clone();
    thread::spawn(move || f(&bucket))
}

fn check(preemptions: usize, f: impl Fn() + Sync + Send + 'static) {
    let runs = explore(preemptions, f);
    assert!(runs > 1_000, "only {runs} runs: this explores nothing");
}

/// clean/clean/add, where the one that adds is first.
#[test]
fn two_removals_hide_no_insertion() {
    check(4, || {
        let bucket = Bucket::new();
        let (first, second) = (spawn(&bucket, |b| b.remove(0)), spawn(&bucket, |b| b.remove(1)));
        let found = bucket.insert();
        first.join().unwrap();
        second.join().unwrap();
        bucket.is_right_at_the_end(found);
    });
}

/// The same, where one that cleans is.
#[test]
fn an_insertion_is_hidden_by_no_removal() {
    check(4, || {
        let bucket = Bucket::new();
        let (adder, second) = (spawn(&bucket, |b| b.insert()), spawn(&bucket, |b| b.remove(1)));
        bucket.remove(0);
        let found = adder.join().unwrap();
        second.join().unwrap();
        bucket.is_right_at_the_end(found);
    });
}

/// clean and clean/clean/add: a claim is nobody else's to end.
#[test]
fn one_cleans_at_a_time() {
    check(3, || {
        let bucket = Bucket::new();
        bucket.slots[..2].iter().for_each(|slot| slot.store(Slot::EMPTY.0, Release));
        let (cleaner, adder) = (spawn(&bucket, Bucket::clean), spawn(&bucket, |b| b.insert()));
        bucket.clean();
        bucket.clean();
        cleaner.join().unwrap();
        let found = adder.join().unwrap();
        bucket.is_right_at_the_end(found);
    });
}

/// clean/close: what is closed stays closed.
fn closing(closer_is_first: bool) {
    let runs = explore(4, move || {
        let bucket = Bucket::new();
        if closer_is_first {
            let cleaner = spawn(&bucket, |b| b.remove(0));
            marks::close(&bucket.cell);
            cleaner.join().unwrap();
        } else {
            let closer = spawn(&bucket, |b| marks::close(&b.cell));
            bucket.remove(0);
            closer.join().unwrap();
        }
        bucket.slots[1].store(Slot::EMPTY.0, Release);
        bucket.clean();
        let all = (0..=0xff).map(Marks::of);
        assert!(all.into_iter().all(|m| !marks::read(&bucket.cell).lacks(m)), "opened again");
    });
    assert!(runs > 5, "only {runs} runs: this explores nothing");
}

#[test]
fn a_cell_that_is_cleaned_can_be_closed() {
    closing(true);
}

#[test]
fn a_cell_that_is_closed_is_not_cleaned() {
    closing(false);
}

#[test]
#[should_panic(expected = "hidden by cleaning")]
fn control_a_cleaning_that_ignores_who_came() {
    without(Part::Disturbed, an_insertion_is_hidden_by_no_removal);
}

#[test]
#[should_panic(expected = "hidden by cleaning")]
fn control_two_that_clean() {
    without(Part::Claim, one_cleans_at_a_time);
}

#[test]
#[should_panic(expected = "opened again")]
fn control_a_cleaning_that_ignores_who_closed() {
    without(Part::Disturbed, a_cell_that_is_cleaned_can_be_closed);
}
