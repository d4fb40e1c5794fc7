//! What is shown of a campaign.

use super::run::Tally;
use serde_json::Value;
use std::fmt::Write;

/// Median, 99th percentile and maximum.
#[must_use]
pub fn quantiles<T: Copy + Into<u64>>(values: &[T]) -> Value {
    let [median, p99, max] = numbers(values);
    serde_json::json!({ "median": median, "p99": p99, "max": max })
}

fn numbers<T: Copy + Into<u64>>(values: &[T]) -> [u64; 3] {
    let mut sorted: Vec<u64> = values.iter().map(|v| (*v).into()).collect();
    sorted.sort_unstable();
    let at = |share: f64| {
        let index = (share * sorted.len() as f64) as usize;
        sorted.get(index.min(sorted.len().saturating_sub(1))).copied().unwrap_or(0)
    };
    [at(0.5), at(0.99), at(1.0)]
}

/// Whether a server came through: nothing crashed, nothing was refused, every patch was seen, and no request
/// failed and no call was interrupted that would not have been without us.
#[must_use]
pub fn is_good(tally: &Tally) -> bool {
    tally.crashes == 0
        && tally.wrong.is_empty()
        && tally.observed == tally.rounds
        && tally.patching.failures.len() <= tally.baseline.failures.len()
        && tally.eintr_patching.eintr <= tally.eintr_baseline.eintr
}

/// One line per server, under a heading.
#[must_use]
pub fn table(rows: &[(&str, Tally)]) -> String {
    let mut text = format!(
        "{:<15} {:>6} {:>5} {:>4} {:>5} | {:>13} {:>13} {:>5} | {:>13} {:>13} {:>5} {:>5} {:>12} | {:>15} {:>9} {:>13} | {:>17}\n",
        "server",
        "rounds",
        "procs",
        "seen",
        "crash",
        "inject held",
        "away (us)",
        "stops",
        "change held",
        "away (us)",
        "stops",
        "looks",
        "held (us)",
        "requests",
        "failed",
        "p99 (ms)",
        "EINTR of calls"
    );
    for (name, tally) in rows {
        let pair = |values: &[u64]| {
            let [median, p99, _] = numbers(values);
            format!("{median} / {p99}")
        };
        let p99 = |values: &[u32]| numbers(values)[1] as f64 / 1e3;
        let _ = writeln!(
            text,
            "{name:<15} {:>6} {:>5} {:>4} {:>5} | {:>13} {:>13} {:>5} | {:>13} {:>13} {:>5} {:>5} {:>12} | {:>15} {:>9} {:>13} | {:>17}",
            tally.rounds,
            tally.processes,
            tally.observed,
            tally.crashes,
            pair(&tally.inject.held),
            pair(&tally.inject.away),
            tally.inject.stops.iter().sum::<u64>(),
            pair(&tally.change.held),
            pair(&tally.change.away),
            tally.change.stops.iter().sum::<u64>(),
            tally.change.looks.iter().sum::<u64>(),
            pair(&tally.change.look_held),
            format!("{} / {}", tally.baseline.requests(), tally.patching.requests()),
            format!("{} / {}", tally.baseline.failures.len(), tally.patching.failures.len()),
            format!("{:.2} / {:.2}", p99(&tally.baseline.latencies), p99(&tally.patching.latencies)),
            format!(
                "{} / {} of {}k",
                tally.eintr_baseline.eintr,
                tally.eintr_patching.eintr,
                (tally.eintr_baseline.calls + tally.eintr_patching.calls) / 1000
            ),
        );
    }
    text += "held, away: median / p99; stops: threads borrowed to get in, looks: threads stopped for a look; \
             requests, failed, p99, EINTR: baseline / while patching\n";
    for (name, tally) in rows {
        for wrong in tally.wrong.iter().chain(&tally.patching.failures).take(5) {
            let _ = writeln!(text, "{name}: {wrong}");
        }
        for which in tally.eintr_patching.which.iter().take(5) {
            let _ = writeln!(text, "{name}: EINTR: {which}");
        }
    }
    text
}

/// Heading and key of a count.
type Count = (&'static str, &'static str);

/// Who found threads clear.
const MOVED: [Count; 3] =
    [("worker", "moved_by.worker"), ("command", "moved_by.command"), ("self", "moved_by.themselves")];
/// What looks of the command came to.
const LOOKS: [Count; 8] = [
    ("scan", "looks.scan"),
    ("cfi", "looks.cfi"),
    ("height", "looks.height"),
    ("ptrace", "looks.ptrace"),
    ("none", "looks.no_stack"),
    ("on stack", "looks.on_stack"),
    ("unclear", "looks.unreliable"),
    ("running", "looks.running"),
];

/// How transitions went, one line per server.
#[must_use]
pub fn transitions(rows: &[(&str, Tally)]) -> String {
    let mut text = format!("{:<15} {:>22} |", "server", "transition (us)");
    for (name, _) in MOVED.iter().chain(&LOOKS) {
        let _ = write!(text, " {name:>8}");
    }
    text += "\n";
    for (name, tally) in rows {
        let [median, p99, most] = numbers(&tally.transitions.took);
        let _ = write!(text, "{name:<15} {:>22} |", format!("{median} / {p99} / {most}"));
        for (_, key) in MOVED.iter().chain(&LOOKS) {
            let _ = write!(text, " {:>8}", tally.transitions.counts.get(*key).copied().unwrap_or(0));
        }
        text += "\n";
    }
    text + "transition: from the first slot that leads to a dispatcher to the last thread, median / p99 / most; worker, \
            command, self: threads moved, by who found them clear; then looks of the command: clear by a scan, by call \
            frame information, with computed heights, held by ptrace, without a stack; not clear\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_of_the_values() {
        assert_eq!(numbers(&[3u32, 1, 2]), [2, 3, 3]);
        assert_eq!(numbers::<u32>(&[]), [0, 0, 0]);
    }

    #[test]
    fn what_goes_wrong_is_noticed() {
        let good = Tally { rounds: 2, observed: 2, ..Tally::default() };
        assert!(is_good(&good));
        assert!(!is_good(&Tally { crashes: 1, ..good.clone() }));
        assert!(!is_good(&Tally { observed: 1, ..good.clone() }));
        assert!(!is_good(&Tally { wrong: vec!["x".into()], ..good.clone() }));
        let mut failed = good.clone();
        failed.patching.failures.push("x".into());
        assert!(!is_good(&failed));
        let mut interrupted = good;
        interrupted.eintr_patching.eintr = 1;
        assert!(!is_good(&interrupted));
    }
}
