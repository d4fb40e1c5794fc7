//! The protocol over a table of vectors. (More threads: the models, and the tests of the runtime's own memory.)

use crate::bucket::Scan;
use crate::get::get;
use crate::hash::Key;
use crate::insert::{Inserted, insert};
use crate::levels::{find, writable};
use crate::memory::Memory;
use crate::model::{Model, committed};
use crate::remove::{Afterwards::Reclaim, bury, remove};
use std::sync::atomic::{AtomicI64, Ordering};

fn key(hash: u64) -> Key {
    Key { obj: hash, id: 1 }
}

#[test]
fn what_was_inserted_is_found_until_it_is_removed() {
    let count = if cfg!(miri) { 30 } else { 60u64 };
    let model = Model::new(4, 100);
    let mem = model.thread(1, 1);
    for i in 0..count {
        let h = i.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        assert!(get(&mem, key(h)).is_none());
        assert!(matches!(insert(&mem, key(h), 8, None), Inserted::New(_)));
        assert!(matches!(insert(&mem, key(h), 8, None), Inserted::Exists(_)));
        for j in 0..=i {
            assert!(get(&mem, key(j.wrapping_mul(0x9e37_79b9_7f4a_7c15))).is_some(), "{i} {j}");
        }
    }
    assert_eq!(committed(&model).len(), count as usize);
    for i in 0..count {
        let h = i.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        assert_eq!(remove(&mem, key(h), None, Reclaim), Ok(true));
        assert_eq!(remove(&mem, key(h), None, Reclaim), Ok(false));
        assert!(get(&mem, key(h)).is_none());
    }
    assert_eq!(model.free(), 100);
}

/// A thread that looked ended, and its constructor was over before it did. Its block and its id have gone to others.
#[test]
fn nobody_is_buried_for_another() {
    let model = Model::new(0, 1);
    let mem = model.thread(1, 1);
    let (first, second) = (key(0x1_0000), key(0x2_0000));
    let mut seen = None;
    let mut fails = |_| {
        let bucket = writable(&mem, first.obj).unwrap();
        let Scan::Found(found) = bucket.scan(&mem, first, first.obj) else { panic!("not in its bucket") };
        seen = Some(found);
        22
    };
    assert_eq!(insert(&mem, first, 8, Some(&mut fails)), Inserted::Failed(22));
    let mut late = |_| {
        bury(&mem, &seen.unwrap(), first.obj);
        0
    };
    assert!(matches!(insert(&mem, second, 8, Some(&mut late)), Inserted::New(_)));
    assert!(get(&mem, second).is_some());
}

/// Three threads, few keys and blocks, so that everything is used again and again while the table grows. Made
/// for an interpreter that gives loads old values, too.
#[test]
fn threads_agree_on_every_key() {
    const KEYS: u64 = 12;
    let rounds = if cfg!(miri) { 60 } else { 3_000 };
    let model = Model::new(3, KEYS + 3);
    let balance: Vec<AtomicI64> = (0..KEYS).map(|_| AtomicI64::new(0)).collect();
    std::thread::scope(|scope| {
        for number in 1..=3u32 {
            let (model, balance) = (&model, &balance);
            scope.spawn(move || {
                let mem = model.thread(number, 1);
                let mut random = u64::from(number);
                for _ in 0..rounds {
                    random = crate::hash::fold(random, crate::hash::MIX).wrapping_add(u64::from(number));
                    let at = random % KEYS;
                    let this = key(at << 61 | at << 20);
                    let of = &balance[at as usize];
                    let one = |by: i64| {
                        let was = of.fetch_add(by, Ordering::AcqRel);
                        assert_eq!(was, i64::from(by < 0), "two variables of one key");
                    };
                    match random >> 32 & 3 {
                        0 => {
                            let mut ctor = |_| {
                                one(1);
                                0
                            };
                            // No memory: what was removed waits for readers.
                            let made = insert(&mem, this, 8, Some(&mut ctor));
                            assert!(!matches!(made, Inserted::InProgress | Inserted::Failed(_)), "{made:?}");
                        }
                        1 => drop(remove(&mem, this, Some(&mut |_| one(-1)), Reclaim).unwrap()),
                        _ => {
                            let guard = model.guards.enter(0);
                            if let Some(found) = find(&mem, this) {
                                let extent = &mem.header(found.block()).extent;
                                let life = extent.load(Ordering::Relaxed);
                                std::thread::yield_now();
                                assert_eq!(extent.load(Ordering::Relaxed), life, "used again under a guard");
                            }
                            model.leave(guard);
                            let _ = get(&mem, this);
                        }
                    }
                }
            });
        }
    });
    let there: i64 = balance.iter().map(|b| b.load(Ordering::Relaxed)).sum();
    assert_eq!(committed(&model).len() as i64, there);
}
