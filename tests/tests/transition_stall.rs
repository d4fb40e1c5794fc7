//! A thread that stays in an old function for long: it keeps its old behaviour, everybody else has the new
//! one, and whoever asks is told who holds the transition up. Rows THR-* and some others of the
//! conformance scenarios; events are compared exactly.

use std::path::Path;
use suture_tests::Lab;
use suture_tests::block::Block;
use suture_tests::command::{disable, on, suture};
use suture_tests::poll::until_true;
use suture_tests::report::{self, await_end};
use suture_tests::stall::{self, Stall};

/// Begins to enable a patch and does not wait.
fn begin(patch: &Path, pid: i32) {
    on("apply", &patch.to_string_lossy(), pid, &["--no-wait"]).expect(3);
}

/// Waits until these threads have the state, and nobody else of them.
fn await_state(stall: &Stall, names: &[&str], state: i64) {
    until_true("threads to change sides", || names.iter().all(|name| stall.state(name) == state));
}

/// A transition of patch A of these functions is going on, and T1 is in `blocker` and holds it up; the others
/// of these threads have moved, and `main` has.
fn held_up(lab: &Lab, functions: &[&str], threads: &[&str]) -> Stall {
    let mut stall = Stall::start(lab);
    let patch = stall::patch(lab, "A", functions);
    stall.create_all(threads);
    stall.order("T1", "enter");
    begin(&patch, stall.pid());
    let others: Vec<&str> = threads.iter().copied().filter(|name| *name != "T1").chain(["main"]).collect();
    await_state(&stall, &others, 1);
    stall
}

/// The events of a process without the notices of a stall: whether a transition lasts sixteen ticks here is a matter
/// of how fast the machine is.
fn steps(pid: i32) -> Vec<String> {
    report::events(pid).into_iter().filter(|event| !event.starts_with("signal")).collect()
}

fn undisturbed(stall: &mut Stall) {
    assert_eq!(stall.order("main", "early"), 0, "a wait was cut short");
}

#[test]
fn a_blocked_thread_keeps_its_old_behaviour_and_others_have_the_new() {
    let lab = Lab::new();
    let mut stall = held_up(&lab, &["blocker", "f", "g", "pair"], &["T1", "T2", "T3"]);
    let pid = stall.pid();
    for _ in 0..3 {
        assert_eq!(stall.order("T1", "f"), 1);
        assert_eq!(stall.order("T1", "pair"), 11, "all three old");
        assert_eq!(stall.order("T2", "pair"), 1022, "all three new");
        assert_eq!(stall.order("T3", "f"), 2);
        assert_eq!(stall.state("T1"), 0);
    }
    // Deeper inside: still old.
    stall.order("T1", "enter");
    assert_eq!(stall.order("T1", "pair"), 11);
    assert_eq!(stall.order("T1", "leave"), 1, "the inner blocker was the old one, too");
    assert_eq!(stall.order("T1", "pair"), 11);
    // A switched thread inside the new one.
    stall.order("T2", "enter");
    assert_eq!(stall.order("T2", "pair"), 1022);
    assert_eq!(stall.order("T2", "leave"), 2);
    assert_eq!(steps(pid), ["enable A", "init+ A", "start+ A"]);

    assert_eq!(stall.order("T1", "leave"), 1);
    await_end(pid);
    assert_eq!(stall.order("T1", "pair"), 1022);
    assert_eq!(steps(pid)[3..], ["completing+ A", "done+ A"]);
    disable("A", pid).expect(0);
    assert_eq!(stall.order("T1", "pair"), 11);
    undisturbed(&mut stall);
}

#[test]
fn status_names_thread_function_and_backtrace_of_who_holds_it_up() {
    let lab = Lab::new();
    let mut stall = Stall::start(&lab);
    let pid = stall.pid();
    let patch = stall::patch(&lab, "A", &["blocker", "f"]);
    stall.create_all(&["T1", "T2"]);
    stall.order("T1", "enter");
    let outcome = on("apply", &patch.to_string_lossy(), pid, &["--timeout", "1"]);
    let tid = stall.tid("T1");
    // Of the apply that gave up, of the status, as text and as JSON.
    outcome.expect(3);
    let status = suture(&["status", "--threads", "--pid", &pid.to_string()]);
    for text in [&outcome.stdout, &status.expect(0).stdout] {
        assert!(text.contains(&format!("{tid} (T1): on function blocker\n")), "{text}");
        let at = ["read", "obey", "blocker", "obey", "live"].map(|f| format!("  {f}\n"));
        let backtrace: String = text
            .lines()
            .skip_while(|l| !l.contains("(T1):"))
            .skip(1)
            .fold(String::new(), |sum, line| sum + "  " + line.trim_start() + "\n");
        let places: Vec<_> = at[1..].iter().map(|f| backtrace.find(f.as_str())).collect();
        assert!(places.iter().all(Option::is_some), "{at:?} in {text}");
    }
    for (name, state) in [("T1", 0), ("T2", 1), ("main", 1)] {
        let line = format!("thread {} ({}): patch_state {state}", stall.tid(name), comm(&stall, name));
        assert!(status.stdout.contains(&line), "{line} in {}", status.stdout);
    }
    let transition = report::transition(pid);
    assert_eq!(transition["direction"], "patching", "{transition:#}");
    assert_eq!(transition["pending"], 1, "{transition:#}");
    assert_eq!(transition["threads"], 4, "{transition:#}");
    let blockers = transition["blockers"].as_array().cloned().unwrap_or_default();
    assert_eq!(blockers.len(), 1, "{transition:#}");
    let blocker = &blockers[0];
    assert_eq!(blocker["tid"], tid, "{blocker:#}");
    assert_eq!(blocker["name"], "T1", "{blocker:#}");
    assert_eq!(blocker["reason"], "on-stack", "{blocker:#}");
    assert_eq!(blocker["function"], "blocker", "{blocker:#}");
    let backtrace = blocker["backtrace"].as_array().cloned().unwrap_or_default();
    let frames: Vec<&str> = backtrace.iter().filter_map(|f| f.as_str()).collect();
    let order: Vec<&str> =
        frames.iter().copied().filter(|f| ["obey", "blocker", "live"].contains(f)).collect();
    assert_eq!(order, ["obey", "blocker", "obey", "live"], "{frames:?}");
    undisturbed(&mut stall);
}

fn comm(stall: &Stall, name: &str) -> String {
    let path = format!("/proc/{}/task/{}/comm", stall.pid(), stall.tid(name));
    std::fs::read_to_string(path).expect("a name").trim_end().to_owned()
}

/// THR-1, THR-11.
#[test]
fn a_stall_is_told_once_at_the_sixteenth_failed_attempt() {
    let lab = Lab::new();
    let threads = ["W1", "W2", "W3", "W4", "W5", "W6", "W7", "W8", "T1"];
    let mut stall = held_up(&lab, &["blocker", "f"], &threads);
    let pid = stall.pid();
    let block = Block::of(pid);
    until_true("31 failed attempts", || block.attempts() > 31);
    assert_eq!(stall.state("T1"), 0);
    let mut wanted = vec!["enable A", "init+ A", "start+ A", "signal A"];
    assert_eq!(report::events(pid), wanted);

    // Turned round twice (somebody in the new code keeps it from ending in between) everything begins anew,
    // the count of attempts, too. Which attempt it is at which the notice comes can be seen if this thread is
    // not kept off the processor for a whole tick.
    stall.order("W1", "enter");
    for _ in 0..20 {
        on("reverse", "A", pid, &["--no-wait"]).expect(3);
        on("reverse", "A", pid, &["--no-wait"]).expect(3);
        let (so_far, mut before) = (block.events(), 0);
        until_true("a stall to be told", || {
            let attempts = block.attempts();
            let told = block.events() > so_far;
            before = if told { before } else { attempts };
            told
        });
        let after = block.attempts();
        wanted.extend(["rev- A", "start- A", "rev+ A", "start+ A", "signal A"]);
        assert!(before <= 16 && after >= 16, "told between attempts {before} and {after}");
        if after == 16 {
            break;
        }
        assert!(wanted.len() < 60, "never seen at the 16th failed attempt, last after {before}");
    }
    assert_eq!(report::events(pid), wanted);
    stall.order("T1", "leave");
    await_end(pid);
    wanted.extend(["completing+ A", "done+ A"]);
    assert_eq!(report::events(pid), wanted);
    undisturbed(&mut stall);
}

/// THR-2.
#[test]
fn a_new_thread_starts_on_its_creators_side() {
    let lab = Lab::new();
    let mut stall = held_up(&lab, &["blocker", "f"], &["T1", "T2"]);
    let pid = stall.pid();
    // Threads that run all the time are moved by nobody while no command is there.
    stall.create_spinning("T1", "C1");
    stall.create_spinning("T2", "C2");
    assert_eq!((stall.state("C1"), stall.state("C2")), (0, 1));
    assert_eq!(stall.order("T1", "leave"), 1);
    await_state(&stall, &["T1"], 1);
    assert_eq!((stall.state("C1"), stall.state("C2")), (0, 1));
    let transition = report::transition(pid);
    assert_eq!(transition["pending"], 1, "{transition:#}");
    assert_eq!(transition["blockers"][0]["name"], "C1", "{transition:#}");
    stall.order("main", "release");
    assert_eq!(stall.order("C2", "f"), 2);
    assert_eq!(stall.order("C1", "f"), 2, "old code is not on its stack");
    await_end(pid);
    undisturbed(&mut stall);
}

/// THR-3.
#[test]
fn a_thread_that_ends_inside_old_code_is_enough() {
    let lab = Lab::new();
    let mut stall = held_up(&lab, &["blocker"], &["T1"]);
    let pid = stall.pid();
    assert_eq!(stall.state("T1"), 0);
    stall.order("T1", "exit");
    await_end(pid);
    let events = report::events(pid);
    assert_eq!(events.last().map(String::as_str), Some("done+ A"), "{events:?}");
    undisturbed(&mut stall);
}

/// THR-5.
#[test]
fn a_deep_stack_is_searched_to_its_bottom() {
    let lab = Lab::new();
    let mut stall = Stall::start(&lab);
    let pid = stall.pid();
    let patch = stall::patch(&lab, "A", &["deep", "f"]);
    stall.create_all(&["T1"]);
    stall.order("T1", "deep 5000");
    // With the command's looks, stops included.
    on("apply", &patch.to_string_lossy(), pid, &["--timeout", "1"]).expect(3);
    assert_eq!(stall.state("T1"), 0);
    assert_eq!(stall.order("T1", "f"), 1);
    assert_eq!(stall.order("T1", "leave"), 1);
    await_end(pid);
    assert_eq!(stall.order("T1", "f"), 2);
    undisturbed(&mut stall);
}

/// THR-6.
#[test]
fn a_return_address_at_the_end_of_a_function_belongs_to_it() {
    let lab = Lab::new();
    let mut stall = Stall::start(&lab);
    let pid = stall.pid();
    let patch = stall::patch(&lab, "A", &["edge", "f"]);
    stall.create_all(&["T1"]);
    stall.order("T1", "tail");
    on("apply", &patch.to_string_lossy(), pid, &["--timeout", "1"]).expect(3);
    assert_eq!(report::transition(pid)["blockers"][0]["function"], "edge");
    assert_eq!(stall.order("T1", "f"), 1);
    assert_eq!(stall.order("T1", "leave"), 1);
    await_end(pid);
    assert_eq!(stall.order("T1", "f"), 2);
    undisturbed(&mut stall);
}

/// THR-7, in both directions.
#[test]
fn force_completes_at_once_and_old_code_is_left_safely() {
    let lab = Lab::new();
    let mut stall = held_up(&lab, &["blocker", "f"], &["T1", "T2"]);
    let pid = stall.pid();
    on("force", "A", pid, &[]).expect(0);
    assert!(report::transition(pid).is_null());
    assert_eq!(stall.order("T1", "f"), 2, "forced over in the middle of old code");
    assert_eq!(stall.order("T1", "leave"), 1, "the old function ends as it began");

    stall.order("T2", "enter");
    on("disable", "A", pid, &["--no-wait"]).expect(3);
    await_state(&stall, &["T1"], 0);
    assert_eq!(stall.order("T2", "f"), 2);
    on("force", "A", pid, &[]).expect(0);
    assert_eq!(report::patches(pid), [""; 0]);
    assert_eq!(stall.order("T2", "f"), 1, "forced over in the middle of new code");
    assert_eq!(stall.order("T2", "leave"), 2, "the patch's code is still there");
    let forced = |events: &[String]| events.iter().filter(|e| *e == "forced A").count();
    let events = steps(pid);
    assert_eq!(forced(&events), 2, "{events:?}");
    let rest: Vec<&str> = events.iter().map(String::as_str).filter(|e| *e != "forced A").collect();
    let up = ["enable A", "init+ A", "start+ A", "completing+ A", "done+ A"];
    let down = ["init- A", "start- A", "completing- A", "done- A", "gone A"];
    assert_eq!(rest, [up, down].concat());
    undisturbed(&mut stall);
}

/// THR-8, as far as a command goes.
#[test]
fn force_and_reverse_need_a_transition_of_that_patch() {
    let lab = Lab::new();
    let mut stall = Stall::start(&lab);
    let pid = stall.pid();
    let (a, b) = (stall::patch(&lab, "A", &["f"]), stall::patch(&lab, "B", &["blocker"]));
    suture_tests::command::apply(&a, pid).expect(0);
    let events = report::events(pid);
    stall.create_all(&["T1"]);
    stall.order("T1", "enter");
    let refused = |patch: &str| {
        for command in ["force", "reverse", "wait"] {
            let outcome = on(command, patch, pid, &["--json"]);
            outcome.expect(1);
            let errno = outcome.json()["results"][0]["error"]["errno"].clone();
            assert_eq!(errno, "EINVAL", "{command} {patch}: {}", outcome.stdout);
        }
    };
    refused("A");
    assert_eq!(report::events(pid), events);
    // Another patch's transition does not count.
    begin(&b, pid);
    refused("A");
    assert_eq!(report::transition(pid)["patch"], "B");
    assert_eq!(stall.order("T1", "f"), 2);
    on("reverse", "B", pid, &[]).expect(0);
    undisturbed(&mut stall);
}

/// THR-9.
#[test]
fn every_threads_state_is_shown_before_during_and_after() {
    let lab = Lab::new();
    let mut stall = Stall::start(&lab);
    let pid = stall.pid();
    let patch = stall::patch(&lab, "A", &["blocker"]);
    let all = ["main", "T1", "T2"];
    stall.create_all(&all[1..]);
    stall.order("T1", "enter");
    // Before there is a runtime to ask, nobody has one; a patch and its end leave all idle.
    let other = stall::patch(&lab, "other", &["f"]);
    suture_tests::command::apply(&other, pid).expect(0);
    let states = |stall: &Stall| all.map(|name| stall.state(name));
    assert_eq!(states(&stall), [-1; 3]);
    begin(&patch, pid);
    await_state(&stall, &["main", "T2"], 1);
    assert_eq!(states(&stall), [1, 0, 1]);
    stall.order("T1", "leave");
    await_end(pid);
    assert_eq!(states(&stall), [-1; 3]);
    stall.order("T2", "enter");
    on("disable", "A", pid, &["--no-wait"]).expect(3);
    await_state(&stall, &["main", "T1"], 0);
    assert_eq!(states(&stall), [0, 0, 1]);
    stall.order("T2", "leave");
    await_end(pid);
    assert_eq!(states(&stall), [-1; 3]);
    undisturbed(&mut stall);
}

/// THR-10.
#[test]
fn a_child_forked_in_mid_transition_finishes_it_alone() {
    let lab = Lab::new();
    let mut stall = held_up(&lab, &["blocker", "f"], &["T1", "T2"]);
    let pid = stall.pid();
    let begun = ["enable A", "init+ A", "start+ A"];

    // Of a thread that is switched: its child is, and nothing holds the child up.
    let child = i32::try_from(stall.order("T2", "fork K2")).expect("a process id");
    assert_eq!(report::thread_states(child), [(child, 1)].into());
    assert!(report::transition(child).is_object());
    assert_eq!(stall.order("K2", "f"), 2);
    on("wait", "A", child, &[]).expect(0);
    assert!(report::transition(child).is_null());
    assert_eq!(stall.order("K2", "f"), 2);
    let events = report::events(child);
    assert!(events.starts_with(&begun.map(String::from)), "{events:?}");
    assert!(events.ends_with(&["completing+ A".into(), "done+ A".into()]), "{events:?}");
    // And it can be changed alone.
    disable("A", child).expect(0);
    assert_eq!(stall.order("K2", "f"), 1);

    // Of the thread that holds the parent up: its child is held up, too.
    let child = i32::try_from(stall.order("T1", "fork K1")).expect("a process id");
    assert_eq!(report::thread_states(child), [(child, 0)].into());
    assert_eq!(stall.order("K1", "f"), 1);
    on("wait", "A", child, &["--timeout", "1"]).expect(3);
    assert_eq!(report::transition(child)["blockers"][0]["function"], "blocker");
    assert_eq!(stall.order("K1", "leave"), 1);
    await_end(child);
    assert_eq!(stall.order("K1", "f"), 2);

    assert_eq!(stall.order("T1", "f"), 1, "the parent is where it was");
    assert_eq!(stall.state("T1"), 0);
    stall.order("T1", "leave");
    await_end(pid);
    assert_eq!(stall.order("T1", "f"), 2);
    undisturbed(&mut stall);
}

/// CTL-8.
#[test]
fn a_disable_goes_on_until_the_last_thread_has_left() {
    let lab = Lab::new();
    let mut stall = Stall::start(&lab);
    let pid = stall.pid();
    let patch = stall::patch(&lab, "A", &["blocker", "f"]);
    stall.create_all(&["T1", "T2"]);
    suture_tests::command::apply(&patch, pid).expect(0);
    stall.order("T1", "enter");
    on("disable", "A", pid, &["--no-wait"]).expect(3);
    await_state(&stall, &["T2", "main"], 0);
    let row = report::status(pid)["patches"][0].clone();
    assert_eq!(
        (&row["name"], &row["enabled"], &row["transition"]),
        (&"A".into(), &false.into(), &true.into())
    );
    assert_eq!(stall.order("T1", "f"), 2);
    assert_eq!(stall.order("T2", "f"), 1);
    assert_eq!(report::transition(pid)["blockers"][0]["name"], "T1");
    assert_eq!(report::patches(pid), ["A"]);
    assert_eq!(stall.order("T1", "leave"), 2);
    await_end(pid);
    assert_eq!(report::patches(pid), [""; 0]);
    let up = ["enable A", "init+ A", "start+ A", "completing+ A", "done+ A"];
    let down = ["init- A", "start- A", "completing- A", "done- A", "gone A"];
    assert_eq!(steps(pid), [up, down].concat());
    undisturbed(&mut stall);
}

/// STA-3 and STA-16 without states.
#[test]
fn each_direction_is_held_up_by_whoever_is_in_the_other_code() {
    let lab = Lab::new();
    let mut stall = held_up(&lab, &["blocker", "f"], &["T1", "T2", "T3"]);
    let pid = stall.pid();
    stall.order("T2", "enter");
    let held_by = || {
        let blockers = report::transition(pid)["blockers"].as_array().cloned().unwrap_or_default();
        let name = |b: &serde_json::Value| b["name"].as_str().unwrap_or("?").to_owned();
        blockers.iter().map(name).collect::<Vec<_>>()
    };

    on("reverse", "A", pid, &["--no-wait"]).expect(3);
    await_state(&stall, &["T1", "T3", "main"], 0);
    assert_eq!(stall.state("T2"), 1);
    assert_eq!(held_by(), ["T2"]);
    let row = report::status(pid)["patches"][0].clone();
    assert_eq!((&row["enabled"], &row["transition"]), (&false.into(), &true.into()));
    assert_eq!(stall.order("T2", "f"), 2);
    assert_eq!(stall.order("T3", "f"), 1);

    on("reverse", "A", pid, &["--no-wait"]).expect(3);
    await_state(&stall, &["T2", "T3", "main"], 1);
    assert_eq!(held_by(), ["T1"]);
    assert_eq!(stall.order("T1", "f"), 1);
    assert_eq!(stall.order("T3", "f"), 2);
    assert_eq!(stall.order("T1", "leave"), 1);
    await_end(pid);
    let wanted = [
        "enable A",
        "init+ A",
        "start+ A",
        "rev- A",
        "start- A",
        "rev+ A",
        "start+ A",
        "completing+ A",
        "done+ A",
    ];
    assert_eq!(steps(pid), wanted);
    assert_eq!(stall.order("T2", "leave"), 2);

    // And all the way back, with a thread inside the old code.
    disable("A", pid).expect(0);
    stall.order("T1", "enter");
    begin(&lab.path("A.so"), pid);
    await_state(&stall, &["T2"], 1);
    on("reverse", "A", pid, &[]).expect(0);
    assert_eq!(report::patches(pid), [""; 0], "it ended although T1 never left");
    assert_eq!(stall.target.entry("f"), stall.target.file_entry("f"));
    assert_eq!(stall.order("T1", "leave"), 1);
    undisturbed(&mut stall);
}

/// A count of passes that wraps does not reach the side beside it.
#[test]
fn a_switched_thread_stays_switched_when_its_passes_wrap() {
    let lab = Lab::new();
    let mut stall = held_up(&lab, &["blocker", "f"], &["T1", "T2"]);
    let pid = stall.pid();
    let (block, tid) = (Block::of(pid), stall.tid("T2").cast_unsigned());
    let side = |word: Option<u64>| word.expect("a record") as u32;
    let switched = side(block.record_word(tid));
    block.set_passes(tid, u32::MAX - 3);
    for _ in 0..10 {
        assert_eq!(stall.order("T2", "f"), 2);
    }
    let word = block.record_word(tid).expect("a record");
    assert_eq!(word as u32, switched);
    assert!(word >> 32 < 16, "{word:#x}: it did not wrap");
    assert_eq!((stall.state("T1"), stall.state("T2")), (0, 1));
    assert_eq!(stall.order("T1", "leave"), 1);
    await_end(pid);
}
