//! Threads that are in old code, or outside of it, in ways that are hard to see: each is held or moved as it
//! should be, and none mixes old and new.

use std::path::Path;
use suture_tests::command::{Outcome, suture};
use suture_tests::poll::until_true;
use suture_tests::stall::{self, Stall};
use suture_tests::{Lab, report};

fn on(command: &str, what: &str, pid: i32, more: &[&str]) -> Outcome {
    suture(&[&[command, what, "--pid", &pid.to_string()], more].concat())
}

fn apply(patch: &Path, pid: i32, more: &[&str]) -> Outcome {
    on("apply", &patch.to_string_lossy(), pid, more)
}

/// Begins to enable a patch and waits until the worker has moved the thread `main`.
fn begin(stall: &Stall, patch: &Path) {
    apply(patch, stall.pid(), &["--no-wait"]).expect(3);
    until_true("the worker to move a plain thread", || stall.state("main") == 1);
}

/// The file of a thread under `/proc`.
fn task(stall: &Stall, name: &str, file: &str) -> String {
    let path = format!("/proc/{}/task/{}/{file}", stall.pid(), stall.tid(name));
    std::fs::read_to_string(path).unwrap_or_default()
}

/// Waits until the thread's `syscall` line begins like this.
fn await_call(stall: &Stall, name: &str, call: &str) {
    until_true("a thread to block", || task(stall, name, "syscall").starts_with(call));
}

/// Has a thread go into one of the functions of `corners.c` and waits until it is blocked there.
fn go_in(stall: &mut Stall, name: &str, place: &str) {
    stall.order_answered(name, &format!("in {place}"), "in");
    match place {
        "vfork" => await_call(stall, name, "58 "),
        "spawn" => await_call(stall, name, "435 "),
        "fault" => await_call(stall, name, "-1 "),
        _ => await_call(stall, name, "0 "),
    }
}

/// Findings 3, 5, 13, 17 and 20: nobody who is in old code is moved, however it is hidden.
#[test]
fn old_code_is_found_wherever_it_hides() {
    let lab = Lab::new();
    let mut stall = Stall::start_corners(&lab);
    let pid = stall.pid();
    let functions = ["f", "in_block", "in_vfork", "in_spawn", "in_fault", "in_cold"];
    let patch = stall::patch(&lab, "A", &functions);
    let hidden = ["vfork", "spawn", "fault", "cold", "dump", "fork", "lock", "hole"];
    stall.create_all(&hidden);
    for name in hidden {
        if functions.contains(&format!("in_{name}").as_str()) {
            go_in(&mut stall, name, name);
        } else {
            go_in(&mut stall, name, "block");
            stall.order(name, &format!("split {name}"));
        }
    }
    stall.create_all(&["W"]);
    begin(&stall, &patch);
    // The command, too, does not hang at those it must not stop, and holds on to none.
    on("wait", "A", pid, &["--timeout", "1"]).expect(3);
    assert_eq!(stall.order("W", "f"), 2);
    let states = report::thread_states(pid);
    for name in hidden {
        assert_eq!(states[&stall.tid(name)], 0, "{name} was moved inside old code");
        assert!(task(&stall, name, "status").contains("TracerPid:\t0\n"), "{name} is held");
    }
    // The child of a vfork runs on its parent's thread pointer.
    assert_eq!(stall.order("vfork", "f"), 1);
    assert_eq!(stall.order("cold", "f"), 1);

    for name in ["dump", "fork", "lock", "hole"] {
        assert_eq!(stall.order_answered(name, "leave", "out"), 0);
    }
    for name in ["vfork", "cold", "dump", "fork", "lock", "hole"] {
        assert_eq!(stall.order_answered(name, "leave", "out"), 11, "{name}: old before and after");
    }
    for (order, name) in [("open", "spawn"), ("resolve", "fault")] {
        stall.target.tell(&format!("main {order}"));
        let mut wanted = [format!("main {order} 0"), format!("{name} out 11")];
        wanted.sort();
        assert_eq!(stall.answers(2), wanted);
    }
    // What they have left on their stacks may need an exact look.
    on("wait", "A", pid, &[]).expect(0);
    assert_eq!(stall.order("vfork", "f"), 2);
}

/// Findings 3, 12, 13: who is not in old code is moved in the end, and stopped only if there is no other way.
#[test]
fn threads_outside_old_code_are_moved_whatever_their_stack_looks_like() {
    let lab = Lab::new();
    let mut stall = Stall::start_corners(&lab);
    let pid = stall.pid();
    let patch = stall::patch(&lab, "A", &["f", "trail"]);
    let odd = ["dump", "fork", "lock", "hole", "trail", "fault"];
    stall.create_all(&odd);
    for name in ["dump", "fork", "lock", "hole"] {
        stall.order(name, &format!("split {name}"));
    }
    stall.order("trail", "trail");
    go_in(&mut stall, "fault", "fault");
    begin(&stall, &patch);
    // By the worker alone those whose whole stack it sees, and that has nothing on it.
    until_true("plain stacks to be moved", || ["dump", "fork", "lock"].iter().all(|n| stall.state(n) == 1));
    let held = ["hole", "trail", "fault"].map(|name| stall.state(name));
    assert_eq!(held, [0; 3], "without an exact look");
    let done = on("wait", "A", pid, &["--json"]).expect(0).json();
    let details = report::details(&done);
    assert_eq!(details["looks_with_stop"], 1, "only the one in a page fault: {details:#}");
    let answers = ["dump", "fork", "lock", "hole", "trail"].map(|name| stall.order(name, "f"));
    assert_eq!(answers, [2; 5]);
    stall.target.tell("main resolve");
    assert_eq!(stall.answers(2), ["fault out 12", "main resolve 0"], "it called f before and after");
    assert_eq!(stall.order("main", "early"), 0, "a wait was cut short");
}
