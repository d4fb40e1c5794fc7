//! The Rust face of shadow variables, over the runtime's own functions.

// Its exported functions are what is linked.
use suture_runtime as _;

use std::ffi::c_void;
use std::ptr::{null, without_provenance};
use std::sync::atomic::{AtomicU64, Ordering};
use suture_abi::author::Shadow;

/// One variable.
#[derive(Debug)]
struct Account {
    hits: AtomicU64,
    name: [u8; 24],
}

fn object(n: usize) -> *const c_void {
    without_provenance(n * 64)
}

fn account(n: u8) -> Account {
    Account { hits: AtomicU64::new(0), name: [n; 24] }
}

#[test]
fn a_variable_is_made_once_and_found() {
    // SAFETY: nobody else uses the id.
    static ACCOUNTS: Shadow<Account> = unsafe { Shadow::new(1) };
    assert!(ACCOUNTS.get(object(1)).is_none());
    std::thread::scope(|scope| {
        for n in 1..=8u8 {
            scope.spawn(move || {
                for _ in 0..1000 {
                    let mine = ACCOUNTS.get_or_insert_with(object(1), || account(n)).unwrap();
                    assert!(mine.name.iter().all(|b| *b == mine.name[0]));
                    mine.hits.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    let found = ACCOUNTS.get(object(1)).unwrap();
    assert_eq!(found.hits.load(Ordering::Relaxed), 8000);
    assert!(ACCOUNTS.insert_with(object(1), || account(9)).is_none());
    let other = ACCOUNTS.insert_with(null(), || account(9)).unwrap();
    assert_eq!((found.name, other.name == found.name), (found.name, false));
}

#[test]
fn what_is_held_outlives_its_removal() {
    // SAFETY: nobody else uses the id.
    static ACCOUNTS: Shadow<Account> = unsafe { Shadow::new(2) };
    let held = ACCOUNTS.insert_with(object(1), || account(7)).unwrap();
    ACCOUNTS.remove(object(1));
    assert!(ACCOUNTS.get(object(1)).is_none());
    for n in 2..100 {
        ACCOUNTS.insert_with(object(n), || account(n as u8 + 100)).unwrap();
    }
    ACCOUNTS.remove_all();
    assert!(ACCOUNTS.get(object(5)).is_none());
    for n in 2..100 {
        ACCOUNTS.insert_with(object(n), || account(0)).unwrap();
    }
    assert_eq!(held.name, [7; 24]);
}

#[test]
fn a_constructor_cannot_find_its_own_variable() {
    // SAFETY: nobody else uses the id.
    static ACCOUNTS: Shadow<Account> = unsafe { Shadow::new(3) };
    let made = ACCOUNTS.get_or_insert_with(object(1), || {
        assert!(ACCOUNTS.get(object(1)).is_none());
        assert!(ACCOUNTS.get_or_insert_with(object(1), || account(1)).is_none());
        account(2)
    });
    assert_eq!(made.unwrap().name[0], 2);
}
