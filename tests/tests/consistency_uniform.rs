//! No thread ever mixes old and new code: each run of `outer()` is all-old or all-new, whatever the
//! transition does meanwhile.

use std::path::PathBuf;
use std::time::Instant;
use suture_tests::command::{Outcome, disable, suture};
use suture_tests::poll::until_true;
use suture_tests::random::Random;
use suture_tests::{Lab, Target, repeat, report};

/// A patch of all four functions; each calls the others by their entries, as the old ones do.
fn patch(lab: &Lab) -> PathBuf {
    lab.patch(
        "uniform",
        "#include <suture.h>\n\
         SUTURE_EXTERN long f(unsigned *seed);\n\
         SUTURE_EXTERN long g(unsigned *seed);\n\
         SUTURE_EXTERN long pair(unsigned *seed);\n\
         SUTURE_EXTERN void linger(unsigned *seed);\n\
         static long new_f(unsigned *seed) { linger(seed); return 2; }\n\
         static long new_g(unsigned *seed) { linger(seed); return 2; }\n\
         static long new_pair(unsigned *seed) {\n\
             long first = f(seed); linger(seed); return 200 + 10 * first + g(seed); }\n\
         static long new_outer(unsigned *seed) {\n\
             long first = pair(seed); linger(seed); return 2000000 + 1000 * first + pair(seed); }\n\
         SUTURE_PATCH(\"uniform\", SUTURE_OBJECT(SUTURE_MAIN,\n\
             SUTURE_FUNC(\"f\", new_f), SUTURE_FUNC(\"g\", new_g),\n\
             SUTURE_FUNC(\"pair\", new_pair), SUTURE_FUNC(\"outer\", new_outer)));\n",
    )
}

fn on(command: &str, what: &str, target: &Target, more: &[&str]) -> Outcome {
    let pid = target.pid_text();
    suture(&[&[command, what, "--pid", &pid], more].concat())
}

/// Whether a transition is going on.
fn moving(target: &Target) -> bool {
    report::status(target.pid())["transition"].is_object()
}

struct Counts {
    mixed: i64,
    news: i64,
    olds: i64,
    changes: i64,
    births: i64,
}

fn counts(target: &mut Target) -> Counts {
    let answer = target.ask("report");
    let number = |word| Target::number(&answer, word);
    Counts {
        mixed: number("mixed"),
        news: number("new"),
        olds: number("old"),
        changes: number("changes"),
        births: number("births"),
    }
}

/// Whether an entry leads straight to its new function.
fn any_straight(target: &Target) -> bool {
    let status = report::status(target.pid());
    let functions = status["patches"][0]["functions"].as_array().cloned().unwrap_or_default();
    functions.iter().any(|f| f["direct"] == true)
}

/// Enables and disables with reversals at random moments; gives how often the direction changed, and how often
/// entries led straight to new functions in between.
fn storm(lab: &Lab, target: &mut Target, rounds: usize) -> (i64, usize) {
    let patch = patch(lab).to_string_lossy().into_owned();
    let mut random = Random::new(u64::from(std::process::id()) << 8 | 1);
    let (mut directions, mut straight) = (0, 0);
    for round in 0..rounds {
        // A command that sees the end lets entries lead straight to the new functions.
        let more: &[&str] = if random.below(2) == 0 { &[] } else { &["--no-wait"] };
        let begun = if report::patches(target.pid()).is_empty() {
            on("apply", &patch, target, more)
        } else {
            on("disable", "uniform", target, more)
        };
        assert!([0, 3].contains(&begun.code()), "round {round}: {}{}", begun.stdout, begun.stderr);
        directions += 1;
        // Turned round now and then, some of them more than once, if it still goes on by then.
        while random.below(3) == 0 && moving(target) {
            directions += i64::from(on("reverse", "uniform", target, &["--no-wait"]).code() != 1);
        }
        if moving(target) {
            report::complete("uniform", target.pid());
        }
        straight += usize::from(any_straight(target));
        let now = counts(target);
        assert_eq!(now.mixed, 0, "round {round}");
    }
    if !report::patches(target.pid()).is_empty() {
        disable("uniform", target.pid()).expect(0);
        directions += 1;
    }
    (directions, straight)
}

#[test]
fn every_run_is_all_old_or_all_new() {
    let lab = Lab::new();
    let program = lab.compile_target("uniform.c", &[]);
    let mut target = Target::start(&program, &["4"], suture_tests::target::Options::default());
    let (directions, straight) = storm(&lab, &mut target, repeat(30, 200));
    let end = counts(&mut target);
    assert_eq!(end.mixed, 0);
    assert!(end.news > 0 && end.olds > 0, "{} new, {} old", end.news, end.olds);
    assert!(straight > 1, "entries led straight {straight} times");
    assert!(end.changes <= directions * 3, "{} changes in {directions} directions", end.changes);
}

/// Besides others, and as fast as they can be made: 5 000 a second on two processors of their own.
#[test]
fn short_lived_threads_are_uniform_too() {
    let lab = Lab::new();
    let program = lab.compile_target("uniform.c", &[]);
    for args in [["2", "3"], ["0", "1"]] {
        let mut target = Target::start(&program, &args, suture_tests::target::Options::default());
        let started = Instant::now();
        storm(&lab, &mut target, repeat(8, 200));
        let end = counts(&mut target);
        let rate = end.births as f64 / started.elapsed().as_secs_f64();
        println!("{args:?}: {} births, {rate:.0} a second", end.births);
        assert_eq!(end.mixed, 0);
        assert!(end.births > 100, "only {} births", end.births);
    }
}

/// THR-4.
#[test]
fn each_thread_sees_one_change_each_way() {
    let lab = Lab::new();
    let program = lab.compile_target("uniform.c", &[]);
    let mut target = Target::start(&program, &["8"], suture_tests::target::Options::default());
    let patch = patch(&lab).to_string_lossy().into_owned();
    let least = |target: &mut Target| Target::number(&target.ask("report"), "least");
    for (step, done) in (1..=4).enumerate() {
        match step % 2 {
            0 => on("apply", &patch, &target, &[]).expect(0),
            _ => on("disable", "uniform", &target, &[]).expect(0),
        };
        until_true("every thread to have changed", || least(&mut target) >= done);
        assert_eq!(counts(&mut target).changes, done, "changes that one thread saw");
    }
    assert_eq!(counts(&mut target).mixed, 0);
}

/// The same storm with every thread moved at once: the target must notice, or it notices nothing.
#[test]
fn moving_all_threads_at_once_is_noticed() {
    let lab = Lab::new();
    let program = lab.compile_target("uniform.c", &[]);
    let mut target = Target::start(&program, &["4"], suture_tests::target::Options::default());
    let patch = patch(&lab).to_string_lossy().into_owned();
    for _ in 0..repeat(60, 200) {
        on("apply", &patch, &target, &["--no-wait"]);
        on("force", "uniform", &target, &[]);
        if counts(&mut target).mixed > 0 {
            return;
        }
        on("disable", "uniform", &target, &["--no-wait"]);
        on("force", "uniform", &target, &[]);
        if counts(&mut target).mixed > 0 {
            return;
        }
    }
    panic!("threads were forced over in the middle of everything, and none mixed old and new");
}
