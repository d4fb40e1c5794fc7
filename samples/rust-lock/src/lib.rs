//! Purpose: samples/shadow-lock.c in Rust: gives every shelf of the warehouse a lock that its structure
//!          has no room for. Patches demo-target/targets/warehouse.c.
//! Usage:   cd samples/rust-lock && cargo build --release
//!          suture apply target/release/libsuture_sample_rust_lock.so --name warehouse
//!          suture shadow --name warehouse                        # one line per shelf
#![no_std]

use core::ffi::{c_int, c_long, c_void};
use core::sync::atomic::{AtomicBool, Ordering};
use suture_abi::author::{Old, Shadow};
use suture_abi::descriptor::STATE_IS_SHADOW;

// The program's, not looked into.
type Shelf = *const c_void;

static OLD_OPEN: Old<extern "C" fn(c_long) -> Shelf> = Old::new();
static OLD_SHUT: Old<extern "C" fn(Shelf)> = Old::new();
static OLD_TAKE: Old<extern "C" fn(Shelf, c_long) -> c_long> = Old::new();

unsafe extern "C" {
    safe fn sched_yield() -> c_int;
}

/// Waits by letting others run: it is held for some instructions only.
struct Lock(AtomicBool);

impl Lock {
    const fn new() -> Self {
        Self(AtomicBool::new(false))
    }

    fn with<R>(&self, work: impl FnOnce() -> R) -> R {
        while self.0.swap(true, Ordering::Acquire) {
            sched_yield();
        }
        let result = work();
        self.0.store(false, Ordering::Release);
        result
    }
}

// SAFETY: who else has variables of this id has locks like these: nobody does.
static LOCKS: Shadow<Lock> = unsafe { Shadow::new(0x6c6f_636c) };

extern "C" fn new_open(id: c_long) -> Shelf {
    let shelf = OLD_OPEN.get()(id);
    if !shelf.is_null() {
        LOCKS.insert_with(shelf, Lock::new);
    }
    shelf
}

extern "C" fn new_shut(shelf: Shelf) {
    LOCKS.remove(shelf);
    OLD_SHUT.get()(shelf);
}

/// A shelf from before the patch gets its lock here.
extern "C" fn new_take(shelf: Shelf, n: c_long) -> c_long {
    let take = || OLD_TAKE.get()(shelf, n);
    match LOCKS.get_or_insert_with(shelf, Lock::new) {
        Some(lock) => lock.with(take),
        None => take(),
    }
}

suture_abi::patch! {
    name: "rust-lock",
    objects: [
        main: [
            "shelf_open" => new_open, old OLD_OPEN,
            "shelf_shut" => new_shut, old OLD_SHUT,
            "shelf_take" => new_take, old OLD_TAKE,
        ],
    ],
    states: [
        0x6c6f_636c, STATE_IS_SHADOW => {},
    ]
}

suture_abi::panic_aborts!();
