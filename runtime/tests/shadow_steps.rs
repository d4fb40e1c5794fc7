//! A signal between any two instructions of an operation on shadow variables.
//!
//! The processor's trap flag raises `SIGTRAP` after every instruction; the handler does operations of its
//! own, and looks at what the interrupted one is about.

use std::ffi::c_void;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicU64, Ordering};
use suture_runtime::shadow::MAP;
use suture_runtime::shadow::api::{
    suture_shadow_alloc, suture_shadow_enter, suture_shadow_free, suture_shadow_free_all, suture_shadow_get,
    suture_shadow_get_or_alloc, suture_shadow_leave,
};
use suture_table::memory::{Level, Memory};

/// Variables the interrupted thread makes and frees.
const ID: u64 = 1;
/// Variables that are there throughout.
const CONSTANT: u64 = 2;
/// How many of them: a little fewer than the table has room for at first.
const CONSTANTS: u64 = 190;
/// Variables of the handler.
const OWN: u64 = 3;
/// Variables that make the table large.
const BALLAST: u64 = 4;

/// The handler changes something after so many instructions: a prime, so that it comes to all of them.
const CHANGES: u64 = 331;

static STEPS: AtomicU64 = AtomicU64::new(0);
static WRONG: AtomicU64 = AtomicU64::new(0);
/// What the interrupted thread is at.
static CURRENT: AtomicU64 = AtomicU64::new(0);
/// The variable of [`CURRENT`] as the handler has seen it: 0 not yet, 1 there, 2 gone again.
static SEEN: AtomicU64 = AtomicU64::new(0);

fn value(data: *mut c_void) -> u64 {
    // SAFETY: a variable of at least eight bytes; only this thread uses it.
    unsafe { data.cast::<u64>().read_volatile() }
}

unsafe extern "C" fn fill(obj: *mut c_void, data: *mut c_void, _: *mut c_void) -> i32 {
    // SAFETY: the variable is being made.
    unsafe { data.cast::<u64>().write_volatile(obj.addr() as u64 ^ 0x55) };
    0
}

fn check(right: bool) {
    WRONG.fetch_add(u64::from(!right), Ordering::Relaxed);
}

/// Runs after every instruction, in the same thread, with the trap flag off.
extern "C" fn on_trap(_: i32) {
    let n = STEPS.fetch_add(1, Ordering::Relaxed);
    let obj = CURRENT.load(Ordering::Relaxed);
    let now = suture_shadow_get(obj, ID);
    // It comes once and goes once, and is complete while it is there.
    match (SEEN.load(Ordering::Relaxed), now.is_null()) {
        (0, true) | (2, true) => {}
        (0, false) | (1, false) => {
            SEEN.store(1, Ordering::Relaxed);
            check(value(now) == obj ^ 0x55);
        }
        (1, true) => SEEN.store(2, Ordering::Relaxed),
        _ => check(false),
    }
    check(suture_shadow_get(n | 1 << 40, CONSTANT).is_null());
    let there = suture_shadow_get(n % CONSTANTS, CONSTANT);
    check(!there.is_null() && value(there) == (n % CONSTANTS) ^ 0x55);
    // Changes are rarer: an operation that finds its bucket changed begins again, and would do so for ever.
    if !n.is_multiple_of(CHANGES) {
        return;
    }
    let turn = n / CHANGES;
    // The same buckets, and the same stacks of free blocks.
    let guard = suture_shadow_enter();
    let own = suture_shadow_get_or_alloc(turn % 64, OWN, 24, Some(fill), null_mut());
    check(!own.is_null() && value(own) == (turn % 64) ^ 0x55);
    if turn.is_multiple_of(3) {
        suture_shadow_free(turn % 64, OWN, None);
        check(suture_shadow_get(turn % 64, OWN).is_null());
    }
    suture_shadow_leave(guard);
}

/// Single-steps what it is given.
fn step(operation: impl FnOnce()) {
    // SAFETY: the flag raises a signal after each instruction; the handler is there. The red zone is
    // skipped before the stack is used.
    unsafe {
        std::arch::asm!("sub rsp, 128", "pushfq", "or dword ptr [rsp], 0x100", "popfq", "add rsp, 128");
    }
    operation();
    // SAFETY: takes it back.
    unsafe {
        std::arch::asm!("sub rsp, 128", "pushfq", "and dword ptr [rsp], ~0x100", "popfq", "add rsp, 128");
    }
}

#[test]
fn every_instruction_can_be_interrupted() {
    // SAFETY: a handler that only does what may be done in one.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_trap as *const () as usize;
        assert_eq!(libc::sigaction(libc::SIGTRAP, &raw const action, null_mut()), 0);
    }
    for obj in 0..CONSTANTS {
        assert!(!suture_shadow_alloc(obj, CONSTANT, 8, Some(fill), null_mut()).is_null());
    }
    // Until the table has grown under it, and somewhat longer.
    let (first, mut after) = (current(), 0);
    make_and_free(1, |n| {
        assert!(n < 2000, "the table does not grow");
        after += u64::from(current() != first);
        after == 15
    });
    // While everything moves into the first level whose buckets have marks, with those, and while it moves on.
    let until: [fn() -> bool; 3] =
        [|| current().is_marked(), is_settled, || !is_settled() && current().is_marked()];
    let mut ballast = 0;
    for (turn, is_reached) in (1..).zip(until) {
        while !is_reached() {
            assert!(!suture_shadow_alloc(ballast, BALLAST, 8, None, null_mut()).is_null());
            ballast += 1;
        }
        make_and_free(turn << 32, |n| n == 40);
    }
}

fn current() -> Level {
    Level(MAP.current().load(Ordering::Relaxed))
}

fn is_settled() -> bool {
    MAP.settled().load(Ordering::Relaxed) == current().0
}

/// Does so step by step with one object after the other, from this one on, until it is over after so many.
fn make_and_free(first_obj: u64, mut is_over: impl FnMut(u64) -> bool) {
    let steps_before = STEPS.load(Ordering::Relaxed);
    let mut obj = first_obj - 1;
    while !is_over(obj - (first_obj - 1)) {
        obj += 1;
        CURRENT.store(obj * 64, Ordering::Relaxed);
        SEEN.store(0, Ordering::Relaxed);
        let mut made = null_mut();
        step(|| made = suture_shadow_alloc(obj * 64, ID, 24, Some(fill), null_mut()));
        assert_eq!(WRONG.load(Ordering::Relaxed), 0, "making variable {obj}");
        assert!(!made.is_null() && suture_shadow_get(obj * 64, ID) == made);
        if obj.is_multiple_of(4) {
            step(|| suture_shadow_free(obj * 64, ID, None));
            assert_eq!(WRONG.load(Ordering::Relaxed), 0, "freeing variable {obj}");
            assert!(suture_shadow_get(obj * 64, ID).is_null());
        }
    }
    let (steps, made) = (STEPS.load(Ordering::Relaxed) - steps_before, obj - first_obj + 1);
    println!("{steps} instructions were interrupted, {made} variables made");
    assert!(steps > made * 200, "{steps}");
    // Nothing was lost: each variable is there until it is freed.
    for obj in first_obj..=obj {
        assert_eq!(!suture_shadow_get(obj * 64, ID).is_null(), !obj.is_multiple_of(4));
    }
    suture_shadow_free_all(ID, None);
    assert!((first_obj..=obj).all(|obj| suture_shadow_get(obj * 64, ID).is_null()));
}
