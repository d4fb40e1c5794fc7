//! Transitions disturb nobody: no wait ends early or begins anew, nobody is stopped who needs not be, threads
//! that sleep are not even woken; through whole transitions, stalls, reversals and a forced end.

use std::collections::BTreeMap;
use std::path::Path;
use suture_tests::block::Block;
use suture_tests::command::on;
use suture_tests::killer::{self, INTERRUPT};
use suture_tests::poll::until_true;
use suture_tests::stall::{self, Stall};
use suture_tests::{Lab, report, snapshot};

/// How often each thread was put on a processor.
fn runs(pid: i32) -> BTreeMap<i32, u64> {
    let runs = |tid: &i32| {
        let text = std::fs::read_to_string(format!("/proc/{pid}/task/{tid}/schedstat")).ok()?;
        Some((*tid, text.split_whitespace().nth(2)?.parse().ok()?))
    };
    snapshot::threads(pid).keys().filter_map(runs).collect()
}

/// Makes a crowd of waiting threads and waits until all of them wait.
fn gather(stall: &mut Stall, count: usize) {
    let others = snapshot::threads(stall.pid()).len();
    stall.order("main", &format!("crowd {count}"));
    let pid = stall.pid();
    until_true("a crowd to wait", || {
        let states = snapshot::states(pid);
        states.len() == others + count && states.iter().all(|s| *s == 'S')
    });
}

/// Threads of the crowd that ran since.
fn woken(before: &BTreeMap<i32, u64>, after: &BTreeMap<i32, u64>, but: &[i32]) -> usize {
    let ran = |tid: &i32| before.get(tid) != after.get(tid) && !but.contains(tid);
    before.keys().filter(|tid| ran(tid)).count()
}

#[test]
fn a_thousand_sleepers_do_not_notice_a_transition() {
    let lab = Lab::new();
    let mut stall = Stall::start(&lab);
    let pid = stall.pid();
    let patch = stall::patch(&lab, "A", &["f", "g"]).to_string_lossy().into_owned();
    gather(&mut stall, 1000);
    let text = pid.to_string();
    let before = runs(pid);
    // The tracer sees each request to stop somebody.
    for args in [&["apply", &patch, "--pid", &text][..], &["disable", "A", "--pid", &text]] {
        let stops = killer::acts(args).iter().filter(|act| **act == INTERRUPT).count();
        assert!(stops <= 1, "{args:?}: {stops} stops, where one thread is borrowed for a call");
        let moved = report::events(pid);
        assert!(moved.last().is_some_and(|e| e.starts_with("done") || e.starts_with("gone")), "{moved:?}");
    }
    let woken = woken(&before, &runs(pid), &[]);
    println!("{woken} of {} threads ran meanwhile", before.len());
    // One for each command, when another thread than the last time was borrowed.
    assert!(woken <= 2, "{woken} threads were woken");
    assert_eq!(stall.order("main", "early"), 0, "a wait was cut short");
}

/// Everything a transition can go through, with somebody in old code, a crowd around him, and commands that
/// look as hard as they can.
#[test]
fn fourteen_waits_last_through_stalls_reversals_and_force() {
    let lab = Lab::new();
    let mut stall = Stall::start(&lab);
    let pid = stall.pid();
    let patch = stall::patch(&lab, "A", &["blocker", "f"]);
    stall.create_all(&["T1", "T2"]);
    stall.order("T1", "enter");
    gather(&mut stall, 28);
    let before = runs(pid);
    on("apply", &patch.to_string_lossy(), pid, &["--timeout", "0.5"]).expect(3);
    let alone = |who: &str| {
        let transition = report::transition(pid);
        assert_eq!(transition["pending"], 1, "{transition:#}");
        assert_eq!(transition["blockers"][0]["name"], who, "{transition:#}");
    };
    alone("T1");
    until_true("a stall to be told", || Block::of(pid).attempts() > 16);
    // Held in both directions: T2 is in the new one.
    stall.order("T2", "enter");
    for _ in 0..5 {
        on("reverse", "A", pid, &["--no-wait"]).expect(3);
        until_true("all but one to be moved", || report::transition(pid)["pending"] == 1);
        alone("T2");
        on("reverse", "A", pid, &["--no-wait"]).expect(3);
        until_true("all but one to be moved", || report::transition(pid)["pending"] == 1);
        alone("T1");
    }
    on("wait", "A", pid, &["--timeout", "0.5"]).expect(3);
    on("force", "A", pid, &[]).expect(0);
    assert_eq!(stall.order("T1", "leave"), 1);
    on("disable", "A", pid, &["--timeout", "0.5"]).expect(3);
    alone("T2");
    assert_eq!(stall.order("T2", "leave"), 2);
    // It may be over by now.
    let done = on("wait", "A", pid, &[]);
    assert!([0, 1].contains(&done.code()), "{}{}", done.stdout, done.stderr);
    assert!(report::transition(pid).is_null());
    let after = runs(pid);
    let told = [pid, stall.tid("T1"), stall.tid("T2")];
    let commands = |tid: &&i32| name(pid, **tid) == "commands";
    let but: Vec<i32> = before.keys().filter(commands).copied().chain(told).collect();
    let woken = woken(&before, &after, &but);
    println!("{woken} of 28 waiting threads ran meanwhile");
    assert!(woken <= 3, "{woken} of 28 waiting threads ran");
    assert_eq!(stall.order("main", "early"), 0, "a wait was cut short");
}

fn name(pid: i32, tid: i32) -> String {
    let path = Path::new("/proc").join(format!("{pid}/task/{tid}/comm"));
    std::fs::read_to_string(path).unwrap_or_default().trim_end().to_owned()
}
