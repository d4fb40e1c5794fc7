//! Percentiles of single calls on shadow variables, of one reader beside one writer.
//!
//! The time stamp counter is read around each call. A thread that the scheduler took the processor from shows it
//! in whatever call it was in, so the reader asks for its context switches after each slow call, and every so often:
//! calls that came with one do not count, and a row says how many those were. Nor do calls in which the timer
//! interrupted the processor ([`crate::interrupts`]). What is left of a busy machine shows in the rows beside an empty
//! loop, timed in the same way.

use crate::error::Error;
use crate::interrupts::Interrupts;
use crate::lab::Lab;
use crate::maps::{Key, Shadow, Table};
use crate::row::{Budget, Row};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use super::shadow::{RIVALS, Rival, key, scatter, single, trim};

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

    /// For so many calls.
    fn new(count: u64) -> Self {
        let len = (Self::EACH * count) as usize;
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

/// Makes every table begin alike: what others left to the C library goes back to the system, and the system has more
/// memory at hand than any table needs. (A virtual machine may have to ask its host for pages that were not
/// used for long, which takes 50 us and more for each.)
fn level_ground() {
    trim();
    let count = 2 * MOST;
    let pages = FreshPages::new(count);
    (0..count).for_each(|n| pages.make(key(n, 0)));
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
    let pages: Rival = ("fresh pages alone", || Box::new(FreshPages::new(FIRST + MOST)));
    for (id, what, grow) in [(11, "churn", false), (12, "grow", true)] {
        let interrupts = Interrupts::learn();
        let own = tail(&ours, id, grow, looks, &interrupts);
        for (name, new) in RIVALS.into_iter().chain([empty]).chain(grow.then_some(pages)) {
            let interrupts = Interrupts::learn();
            let theirs = tail(&*new(), id, grow, looks, &interrupts);
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
            let interrupted = |tail: &Tail| tail.gets.interrupted() * 1e6;
            row("interrupted", "ppm", interrupted(&own), interrupted(&theirs), Budget::None);
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
struct Times<'i> {
    interrupts: &'i Interrupts,
    per_ns: f64,
    known: i64,
    asked: u64,
    counted: Vec<u64>,
    switched: u64,
    interrupted: u64,
}

impl<'i> Times<'i> {
    fn new(most: usize, interrupts: &'i Interrupts) -> Self {
        let (started, first) = (Instant::now(), ticks());
        while started.elapsed().as_millis() < 20 {}
        let per_ns = (ticks() - first) as f64 / started.elapsed().as_nanos() as f64;
        let counted = Vec::with_capacity(most);
        Self { interrupts, per_ns, known: switches(), asked: 0, counted, switched: 0, interrupted: 0 }
    }

    fn time<R>(&mut self, call: impl FnOnce() -> R) -> R {
        self.asked += 1;
        if self.asked.is_multiple_of(BATCH) {
            self.known = switches();
        }
        let before = ticks();
        let result = call();
        let took = ticks() - before;
        let nanoseconds = took as f64 / self.per_ns;
        if nanoseconds > SLOW && self.interrupts.were_in_the_last(nanoseconds as u64) {
            self.interrupted += 1;
        } else if nanoseconds > SLOW && switches() != self.known {
            self.known = switches();
            self.switched += 1;
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

    fn all(&self) -> f64 {
        (self.switched + self.interrupted) as f64 + self.counted.len() as f64
    }

    /// The share of calls that do not count because the scheduler had a part in them.
    fn switched(&self) -> f64 {
        self.switched as f64 / self.all()
    }

    /// The share of calls that do not count because of a timer.
    fn interrupted(&self) -> f64 {
        self.interrupted as f64 / self.all()
    }
}

struct Tail<'i> {
    gets: Times<'i>,
    makes: Times<'i>,
}

fn tail<'i>(table: &dyn Table, id: u64, grow: bool, looks: usize, interrupts: &'i Interrupts) -> Tail<'i> {
    level_ground();
    (0..FIRST).for_each(|n| table.make(key(n, id)));
    let (stop, made) = (AtomicBool::new(false), AtomicU64::new(FIRST));
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut times = Times::new(MOST as usize, interrupts);
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
        let mut gets = Times::new(looks, interrupts);
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
