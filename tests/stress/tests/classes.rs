//! A short pass over every class: every shape at every alignment has its turn.

use std::path::Path;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use suture_stress::report::{Totals, rows};
use suture_stress::suite::Suite;
use suture_stress::supervise::supervise;

fn pass(name: &str, only: &str) -> Totals {
    let suite: Suite = name.parse().expect("a suite of this name");
    let cases = suite.cases(only);
    let arguments = ["--class", name, "--threads", "3", "--seconds", "2", "--only", only].map(str::to_owned);
    let exe = Path::new(env!("CARGO_BIN_EXE_suture-stress"));
    let outcome = supervise(exe, &arguments, Duration::from_secs(120)).expect("a worker");
    let board = outcome.board.get();
    let totals = Totals::of(board, cases.len());
    let busy = cases.get(board.current.load(Relaxed) as usize);
    assert!(outcome.is_clean(), "{outcome}; busy with {busy:?}\n{}", rows(board, &cases).join("\n"));
    assert_eq!(totals.idle, 0, "cases without stores or without both results: {totals:?}");
    assert!(totals.signals > 0 && totals.forks > 0, "nothing interrupted the callers: {totals:?}");
    totals
}

#[test]
fn class_p_survives() {
    assert!(pass("P", "").direct > 0);
}

#[test]
fn class_s_survives() {
    assert!(pass("S", "").direct > 0);
}

#[test]
fn class_a_survives() {
    assert!(pass("A", "").direct > 0);
}

#[test]
fn class_j_survives() {
    assert!(pass("J", "").direct > 0);
}

#[test]
fn class_w_survives() {
    assert!(pass("W", "").direct > 0);
}

#[test]
fn first_touch_of_file_pages_survives() {
    let totals = pass("first", "");
    assert_eq!(totals.direct, 0);
    assert!(totals.first > 1000, "too few first touches: {totals:?}");
}

#[test]
fn straight_jumps_survive() {
    assert!(pass("straight", "").direct > 0);
}

#[test]
fn sites_of_the_planner_survive() {
    assert!(pass("planned", "page end").direct > 0);
}
