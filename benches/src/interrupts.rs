//! When the processor is interrupted, whatever it is doing.
//!
//! The system's timer, and a hypervisor's, come at the same moments of each of their periods. With 250 of them in a
//! second one in some ten thousand calls of half a microsecond meets one, which then takes 20 us and more: the 99.99th
//! percentile of such calls is the timer's. So a thread that only waits finds out when they come, and calls in which
//! one of those moments lies do not count. What comes at any other time does.

use crate::clock::nanoseconds;
use std::time::Duration;

/// A multiple of the periods of 100, 250, 300 and 1 000 Hz, in nanoseconds.
const PERIOD: u64 = 20_000_000;
/// Nanoseconds of a part of it.
const PART: u64 = 20_000;
const PARTS: usize = (PERIOD / PART) as usize;
/// How long the thread waits: so many periods.
const PERIODS: u32 = 20;
/// A wait of so many nanoseconds was interrupted.
const GAP: u64 = 2_000;
/// If more than this part of all moments is bad nothing can be told apart.
const MOST: usize = PARTS / 8;

/// Moments at which the processor is interrupted.
#[derive(Debug)]
pub struct Interrupts {
    parts: Vec<bool>,
}

impl Interrupts {
    /// Waits for a while and sees when that is interrupted: a moment counts if it was in half of all periods.
    pub fn learn() -> Self {
        let mut counts = [0u32; PARTS];
        let (start, length) = (monotonic(), Duration::from_nanos(PERIOD) * PERIODS);
        let mut last = start;
        while last - start < length.as_nanos() as u64 {
            let now = monotonic();
            if now - last > GAP {
                counts[part(last)] += 1;
            }
            last = now;
        }
        // They do not come on the dot: two parts side by side.
        let often = |n: usize| counts[n] + counts[(n + 1) % PARTS] >= PERIODS / 2;
        let mut parts: Vec<bool> = (0..PARTS).map(|n| often(n) || often((n + PARTS - 1) % PARTS)).collect();
        if parts.iter().filter(|is_bad| **is_bad).count() > MOST {
            parts.fill(false);
        }
        Self { parts }
    }

    /// Whether such a moment lies in the nanoseconds that have just passed.
    pub fn were_in_the_last(&self, nanoseconds: u64) -> bool {
        let end = monotonic();
        let (first, last) = ((end - nanoseconds) / PART, end / PART);
        (first..=last).any(|n| self.parts[n as usize % PARTS])
    }
}

fn part(at: u64) -> usize {
    (at % PERIOD / PART) as usize
}

/// The clock by which the system sets its timers, in nanoseconds.
fn monotonic() -> u64 {
    nanoseconds(libc::CLOCK_MONOTONIC)
}
