//! `suture inject`.

use super::show;
use serde::Serialize;
use std::time::Instant;
use suture_patcher::access;
use suture_patcher::cli::Output;
use suture_patcher::disable::micros;
use suture_patcher::inject;
use suture_patcher::run;
use suture_patcher::target::Target;
use suture_patcher::target::lock::Exclusive;
use suture_patcher::target::select::Selection;
use suture_patcher::view::Cache;

/// What an inject did.
#[derive(Debug, Serialize)]
struct Injected {
    /// The runtime was not there before.
    injected: bool,
    /// Thread that was borrowed, 0 if none was.
    thread: i32,
    /// Threads that were stopped.
    stops: u32,
    /// Microseconds the borrowed thread was held.
    held_us: u64,
    /// Microseconds until it was seen asleep in its call again, if it was.
    away_us: Option<u64>,
    /// Microseconds from start to end in this process.
    wall_us: u64,
}

pub fn run(selection: &Selection, output: Output) -> u8 {
    let pids = match selection.pids() {
        Ok(pids) => pids,
        Err(error) => return show::failure("inject", &error, output),
    };
    let cache = Cache::default();
    let one = |pid: i32, progress: &run::Progress| {
        progress.step(pid, "injecting");
        let started = Instant::now();
        let target = Target::open(pid)?;
        let _alone = Exclusive::take(&target)?;
        // Where no patch could follow the runtime has no business.
        access::check(&target, &cache)?;
        let ring = inject::ensure(&target).map_err(|error| target.ended_or(error))?;
        Ok(Injected {
            injected: ring.is_some(),
            thread: ring.map_or(0, |r| r.tid),
            stops: ring.map_or(0, |r| r.stops()),
            held_us: ring.map_or(0, |r| micros(r.held)),
            away_us: ring.and_then(|r| r.away).map(micros),
            wall_us: micros(started.elapsed()),
        })
    };
    let results = run::on_each(&pids, one, || {}, show::bar(pids.len(), output));
    let outcomes = show::outcomes(results, |_| None);
    show::results("inject", &outcomes, output, |o, i: &Injected| {
        let what = if i.injected { "the runtime was put in" } else { "the runtime is there already" };
        let wall = i.wall_us as f64 / 1000.0;
        format!(
            "{} ({}): {what}, {} thread(s) held {} us, {wall:.1} ms in all\n",
            o.comm, o.pid, i.stops, i.held_us
        )
    })
}
