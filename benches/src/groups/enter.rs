//! Getting in: how long a thread is held and away for an injection and for a ring of the doorbell, on an
//! idle machine and on one with twice as much to do as it has processors; and what the first apply costs
//! over the second.

use crate::error::Error;
use crate::lab::{CALL_FUNCTIONS, Lab, SHORT};
use crate::processor::Avoiding;
use crate::row::{Budget, Row};
use crate::spinner::Spinner;
use crate::stats::Samples;
use crate::target::Subject;
use crate::{suture, world};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

const STOPPED: &str = "its thread stopped by ptrace, nothing done";
const COMMAND: &str = "`suture info`: the command without a target";
const QUIET: &str = "`suture info` meanwhile";

/// Work that nobody needs, on every processor, until dropped.
struct Busy {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Busy {
    fn new() -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let spin = |_| {
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            })
        };
        let threads = (0..2 * processors).map(spin).collect();
        Self { stop, threads }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // They do not panic.
            let _ = thread.join();
        }
    }
}

#[derive(Default)]
struct Sampled {
    inject_held: Samples,
    inject_away: Samples,
    inject_gap: Samples,
    quiet_gap: Samples,
    ring_held: Samples,
    ring_away: Samples,
    stopped: Samples,
    first: Samples,
    second: Samples,
    info: Samples,
}

/// Rows for an idle and a loaded machine.
///
/// # Errors
/// When a target or the command fails.
pub fn enter(lab: &Lab, rows: &mut Vec<Row>) -> Result<(), Error> {
    let (subject, spinner) = (lab.subject(CALL_FUNCTIONS, SHORT)?, lab.spinner()?);
    for (load, rounds) in [("idle", 200), ("loaded", 60)] {
        let _busy = (load == "loaded").then(Busy::new);
        let mut all = Sampled::default();
        for _ in 0..lab.rounds(rounds) {
            wait_in_a_call(lab, &subject, &mut all)?;
            never_wait(lab, &spinner, &mut all)?;
        }
        let budget = |row: Row| if load == "idle" { row.budget(Budget::AtMost(100.0)) } else { row };
        let pair = |name: &str, ours: &Samples, baseline: &Samples, against| {
            let median = Row::new(format!("enter.{name}.{load}"), "us", ours, baseline).against(against);
            let (ours, baseline) = (ours.only(0.99), baseline.only(0.99));
            let p99 = Row::new(format!("enter.{name}.{load}.p99"), "us", &ours, &baseline).against(against);
            [budget(median), p99]
        };
        rows.extend(pair("inject.held", &all.inject_held, &all.stopped, STOPPED));
        rows.extend(pair("inject.away", &all.inject_away, &all.stopped, STOPPED));
        rows.extend(pair("inject.gap", &all.inject_gap, &all.quiet_gap, QUIET));
        rows.extend(pair("ring.held", &all.ring_held, &all.stopped, STOPPED));
        rows.extend(pair("ring.away", &all.ring_away, &all.stopped, STOPPED));
        let wall = |name: &str, ours: &Samples| {
            Row::new(format!("enter.{name}.{load}"), "ms", ours, &all.info).against(COMMAND)
        };
        rows.extend([wall("first", &all.first), wall("second", &all.second)]);
    }
    Ok(())
}

/// A program that waits for input: entered, patched, and patched once more; its mere stop for comparison.
fn wait_in_a_call(lab: &Lab, program: &Path, all: &mut Sampled) -> Result<(), Error> {
    let patch = lab.patch(1)?;
    let subject = Subject::start(program, None)?;
    let pid = subject.pid();
    all.stopped.push(world::stop_all(pid)?.as_secs_f64() * 1e6);
    let run = suture::inject(lab, pid)?;
    all.inject_held.push(run.detail("held_us")?);
    // Not seen in time is not a time.
    if let Ok(away) = run.detail("away_us") {
        all.inject_away.push(away);
    }
    let run = suture::apply(lab, &patch, &[pid], None)?;
    all.ring_held.push(run.detail("held_us")?);
    if let Ok(away) = run.detail("away_us") {
        all.ring_away.push(away);
    }
    suture::disable(lab, &Lab::patch_name(1), &[pid])?;
    let run = suture::apply(lab, &patch, &[pid], None)?;
    all.second.push(run.wall.as_secs_f64() * 1e3);

    let other = Subject::start(program, None)?;
    let run = suture::apply(lab, &patch, &[other.pid()], None)?;
    all.first.push(run.wall.as_secs_f64() * 1e3);
    all.info.push(suture::info(lab, &patch)?.wall.as_secs_f64() * 1e3);
    Ok(())
}

/// A program that never waits tells itself for how long it did not run.
fn never_wait(lab: &Lab, program: &Path, all: &mut Sampled) -> Result<(), Error> {
    let patch = lab.patch(1)?;
    let mut spinner = Spinner::start(program, None, 1)?;
    let pid = spinner.pid();
    let elsewhere = Avoiding::processor_of(pid)?;
    let (quiet, _) = spinner.longest_gap(|| suture::info(lab, &patch))?;
    let (gap, _) = spinner.longest_gap(|| suture::inject(lab, pid))?;
    drop(elsewhere);
    all.quiet_gap.push(quiet);
    all.inject_gap.push(gap);
    Ok(())
}
