//! Programs whose threads make it hard: very many, never blocking, masking everything, without a main
//! thread, or alone.

use suture_tests::command::{apply, disable};
use suture_tests::poll::until_true;
use suture_tests::{Lab, Snapshot, Target, report, snapshot};

#[test]
fn a_thousand_threads_notice_nothing() {
    let lab = Lab::new();
    let mut target = lab.start("threads.c", &["1000", "2"]);
    let patch = lab.value_patch("fix", 100);
    until_true("1003 threads", || snapshot::status_number(target.pid(), "Threads") == 1003);
    let before = Snapshot::of(target.pid());
    for _ in 0..3 {
        let applied = report::apply(&patch, target.pid());
        assert_eq!(applied["stops"], 1, "{applied:#}");
        assert_eq!(target.call(1), 101);
        let disabled = report::disable("fix", target.pid());
        assert_eq!(disabled["stops"], 1, "{disabled:#}");
        assert_eq!(target.call(1), 2);
    }
    Snapshot::of(target.pid()).assert_same_program(&before);
    assert_eq!(target.ask("early"), "early 0", "a wait was cut short");
}

#[test]
fn a_timed_wait_that_is_interrupted_keeps_its_time() {
    let lab = Lab::new();
    // No other thread: the one in poll is the only one that can be borrowed.
    let mut target = lab.start("threads.c", &["0", "0"]);
    let patch = lab.value_patch("fix", 100);
    target.tell("poll 1500");
    let in_poll = || {
        let call = std::fs::read_to_string(format!("/proc/{}/syscall", target.pid())).unwrap_or_default();
        call.starts_with("7 ")
    };
    until_true("the target to wait in poll", in_poll);
    apply(&patch, target.pid()).expect(0);
    disable("fix", target.pid()).expect(0);
    let took = Target::number(&target.line(), "took");
    assert!((1500..2500).contains(&took), "poll of 1500 ms took {took} ms");
    assert_eq!(target.ask("early"), "early 0");
}

#[test]
fn a_process_without_its_main_thread_is_patched() {
    let lab = Lab::new();
    let mut target = lab.start("mainexit.c", &[]);
    let patch = lab.value_patch("fix", 100);
    let before = snapshot::threads(target.pid());
    apply(&patch, target.pid()).expect(0);
    assert_eq!(target.call(1), 101);
    assert_eq!(report::patches(target.pid()), ["fix"]);
    disable("fix", target.pid()).expect(0);
    assert_eq!(target.call(1), 2);
    assert_eq!(target.ask("threads"), "threads 3");
    assert_eq!(snapshot::threads(target.pid()), before);
}

#[test]
fn a_program_that_never_blocks_is_patched() {
    let lab = Lab::new();
    for threads in ["0", "4"] {
        let mut target = lab.start("spin.c", &[threads]);
        let patch = lab.value_patch("fix", 100);
        let before = Snapshot::of(target.pid());
        for _ in 0..5 {
            apply(&patch, target.pid()).expect(0);
            assert_eq!(target.call(1), 101);
            let mut news = || Target::number(&target.ask("turns"), "new");
            let so_far = news();
            until_true("spinning threads to run new code", || news() > so_far);
            disable("fix", target.pid()).expect(0);
            assert_eq!(target.call(1), 2);
        }
        Snapshot::of(target.pid()).assert_same_program(&before);
    }
}

#[test]
fn a_program_that_masks_all_signals_is_patched_and_keeps_its_masks() {
    let lab = Lab::new();
    let mut target = lab.start("mask.c", &["4"]);
    let patch = lab.value_patch("fix", 100);
    let masks = target.ask("mask");
    assert!(masks.starts_with("mask fffffffe7ffbfeff pending 0 early 0"), "{masks}");
    for _ in 0..20 {
        apply(&patch, target.pid()).expect(0);
        assert_eq!(target.call(1), 101);
        disable("fix", target.pid()).expect(0);
        assert_eq!(target.ask("mask"), masks);
    }
}

#[test]
fn a_single_threaded_program_stays_one() {
    let lab = Lab::new();
    let mut target = lab.start("memory.c", &[]);
    let patch = lab.value_patch("fix", 100);
    let cost = |target: &mut Target, what: &str| {
        let answer = target.ask(&format!("{what} 2000000"));
        answer.rsplit(' ').next().and_then(|n| n.parse::<f64>().ok()).expect("a time")
    };
    let before = ["malloc", "fputc"].map(|what| cost(&mut target, what));
    let picture = Snapshot::of(target.pid());
    for _ in 0..10 {
        apply(&patch, target.pid()).expect(0);
        assert_eq!(target.call(1), 101);
        assert_eq!(target.ask("single"), "single 1 threads 1");
        disable("fix", target.pid()).expect(0);
        assert_eq!(target.ask("single"), "single 1 threads 1");
    }
    Snapshot::of(target.pid()).assert_same_program(&picture);
    let after = ["malloc", "fputc"].map(|what| cost(&mut target, what));
    // Times are shown, not judged: the machine may be busy. What makes them grow, a second thread
    // that libc has seen, was judged above.
    println!("malloc {:.1} -> {:.1} ns, fputc {:.1} -> {:.1} ns", before[0], after[0], before[1], after[1]);
}

#[test]
fn a_busy_single_threaded_program_is_patched() {
    let lab = Lab::new();
    let mut target = lab.start("single.c", &[]);
    let patch = lab.value_patch("fix", 100);
    for _ in 0..10 {
        apply(&patch, target.pid()).expect(0);
        assert_eq!(target.call(1), 101);
        disable("fix", target.pid()).expect(0);
        assert_eq!(target.call(1), 2);
    }
    assert_eq!(snapshot::status_number(target.pid(), "Threads"), 1);
}
