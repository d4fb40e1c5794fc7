//! The marks of buckets over real memory: that they hide nobody, and that they are of use.

use super::map::Map;
use core::sync::atomic::Ordering::Relaxed;
use suture_table::get::get;
use suture_table::hash::{Key, MIX, fold};
use suture_table::insert::{Inserted, insert};
use suture_table::marks::{self, Marks};
use suture_table::memory::{Level, Memory, Place};
use suture_table::remove::Afterwards::Reclaim;
use suture_table::remove::remove;
use suture_table::word::Meta;

fn key(obj: u64) -> Key {
    Key { obj: obj * 64, id: 7 }
}

fn make(map: &Map, key: Key) {
    assert!(matches!(insert(map, key, 16, None), Inserted::New(_)), "{key:?}");
}

/// A table with so many variables, whose buckets have marks and are where they are.
fn settled(count: u64) -> &'static Map {
    // As in the library: it is never given back.
    let map: &Map = Box::leak(Box::new(Map::new()));
    let mut made = 0;
    while made < count || map.settled().load(Relaxed) != map.current().load(Relaxed) {
        make(map, key(made));
        made += 1;
    }
    assert!(Level(map.current().load(Relaxed)).is_marked());
    map
}

fn place(map: &Map, key: Key) -> Place {
    Level(map.current().load(Relaxed)).place(map.hash(key))
}

fn lacks(map: &Map, key: Key) -> bool {
    marks::read(map.cell(place(map, key))).lacks(Marks::of(map.hash(key)))
}

/// Keys that share a bucket and a mark come and go at the same time.
#[test]
fn neighbours_do_not_hide_each_other() {
    const ROUNDS: u64 = if cfg!(debug_assertions) { 300_000 } else { 1_000_000 };
    let map = settled(500);
    let sought = |k: &Key| (place(map, *k), Marks::of(map.hash(*k)));
    // Nobody else in the bucket has the mark, and all of them fit into its line.
    let has_room = |k: Key| Meta(map.line(place(map, k)).meta.load(Relaxed)).mask().count_ones() <= 3;
    let first = (1 << 32..).map(key).find(|k| lacks(map, *k) && has_room(*k)).unwrap();
    let same = (1 << 32..).map(key).filter(|k| sought(k) == sought(&first)).take(3);
    std::thread::scope(|scope| {
        for mine in same {
            scope.spawn(move || {
                for round in 0..ROUNDS {
                    make(map, mine);
                    assert!(get(map, mine).is_some(), "hidden in round {round}");
                    assert_eq!(remove(map, mine, None, Reclaim), Ok(true), "hidden in round {round}");
                    assert!(get(map, mine).is_none());
                }
            });
        }
    });
    // Nobody has left a claim behind.
    make(map, first);
    remove(map, first, None, Reclaim).unwrap();
    assert!(lacks(map, first));
}

/// After growth, and after much coming and going, most keys that are not there are told by the marks alone.
#[test]
fn most_absent_keys_lack_a_mark() {
    let map = settled(20_000);
    let share = || {
        let absent = (1 << 33..).map(key).take(20_000);
        absent.filter(|k| lacks(map, *k)).count() as f64 / 20_000.0
    };
    // Twelve marks and some three variables in each bucket.
    let at_first = share();
    assert!(at_first > 0.7, "{at_first}");
    let mut there: Vec<Key> = (0..20_000).map(key).collect();
    for n in 0..200_000u64 {
        let at = fold(n, MIX) as usize % there.len();
        assert_eq!(remove(map, there[at], None, Reclaim), Ok(true));
        there[at] = key(n + (1 << 34));
        make(map, there[at]);
    }
    let afterwards = share();
    assert!(afterwards > at_first - 0.1, "{at_first} {afterwards}");
}
