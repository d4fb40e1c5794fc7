//! Percentiles of single calls on shadow variables, of one reader beside one writer.
//!
//! The time stamp counter is read around each call. A thread that the scheduler took the processor from shows it
//! in whatever call it was in, so the reader asks for its context switches after each slow call, and every so often:
//! calls that came with one do not count, and a row says how many those were. What is left of a busy machine
//! (interrupts, the hypervisor) shows in the rows beside an empty loop, timed in the same way.

use crate::error::Error;
use crate::lab::Lab;
use crate::maps::{Key, Shadow, Table};
use crate::row::{Budget, Row};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use super::shadow::{RIVALS, Rival, key, scatter, single};

/// Calls of the reader.
const LOOKS: usize = 1_000_000;
/// Variables before anything is measured.
const FIRST: u64 = 10_000;
/// Variables at most.
const MOST: u64 = 3_000_000;
/// A call of so many nanoseconds is looked into.
const SLOW: f64 = 1_000.0;
/// Calls after which the context switches so far are asked for in any case.
const BATCH: u64 = 256;
/// What a call may take while the table grows, in nanoseconds.
const STALL: Budget = Budget::AtMost(20_000.0);

const SHARES: [(&str, f64); 4] = [("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999), ("p99.99", 0.9999)];

/// No table: what the measurement costs by itself.
#[derive(Debug)]
struct Nothing;

impl Table for Nothing {
    fn get(&self, key: Key) -> u64 {
        std::hint::black_box(key).0 + 1
    }
    fn get_or_make(&self, key: Key) -> u64 {
        self.get(key)
    }
    fn make(&self, key: Key) {
        std::hint::black_box(key);
    }
    fn remove(&self, key: Key) {
        std::hint::black_box(key);
    }
}

/// No table either: what the system takes for the memory of as many variables. Ours needs a block of 96 bytes and
/// about 64 of buckets for each while it grows.
#[derive(Debug)]
struct FreshPages {
    pages: *mut libc::c_void,
    len: usize,
    next: AtomicU64,
}

// SAFETY: one thread writes; the address is only a number to the others.
unsafe impl Sync for FreshPages {}

impl Drop for FreshPages {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` with this length, and nobody uses it any more.
        unsafe { libc::munmap(self.pages, self.len) };
    }
}

impl FreshPages {
    const EACH: u64 = 96 + 64;

    fn new() -> Self {
        let len = (Self::EACH * (MOST + FIRST)) as usize;
        // SAFETY: new memory, wherever the system likes.
        let pages = unsafe {
            let (kind, access) =
                (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, libc::PROT_READ | libc::PROT_WRITE);
            libc::mmap(std::ptr::null_mut(), len, access, kind | libc::MAP_NORESERVE, -1, 0)
        };
        assert_ne!(pages, libc::MAP_FAILED, "no memory for the comparison");
        Self { pages, len, next: AtomicU64::new(pages.expose_provenance() as u64) }
    }
}

impl Table for FreshPages {
    fn get(&self, key: Key) -> u64 {
        Nothing.get(key)
    }
    fn get_or_make(&self, key: Key) -> u64 {
        Nothing.get_or_make(key)
    }
    fn make(&self, key: Key) {
        let place = self.next.fetch_add(Self::EACH, Ordering::Relaxed);
        // SAFETY: in the memory of `new`, which has room for all calls of a run and is used by this thread only.
        unsafe { std::ptr::with_exposed_provenance_mut::<u64>(place as usize).write_volatile(key.0) };
    }
    fn remove(&self, key: Key) {
        Nothing.remove(key);
    }
}

/// Lookups while somebody makes and removes variables (`churn`) or makes them (`grow`), and what making one takes
/// while the table grows.
///
/// # Errors
/// When the runtime cannot be loaded.
pub fn tails(lab: &Lab, rows: &mut Vec<Row>) -> Result<(), Error> {
    let ours = Shadow::load(&lab.runtime)?;
    let looks = lab.rounds(5) * LOOKS / 5;
    let empty: Rival = ("an empty loop", || Box::new(Nothing));
    let pages: Rival = ("fresh pages alone", || Box::new(FreshPages::new()));
    for (id, what, grow) in [(11, "churn", false), (12, "grow", true)] {
        let own = tail(&ours, id, grow, looks);
        for (name, new) in RIVALS.into_iter().chain([empty]).chain(grow.then_some(pages)) {
            let theirs = tail(&*new(), id, grow, looks);
            let mut row = |part: &str, unit, a, b, budget| {
                rows.push(single(format!("tail.{what}.{part}"), unit, a, b).against(name).budget(budget));
            };
            for (label, share) in SHARES {
                let budget = if grow && label == "p99.99" { STALL } else { Budget::None };
                row(label, "ns", own.gets.at(share), theirs.gets.at(share), budget);
                if grow {
                    row(&format!("make.{label}"), "ns", own.makes.at(share), theirs.makes.at(share), budget);
                }
            }
            let switched = |tail: &Tail| tail.gets.switched() * 1e6;
            row("switched", "ppm", switched(&own), switched(&theirs), Budget::None);
        }
    }
    Ok(())
}

fn ticks() -> u64 {
    // SAFETY: reads a counter.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Context switches of the calling thread so far.
fn switches() -> i64 {
    // SAFETY: an array of integers, for which zero is a value.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes one rusage.
    unsafe { libc::getrusage(libc::RUSAGE_THREAD, &raw mut usage) };
    usage.ru_nvcsw + usage.ru_nivcsw
}

/// Times of calls in ticks, but for those the scheduler had a part in.
#[derive(Debug)]
struct Times {
    per_ns: f64,
    known: i64,
    asked: u64,
    counted: Vec<u64>,
    dropped: u64,
}

impl Times {
    fn new(most: usize) -> Self {
        let (started, first) = (Instant::now(), ticks());
        while started.elapsed().as_millis() < 20 {}
        let per_ns = (ticks() - first) as f64 / started.elapsed().as_nanos() as f64;
        Self { per_ns, known: switches(), asked: 0, counted: Vec::with_capacity(most), dropped: 0 }
    }

    fn time<R>(&mut self, call: impl FnOnce() -> R) -> R {
        self.asked += 1;
        if self.asked.is_multiple_of(BATCH) {
            self.known = switches();
        }
        let before = ticks();
        let result = call();
        let took = ticks() - before;
        if took as f64 > SLOW * self.per_ns && switches() != self.known {
            self.known = switches();
            self.dropped += 1;
        } else {
            self.counted.push(took);
        }
        result
    }

    fn sorted(mut self) -> Self {
        self.counted.sort_unstable();
        self
    }

    /// The time below which that share of the calls is, in nanoseconds.
    fn at(&self, share: f64) -> f64 {
        let place = (self.counted.len() as f64 * share) as usize;
        self.counted.get(place).map_or(0.0, |ticks| *ticks as f64 / self.per_ns)
    }

    /// The share of calls that do not count.
    fn switched(&self) -> f64 {
        self.dropped as f64 / (self.dropped as f64 + self.counted.len() as f64)
    }
}

struct Tail {
    gets: Times,
    makes: Times,
}

fn tail(table: &dyn Table, id: u64, grow: bool, looks: usize) -> Tail {
    (0..FIRST).for_each(|n| table.make(key(n, id)));
    let (stop, made) = (AtomicBool::new(false), AtomicU64::new(FIRST));
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut times = Times::new(MOST as usize);
            let mut n = FIRST;
            while !stop.load(Ordering::Relaxed) && n < MOST {
                times.time(|| table.make(key(n, id)));
                if grow {
                    made.store(n + 1, Ordering::Release);
                } else {
                    table.remove(key(n, id));
                }
                n += 1;
            }
            times
        });
        let mut gets = Times::new(looks);
        for n in 0..looks as u64 {
            let there = key(scatter(n, made.load(Ordering::Acquire)), id);
            let found = gets.time(|| table.get(there));
            assert_eq!(found, there.0 + 1);
        }
        stop.store(true, Ordering::Relaxed);
        let makes = writer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        Tail { gets: gets.sorted(), makes: makes.sorted() }
    })
}
