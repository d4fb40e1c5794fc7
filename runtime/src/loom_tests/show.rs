//! Showing the books to readers outside ([`crate::publish`]): the numbers around a change.
//!
//! Tables lie in memory that is used again: those of the books before last. A reader copies what the block
//! names and looks at the number again.

use super::check;
use crate::publish::{begin_change, end_change};
use loom::sync::Arc;
use loom::sync::atomic::Ordering::{Acquire, Relaxed};
use loom::sync::atomic::{AtomicU32, AtomicU64, fence};
use loom::thread;

#[derive(Default)]
struct Block {
    seq: AtomicU32,
    /// Which table, and its number of rows: two stores.
    addr: AtomicU64,
    count: AtomicU64,
    /// Two tables of two rows. Rows hold the number of the books they belong to.
    rows: [[AtomicU64; 2]; 2],
}

#[derive(Clone, Copy, PartialEq)]
enum Without {
    Nothing,
    /// No fence after the odd number.
    Fence,
    /// The reader does not look again.
    LookingAgain,
}

/// Shows books number `n`, which have `n % 2 + 1` rows.
fn show(block: &Block, n: u64, without: Without) {
    let table = (n % 2) as usize;
    block.rows[table].iter().for_each(|row| row.store(n, Relaxed));
    let changing = match without {
        Without::Fence => {
            let odd = block.seq.load(Relaxed) | 1;
            block.seq.store(odd, Relaxed);
            odd
        }
        _ => begin_change(&block.seq),
    };
    block.addr.store(table as u64, Relaxed);
    block.count.store(n % 2 + 1, Relaxed);
    end_change(&block.seq, changing);
}

/// The command's reading: what it copied, if nothing changed meanwhile.
fn read(block: &Block, without: Without) -> Option<Vec<u64>> {
    let before = block.seq.load(Acquire);
    if !before.is_multiple_of(2) || before == 0 {
        return None;
    }
    let table = block.addr.load(Relaxed) as usize;
    let count = block.count.load(Relaxed) as usize;
    let rows = block.rows[table].iter().take(count).map(|row| row.load(Relaxed)).collect();
    fence(Acquire);
    (without == Without::LookingAgain || block.seq.load(Relaxed) == before).then_some(rows)
}

fn reading(without: Without) {
    check(move || {
        let block = Arc::new(Block::default());
        show(&block, 1, without);
        let other = {
            let block = block.clone();
            thread::spawn(move || read(&block, without))
        };
        show(&block, 2, without);
        // Into the memory of the first.
        show(&block, 3, without);
        let found = other.join().unwrap();
        let whole = |rows: &Vec<u64>| [vec![1, 1], vec![2], vec![3, 3]].contains(rows);
        assert!(found.as_ref().is_none_or(whole), "torn: {found:?}");
    });
}

/// The same with the writer as the other thread, whose first books the reader may miss.
fn first() {
    check(move || {
        let block = Arc::new(Block::default());
        let other = {
            let block = block.clone();
            thread::spawn(move || show(&block, 1, Without::Nothing))
        };
        let found = read(&block, Without::Nothing);
        assert!(found.as_ref().is_none_or(|rows| *rows == [1, 1]), "torn: {found:?}");
        other.join().unwrap();
    });
}

#[test]
fn a_reader_gets_whole_books() {
    reading(Without::Nothing);
    first();
}

#[test]
#[should_panic(expected = "torn")]
fn control_no_fence() {
    reading(Without::Fence);
}

#[test]
#[should_panic(expected = "torn")]
fn control_nobody_looks_again() {
    reading(Without::LookingAgain);
}
