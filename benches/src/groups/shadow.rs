//! Shadow variables beside the maps one would take instead, in one process.
//!
//! Costs are processor time per call, so that other people's work on the machine counts as little as can
//! be; tails are the time stamp counter around each call, of one reader beside one writer.

use crate::error::{Error, io};
use crate::lab::Lab;
use crate::maps::{Dash, Flurry, Key, Locked, Papaya, SccIndex, SccMap, Shadow, Shared, Skip, Table};
use crate::row::{Budget, Row};
use crate::stats::{Samples, interleave};
use std::hint::black_box;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

/// Calls of a sample, per thread.
const CALLS: u64 = 100_000;
/// Calls of a reader whose tail is measured.
const LOOKS: usize = 1_000_000;

/// What is measured, with the budgets of one thread.
const KINDS: [(&str, Kind, Budget); 5] = [
    ("hit", Kind::Hit, Budget::AtMost(12.0)),
    ("miss", Kind::Miss, Budget::AtMost(6.0)),
    ("get-or-alloc", Kind::GetOrMake, Budget::None),
    ("alloc-free", Kind::MakeRemove, Budget::AtMost(40.0)),
    ("mix", Kind::Mix, Budget::None),
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

type Rival = (&'static str, fn() -> Box<dyn Table>);

const RIVALS: [Rival; 8] = [
    ("Mutex<HashMap>", || Box::new(Locked::default())),
    ("RwLock<HashMap>", || Box::new(Shared::default())),
    ("dashmap", || Box::new(Dash::default())),
    ("scc::HashIndex", || Box::new(SccIndex::default())),
    ("scc::HashMap", || Box::new(SccMap::default())),
    ("papaya", || Box::new(Papaya::default())),
    ("flurry", || Box::new(Flurry::default())),
    ("crossbeam-skiplist", || Box::new(Skip::default())),
];

fn key(n: u64, id: u64) -> Key {
    (0x7f00_0000_0000 + n * 48, id)
}

/// Numbers in no order (splitmix64).
fn scatter(n: u64) -> u64 {
    let z = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z ^ z >> 27
}

/// All rows about shadow variables.
///
/// # Errors
/// When the runtime cannot be loaded.
pub fn shadow(lab: &Lab, rows: &mut Vec<Row>) -> Result<(), Error> {
    let ours = Shadow::load(&lab.runtime)?;
    let sizes: &[(&str, u64, &[usize])] = &[("10k", 10_000, &[1, 2, 4, 8]), ("1M", 1_000_000, &[1, 2])];
    for (id, (label, count, threads)) in (1u64..).zip(sizes) {
        let before = resident()?;
        (0..*count).for_each(|n| ours.make(key(n, id)));
        let own_bytes = (resident()? - before) / *count as f64;
        for (name, new) in RIVALS {
            let rival = new();
            let before = resident()?;
            (0..*count).for_each(|n| rival.make(key(n, id)));
            let bytes = (resident()? - before) / *count as f64;
            if *count >= 1_000_000 {
                rows.push(single(format!("shadow.bytes.{label}"), "B", own_bytes, bytes).against(name));
            }
            for threads in *threads {
                for (what, kind, budget) in KINDS {
                    let measure = |table: &dyn Table| Ok::<_, Error>(cost(table, kind, id, *count, *threads));
                    let (a, b) = interleave(lab.rounds(7), || measure(&ours), || measure(&*rival))?;
                    let row =
                        Row::new(format!("shadow.{what}.{label}.{threads}"), "ns", &a, &b).against(name);
                    rows.push(if *count == 10_000 && *threads <= 2 { row.budget(budget) } else { row });
                }
            }
        }
    }
    tails(lab, &ours, rows);
    Ok(())
}

fn single(name: String, unit: &'static str, ours: f64, baseline: f64) -> Row {
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
fn own_time() -> f64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes one timespec.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut now) };
    now.tv_sec as f64 * 1e9 + now.tv_nsec as f64
}

/// Nanoseconds of processor time per call.
fn cost(table: &dyn Table, kind: Kind, id: u64, count: u64, threads: usize) -> f64 {
    let barrier = Barrier::new(threads);
    let one = |thread: u64| {
        barrier.wait();
        let started = own_time();
        for n in 0..CALLS {
            call(table, kind, id, count, thread * CALLS + n);
        }
        (own_time() - started) / CALLS as f64
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads as u64).map(|thread| scope.spawn(move || one(thread))).collect();
        let costs = workers.into_iter().map(|w| w.join().unwrap_or(f64::NAN));
        costs.sum::<f64>() / threads as f64
    })
}

#[inline]
fn call(table: &dyn Table, kind: Kind, id: u64, count: u64, n: u64) {
    let there = key(scatter(n) % count, id);
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

/// Percentiles of a lookup while somebody makes and removes variables, and while the table grows.
fn tails(lab: &Lab, ours: &Shadow, rows: &mut Vec<Row>) {
    let per_ns = ticks_per_ns();
    let looks = lab.rounds(5) * LOOKS / 5;
    for (id, what, grow) in [(11, "churn", false), (12, "grow", true)] {
        let own = tail(ours, id, grow, looks);
        for (name, new) in RIVALS {
            let theirs = tail(&*new(), id, grow, looks);
            for (label, share) in [("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999), ("p99.99", 0.9999)] {
                let at = |ticks: &[u64]| ticks[(ticks.len() as f64 * share) as usize] as f64 / per_ns;
                let row = single(format!("shadow.{what}.{label}"), "ns", at(&own), at(&theirs)).against(name);
                let promised = grow && label == "p99.99";
                rows.push(if promised { row.budget(Budget::AtMost(20_000.0)) } else { row });
            }
        }
    }
}

fn ticks() -> u64 {
    // SAFETY: reads a counter.
    unsafe { core::arch::x86_64::_rdtsc() }
}

fn ticks_per_ns() -> f64 {
    let (started, first) = (Instant::now(), ticks());
    while started.elapsed().as_millis() < 20 {}
    (ticks() - first) as f64 / started.elapsed().as_nanos() as f64
}

/// Sorted times of lookups, in ticks.
fn tail(table: &dyn Table, id: u64, grow: bool, looks: usize) -> Vec<u64> {
    const FIRST: u64 = 10_000;
    (0..FIRST).for_each(|n| table.make(key(n, id)));
    let (stop, made) = (AtomicBool::new(false), AtomicU64::new(FIRST));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut n = FIRST;
            while !stop.load(Ordering::Relaxed) && n < 3_000_000 {
                table.make(key(n, id));
                if grow {
                    made.store(n + 1, Ordering::Release);
                } else {
                    table.remove(key(n, id));
                }
                n += 1;
            }
        });
        let mut times = Vec::with_capacity(looks);
        for n in 0..looks as u64 {
            let there = key(scatter(n) % made.load(Ordering::Acquire), id);
            let before = ticks();
            let found = table.get(there);
            times.push(ticks() - before);
            assert_eq!(found, there.0 + 1);
        }
        stop.store(true, Ordering::Relaxed);
        times.sort_unstable();
        times
    })
}
