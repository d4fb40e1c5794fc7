//! The command dies, or its target does, at any moment.

use std::path::Path;
use std::time::{Duration, Instant};
use suture_tests::command::{apply, disable, start, suture};
use suture_tests::random::Random;
use suture_tests::{Lab, Snapshot, Target, poll, repeat, report, snapshot, sys};

/// With a seed that differs from run to run, printed so that a failure can be repeated.
fn random() -> Random {
    let seed = std::env::var("SUTURE_SEED").ok().and_then(|s| s.parse().ok());
    let seed = seed.unwrap_or_else(|| u64::from(std::process::id()) << 20 | 1);
    println!("SUTURE_SEED={seed}");
    Random::new(seed)
}

/// Waits without giving up the processor: sleeps are too coarse for moments inside an apply.
fn spin(time: Duration) {
    let started = Instant::now();
    while started.elapsed() < time {
        std::hint::spin_loop();
    }
}

/// How long an apply takes here and now: the shortest of several, since the first one reads everything
/// from disk, and a moment chosen from too long a time comes after the command's end.
fn typical(patch: &Path, target: &Target) -> Duration {
    let took = |_| {
        let started = Instant::now();
        apply(patch, target.pid()).expect(0);
        let took = started.elapsed();
        disable("fix", target.pid()).expect(0);
        took
    };
    (0..5).map(took).min().unwrap_or_default()
}

/// Waits until the worker of a command that died has left (until then it may still finish a request that
/// it had got, and what is enabled is not decided), or stays for a transition: that is turned round, or
/// seen through.
fn settle(target: &Target, before: &Snapshot) {
    let stays = poll::until("the worker to leave or stay", || {
        match snapshot::threads(target.pid()) == before.threads {
            true => Some(false),
            false => report::status(target.pid())["transition"].is_object().then_some(true),
        }
    });
    if stays {
        let done = disable("fix", target.pid());
        // It may have come to its end in between.
        if done.code() != 0 {
            done.expect_refused(&["not enabled"]);
        }
    }
}

/// Starts a command and ends it with `signal` at a random moment of its life.
fn cut_short(args: &[&str], signal: i32, length: Duration, random: &mut Random) -> suture_tests::Outcome {
    let running = start(args, None);
    let nanos = u64::try_from(length.as_nanos()).unwrap_or(u64::MAX).max(1);
    spin(Duration::from_nanos(random.below(nanos)));
    // It may be over already, but is not reaped before `finish`.
    sys::kill(running.pid(), signal);
    running.finish()
}

#[test]
fn the_command_may_be_killed_at_any_moment() {
    let lab = Lab::new();
    let mut target = lab.start("threads.c", &["12", "2"]);
    let patch = lab.value_patch("fix", 100);
    let (file, pid) = (patch.to_string_lossy().into_owned(), target.pid_text());
    let before = Snapshot::of(target.pid());
    let mut random = random();
    let length = typical(&patch, &target) * 3 / 2;
    let (mut cut, rounds) = (0, repeat(60, 1000));
    for round in 0..rounds {
        let args: [&[&str]; 2] = [&["apply", &file, "--pid", &pid], &["disable", "fix", "--pid", &pid]];
        let done = cut_short(args[round % 2], libc::SIGKILL, length, &mut random);
        cut += usize::from(done.status.code().is_none());
        let result = target.call(1);
        assert!(result == 2 || result == 101, "round {round}: {result}");
        settle(&target, &before);

        // The next command finds a process that is in one state or the other, and finishes the job.
        match report::patches(target.pid()).as_slice() {
            [] => {
                if round % 2 == 0 {
                    apply(&patch, target.pid()).expect(0);
                    assert_eq!(target.call(1), 101, "round {round}");
                }
            }
            [name] if name == "fix" => {
                if round % 2 == 1 {
                    disable("fix", target.pid()).expect(0);
                    assert_eq!(target.call(1), 2, "round {round}");
                    assert_eq!(target.entry("value"), target.file_entry("value"), "round {round}");
                }
            }
            other => panic!("round {round}: {other:?}"),
        }
    }
    println!("{cut} of {rounds} commands were cut short");
    assert!(cut * 5 > rounds, "only {cut} of {rounds} commands were cut short: the moments are badly chosen");
    if report::patches(target.pid()) == ["fix"] {
        disable("fix", target.pid()).expect(0);
    }
    // One whole cycle leaves nothing of the dead commands behind.
    apply(&patch, target.pid()).expect(0);
    disable("fix", target.pid()).expect(0);
    assert_eq!(target.entry("value"), target.file_entry("value"));
    assert_eq!(target.ask("early"), "early 0", "a wait was cut short");
    Snapshot::of(target.pid()).assert_same_program(&before);
}

#[test]
fn ctrl_c_leaves_the_process_unpatched_or_patched() {
    let lab = Lab::new();
    let mut target = lab.start("threads.c", &["12", "1"]);
    let patch = lab.value_patch("fix", 100);
    let (file, pid) = (patch.to_string_lossy().into_owned(), target.pid_text());
    let before = Snapshot::of(target.pid());
    let mut random = random();
    let length = typical(&patch, &target);
    for round in 0..repeat(30, 300) {
        let done = cut_short(&["apply", &file, "--pid", &pid], libc::SIGINT, length, &mut random);
        let patched = report::patches(target.pid()) == ["fix"];
        match done.status.code() {
            Some(0) => assert!(patched, "round {round}: status 0 but not patched"),
            // After the point of no return: it goes on by itself.
            Some(3) => {
                assert!(done.stdout.contains("goes on by itself"), "round {round}: {}", done.stdout);
                settle(&target, &before);
                continue;
            }
            Some(1) => {
                assert!(done.stderr.contains("interrupted"), "round {round}: {}", done.stderr);
                assert!(!patched, "round {round}: status 1 but patched");
            }
            // Before it could set up anything.
            None | Some(130) => assert!(!patched, "round {round}: ended by the signal but patched"),
            other => panic!("round {round}: status {other:?} {}", done.stderr),
        }
        assert_eq!(target.call(1), if patched { 101 } else { 2 }, "round {round}");
        if patched {
            disable("fix", target.pid()).expect(0);
        }
        assert_eq!(target.entry("value"), target.file_entry("value"), "round {round}");
        Snapshot::of(target.pid()).assert_same_program(&before);
    }
}

#[test]
fn the_target_may_end_in_the_middle() {
    let lab = Lab::new();
    let program = lab.compile_target("threads.c", &[]);
    let patch = lab.value_patch("fix", 100);
    let file = patch.to_string_lossy().into_owned();
    let begin = || Target::start(&program, &["12", "1"], suture_tests::target::Options::default());
    let mut random = random();
    let length = typical(&patch, &begin());
    let (mut refused, rounds) = (0, repeat(30, 300));
    for round in 0..rounds {
        let target = begin();
        let running = start(&["apply", &file, "--pid", &target.pid_text()], None);
        let nanos = u64::try_from(length.as_nanos()).unwrap_or(u64::MAX).max(1);
        spin(Duration::from_nanos(random.below(nanos)));
        sys::kill(target.pid(), libc::SIGKILL);
        let done = running.finish();
        if done.code() != 0 {
            done.expect_refused(&[&target.pid_text()]);
            refused += 1;
        }
        drop(target);
        assert!(!done.stderr.contains("panicked"), "round {round}: {}", done.stderr);
    }
    println!("{refused} of {rounds} applies met a process that ended");
    assert!(refused > 0, "no apply was hit: the moments are badly chosen");
}

#[test]
fn two_commands_at_once_do_not_mix() {
    let lab = Lab::new();
    let mut target = lab.start_several();
    let (a, b) = (lab.value_patch("a", 100), lab.value_patch("b", 200));
    let pid = target.pid_text();
    for _ in 0..5 {
        let file = |p: &Path| p.to_string_lossy().into_owned();
        let both = [&a, &b].map(|p| start(&["apply", &file(p), "--pid", &pid], None));
        let done = both.map(suture_tests::command::Running::finish);
        for outcome in &done {
            if outcome.code() != 0 {
                outcome.expect_refused(&["at work"]);
            }
        }
        let there = report::patches(target.pid());
        assert_eq!(there.len(), done.iter().filter(|o| o.code() == 0).count(), "{there:?}");
        assert!(!there.is_empty(), "neither came through");
        let youngest = there.last().map(String::as_str);
        assert_eq!(target.call(1), if youngest == Some("a") { 101 } else { 201 });
        there.iter().for_each(|name| _ = disable(name, target.pid()).expect(0));
        assert_eq!(target.call(1), 2);
    }
}

#[test]
fn status_may_be_asked_at_any_moment() {
    let lab = Lab::new();
    let mut target = lab.start_several();
    let patch = lab.value_patch("fix", 100);
    let (file, pid) = (patch.to_string_lossy().into_owned(), target.pid_text());
    for _ in 0..10 {
        for args in [&["apply", file.as_str(), "--pid", &pid], &["disable", "fix", "--pid", &pid]] {
            let running = start(args, None);
            for _ in 0..3 {
                suture(&["status", "--json", "--pid", &pid]).expect(0).json();
            }
            running.finish().expect(0);
        }
    }
    poll::until_true("the target to answer", || target.call(1) == 2);
}
