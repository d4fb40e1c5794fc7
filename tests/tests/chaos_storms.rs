//! Programs that are never left alone: timers, queues of signals, stops, forks, threads that come and go. No
//! command hangs or says what is not so, and no signal is lost.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use suture_tests::command::{apply, disable, suture};
use suture_tests::target::Options;
use suture_tests::{Lab, Snapshot, Target, poll, repeat, report, snapshot, sys};

/// Does something at the end of a block, also when an assertion ends it.
struct OnDrop<F: Fn()>(F);

impl<F: Fn()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

fn unprepared() -> Options {
    Options { preload: false, ..Options::default() }
}

/// Applies and disables under signals of a kind; judges every answer, and the count of signals at the end.
fn under_signals(kind: &str, micros: &str, applies: usize) {
    let lab = Lab::new();
    let patch = lab.value_patch("fix", 100);
    let mut target = lab.start_with("timers.c", &[kind, micros], unprepared());
    let mut stops = 0;
    for round in 0..applies {
        let applied = report::apply(&patch, target.pid());
        assert_eq!(target.call(1), 101, "{kind} {micros}, round {round}: applied and not patched");
        let disabled = report::disable("fix", target.pid());
        assert_eq!(target.call(1), 2, "{kind} {micros}, round {round}: disabled and still patched");
        stops += applied["stops"].as_i64().unwrap_or(0) + disabled["stops"].as_i64().unwrap_or(0);
    }
    // What is due at the moment of the question may be on its way.
    let counted = poll::until("all signals", || {
        let answer = target.ask("signals");
        let number = |word| Target::number(&answer, word);
        assert_eq!(number("wrong"), 0, "{answer}");
        let missing = number("due") - number("signals");
        // The kernel does not count what a process-wide interval timer had no room for.
        (missing <= 2 || kind == "setitimer").then_some(answer)
    });
    println!("{kind} {micros} us: {applies} applies, {stops} stops; {counted}");
    let before = Target::number(&counted, "signals");
    poll::until_true("further signals", || Target::number(&target.ask("signals"), "signals") > before);
    assert!(target.finish().success());
}

#[test]
fn interval_timers() {
    for micros in ["10000", "1000", "150"] {
        for kind in ["setitimer", "timer_create"] {
            under_signals(kind, micros, repeat(12, 500));
        }
    }
}

#[test]
fn queued_signals_stay_in_order() {
    under_signals("sigqueue", "100", repeat(25, 500));
}

#[test]
fn children_forked_while_others_allocate() {
    let lab = Lab::new();
    let patch = lab.value_patch("fix", 100);
    let file = patch.to_string_lossy().into_owned();
    let mut target = lab.start_with("brood.c", &[], unprepared());
    assert_eq!(target.ask("fork 60"), "forked 60");
    let pids = target.ask("pids");
    let pids: Vec<&str> = pids.split(' ').skip(1).collect();
    assert_eq!(pids.len(), 60);
    let all = [vec!["apply", &file, "--pid"], pids.clone()].concat();
    suture(&all).expect(0);
    assert_eq!(target.ask("ask 101"), "asked 60 of 60");
    suture(&[vec!["disable", "fix", "--pid"], pids].concat()).expect(0);
    assert_eq!(target.ask("ask 2"), "asked 60 of 60");
}

#[test]
fn children_forked_in_the_middle_of_everything() {
    let lab = Lab::new();
    let patch = lab.value_patch("fix", 100);
    for round in 0..repeat(4, 20) {
        let mut target = lab.start_with("brood.c", &[], unprepared());
        target.tell("fork 60");
        // The first apply puts the runtime in, too: some children have half of it.
        let mut cycles = 0;
        while target.line_now().is_none() {
            apply(&patch, target.pid()).expect(0);
            disable("fix", target.pid()).expect(0);
            cycles += 1;
        }
        println!("round {round}: 60 children in {cycles} cycles");
        let pids: Vec<i32> =
            target.ask("pids").split(' ').skip(1).map(|p| p.parse().expect("a pid")).collect();
        for &pid in &pids {
            if report::patched_at_last(pid, "fix") {
                disable("fix", pid).expect(0);
            }
        }
        assert_eq!(target.ask("ask 2"), "asked 60 of 60", "round {round}");
        for &pid in &pids {
            apply(&patch, pid).expect(0);
        }
        assert_eq!(target.ask("ask 101"), "asked 60 of 60", "round {round}");
    }
}

#[test]
fn a_storm_of_stops() {
    let lab = Lab::new();
    let patch = lab.value_patch("fix", 100);
    let mut target = lab.start_with("threads.c", &["12", "1"], unprepared());
    let pid = target.pid();
    let before = Snapshot::of(pid);
    let (over, mut done, rounds) = (AtomicBool::new(false), 0, repeat(40, 400));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut pause = 1;
            while !over.load(Ordering::Relaxed) {
                sys::kill(pid, libc::SIGSTOP);
                std::thread::park_timeout(Duration::from_micros(200 * (pause % 7)));
                sys::kill(pid, libc::SIGCONT);
                pause += 1;
                std::thread::park_timeout(Duration::from_micros(300 * (pause % 5)));
            }
        });
        let _over = OnDrop(|| over.store(true, Ordering::Relaxed));
        for round in 0..rounds {
            for outcome in [apply(&patch, pid), disable("fix", pid)] {
                done += usize::from(outcome.code() == 0);
                // A stop is the only thing it may complain of, or what an earlier refusal left undone.
                let fine = ["stopped", "already enabled", "not enabled", "without the runtime"];
                assert!(
                    outcome.code() == 0 || fine.iter().any(|w| outcome.stderr.contains(w)),
                    "round {round}: {} {}",
                    outcome.status,
                    outcome.stderr
                );
            }
        }
    });
    println!("{done} of {} commands came through", 2 * rounds);
    assert!(done > rounds, "only {done} of {} commands came through", 2 * rounds);
    if report::patched_at_last(pid, "fix") {
        disable("fix", pid).expect(0);
    }
    assert_eq!(target.call(1), 2);
    let same = || snapshot::threads(pid) == before.threads;
    poll::until_true("masks and threads to be as before", same);
    assert_eq!(target.entry("value"), target.file_entry("value"));
}

#[test]
fn a_storm_of_threads() {
    let lab = Lab::new();
    let patch = lab.value_patch("fix", 100);
    let mut target = lab.start_with("mayflies.c", &[], unprepared());
    for round in 0..repeat(50, 500) {
        apply(&patch, target.pid()).expect(0);
        assert_eq!(target.call(1), 101, "round {round}");
        disable("fix", target.pid()).expect(0);
        assert_eq!(target.call(1), 2, "round {round}");
    }
    let lived = Target::number(&target.ask("lived"), "lived");
    poll::until_true("threads to come and go", || Target::number(&target.ask("lived"), "lived") > lived);
    println!("{lived} threads lived meanwhile");
}
