//! The rounds of one server.
//!
//! Each round starts the server, lets clients work for a while as a baseline, then puts the runtime in,
//! applies a patch and disables it under the same clients. What they see afterwards must be all new, and
//! all old again.

use super::eintr::{Counter, Counts};
use super::load::{Load, Phase};
use super::servers::Spec;
use crate::command::{Outcome, suture};
use crate::lab::Lab;
use crate::poll::until_true;
use serde_json::Value;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// How long the baseline lasts.
const BASELINE: Duration = Duration::from_millis(150);
/// Answers per client that are judged after each change.
const JUDGED: u64 = 4;

/// What commands said of the processes: one entry per process and command.
#[derive(Clone, Debug, Default)]
pub struct Cost {
    /// Microseconds held.
    pub held: Vec<u64>,
    /// Microseconds until seen back.
    pub away: Vec<u64>,
    /// Threads stopped to get in.
    pub stops: Vec<u64>,
    /// Threads stopped for a look.
    pub looks: Vec<u64>,
    /// Microseconds those were held, in all, where there were any.
    pub look_held: Vec<u64>,
}

/// How transitions went: one entry per process and command, or sums.
#[derive(Clone, Debug, Default)]
pub struct Transitions {
    /// Microseconds from the first slot that led to a dispatcher to the last thread.
    pub took: Vec<u64>,
    /// Threads that were moved, by who found them clear, and looks of the command, by what they came to; named as
    /// `apply --json` names them.
    pub counts: BTreeMap<String, u64>,
}

/// What came of all rounds of a server.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Rounds.
    pub rounds: usize,
    /// Processes patched, in all.
    pub processes: usize,
    /// Of the injections.
    pub inject: Cost,
    /// Of the applies and disables.
    pub change: Cost,
    /// Of the applies and disables.
    pub transitions: Transitions,
    /// Rounds in which clients saw all new answers, then all old ones.
    pub observed: usize,
    /// What commands refused, and what clients saw that they should not.
    pub wrong: Vec<String>,
    /// Processes that ended.
    pub crashes: usize,
    /// Clients during the baselines.
    pub baseline: Phase,
    /// Clients during the patching.
    pub patching: Phase,
    /// Calls during the baselines, of the counted run.
    pub eintr_baseline: Counts,
    /// Calls during the patching, of the counted run.
    pub eintr_patching: Counts,
    /// Rounds of the counted run.
    pub counted_rounds: usize,
}

/// Runs the rounds of a server: first without, then with the count of EINTR.
#[must_use]
pub fn run(spec: &Spec, rounds: usize, counted: usize) -> Tally {
    let lab = Lab::new();
    lab.patch(spec.patch, spec.text);
    let mut tally = Tally { rounds, counted_rounds: counted, ..Tally::default() };
    for _ in 0..rounds {
        Round { spec, lab: &lab, counter: None, tally: &mut tally }.run();
    }
    let counter = Counter::new(&lab);
    // What is wrong there is wrong, too; times and requests are of the run without the counter.
    let mut other = Tally::default();
    for _ in 0..counted {
        Round { spec, lab: &lab, counter: Some(&counter), tally: &mut other }.run();
    }
    tally.wrong.extend(other.wrong);
    tally.crashes += other.crashes;
    (tally.eintr_baseline, tally.eintr_patching) = (other.eintr_baseline, other.eintr_patching);
    tally
}

struct Round<'r> {
    spec: &'r Spec,
    lab: &'r Lab,
    counter: Option<&'r Counter>,
    tally: &'r mut Tally,
}

impl Round<'_> {
    fn run(&mut self) {
        let server = self.spec.start(self.lab, self.counter);
        let (clients, pids) = server.clients();
        self.tally.processes += pids.len();
        let born: Vec<Option<String>> = pids.iter().map(|pid| birth(*pid)).collect();
        let load = Load::start(clients);
        settle(&load);
        let _ = self.counts();
        let _ = load.phase();
        let begun = Instant::now();
        while begun.elapsed() < BASELINE {
            std::thread::park_timeout(BASELINE - begun.elapsed());
        }
        self.tally.baseline.add(load.phase());
        let counts = self.counts();
        self.tally.eintr_baseline.add(counts);

        let patch = self.lab.path(&format!("{}.so", self.spec.patch)).to_string_lossy().into_owned();
        self.command(&["inject"], &pids, false);
        self.command(&["apply", &patch], &pids, true);
        let new = self.judge(&load, "new", |phase| phase.old == 0 && phase.new > 0);
        self.command(&["disable", self.spec.patch], &pids, true);
        let old = self.judge(&load, "old", |phase| phase.new == 0 && phase.old > 0);
        self.tally.observed += usize::from(new && old);
        // Before the clients leave: some servers have a process for each of them, and hear of its end.
        for (pid, born) in pids.iter().zip(born) {
            if born.is_none() || birth(*pid) != born {
                self.tally.crashes += 1;
            }
        }
        let counts = self.counts();
        self.tally.eintr_patching.add(counts);
        self.tally.patching.add(load.stop());
    }

    fn counts(&self) -> Counts {
        self.counter.map(Counter::take).unwrap_or_default()
    }

    /// Runs a command on all processes and notes what it says.
    fn command(&mut self, command: &[&str], pids: &[i32], changes: bool) {
        let pids: Vec<String> = pids.iter().map(ToString::to_string).collect();
        let mut args = [command, &["--json", "--pid"]].concat();
        args.extend(pids.iter().map(String::as_str));
        let done: Outcome = suture(&args);
        let document = done.json();
        let rows = document["results"].as_array().cloned().unwrap_or_default();
        if done.code() != 0 || rows.len() != pids.len() {
            let message = rows.iter().find_map(|row| row["error"]["message"].as_str().map(str::to_owned));
            self.tally.wrong.push(format!("{}: {}", command[0], message.unwrap_or_default()));
        }
        if changes {
            self.transitions(&rows, &pids);
        }
        let cost = if changes { &mut self.tally.change } else { &mut self.tally.inject };
        for row in &rows {
            let number = |name: &str| row["details"][name].as_u64();
            cost.held.extend(number("held_us"));
            cost.away.extend(number("away_us"));
            cost.stops.extend(number("stops"));
            cost.looks.extend(number("looks_with_stop"));
            cost.look_held.extend(number("look_held_us").filter(|held| *held > 0));
        }
    }

    /// Notes how the transitions of a command went.
    fn transitions(&mut self, rows: &[Value], pids: &[String]) {
        let tally = &mut self.tally.transitions;
        for kind in ["moved_by", "looks"] {
            for row in rows {
                for (name, count) in row["details"][kind].as_object().into_iter().flatten() {
                    *tally.counts.entry(format!("{kind}.{name}")).or_default() += count.as_u64().unwrap_or(0);
                }
            }
        }
        for pid in pids {
            let log = suture(&["log", "--json", "--pid", pid]).json();
            let events = log["events"].as_array().cloned().unwrap_or_default();
            let last = |word: &str| {
                let is = |e: &&Value| e["event"].as_str().is_some_and(|event| event.starts_with(word));
                events.iter().rev().find(is).and_then(|e| e["time_ns"].as_u64())
            };
            if let (Some(start), Some(end)) = (last("start"), last("completing")) {
                tally.took.push(end.saturating_sub(start) / 1000);
            }
        }
    }

    /// Looks whether all clients see what they should by now.
    fn judge(&mut self, load: &Load, what: &str, right: impl Fn(&Phase) -> bool) -> bool {
        settle(load);
        self.tally.patching.add(load.phase());
        let begun = load.answers();
        until_true("answers", || load.have_answered(&begun, JUDGED));
        let phase = load.phase();
        let good = right(&phase);
        if !good {
            let (old, new) = (phase.old, phase.new);
            self.tally.wrong.push(format!("{old} old and {new} new answers where all should be {what}"));
        }
        self.tally.patching.add(phase);
        good
    }
}

/// Waits until every request that is under way now has been answered.
fn settle(load: &Load) {
    let begun = load.answers();
    until_true("requests under way", || load.have_answered(&begun, 1));
}

/// What tells a process from a later one with its number.
fn birth(pid: i32) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = stat.get(stat.rfind(')')? + 2..)?.split(' ').collect();
    (fields.first() != Some(&"Z")).then(|| fields.get(19).map(|f| (*f).to_owned())).flatten()
}

/// The tally as JSON.
#[must_use]
pub fn json(name: &str, tally: &Tally) -> Value {
    let phase = |p: &Phase| {
        serde_json::json!({
            "old": p.old, "new": p.new, "failures": p.failures, "latency_us": super::table::quantiles(&p.latencies),
        })
    };
    let cost = |c: &Cost| {
        serde_json::json!({
            "held_us": super::table::quantiles(&c.held),
            "away_us": super::table::quantiles(&c.away),
            "stops": c.stops.iter().sum::<u64>(),
            "looks_with_stop": c.looks.iter().sum::<u64>(),
            "look_held_us": super::table::quantiles(&c.look_held),
            "processes": c.stops.len(),
        })
    };
    let counts = |c: &Counts| serde_json::json!({ "calls": c.calls, "eintr": c.eintr, "which": c.which });
    serde_json::json!({
        "server": name,
        "rounds": tally.rounds,
        "processes": tally.processes,
        "observed": tally.observed,
        "crashes": tally.crashes,
        "wrong": tally.wrong,
        "inject": cost(&tally.inject),
        "change": cost(&tally.change),
        "transition_us": super::table::quantiles(&tally.transitions.took),
        "transition_counts": tally.transitions.counts,
        "baseline": phase(&tally.baseline),
        "patching": phase(&tally.patching),
        "eintr_rounds": tally.counted_rounds,
        "eintr_baseline": counts(&tally.eintr_baseline),
        "eintr_patching": counts(&tally.eintr_patching),
    })
}
