//! Records of the event ring ([`crate::events`]): who reads one gets it whole, or not at all.

use super::check;
use crate::events::{seal, sealed};
use loom::sync::Arc;
use loom::sync::atomic::AtomicU64;
use loom::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use loom::thread;

#[derive(Clone, Copy, PartialEq)]
enum Without {
    Nothing,
    /// The writer does not break the seal first.
    Breaking,
    /// The reader does not look again.
    LookingAgain,
    /// The reader has no fence before it looks again.
    Fence,
}

/// Event number `n`: its words hold the number.
fn write(record: &[AtomicU64; 3], n: u64, without: Without) {
    match without {
        Without::Breaking => {
            record[1].store(n, Relaxed);
            record[2].store(n, Relaxed);
            record[0].store(n, Release);
        }
        _ => seal(record, &[n; 3]),
    }
}

fn read(record: &[AtomicU64; 3], n: u64, without: Without) -> Option<[u64; 3]> {
    let mut words = [0; 3];
    let whole = match without {
        Without::LookingAgain | Without::Fence => {
            let first = record[0].load(Acquire) == n;
            words = [n, record[1].load(Relaxed), record[2].load(Relaxed)];
            first && (without == Without::LookingAgain || record[0].load(Relaxed) == n)
        }
        _ => sealed(record, n, &mut words),
    };
    whole.then_some(words)
}

fn reading(without: Without) {
    check(move || {
        let record = Arc::new(std::array::from_fn(|_| AtomicU64::new(0)));
        write(&record, 1, without);
        let other = {
            let record = record.clone();
            thread::spawn(move || read(&record, 1, without))
        };
        // The ring has come round.
        write(&record, 2, without);
        let found = other.join().unwrap();
        assert!(found.is_none_or(|words| words == [1; 3]), "torn: {found:?}");
    });
}

#[test]
fn a_reader_gets_a_whole_event() {
    reading(Without::Nothing);
}

#[test]
#[should_panic(expected = "torn")]
fn control_the_seal_stays_while_words_change() {
    reading(Without::Breaking);
}

#[test]
#[should_panic(expected = "torn")]
fn control_nobody_looks_again() {
    reading(Without::LookingAgain);
}

#[test]
#[should_panic(expected = "torn")]
fn control_no_fence_before_the_second_look() {
    reading(Without::Fence);
}
