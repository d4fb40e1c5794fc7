//! `check` without a patch and `inject`: what they say, and with which status.

use serde_json::Value;
use suture_tests::command::suture;
use suture_tests::target::Options;
use suture_tests::{Lab, Snapshot, Target, report};

fn unprepared() -> Options {
    Options { preload: false, ..Options::default() }
}

/// `suture check --all --json`.
fn survey() -> Value {
    suture(&["check", "--all", "--json"]).expect(0).json()
}

fn row(survey: &Value, pid: i32) -> Option<Value> {
    survey["results"].as_array()?.iter().find(|row| row["pid"] == pid).cloned()
}

#[test]
fn a_process_is_told_how_it_would_be_entered() {
    let lab = Lab::new();
    let patch = lab.value_patch("fix", 100);
    for (options, way, words) in [
        (unprepared(), "injectable", "the runtime will be put in"),
        (Options::default(), "preloaded", "was loaded with it, no patch"),
    ] {
        let target = lab.start_with("threads.c", &["3", "1"], options);
        let before = Snapshot::of(target.pid());
        let pid = target.pid_text();
        let said = suture(&["check", "--pid", &pid]).expect(0).stdout.clone();
        assert!(said.contains(words) && said.contains(&pid), "{said}");
        let details = report::details(&suture(&["check", "--pid", &pid, "--json"]).expect(0).json());
        assert_eq!(details["way"], way, "{details:#}");
        assert_eq!(details["threads"], 5, "{details:#}");
        assert!(details["objects"].as_u64().is_some_and(|n| n >= 3), "{details:#}");
        Snapshot::of(target.pid()).assert_untouched(&before);

        suture(&["apply", &patch.to_string_lossy(), "--pid", &pid]).expect(0);
        let details = report::details(&suture(&["check", "--pid", &pid, "--json"]).expect(0).json());
        assert_eq!(details["patches"], serde_json::json!(["fix"]), "{details:#}");
        assert_eq!(details["way"], if way == "preloaded" { way } else { "injected" }, "{details:#}");
    }
}

#[test]
fn several_processes_of_which_some_cannot_be_entered() {
    let lab = Lab::new();
    let fine = lab.start_with("threads.c", &["1", "0"], unprepared());
    let program = lab.compile_target("spin.c", &["-static"]);
    let not = Target::start(&program, &["1"], unprepared());
    for command in ["check", "inject"] {
        let outcome = suture(&[command, "--pid", &fine.pid_text(), &not.pid_text()]);
        outcome.expect(4);
        assert!(outcome.stdout.contains(&fine.pid_text()), "{}", outcome.stdout);
        assert!(outcome.stderr.contains(&not.pid_text()) && outcome.stderr.contains("static"));
        suture(&[command, "--pid", &not.pid_text()]).expect_refused(&["statically linked"]);
        suture(&[command, "--pid", &not.pid_text(), "2"]).expect(1);
    }
    // By name, the kernel's 15 bytes of it.
    suture(&["check", "--name", "threads"]).expect(0);
    suture(&["inject", "--name", "no-such-name"]).expect_refused_with_hint(&["no-such-name"]);
}

#[test]
fn the_whole_machine() {
    let lab = Lab::new();
    let mut fine = lab.start_with("threads.c", &["3", "0"], unprepared());
    let filtered = lab.compile_target("cage.c", &[]);
    let filtered = Target::start(&filtered, &["thread", "service"], unprepared());
    let refused = lab.compile_target("cage.c", &[]);
    let refused = Target::start(&refused, &["kill=319"], unprepared());
    let before = [&fine, &filtered, &refused].map(|t| Snapshot::of(t.pid()));
    let survey = survey();
    let found = |t: &Target| row(&survey, t.pid()).unwrap_or_else(|| panic!("no row in {survey:#}"));
    assert_eq!(found(&fine)["details"]["way"], "injectable");
    assert_eq!(found(&filtered)["details"]["filtered"], true);
    assert_eq!(found(&refused)["result"], "failed");
    assert!(found(&refused)["error"]["message"].as_str().is_some_and(|m| m.contains("memfd_create")));
    assert!(survey["kernel_threads"].as_u64().is_some_and(|n| n > 2), "{survey:#}");
    assert!(row(&survey, 2).is_none(), "a thread of the kernel is not a process to be patched");
    let [a, b, c] = &before;
    for (target, before) in [(&fine, a), (&filtered, b), (&refused, c)] {
        Snapshot::of(target.pid()).assert_untouched(before);
    }
    assert_eq!(fine.ask("early"), "early 0", "a look ended a wait");

    let table = suture(&["check", "--all"]).expect(0).stdout.clone();
    let line = |t: &Target| {
        let pid = format!(" {} ", t.pid());
        table
            .lines()
            .find(|l| l.starts_with(&pid))
            .unwrap_or_else(|| panic!("no line in\n{table}"))
            .to_owned()
    };
    assert!(line(&fine).contains("yes") && line(&fine).contains("put in"), "{table}");
    assert!(line(&refused).contains(" no ") && line(&refused).contains("memfd_create"), "{table}");
    assert!(table.lines().next().is_some_and(|l| l.contains("PID") && l.contains("PATCHABLE")), "{table}");
}

#[test]
fn injecting_twice_is_injecting_once() {
    let lab = Lab::new();
    let target = lab.start_with("threads.c", &["3", "1"], unprepared());
    let pid = target.pid_text();
    let inject = || report::details(&suture(&["inject", "--pid", &pid, "--json"]).expect(0).json());
    let before = Snapshot::of(target.pid());
    let first = inject();
    assert_eq!((&first["injected"], &first["stops"]), (&true.into(), &1.into()), "{first:#}");
    let after = Snapshot::of(target.pid());
    after.assert_same_program(&before);
    let second = inject();
    assert_eq!((&second["injected"], &second["stops"]), (&false.into(), &0.into()), "{second:#}");
    Snapshot::of(target.pid()).assert_untouched(&after);
}

#[test]
fn command_lines_that_make_no_sense() {
    suture(&["check"]).expect(2);
    suture(&["inject"]).expect(2);
    suture(&["inject", "--all"]).expect(2);
    suture(&["inject", "--pid", "1", "--name", "x"]).expect(2);
    suture(&["check", "--pid", "1", "--all"]).expect(2);
}
