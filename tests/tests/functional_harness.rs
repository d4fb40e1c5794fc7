//! The harness notices what the other tests rely on it to notice.

use std::panic::{AssertUnwindSafe, catch_unwind};
use suture_tests::sys::{self, SoftLimit, Tracer};
use suture_tests::{Lab, Snapshot, code, command, poll};

/// Whether the picture taken now counts as a change from `before`.
fn noticed(pid: i32, before: &Snapshot) -> bool {
    let now = Snapshot::of(pid);
    catch_unwind(AssertUnwindSafe(|| now.assert_untouched(before))).is_err()
}

#[test]
fn snapshots_notice_code_limits_tracers_and_threads() {
    let lab = Lab::new();
    let target = lab.start_several();
    let pid = target.pid();
    let before = Snapshot::of(pid);
    assert!(!noticed(pid, &before), "nothing happened");

    let entry = code::address(pid, target.program(), "gamma");
    let byte = code::read(pid, entry + 1, 1);
    code::write(pid, entry + 1, &[byte[0] ^ 1]);
    assert!(noticed(pid, &before), "one bit of code");
    assert_eq!(code::changes(pid).len(), 1);
    code::write(pid, entry + 1, &byte);
    assert!(!noticed(pid, &before), "the bit is back");

    let limit = SoftLimit::lower(pid, libc::RLIMIT_NOFILE, 10);
    assert!(noticed(pid, &before), "a limit");
    limit.lift();
    assert!(!noticed(pid, &before), "the limit is back");

    let tracer = Tracer::seize(pid);
    assert!(noticed(pid, &before), "a tracer");
    drop(tracer);
    poll::until_true("the tracer to be gone", || !noticed(pid, &before));

    let mut other = before.clone();
    other.threads.remove(&pid);
    assert!(noticed(pid, &other), "a thread");
}

#[test]
fn waits_that_are_cut_short_are_counted() {
    let lab = Lab::new();
    let mut target = lab.start("threads.c", &["12", "0"]);
    assert_eq!(target.ask("early"), "early 0");
    // Stopping and continuing a process ends some of the waits early; so would a clumsy doorbell.
    sys::kill(target.pid(), libc::SIGSTOP);
    let state = || std::fs::read_to_string(format!("/proc/{}/stat", target.pid())).unwrap_or_default();
    poll::until_true("the target to stop", || state().contains(") T "));
    sys::kill(target.pid(), libc::SIGCONT);
    poll::until_true("a wait to be counted", || target.ask("early") != "early 0");
}

#[test]
fn refusals_that_are_none_are_noticed() {
    let done = command::suture(&["--version"]);
    assert!(catch_unwind(|| done.expect_refused(&[])).is_err(), "status 0 is no refusal");
    let usage = command::suture(&["frobnicate"]);
    assert!(catch_unwind(|| usage.expect_refused(&[])).is_err(), "status 2 is no refusal");
    let pid = i32::MAX.to_string();
    let refused = command::suture(&["status", "--pid", &pid]);
    refused.expect_refused(&[&pid]);
    assert!(catch_unwind(|| refused.expect_refused(&["lemon"])).is_err(), "a word that is not there");
}
