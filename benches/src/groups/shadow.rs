//! Shadow variables beside the maps one would take instead, in one process.
//!
//! Costs are processor time per call, so that other people's work on the machine counts as little as can
//! be. ([`super::tails`] has the percentiles.)

use crate::clock::nanoseconds;
use crate::error::{Error, io};
use crate::lab::Lab;
use crate::maps::{Dash, Flurry, Key, Locked, Papaya, SccIndex, SccMap, Shadow, Shared, Skip, Table};
use crate::row::{Budget, Row};
use crate::stats::{Samples, in_turn};
use std::hint::black_box;
use std::sync::Barrier;

/// Calls of a sample of one or two threads; of more, who take turns anyway, half of them each.
const CALLS: u64 = 300_000;
/// What is measured, with the budgets of one thread and of two.
const KINDS: [(&str, Kind, [Budget; 2]); 5] = [
    ("hit", Kind::Hit, [Budget::AtMost(12.0); 2]),
    ("miss", Kind::Miss, [Budget::AtMost(6.0); 2]),
    ("get-or-alloc", Kind::GetOrMake, [Budget::None; 2]),
    ("alloc-free", Kind::MakeRemove, [Budget::AtMost(40.0), Budget::AtMost(50.0)]),
    ("mix", Kind::Mix, [Budget::None; 2]),
];

#[derive(Clone, Copy, Debug)]
enum Kind {
    Hit,
    Miss,
    GetOrMake,
    MakeRemove,
    /// 98 hits, one that is made, one that is removed.
    Mix,
}

pub(super) type Rival = (&'static str, fn() -> Box<dyn Table>);

pub(super) const RIVALS: [Rival; 8] = [
    ("Mutex<HashMap>", || Box::new(Locked::default())),
    ("RwLock<HashMap>", || Box::new(Shared::default())),
    ("dashmap", || Box::new(Dash::default())),
    ("scc::HashIndex", || Box::new(SccIndex::default())),
    ("scc::HashMap", || Box::new(SccMap::default())),
    ("papaya", || Box::new(Papaya::default())),
    ("flurry", || Box::new(Flurry::default())),
    ("crossbeam-skiplist", || Box::new(Skip::default())),
];

pub(super) fn key(n: u64, id: u64) -> Key {
    (0x7f00_0000_0000 + n * 48, id)
}

/// Numbers below `count` in no order (splitmix64). Without a division, which would be a part of every call.
pub(super) fn scatter(n: u64, count: u64) -> u64 {
    let z = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    ((u128::from(z ^ z >> 27) * u128::from(count)) >> 64) as u64
}

/// A table that is measured.
struct Entry {
    name: &'static str,
    table: Box<dyn Table>,
    /// Memory per variable.
    bytes: f64,
}

/// All rows about shadow variables.
///
/// # Errors
/// When the runtime cannot be loaded.
pub fn shadow(lab: &Lab, rows: &mut Vec<Row>) -> Result<(), Error> {
    for (id, (label, count)) in (1u64..).zip([("10k", 10_000), ("1M", 1_000_000)]) {
        let wants = |what: &str, rest: &str| lab.wants(&format!("shadow.{what}.{label}{rest}"));
        // There are rows about memory at a million only.
        let weighed = count >= 1_000_000 && wants("bytes", "");
        if !weighed && !KINDS.iter().any(|(what, ..)| wants(what, ".")) {
            continue;
        }
        // All at once, and measured in turn: what happens on the machine meets all, and ours counts once.
        let mut entries = vec![fill(("ours", Box::new(Shadow::load(&lab.runtime)?)), id, count)?];
        for (name, new) in RIVALS {
            entries.push(fill((name, new()), id, count)?);
        }
        let Some((ours, rivals)) = entries.split_first() else { continue };
        if weighed {
            let bytes = |of: &Entry| {
                single(format!("shadow.bytes.{label}"), "B", ours.bytes, of.bytes).against(of.name)
            };
            rows.extend(rivals.iter().map(bytes));
        }
        for threads in [1, 2, 4, 8] {
            for (what, kind, budgets) in KINDS.iter().filter(|(what, ..)| wants(what, &format!(".{threads}")))
            {
                let measure = |of: &Entry| cost(&*of.table, *kind, id, count, threads);
                let samples = in_turn(lab.rounds(5), &entries, measure);
                let Some((ours, theirs)) = samples.split_first() else { continue };
                let budget = budgets.get(threads - 1).filter(|_| count == 10_000).copied();
                for (rival, theirs) in rivals.iter().zip(theirs) {
                    let row = Row::new(format!("shadow.{what}.{label}.{threads}"), "ns", ours, theirs);
                    rows.push(row.against(rival.name).budget(budget.unwrap_or(Budget::None)));
                }
            }
        }
    }
    Ok(())
}

/// Gives what is free in the C library back to the system.
pub(super) fn trim() {
    // SAFETY: nobody has what is free.
    unsafe { libc::malloc_trim(0) };
}

/// Makes `count` variables in a table, and sees how much memory that takes.
fn fill((name, table): (&'static str, Box<dyn Table>), id: u64, count: u64) -> Result<Entry, Error> {
    // What others left to the C library would be taken for nothing.
    trim();
    let before = resident()?;
    (0..count).for_each(|n| table.make(key(n, id)));
    let bytes = (resident()? - before) / count as f64;
    Ok(Entry { name, table, bytes })
}

pub(super) fn single(name: String, unit: &'static str, ours: f64, baseline: f64) -> Row {
    let one = |value| {
        let mut samples = Samples::default();
        samples.push(value);
        samples
    };
    Row::new(name, unit, &one(ours), &one(baseline))
}

/// Bytes of memory this process has touched.
fn resident() -> Result<f64, Error> {
    let statm = std::fs::read_to_string("/proc/self/statm").map_err(io("read the size of this process"))?;
    let pages: f64 = statm.split(' ').nth(1).and_then(|p| p.parse().ok()).unwrap_or_default();
    Ok(pages * 4096.0)
}

/// Processor time of the calling thread in nanoseconds.
fn own_time() -> u64 {
    nanoseconds(libc::CLOCK_THREAD_CPUTIME_ID)
}

/// Nanoseconds of processor time per call.
fn cost(table: &dyn Table, kind: Kind, id: u64, count: u64, threads: usize) -> f64 {
    let (barrier, calls) = (Barrier::new(threads), if threads > 2 { CALLS / 2 } else { CALLS });
    let one = |thread: u64| {
        barrier.wait();
        let started = own_time();
        for n in 0..calls {
            call(table, kind, id, count, thread * CALLS + n);
        }
        (own_time() - started) as f64 / calls as f64
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads as u64).map(|thread| scope.spawn(move || one(thread))).collect();
        let costs = workers.into_iter().map(|w| w.join().unwrap_or(f64::NAN));
        costs.sum::<f64>() / threads as f64
    })
}

#[inline]
fn call(table: &dyn Table, kind: Kind, id: u64, count: u64, n: u64) {
    let there = key(scatter(n, count), id);
    let absent = key(count + n, id);
    match kind {
        Kind::Hit => assert_eq!(table.get(there), there.0 + 1),
        Kind::Miss => assert_eq!(table.get(absent), 0),
        Kind::GetOrMake => assert_eq!(table.get_or_make(there), there.0 + 1),
        Kind::MakeRemove => {
            table.make(absent);
            table.remove(absent);
        }
        Kind::Mix => match n % 100 {
            0 => table.make(absent),
            1 => table.remove(key(count + n - 1, id)),
            _ => drop(black_box(table.get(there))),
        },
    }
}
