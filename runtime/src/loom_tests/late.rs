//! Tables for loading threads ([`crate::late::table`]), objects that are loaded while a batch is shown, and objects
//! that come while stacks are looked at.

use super::check;
use crate::late::table::{enter, is_unread, leave};
use loom::sync::Arc;
use loom::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use loom::sync::atomic::{AtomicU32, AtomicU64, fence};
use loom::thread;

#[derive(Clone, Copy, PartialEq)]
enum Without {
    Nothing,
    /// Readers are not counted.
    Counting,
    /// The command does not read the list again.
    ReadingAgain,
    /// The count of objects is compared before the stack is looked at.
    Comparing,
}

/// The table by number, and whether the memory of table 1 was freed.
#[derive(Default)]
struct Tables {
    shown: AtomicU64,
    readers: AtomicU32,
    freed: AtomicU32,
    /// The loader's list has the object.
    listed: AtomicU32,
}

/// A loading thread: puts its object into the list, looks at the table; true if it saw the new one.
fn load(tables: &Tables, without: Without) -> bool {
    tables.listed.store(1, Relaxed);
    if without == Without::Counting {
        fence(SeqCst);
    } else {
        enter(&tables.readers);
    }
    let table = tables.shown.load(SeqCst);
    if table == 1 {
        assert_eq!(tables.freed.load(Relaxed), 0, "freed under a reader");
    }
    if without != Without::Counting {
        leave(&tables.readers);
    }
    table == 2
}

fn showing(without: Without) {
    check(move || {
        let tables = Arc::new(Tables::default());
        tables.shown.store(1, Relaxed);
        let loading = {
            let tables = tables.clone();
            thread::spawn(move || load(&tables, without))
        };
        tables.shown.swap(2, SeqCst);
        if is_unread(&tables.readers) {
            tables.freed.store(1, Relaxed);
        }
        let found = without != Without::ReadingAgain && tables.listed.load(Relaxed) == 1;
        let saw = loading.join().unwrap();
        assert!(saw || found, "overlooked");
    });
}

/// A thread that was about to look at a stack, and an object that comes. `stack` is 1 while a thread is in code of
/// the object.
fn looking(without: Without) {
    check(move || {
        let (count, stack) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let coming = {
            let (count, stack) = (count.clone(), stack.clone());
            thread::spawn(move || {
                count.fetch_add(1, SeqCst);
                // Handed to the thread that calls it: by whatever the program orders its threads with.
                stack.store(1, Release);
            })
        };
        // The table was made without the object.
        let known = 0;
        let early = count.load(SeqCst) == known;
        let in_it = stack.load(Acquire) == 1;
        let complete = if without == Without::Comparing { early } else { count.load(SeqCst) == known };
        assert!(!(complete && in_it), "taken over inside");
        coming.join().unwrap();
    });
}

#[test]
fn no_object_is_overlooked_and_no_table_freed_under_a_reader() {
    showing(Without::Nothing);
}

#[test]
#[should_panic(expected = "freed under a reader")]
fn control_readers_are_not_counted() {
    showing(Without::Counting);
}

#[test]
#[should_panic(expected = "overlooked")]
fn control_the_list_is_not_read_again() {
    showing(Without::ReadingAgain);
}

#[test]
fn who_is_in_an_object_that_came_is_not_moved() {
    looking(Without::Nothing);
}

#[test]
#[should_panic(expected = "taken over inside")]
fn control_the_count_is_compared_before_the_look() {
    looking(Without::Comparing);
}
