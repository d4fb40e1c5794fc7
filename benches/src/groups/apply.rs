//! What an apply, its whole transition included, does to the program: the longest gap of a running thread,
//! threads stopped (to borrow one, and for a look) and for how long, and how long the command takes.

use crate::error::Error;
use crate::lab::Lab;
use crate::processor::Avoiding;
use crate::row::{Budget, Row};
use crate::spinner::Spinner;
use crate::stats::{Samples, interleave};
use crate::target::Subject;
use crate::{lab, suture, world};
use std::path::Path;

const THREADS: [usize; 4] = [1, 16, 128, 1000];
/// Threads of a program all of which run.
const BUSY: [usize; 2] = [2, 16];
const PROCESSES: usize = 50;
const STOPPED: &str = "every thread stopped by ptrace, nothing done";
const COMMAND: &str = "`suture info`: the command without a target";

#[derive(Default)]
struct Sampled {
    gap: Samples,
    quiet_gap: Samples,
    stops: Samples,
    looks: Samples,
    threads: Samples,
    held: Samples,
    stopped: Samples,
    wall: Samples,
    info: Samples,
}

/// Rows per number of threads.
///
/// # Errors
/// When a target or the command fails, or the patch does not do what it says.
pub fn apply(lab: &Lab, rows: &mut Vec<Row>) -> Result<(), Error> {
    let (program, patch) = (lab.spinner()?, lab.patch(1)?);
    let mut fewest = None;
    for threads in THREADS {
        let mut all = Sampled::default();
        for round in 0..lab.rounds(60) {
            sample(lab, &program, &patch, threads, round % 2 == 0, &mut all)?;
        }
        let wall = match threads {
            1 => Budget::AtMost(3.0),
            128 => Budget::AtMost(5.0),
            _ => Budget::None,
        };
        rows.extend([
            Row::new(format!("apply.gap.{threads}"), "us", &all.gap, &all.quiet_gap)
                .budget(Budget::AtMost(100.0))
                .against(COMMAND),
            Row::new(format!("apply.stops.{threads}"), "count", &all.stops, &all.threads)
                .budget(Budget::AtMost(1.0))
                .against(STOPPED),
            Row::new(format!("apply.looks.{threads}"), "count", &all.looks, &all.threads)
                .budget(Budget::AtMost(1.0))
                .against(STOPPED),
            Row::new(format!("apply.held.{threads}"), "us", &all.held, &all.stopped)
                .budget(Budget::AtMost(100.0))
                .against(STOPPED),
            Row::new(format!("apply.wall.{threads}"), "ms", &all.wall, &all.info)
                .budget(wall)
                .against(COMMAND),
        ]);
        let (few, least) = *fewest.get_or_insert((threads, all.wall.median()));
        if threads == THREADS[THREADS.len() - 1] {
            let (mut each, mut stop) = (Samples::default(), Samples::default());
            each.push((all.wall.median() - least) * 1e3 / (threads - few) as f64);
            stop.push(all.stopped.median() / threads as f64);
            let row = Row::new("apply.per-thread", "us", &each, &stop);
            rows.push(row.budget(Budget::AtMost(15.0)).against(STOPPED));
        }
    }
    BUSY.iter().try_for_each(|threads| busy(lab, &program, &patch, *threads, rows))
}

/// All threads call the function that is patched, without a pause, on the processors that the command needs.
fn busy(lab: &Lab, program: &Path, patch: &Path, threads: usize, rows: &mut Vec<Row>) -> Result<(), Error> {
    let (mut looks, mut all) = (Samples::default(), Samples::default());
    let (wall, info) = interleave(
        lab.rounds(20),
        || {
            let spinner = Spinner::start_busy(program, &lab.runtime, threads)?;
            let run = suture::apply(lab, patch, &[spinner.pid()], None)?;
            looks.push(run.detail("looks_with_stop")?);
            all.push(threads as f64);
            Ok(run.wall.as_secs_f64() * 1e3)
        },
        || {
            let _spinner = Spinner::start_busy(program, &lab.runtime, threads)?;
            Ok(suture::info(lab, patch)?.wall.as_secs_f64() * 1e3)
        },
    )?;
    rows.extend([
        Row::new(format!("apply.busy.wall.{threads}"), "ms", &wall, &info).against(COMMAND),
        Row::new(format!("apply.busy.looks.{threads}"), "count", &looks, &all).against(STOPPED),
    ]);
    Ok(())
}

/// One first apply to a fresh process, one run of the command that leaves it alone, one stop of all
/// its threads.
fn sample(
    lab: &Lab,
    program: &Path,
    patch: &Path,
    threads: usize,
    quiet_first: bool,
    all: &mut Sampled,
) -> Result<(), Error> {
    let mut spinner = Spinner::start(program, Some(&lab.runtime), threads)?;
    let pid = spinner.pid();
    let elsewhere = Avoiding::processor_of(pid)?;
    let mut quiet = |spinner: &mut Spinner| {
        let (gap, run) = spinner.longest_gap(|| suture::info(lab, patch))?;
        all.quiet_gap.push(gap);
        all.info.push(run.wall.as_secs_f64() * 1e3);
        Ok::<(), Error>(())
    };
    if quiet_first {
        quiet(&mut spinner)?;
    }
    let old = spinner.value()?;
    let (gap, run) = spinner.longest_gap(|| suture::apply(lab, patch, &[pid], None))?;
    if !quiet_first {
        quiet(&mut spinner)?;
    }
    drop(elsewhere);
    super::calls::check("apply", (old + 1) as f64, spinner.value()? as f64)?;
    all.gap.push(gap);
    all.wall.push(run.wall.as_secs_f64() * 1e3);
    all.stops.push(run.detail("stops")?);
    all.looks.push(run.detail("looks_with_stop")?);
    all.held.push(run.detail("held_us")?);
    all.threads.push(threads as f64);
    all.stopped.push(world::stop_all(pid)?.as_secs_f64() * 1e6);
    Ok(())
}

/// One command on 50 processes.
///
/// # Errors
/// When a target or the command fails.
pub fn many(lab: &Lab, rows: &mut Vec<Row>) -> Result<(), Error> {
    let (program, patch) = (lab.subject(lab::CALL_FUNCTIONS, lab::SHORT)?, lab.patch(1)?);
    let wall = |run: suture::Run| run.wall.as_secs_f64() * 1e3;
    let mut back = Samples::default();
    let (ours, info) = interleave(
        lab.rounds(40),
        || {
            let subjects = (0..PROCESSES).map(|_| Subject::start(&program, Some(&lab.runtime)));
            let subjects = subjects.collect::<Result<Vec<_>, _>>()?;
            let pids: Vec<i32> = subjects.iter().map(Subject::pid).collect();
            let took = wall(suture::apply(lab, &patch, &pids, None)?);
            back.push(wall(suture::disable(lab, &Lab::patch_name(1), &pids)?));
            Ok(took)
        },
        || suture::info(lab, &patch).map(wall),
    )?;
    let row = |name: &str, samples: &Samples| {
        Row::new(format!("many.{name}.{PROCESSES}"), "ms", samples, &info).against(COMMAND)
    };
    rows.extend([row("apply", &ours).budget(Budget::AtMost(30.0)), row("disable", &back)]);
    Ok(())
}
