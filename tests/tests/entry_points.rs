//! Threads that stand where nobody may call into the C library. Getting in calls nothing, so each of these
//! points is as good as any other; only the child of a vfork is left alone, since it lives in its parent's
//! memory.

use suture_tests::command::{apply, disable, suture};
use suture_tests::target::Options;
use suture_tests::{Lab, Snapshot, Target, poll, repeat, report, snapshot};

fn unprepared() -> Options {
    Options { preload: false, ..Options::default() }
}

/// Brings a thread to the point, enters the process through this very thread, patches and unpatches it there,
/// and lets the thread go on.
fn enter_at(point: &str) {
    let lab = Lab::new();
    let program = lab.compile_target("points.c", &[]);
    let patch = lab.value_patch("fix", 100);
    for round in 0..repeat(12, 100) {
        let mut target = Target::start(&program, &[point], unprepared());
        let at = Target::number(&target.ask("enter"), "tid");
        let before = Snapshot::of(target.pid());
        let injected = suture(&["inject", "--json", "--pid", &target.pid_text()]);
        let injected = report::details(&injected.expect(0).json());
        assert_eq!(injected["thread"], at, "round {round}: another thread was borrowed: {injected:#}");
        let applied = report::apply(&patch, target.pid());
        assert_eq!(applied["stops"], 1, "round {round}: {applied:#}");
        assert_eq!(target.call(1), 101, "round {round}");
        disable("fix", target.pid()).expect(0);
        Snapshot::of(target.pid()).assert_same_program(&before);
        assert_eq!(target.ask("leave"), "left 0", "round {round}");
        assert_eq!(target.call(1), 2, "round {round}");
        assert!(target.finish().success(), "round {round}");
    }
}

#[test]
fn a_signal_handler_on_top_of_malloc() {
    enter_at("handler");
}

#[test]
fn a_callback_of_dl_iterate_phdr() {
    enter_at("iterate");
}

#[test]
fn a_handler_of_fork() {
    enter_at("atfork");
}

#[test]
fn a_lock_of_its_own() {
    enter_at("futex");
}

#[test]
fn the_child_of_a_vfork_is_never_entered() {
    let lab = Lab::new();
    let patch = lab.value_patch("fix", 100);
    let file = patch.to_string_lossy().into_owned();
    for preload in [false, true] {
        let mut target = lab.start_with("vforks.c", &["2"], Options { preload, ..Options::default() });
        let child = Target::number(&target.ask("vfork"), "child").to_string();
        let parent = target.pid_text();
        for command in [["check"].as_slice(), &["inject"], &["apply", &file]] {
            let refused = suture(&[command, &["--pid", &child]].concat());
            refused.expect_refused_with_hint(&["vfork", &parent]);
        }
        // The parent has other threads. Nothing keeps them from being borrowed, but the one that waits cannot
        // be moved: its child runs on its stack.
        let outcome = suture(&["apply", &file, "--json", "--timeout", "0.3", "--pid", &parent]);
        let applied = &outcome.expect(3).json()["results"][0]["details"];
        assert_eq!(applied["stops"], if preload { 1 } else { 2 }, "{applied:#}");
        let held: Vec<_> = applied["blockers"].as_array().into_iter().flatten().collect();
        assert_eq!(held.len(), 1, "{applied:#}");
        assert_eq!((&held[0]["tid"], &held[0]["reason"]), (&target.pid().into(), &"running".into()));
        assert_eq!(target.ask("any line"), "status 0", "the child executed its program");
        suture(&["wait", "fix", "--pid", &parent]).expect(0);
        assert_eq!(target.call(1), 101);
        disable("fix", target.pid()).expect(0);
        assert_eq!(target.call(1), 2);
    }
}

#[test]
fn a_process_whose_only_thread_waits_for_a_vforked_child() {
    let lab = Lab::new();
    let patch = lab.value_patch("fix", 100);
    let mut target = lab.start_with("vforks.c", &[], unprepared());
    target.ask("vfork");
    let before = Snapshot::of(target.pid());
    apply(&patch, target.pid()).expect_refused(&[&target.pid_text(), "vfork"]);
    Snapshot::of(target.pid()).assert_same_program(&before);
    assert_eq!(target.ask("any line"), "status 0");
    apply(&patch, target.pid()).expect(0);
    assert_eq!(target.call(1), 101);
}

#[test]
fn a_storm_of_vforks_is_not_disturbed() {
    let lab = Lab::new();
    let patch = lab.value_patch("fix", 100);
    for threads in ["0", "2"] {
        let mut target = lab.start_with("vforks.c", &[threads], unprepared());
        let count = repeat(1500, 20_000);
        target.tell(&format!("storm {count}"));
        let mut cycles = 0;
        let answer = loop {
            if let Some(answer) = target.line_now() {
                break answer;
            }
            apply(&patch, target.pid()).expect(0);
            disable("fix", target.pid()).expect(0);
            cycles += 1;
        };
        assert_eq!(answer, format!("storm {count} bad 0"));
        assert!(cycles > 0, "the storm was over before the first patch");
        println!("{threads} threads: {cycles} applies during {count} vforks");
    }
}

#[test]
fn restartable_sequences_are_restarted() {
    let lab = Lab::new();
    let patch = lab.value_patch("fix", 100);
    // More threads than processors, so that another one runs on the processor meanwhile.
    let mut target = lab.start_with("sequence.c", &["4"], unprepared());
    for round in 0..repeat(60, 1000) {
        apply(&patch, target.pid()).expect(0);
        disable("fix", target.pid()).expect(0);
        let counts = target.ask("counts");
        let words: Vec<&str> = counts.split(' ').collect();
        assert_eq!(words[1], words[2], "round {round}: counts were lost");
    }
}

#[test]
fn flags_that_foreign_code_would_not_survive() {
    let lab = Lab::new();
    let patch = lab.value_patch("fix", 100);
    for flag in ["stepping", "aligned", "backwards"] {
        let mut target = lab.start_with("flags.c", &[flag], unprepared());
        let before = Snapshot::of(target.pid());
        for round in 0..repeat(20, 300) {
            apply(&patch, target.pid()).expect(0);
            assert_eq!(target.call(1), 101, "{flag}, round {round}");
            disable("fix", target.pid()).expect(0);
        }
        // The handler for the flag's signal comes and goes, and its mask with it.
        let masks = || snapshot::threads(target.pid()) == before.threads;
        poll::until_true("the signal masks from before", masks);
        let after = Snapshot { threads: before.threads.clone(), ..Snapshot::of(target.pid()) };
        after.assert_same_program(&before);
        let rounds = |target: &mut Target| Target::number(&target.ask("rounds"), "rounds");
        let so_far = rounds(&mut target);
        poll::until_true("it to go on", || rounds(&mut target) > so_far);
        let answer = target.ask("rounds");
        assert_eq!(Target::number(&answer, "wrong"), 0, "{flag}: {answer}");
        assert_eq!(Target::number(&answer, "traps") > 0, flag == "stepping", "{flag}: {answer}");
    }
}
