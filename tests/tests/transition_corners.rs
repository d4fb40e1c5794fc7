//! Threads that are in old code, or outside of it, in ways that are hard to see: each is held or moved as it
//! should be, and none mixes old and new.

use std::path::Path;
use suture_tests::command::{Outcome, on};
use suture_tests::poll::until_true;
use suture_tests::stall::{self, Stall};
use suture_tests::stepper::Stepper;
use suture_tests::{Lab, repeat, report, sys};

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

/// A look reads one thing after the other, and the thread may run meanwhile: then they do not belong together. Here
/// the worker reads a stack from which the return address into the old function goes away while it reads.
#[test]
fn a_thread_that_ran_during_a_look_is_not_moved() {
    let lab = Lab::new();
    let mut stall = Stall::start_corners(&lab);
    let pid = stall.pid();
    let patch = stall::patch(&lab, "A", &["f", "in_motion"]);
    stall.create_all(&["server", "mover"]);
    go_in(&mut stall, "mover", "motion");
    stall.order("server", "hide");
    stall.target.tell("server serve");
    begin(&stall, &patch);
    assert_eq!(stall.answer("server", "serve"), 0);
    on("wait", "A", pid, &["--timeout", "1"]).expect(3);
    assert_eq!(["server", "mover"].map(|name| stall.state(name)), [1, 0]);
    stall.target.tell("server wake");
    assert_eq!(stall.answers(2), ["mover out 11", "server wake 0"], "old before and after");
    report::complete("A", pid);
}

/// Entry of the old function `pair`.
fn entry_of_pair(pid: i32) -> u64 {
    let status = report::status(pid);
    let functions = status["patches"][0]["functions"].as_array().expect("functions");
    let pair = functions.iter().find(|f| f["name"] == "pair").expect("pair");
    pair["old"].as_u64().expect("an address")
}

/// Finding 4, instruction by instruction: from the entry of a function through stub, dispatcher and copy into its
/// old code, a signal comes, and its handler blocks. Whether the thread is moved then or not, it goes on into one
/// side only. In a process where threads may look at themselves none would get as far as the old side, so here
/// they may not.
#[test]
fn a_handler_at_any_instruction_of_the_way_in_hides_nothing() {
    let lab = Lab::new();
    let mut stall = Stall::start_corners(&lab);
    let pid = stall.pid();
    let patch = stall::patch(&lab, "A", &["f", "g", "pair", "in_block"]);
    stall.order("main", "cage");
    let tid = stall.create("main", "stepped");
    for steps in 0.. {
        // It is not moved before it has left.
        go_in(&mut stall, "stepped", "block");
        apply(&patch, pid, &["--no-wait"]).expect(3);
        let entry = entry_of_pair(pid);
        let mut stepper = Stepper::catch(tid).expect("the thread");
        stall.target.tell("stepped leave");
        stall.target.tell("stepped once");
        let mut step = || {
            assert!(stepper.step(), "{tid} ended");
            stepper.registers().rip
        };
        while step() != entry {}
        let path: Vec<u64> = (0..steps).map(|_| step()).collect();
        sys::signal_thread(pid, tid, libc::SIGUSR1);
        drop(stepper);
        assert_eq!(stall.answer("stepped", "out"), 11);
        stall.answer("stepped", "caught");
        // A command looks at it.
        let held = on("wait", "A", pid, &["--timeout", "0.1"]);
        assert!([0, 1, 3].contains(&held.code()), "{steps} steps: {}{}", held.stdout, held.stderr);
        assert_eq!(stall.order_answered("stepped", "leave", "back"), 0);
        let pair = stall.answer("stepped", "once");
        assert!([11, 1022].contains(&pair), "{pair} after a signal at the end of {entry:#x}, {path:x?}");
        report::complete("A", pid);
        on("disable", "A", pid, &[]).expect(0);
        // The first jump may lead to padding beside the function.
        let mut others = path.iter().skip_while(|at| at.abs_diff(entry) < 256);
        if others.any(|at| at.abs_diff(entry) < 256) {
            return;
        }
    }
}

/// Finding 4: a signal meets a thread anywhere, between a dispatcher's count and the first instruction of the
/// old function, too, and its handler blocks, on the same stack or on another.
#[test]
fn a_handler_that_blocks_on_top_of_anything_hides_nothing() {
    let lab = Lab::new();
    let mut stall = Stall::start_corners(&lab);
    let pid = stall.pid();
    let patch = stall::patch(&lab, "A", &["f", "g", "pair"]);
    let looping = ["normal", "aside"];
    stall.create_all(&looping);
    stall.order("aside", "aside");
    looping.iter().for_each(|name| _ = stall.order(name, "loop"));
    for round in 0..repeat(15, 200) {
        let begun = match round % 2 {
            0 => apply(&patch, pid, &["--no-wait"]),
            _ => on("disable", "A", pid, &["--no-wait"]),
        };
        assert!([0, 3].contains(&begun.code()), "round {round}: {}{}", begun.stdout, begun.stderr);
        for name in looping {
            sys::signal_thread(pid, stall.tid(name), libc::SIGUSR1);
            stall.answer(name, "caught");
        }
        // Whoever is blocked inside of old code stays where he is, however hard a command looks.
        let held = on("wait", "A", pid, &["--timeout", "0.2"]);
        assert!([0, 1, 3].contains(&held.code()), "round {round}: {}{}", held.stdout, held.stderr);
        for name in looping {
            assert_eq!(stall.order_answered(name, "leave", "back"), 0);
        }
        report::complete("A", pid);
        assert_eq!(stall.order("main", "mixed"), 0, "round {round}");
    }
    assert!(stall.order("main", "runs") > 0);
}

/// Findings 10 and 15: a process that is nobody's any more, with threads born after that, and threads whose
/// filter kills the process for reading memory.
#[test]
fn privileges_and_filters_that_come_later_do_not_matter() {
    let lab = Lab::new();
    let mut stall = Stall::start_corners(&lab);
    let pid = stall.pid();
    let patch = stall::patch(&lab, "A", &["f", "in_block"]);
    stall.create_all(&["early", "caged"]);
    stall.order("caged", "cage");
    stall.order("main", "drop");
    stall.create_all(&["late"]);
    go_in(&mut stall, "late", "block");
    apply(&patch, pid, &["--timeout", "1"]).expect(3);
    assert_eq!(["early", "caged", "late"].map(|name| stall.state(name)), [1, 1, 0]);
    let answers = ["main", "early", "caged"].map(|name| stall.order(name, "f"));
    assert_eq!((answers, stall.order("late", "f")), ([2; 3], 1));
    assert_eq!(stall.order_answered("late", "leave", "out"), 11);
    on("wait", "A", pid, &[]).expect(0);
    // Filtered threads look at themselves, too, if they may: in the caged one that would kill the process.
    on("disable", "A", pid, &[]).expect(0);
    let answers = ["main", "early", "caged", "late"].map(|name| stall.order(name, "f"));
    assert_eq!(answers, [1; 4]);
}

/// How many threads the worker moved, and how many themselves, while a patch came and went some times.
fn moved_by(stall: &mut Stall, patch: &Path) -> [u64; 2] {
    let mut moved = [0; 2];
    for round in 0..repeat(8, 100) {
        let applied = report::apply(patch, stall.pid());
        for (moved, by) in moved.iter_mut().zip(["worker", "themselves"]) {
            *moved += applied["moved_by"][by].as_u64().expect("a number");
        }
        let disabled = report::disable("A", stall.pid());
        assert!(applied["finished"] == true && disabled["finished"] == true, "{applied:#}{disabled:#}");
        assert_eq!(stall.order("main", "mixed"), 0, "round {round}");
    }
    moved
}

/// The worker looks although some threads are under filters that kill the process for it. Those of them that are never
/// met asleep must not be had look at themselves; others must.
#[test]
fn threads_under_filters_do_not_look_at_themselves() {
    let lab = Lab::new();
    let mut stall = Stall::start_corners(&lab);
    let patch = stall::patch(&lab, "A", &["f", "g", "pair"]);
    stall.create_all(&["blocked", "free", "caged"]);
    stall.order("caged", "cage");
    ["free", "caged"].iter().for_each(|name| _ = stall.order(name, "loop"));
    let [worker, themselves] = moved_by(&mut stall, &patch);
    assert!(worker > 0 && themselves > 0, "{worker} moved by the worker, {themselves} by themselves");
}

/// Where the worker cannot read about threads, the command says whether they may look at themselves.
#[test]
fn threads_of_a_process_that_is_nobodys_look_at_themselves() {
    let lab = Lab::new();
    let mut stall = Stall::start_corners(&lab);
    let patch = stall::patch(&lab, "A", &["f", "g", "pair"]);
    stall.create_all(&["blocked", "free"]);
    stall.order("main", "drop");
    stall.order("free", "loop");
    let [worker, themselves] = moved_by(&mut stall, &patch);
    assert!(worker == 0 && themselves > 0, "{worker} moved by the worker, {themselves} by themselves");
}
