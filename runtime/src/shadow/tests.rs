//! The table over its real memory: what it promises one by one, growth, threads, forks.
#![allow(unsafe_code)]

use super::map::Map;
use super::sweep;
use std::collections::{BTreeMap, HashMap};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use suture_table::guard::Guards;
use suture_table::hash::Key;
use suture_table::insert::{Inserted, insert};
use suture_table::memory::{Level, Memory};
use suture_table::remove::Afterwards::{self, Leak, Reclaim};
use suture_table::remove::remove;

fn map() -> &'static Map {
    // As in the library: it is never given back.
    Box::leak(Box::new(Map::new()))
}

fn key(obj: u64, id: u64) -> Key {
    Key { obj, id }
}

fn get(map: &Map, key: Key) -> Option<u64> {
    suture_table::get::get(map, key)
}

fn word(data: u64) -> &'static AtomicU64 {
    // SAFETY: the bytes of a variable of at least eight bytes, whose memory stays mapped.
    unsafe { &*(data as *const AtomicU64) }
}

fn bytes(data: u64, len: usize) -> &'static [u8] {
    // SAFETY: the bytes of a variable nobody writes to meanwhile.
    unsafe { std::slice::from_raw_parts(data as *const u8, len) }
}

fn new(inserted: Inserted) -> u64 {
    let Inserted::New(data) = inserted else { panic!("{inserted:?}") };
    data
}

/// A small generator (splitmix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

#[test]
fn an_empty_table_has_nothing_and_takes_nothing() {
    let map = map();
    assert_eq!(get(map, key(0x1000, 0x1234)), None);
    assert_eq!(remove(map, key(0x1000, 0x1234), Some(&mut |_| panic!("a destructor")), Reclaim), Ok(false));
    let mut dtor = |_, _| panic!("a destructor");
    assert_eq!(sweep::free_all(map, 7, Some(&mut dtor), Reclaim, &mut |_| ()), Ok(0));
    assert_eq!(map.current().load(Ordering::Relaxed), 0);
}

#[test]
fn variables_are_distinct_zeroed_and_aligned() {
    let map = map();
    let mut all = Vec::new();
    for obj in [0, 0x10, 0x20] {
        for (id, size) in [(0x1234, 64), (0x1235, 1), (10, 8160), (11, 8161), (12, 3 << 20), (13, 0)] {
            let data = new(insert(map, key(obj, id), size, None));
            assert_eq!(data % 16, 0);
            assert!(bytes(data, size).iter().all(|b| *b == 0));
            all.push((key(obj, id), data, size));
        }
    }
    for (n, (_, data, size)) in all.iter().enumerate() {
        // SAFETY: the bytes of a variable that nobody else uses.
        unsafe { std::ptr::write_bytes(*data as *mut u8, n as u8 + 1, *size) };
    }
    for (n, (key, data, size)) in all.iter().enumerate() {
        assert_eq!(get(map, *key), Some(*data));
        assert!(bytes(*data, *size).iter().all(|b| *b == n as u8 + 1), "{key:?}");
        assert_eq!(insert(map, *key, *size, Some(&mut |_| panic!("a constructor"))), Inserted::Exists(*data));
    }
    for (key, data, size) in &all {
        let mut runs = 0;
        let mut dtor = |d| {
            assert_eq!(d, *data);
            assert_eq!(get(map, *key), None, "still found at its destructor");
            runs += 1;
        };
        assert_eq!(remove(map, *key, Some(&mut dtor), Reclaim), Ok(true));
        assert_eq!(runs, 1);
        // Memory that was used is zeroed again.
        let data = new(insert(map, *key, *size, None));
        assert!(bytes(data, *size).iter().all(|b| *b == 0), "{key:?}");
    }
}

#[test]
fn a_failed_constructor_leaves_nothing() {
    let map = map();
    let mut fails = |data| {
        word(data).store(9, Ordering::Relaxed);
        22
    };
    assert_eq!(insert(map, key(1, 1), 64, Some(&mut fails)), Inserted::Failed(22));
    assert_eq!(get(map, key(1, 1)), None);
    let data = new(insert(map, key(1, 1), 64, None));
    assert!(bytes(data, 64).iter().all(|b| *b == 0));
}

#[test]
fn a_constructor_that_asks_for_its_own_key_is_told() {
    let map = map();
    let mut inner = None;
    let mut ctor = |_| {
        inner = Some(insert(map, key(1, 1), 8, None));
        assert_eq!(get(map, key(1, 1)), None, "found before its constructor was through");
        0
    };
    new(insert(map, key(1, 1), 8, Some(&mut ctor)));
    assert_eq!(inner, Some(Inserted::InProgress));
}

#[test]
fn sizes_that_cannot_be_had_are_refused() {
    let map = map();
    for size in [1 << 47, usize::MAX - 5000, usize::MAX] {
        assert_eq!(insert(map, key(1, 1), size, None), Inserted::NoMemory, "{size}");
        assert_eq!(get(map, key(1, 1)), None);
    }
    new(insert(map, key(1, 1), 8, None));
}

#[test]
fn free_all_frees_one_id() {
    let map = map();
    for obj in 0..5000u64 {
        for id in 1..=3 {
            word(new(insert(map, key(obj * 64, id), 8 + obj as usize % 200, None)))
                .store(obj, Ordering::Relaxed);
        }
    }
    let mut seen = BTreeMap::new();
    let mut dtor = |obj, data| {
        assert_eq!(word(data).load(Ordering::Relaxed) * 64, obj);
        *seen.entry(obj).or_insert(0) += 1;
    };
    let mut each = Vec::new();
    assert_eq!(sweep::free_all(map, 2, Some(&mut dtor), Reclaim, &mut |obj| each.push(obj)), Ok(5000));
    assert_eq!((seen.len(), each.len()), (5000, 5000));
    assert!(seen.values().all(|runs| *runs == 1));
    for obj in 0..5000u64 {
        let found: Vec<bool> = (1..=3).map(|id| get(map, key(obj * 64, id)).is_some()).collect();
        assert_eq!(found, [true, false, true]);
    }
}

/// What is leaked keeps its bytes, and its memory is not used again.
#[test]
fn leaked_variables_are_never_used_again() {
    let leaked_then_reused = |afterwards: Afterwards| {
        let map = map();
        let old: Vec<u64> = (0..100).map(|obj| new(insert(map, key(obj, 1), 64, None))).collect();
        old.iter().for_each(|data| word(*data).store(0x5a5a, Ordering::Relaxed));
        assert_eq!(sweep::free_all(map, 1, None, afterwards, &mut |_| ()), Ok(100));
        let again = (0..1000).map(|obj| new(insert(map, key(obj, 1), 64, None)));
        let reused = again.filter(|data| old.contains(data)).count();
        let kept = old.iter().filter(|data| word(**data).load(Ordering::Relaxed) == 0x5a5a).count();
        (reused, kept)
    };
    assert_eq!(leaked_then_reused(Leak), (0, 100));
    assert_eq!(leaked_then_reused(Reclaim), (100, 0));
}

#[test]
fn a_guard_keeps_the_bytes() {
    let map = map();
    let data = new(insert(map, key(1, 1), 64, None));
    word(data).store(7, Ordering::Relaxed);
    let guard = map.guards.enter(0);
    assert_eq!(get(map, key(1, 1)), Some(data));
    let free = std::thread::spawn(move || {
        assert_eq!(remove(map, key(1, 1), None, Reclaim), Ok(true));
        assert_eq!(get(map, key(1, 1)), None);
        // Whatever else happens, also to the epochs.
        for n in 0..100 {
            let other = new(insert(map, key(n, 1), 64, None));
            assert_ne!(other, data);
            let short = map.guards.enter(1);
            remove(map, key(n, 1), None, Reclaim).unwrap();
            map.leave(short);
        }
    });
    free.join().unwrap();
    assert_eq!(word(data).load(Ordering::Relaxed), 7);
    map.leave(guard);
    let again: Vec<u64> = (0..200).map(|n| new(insert(map, key(n, 1), 64, None))).collect();
    assert!(again.contains(&data), "freed memory is not used again");
    assert_eq!(Guards::new().epoch.load(Ordering::Relaxed), 0);
}

/// Memory does not grow when one thread allocates and another frees.
#[test]
fn memory_goes_round() {
    let map = map();
    let (send, receive) = std::sync::mpsc::sync_channel::<u64>(64);
    let freer = std::thread::spawn(move || {
        for obj in receive {
            assert_eq!(remove(map, key(obj, 1), None, Reclaim), Ok(true));
        }
    });
    let mut places = std::collections::HashSet::new();
    for obj in 0..200_000u64 {
        places.insert(new(insert(map, key(obj, 1), 64, None)));
        send.send(obj).unwrap();
    }
    drop(send);
    freer.join().unwrap();
    assert!(places.len() < 2000, "{} blocks for 64 variables at a time", places.len());
}

#[test]
fn a_million_variables_are_found_while_the_table_grows() {
    let map = map();
    let count = 1_000_000u64;
    let done = AtomicU64::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for obj in 0..count {
                word(new(insert(map, key(obj * 48, 3), 8, None))).store(obj, Ordering::Relaxed);
                done.store(obj + 1, Ordering::Release);
            }
        });
        scope.spawn(|| {
            let mut random = Random(1);
            let mut looks = 0u64;
            loop {
                let there = done.load(Ordering::Acquire);
                if there == count {
                    break;
                }
                if there > 0 {
                    let obj = random.below(there);
                    let data = get(map, key(obj * 48, 3)).expect("what is there throughout is found");
                    assert_eq!(word(data).load(Ordering::Relaxed), obj);
                    looks += 1;
                }
                assert_eq!(get(map, key(random.below(there + 1) * 48 + 1, 3)), None);
            }
            assert!(looks > 1000);
        });
    });
    for obj in 0..count {
        let data = get(map, key(obj * 48, 3)).unwrap();
        assert_eq!(word(data).load(Ordering::Relaxed), obj);
    }
    assert_eq!(sweep::free_all(map, 3, None, Reclaim, &mut |_| ()), Ok(count));
    assert!((0..count).all(|obj| get(map, key(obj * 48, 3)).is_none()));
}

/// Lookups have to look into two levels until then, also if nobody inserts any more.
#[test]
fn a_growth_is_soon_over() {
    let map = map();
    let (mut level, mut since) = (Level(0), 0u64);
    for obj in 0..20_000u64 {
        new(insert(map, key(obj * 48, 3), 8, None));
        let now = Level(map.current().load(Ordering::Relaxed));
        since = if now == level { since + 1 } else { 1 };
        level = now;
        // Half as many buckets have to move as there are now, four at a time, and to be looked at, 64 at a time.
        let old = (1u64 << level.bits()) / 2;
        let is_settled = map.settled().load(Ordering::Relaxed) == level.0;
        assert!(since < old / 4 + old / 64 + 2 || is_settled, "{since} insertions after {level:?} was begun");
    }
    assert!(level.bits() > 10, "the table did not grow: {level:?}");
}

/// Random operations of one thread against a map of the standard library.
#[test]
fn it_does_what_a_map_does() {
    let map = map();
    let mut model: HashMap<(u64, u64), (u64, u64)> = HashMap::new();
    let mut random = Random(42);
    for step in 1..400_000u64 {
        let (obj, id) = (random.below(3000) * 16, 1 + random.below(4));
        let there = model.get(&(obj, id)).copied();
        match random.below(8) {
            0..=2 => {
                let mut runs = 0;
                let size = 8 + random.below(100) as usize;
                let mut ctor = |data| {
                    runs += 1;
                    assert!(bytes(data, size).iter().all(|b| *b == 0));
                    word(data).store(step, Ordering::Relaxed);
                    i32::from(step % 7 == 0)
                };
                match (insert(map, key(obj, id), size, Some(&mut ctor)), there) {
                    (Inserted::Exists(data), Some((known, _))) => assert_eq!((data, runs), (known, 0)),
                    (Inserted::New(data), None) if step % 7 != 0 => {
                        assert_eq!(runs, 1);
                        model.insert((obj, id), (data, step));
                    }
                    (Inserted::Failed(1), None) if step % 7 == 0 => assert_eq!(runs, 1),
                    other => panic!("{other:?}"),
                }
            }
            3 => {
                let mut runs = 0;
                let removed = remove(map, key(obj, id), Some(&mut |_| runs += 1), Reclaim).unwrap();
                assert_eq!((removed, runs), (there.is_some(), u32::from(there.is_some())));
                model.remove(&(obj, id));
            }
            4 if step % 5000 == 4 => {
                let of_id = model.keys().filter(|(_, i)| *i == id).count() as u64;
                assert_eq!(sweep::free_all(map, id, None, Reclaim, &mut |_| ()), Ok(of_id));
                model.retain(|(_, i), _| *i != id);
            }
            _ => {
                let found = get(map, key(obj, id));
                assert_eq!(found, there.map(|(data, _)| data));
                if let (Some(data), Some((_, value))) = (found, there) {
                    assert_eq!(word(data).load(Ordering::Relaxed), value);
                }
            }
        }
    }
    assert!(model.len() > 1000);
}

/// How many operations each thread of a stress test makes.
const OPERATIONS: u64 = 300_000;

/// Eight threads, random operations. Each key has a lock of its own that all but `get` go under, and
/// beside it what must be there.
#[test]
fn eight_threads_agree_with_a_locked_model() {
    const KEYS: u64 = 4096;
    let map = map();
    let model: Vec<Mutex<Option<u64>>> = (0..KEYS).map(|_| Mutex::new(None)).collect();
    std::thread::scope(|scope| {
        for thread in 0..8u64 {
            let model = &model;
            scope.spawn(move || {
                let mut random = Random(thread);
                for n in 0..OPERATIONS {
                    let at = random.below(KEYS);
                    let this = key(at * 64, 1 + at % 3);
                    if random.below(4) > 0 {
                        // Without the lock: whatever is found is the key's.
                        let guard = map.guards.enter(thread as usize % 4);
                        if let Some(data) = get(map, this) {
                            assert_eq!(word(data).load(Ordering::Relaxed) % KEYS, at);
                        }
                        map.leave(guard);
                        continue;
                    }
                    let mut there = model[at as usize].lock().unwrap();
                    let mut ctor = |data| {
                        word(data).store(n * KEYS + at, Ordering::Relaxed);
                        0
                    };
                    match random.below(2) {
                        0 => match (insert(map, this, 40, Some(&mut ctor)), *there) {
                            (Inserted::New(data), None) => *there = Some(data),
                            (Inserted::Exists(data), Some(known)) => assert_eq!(data, known),
                            other => panic!("{other:?}"),
                        },
                        _ => {
                            assert_eq!(remove(map, this, None, Reclaim), Ok(there.is_some()));
                            *there = None;
                            assert_eq!(get(map, this), None);
                        }
                    }
                    assert_eq!(get(map, this), *there);
                }
            });
        }
    });
    for (at, there) in model.iter().enumerate() {
        assert_eq!(get(map, key(at as u64 * 64, 1 + at as u64 % 3)), *there.lock().unwrap());
    }
}

/// The same keys for all, no lock: every constructor's variable is destroyed once.
#[test]
fn constructors_and_destructors_balance() {
    let map = map();
    let (made, gone) = (AtomicU64::new(0), AtomicU64::new(0));
    let (live, ids) = ([const { AtomicU64::new(0) }; 64], 2u64);
    std::thread::scope(|scope| {
        for thread in 0..8u64 {
            let (made, gone, live) = (&made, &gone, &live);
            scope.spawn(move || {
                let mut random = Random(thread);
                for _ in 0..OPERATIONS / 10 {
                    let at = random.below(64);
                    let this = key(at, at % ids);
                    let one = |by: u64| {
                        let was = live[at as usize].fetch_add(by, Ordering::AcqRel);
                        assert_eq!(was, u64::from(by != 1), "two at a time");
                    };
                    let mut ctor = |_| {
                        one(1);
                        made.fetch_add(1, Ordering::Relaxed);
                        0
                    };
                    let mut dtor = |_| {
                        one(u64::MAX);
                        gone.fetch_add(1, Ordering::Relaxed);
                    };
                    match random.below(3) {
                        0 => drop(insert(map, this, 16, Some(&mut ctor))),
                        1 => drop(remove(map, this, Some(&mut dtor), Reclaim).unwrap()),
                        _ => drop(get(map, this)),
                    }
                }
            });
        }
    });
    for id in 0..ids {
        let mut dtor = |_, _| {
            gone.fetch_add(1, Ordering::Relaxed);
        };
        sweep::free_all(map, id, Some(&mut dtor), Reclaim, &mut |_| ()).unwrap();
    }
    assert_eq!(made.load(Ordering::Relaxed), gone.load(Ordering::Relaxed));
    assert!(made.load(Ordering::Relaxed) > 1000);
}

#[test]
fn racing_callers_run_one_constructor_each_key() {
    const KEYS: u64 = 2000;
    let map = map();
    let runs = AtomicU64::new(0);
    let barrier = std::sync::Barrier::new(32);
    std::thread::scope(|scope| {
        for _ in 0..32 {
            scope.spawn(|| {
                barrier.wait();
                for obj in 0..KEYS {
                    let mut ctor = |data| {
                        let until = std::time::Instant::now() + std::time::Duration::from_micros(20);
                        while std::time::Instant::now() < until {
                            std::hint::spin_loop();
                        }
                        runs.fetch_add(1, Ordering::Relaxed);
                        word(data).store(obj + 1, Ordering::Relaxed);
                        0
                    };
                    let made = insert(map, key(obj, 9), 8, Some(&mut ctor));
                    let (Inserted::New(data) | Inserted::Exists(data)) = made else { panic!("{made:?}") };
                    assert_eq!(word(data).load(Ordering::Relaxed), obj + 1, "seen before it was complete");
                }
            });
        }
    });
    assert_eq!(runs.load(Ordering::Relaxed), KEYS);
}

/// A thread that ends in a constructor does not keep the key.
#[test]
fn the_key_of_a_thread_that_ended_in_its_constructor_is_free() {
    let map = map();
    let inside = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let ended = scope.spawn(|| {
            let mut ctor = |_| {
                inside.store(true, Ordering::Release);
                // Unwinds through the table, which has nothing to undo: as if the thread were gone.
                panic!("a constructor that never returns");
            };
            insert(map, key(1, 1), 8, Some(&mut ctor))
        });
        assert!(ended.join().is_err());
    });
    assert!(inside.load(Ordering::Acquire));
    assert_eq!(get(map, key(1, 1)), None);
    new(insert(map, key(1, 1), 8, Some(&mut |_| 0)));
    assert!(get(map, key(1, 1)).is_some());
}

/// Forks in the middle of everything; the child finds what was there throughout, and can do everything
/// itself, also with the keys that others were at.
#[test]
fn a_forked_child_has_a_working_table() {
    let map = map();
    let constant: Vec<Key> = (0..500).map(|n| key(n, 77)).collect();
    for (n, k) in constant.iter().enumerate() {
        word(new(insert(map, *k, 8, None))).store(n as u64, Ordering::Relaxed);
    }
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for thread in 0..3u64 {
            let stop = &stop;
            scope.spawn(move || {
                let mut random = Random(thread);
                while !stop.load(Ordering::Relaxed) {
                    // Grows as it goes, with constructors that take their time.
                    let this = key(random.below(20_000), 1);
                    let mut ctor = |_| {
                        (0..random.below(200)).for_each(|_| std::hint::spin_loop());
                        0
                    };
                    insert(map, this, 24, Some(&mut ctor));
                    let this = key(random.below(20_000), 1);
                    remove(map, this, Some(&mut |_| std::hint::spin_loop()), Reclaim).unwrap();
                }
            });
        }
        for round in 0..FORKS {
            // SAFETY: the child makes system calls and uses the table only, and leaves with `_exit`.
            let child = unsafe { libc::fork() };
            if child == 0 {
                let code = in_child(map, &constant, round);
                // SAFETY: ends the child.
                unsafe { libc::_exit(code) };
            }
            let mut status = 0;
            // SAFETY: waits for the child just made.
            assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
            assert_eq!(status, 0, "round {round}");
        }
        stop.store(true, Ordering::Relaxed);
    });
}

/// How often the process forks.
const FORKS: u64 = 1000;

/// Everything once, in a forked child; the number of the step that failed.
fn in_child(map: &Map, constant: &[Key], round: u64) -> i32 {
    // SAFETY: ends the child if it hangs.
    unsafe { libc::alarm(20) };
    let right = |(n, k): (usize, &Key)| {
        get(map, *k).is_some_and(|data| word(data).load(Ordering::Relaxed) == n as u64)
    };
    if !constant.iter().enumerate().all(right) {
        return 1;
    }
    let mut random = Random(round ^ 0xf0);
    for n in 0..300 {
        let this = key(random.below(20_000), 1);
        let made = insert(map, this, 24, Some(&mut |_| 0));
        if !matches!(made, Inserted::New(_) | Inserted::Exists(_)) || get(map, this).is_none() {
            return 2;
        }
        if n % 3 == 0
            && (remove(map, this, Some(&mut |_| ()), Reclaim) != Ok(true) || get(map, this).is_some())
        {
            return 3;
        }
    }
    if round.is_multiple_of(50) {
        // What others were at when it happened is not found, and its keys can be had.
        for obj in 0..2000 {
            if !matches!(insert(map, key(obj, 1), 24, None), Inserted::New(_) | Inserted::Exists(_)) {
                return 4;
            }
        }
        let left = sweep::free_all(map, 1, None, Reclaim, &mut |_| ());
        if left.is_err() || (0..20_000).any(|obj| get(map, key(obj, 1)).is_some()) {
            return 5;
        }
    }
    if constant.iter().enumerate().all(right) { 0 } else { 6 }
}
