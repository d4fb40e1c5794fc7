//! The worker's look at a blocked thread, and the swap ([`crate::transition::look`], [`crate::record`]).

use super::{N, check, pass};
use crate::record::{move_to, set_side};
use loom::sync::Arc;
use loom::sync::atomic::AtomicU64;
use loom::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use loom::thread;
use suture_abi::dispatch::side;

/// Not blocked.
const RUNNING: u64 = 0;
/// Blocked, the program counter in code of no interest.
const ELSEWHERE: u64 = 1;
/// Blocked, the program counter in old code.
const IN_OLD: u64 = 2;

/// A thread as it can be seen from beside it.
struct Thread {
    word: AtomicU64,
    /// How often it was put on a processor.
    runs: AtomicU64,
    /// Its `syscall` line: one reading gives whether it is blocked and where.
    line: AtomicU64,
    /// A word of its stack: 1 = a return address in old code. Stores of a program are seen in their order on
    /// x86-64.
    stack: AtomicU64,
}

impl Thread {
    fn new(stack: u64) -> Arc<Self> {
        let line = AtomicU64::new(ELSEWHERE);
        let [word, runs] = [0, 0].map(AtomicU64::new);
        Arc::new(Thread { word, runs, line, stack: AtomicU64::new(stack) })
    }

    fn wake(&self) {
        self.line.store(RUNNING, Release);
        self.runs.fetch_add(1, AcqRel);
    }

    fn block(&self, pc: u64) {
        self.line.store(pc, Release);
    }
}

/// What the look does wrong.
#[derive(Clone, Copy, PartialEq)]
enum Wrong {
    Nothing,
    /// Reads the record's word after all else.
    WordLast,
    /// Reads the run count first when it has seen where the thread is blocked.
    CountLate,
    /// Does not read the run count again.
    CountOnce,
    /// Changes the side whatever the thread has passed.
    NoCompare,
}

/// A look, and the swap if it is clear.
fn look(t: &Thread, wrong: Wrong) {
    let runs = t.runs.load(Acquire);
    let seen = t.word.load(Acquire);
    let line = t.line.load(Acquire);
    let runs = if wrong == Wrong::CountLate { t.runs.load(Acquire) } else { runs };
    let stack = t.stack.load(Acquire);
    if wrong != Wrong::CountOnce && t.runs.load(Acquire) != runs {
        return;
    }
    let seen = if wrong == Wrong::WordLast { t.word.load(Acquire) } else { seen };
    if line != ELSEWHERE || stack != 0 {
        return;
    }
    match wrong {
        Wrong::NoCompare => set_side(&t.word, N),
        _ => _ = move_to(&t.word, seen, N),
    }
}

/// A thread that enters old code, blocks there, and calls another function of the transition from it.
fn entering(pass: fn(&AtomicU64) -> u32, wrong: Wrong) {
    check(move || {
        let t = Thread::new(0);
        let other = {
            let t = t.clone();
            thread::spawn(move || {
                t.wake();
                let old = pass(&t.word) != N;
                t.stack.store(u64::from(old), Release);
                t.block(ELSEWHERE);
                t.wake();
                let new = pass(&t.word) == N;
                old && new
            })
        };
        look(&t, wrong);
        look(&t, wrong);
        assert!(!other.join().unwrap(), "mixes old and new");
    });
}

/// A thread that is in old code all the while: its return address is on the stack as long as something else was
/// called from there; then the program counter is in old code itself and the word on the stack is another.
fn inside(wrong: Wrong) {
    check(move || {
        let t = Thread::new(1);
        let other = {
            let t = t.clone();
            thread::spawn(move || {
                t.wake();
                t.stack.store(0, Release);
                t.block(IN_OLD);
                t.wake();
                pass(&t.word) == N
            })
        };
        look(&t, wrong);
        assert!(!other.join().unwrap(), "mixes old and new");
    });
}

#[test]
fn a_thread_that_enters_old_code_stays_with_it() {
    entering(pass, Wrong::Nothing);
}

#[test]
fn a_thread_in_old_code_stays_with_it() {
    inside(Wrong::Nothing);
}

#[test]
fn a_thread_that_is_clear_is_moved() {
    check(|| {
        let t = Thread::new(0);
        look(&t, Wrong::Nothing);
        assert_eq!(pass(&t.word), N);
    });
}

#[test]
#[should_panic(expected = "mixes old and new")]
fn control_the_word_is_read_last() {
    entering(pass, Wrong::WordLast);
}

#[test]
#[should_panic(expected = "mixes old and new")]
fn control_the_swap_does_not_compare() {
    entering(pass, Wrong::NoCompare);
}

/// Without the barrier of the locked add the processor may read the side first.
#[test]
#[should_panic(expected = "mixes old and new")]
fn control_the_side_is_read_before_the_pass_is_counted() {
    let early = |word: &AtomicU64| {
        let side = side(word.load(Relaxed));
        word.fetch_add(1 << 32, Relaxed);
        side
    };
    entering(early, Wrong::Nothing);
}

#[test]
#[should_panic(expected = "mixes old and new")]
fn control_the_run_count_is_read_late() {
    inside(Wrong::CountLate);
}

#[test]
#[should_panic(expected = "mixes old and new")]
fn control_the_run_count_is_read_once() {
    inside(Wrong::CountOnce);
}
