//! Figures of a run as plain lines.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::board::{Board, Score};
use crate::shape::Case;

/// Sums of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Direct stores.
    pub direct: u64,
    /// Stores by pwrite.
    pub pwrites: u64,
    /// Slot and side values.
    pub flips: u64,
    /// Old results.
    pub old: u64,
    /// New results.
    pub new: u64,
    /// Signals whose handler called.
    pub signals: u64,
    /// Forked children that called.
    pub forks: u64,
    /// Wrong results and crashed children.
    pub wrong: u64,
    /// First touches.
    pub first: u64,
    /// Cases without a store, an old or a new result: nothing was shown for them.
    pub idle: u64,
}

impl Totals {
    /// Adds up the first `cases` rows of `board`.
    pub fn of(board: &Board, cases: usize) -> Self {
        let scores = &board.scores[..cases];
        let sum = |pick: fn(&Score) -> &AtomicU64| scores.iter().map(|s| pick(s).load(Relaxed)).sum();
        Self {
            direct: sum(|s| &s.direct),
            pwrites: sum(|s| &s.pwrites),
            flips: sum(|s| &s.flips),
            old: sum(|s| &s.old),
            new: sum(|s| &s.new),
            signals: sum(|s| &s.signals),
            forks: sum(|s| &s.forks),
            wrong: sum(|s| &s.wrong),
            first: sum(|s| &s.first),
            idle: scores.iter().filter(|s| is_idle(s)).count() as u64,
        }
    }
}

fn is_idle(score: &Score) -> bool {
    let stores = score.direct.load(Relaxed) + score.pwrites.load(Relaxed);
    stores == 0 || score.old.load(Relaxed) == 0 || score.new.load(Relaxed) == 0
}

/// Head of the table of cases.
pub const HEAD: &str = "case                               direct   pwrites     flips         old         new  signals  forks   wrong";

/// One line per case.
pub fn rows(board: &Board, cases: &[Case]) -> Vec<String> {
    let row = |(case, s): (&Case, &Score)| {
        format!(
            "{:<31} {:>9} {:>9} {:>9} {:>11} {:>11} {:>8} {:>6} {:>7}",
            case.to_string(),
            s.direct.load(Relaxed),
            s.pwrites.load(Relaxed),
            s.flips.load(Relaxed),
            s.old.load(Relaxed),
            s.new.load(Relaxed),
            s.signals.load(Relaxed),
            s.forks.load(Relaxed),
            s.wrong.load(Relaxed),
        )
    };
    cases.iter().zip(&board.scores).map(row).collect()
}

/// The sums as one line.
pub fn summary(name: &str, cases: usize, t: &Totals) -> String {
    format!(
        "{name}: {cases} cases, {} direct stores, {} pwrites, {} first touches, {} flips, {} calls \
         ({} old, {} new), {} signals, {} forks, {} idle, {} wrong",
        t.direct,
        t.pwrites,
        t.first,
        t.flips,
        t.old + t.new,
        t.old,
        t.new,
        t.signals,
        t.forks,
        t.idle,
        t.wrong,
    )
}
