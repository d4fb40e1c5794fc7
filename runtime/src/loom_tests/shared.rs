//! A thread that uses a record that stands in, and looks at itself, while the worker makes it a record of its own
//! ([`crate::record`], [`crate::transition::own`]).

use super::{N, check, pass};
use crate::record::move_to;
use loom::sync::Arc;
use loom::sync::atomic::AtomicU64;
use loom::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, SeqCst};
use loom::thread;
use suture_abi::dispatch::{side, word};

struct Process {
    stand_in: AtomicU64,
    own: AtomicU64,
    /// The directory names the record that stands in (0) or the thread's own.
    named: AtomicU64,
}

impl Process {
    fn record(&self) -> &AtomicU64 {
        if self.named.load(Acquire) == 0 { &self.stand_in } else { &self.own }
    }

    /// The worker's part of [`crate::record::Directory::ensure`].
    fn replace(&self) {
        self.own.store(word(side(self.stand_in.load(Relaxed)), 0), Relaxed);
        _ = self.named.compare_exchange(0, 1, AcqRel, Acquire);
    }
}

type Look = fn(&Process, &AtomicU64);

/// The stack is clear.
fn look_at_self(p: &Process, record: &AtomicU64) {
    let seen = record.load(SeqCst);
    // Its own: the one that stands in is nobody's.
    if p.named.load(Acquire) == 1 && core::ptr::eq(record, &raw const p.own) {
        move_to(record, seen, N);
    }
}

/// Through a dispatcher, with a look. The side that this one gives.
fn pass_with_look(p: &Process, look: Look) -> u32 {
    let record = p.record();
    record.fetch_add(1 << 32, AcqRel);
    look(p, record);
    side(record.load(Relaxed))
}

fn replacing(look: Look) {
    check(move || {
        let p = Arc::new(Process {
            stand_in: AtomicU64::new(0),
            own: AtomicU64::new(0),
            named: AtomicU64::new(0),
        });
        let other = {
            let p = p.clone();
            thread::spawn(move || {
                let first = pass_with_look(&p, look);
                // From inside of that function into another: its own stack is not clear any more.
                (first, pass(p.record()))
            })
        };
        p.replace();
        let (first, second) = other.join().unwrap();
        assert_eq!(first, second, "mixes old and new");
    });
}

#[test]
fn a_thread_that_gets_a_record_stays_on_its_side() {
    replacing(look_at_self);
}

#[test]
#[should_panic(expected = "mixes old and new")]
fn control_it_moves_a_record_that_stands_in() {
    replacing(|_, record| {
        let seen = record.load(SeqCst);
        move_to(record, seen, N);
    });
}
