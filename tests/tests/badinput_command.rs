//! The command in the hands of somebody new to it: output that goes nowhere, two commands at once, an impatient Ctrl-C,
//! names that are none, and what a refusal says to do.

use std::fs::{File, copy};
use std::io::{BufRead, Read};
use std::process::Stdio;
use suture_tests::command::{apply, disable, on, start, suture, suture_into};
use suture_tests::poll::until_true;
use suture_tests::stall::{self, Stall};
use suture_tests::target::{NOBODY, Options};
use suture_tests::{Lab, Target, report, sys};

/// Nobody reads it: a pipe whose other end is closed.
fn closed() -> Stdio {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    writer.into()
}

fn full() -> Stdio {
    File::create("/dev/full").expect("/dev/full").into()
}

#[test]
fn a_reader_may_leave_and_a_full_disk_is_told() {
    let lab = Lab::new();
    let target = lab.start_several();
    let pid = target.pid_text();
    let patch = lab.value_patch("fix", 100);
    let patch = patch.to_string_lossy();
    // As `suture apply … | true`: what was done was done.
    let silent = |args: &[&str]| {
        let outcome = suture_into(closed(), args);
        assert_eq!(outcome.expect(0).stderr, "", "{args:?}");
    };
    silent(&["apply", &patch, "--pid", &pid]);
    for args in
        [&["status", "--pid", &pid][..], &["log", "--pid", &pid], &["status", "--json", "--pid", &pid]]
    {
        silent(args);
        let outcome = suture_into(full(), args);
        assert!(outcome.expect(1).stderr.contains("cannot write"), "{args:?}: {}", outcome.stderr);
    }
    let outcome = suture_into(full(), &["disable", "fix", "--pid", &pid]);
    assert!(outcome.expect(0).stderr.contains("cannot write"), "{}", outcome.stderr);
    assert_eq!(report::patches(target.pid()), [""; 0], "the status says what became of the process");
}

#[test]
fn a_followed_log_ends_with_its_reader() {
    let lab = Lab::new();
    let target = lab.start_several();
    apply(&lab.value_patch("fix", 100), target.pid()).expect(0);
    let (mut reader, writer) = std::io::pipe().expect("a pipe");
    let args = ["log", "--follow", "--pid", &target.pid_text()];
    let log = std::thread::spawn({
        let args = args.map(str::to_owned);
        move || suture_into(writer.into(), &args)
    });
    reader.read_exact(&mut [0; 10]).expect("the first event");
    drop(reader);
    // Nothing happens in the process that would have to be written.
    let outcome = log.join().expect("it ends");
    assert_eq!(outcome.expect(0).stderr, "");
}

#[test]
fn a_followed_log_is_one_document_a_line() {
    let lab = Lab::new();
    let target = lab.start_several();
    let pid = target.pid();
    suture(&["inject", "--pid", &target.pid_text()]).expect(0);
    let (reader, writer) = std::io::pipe().expect("a pipe");
    let args = ["log", "--follow", "--json", "--pid", &target.pid_text()];
    let log = std::thread::spawn({
        let args = args.map(str::to_owned);
        move || suture_into(writer.into(), &args)
    });
    // What happens while it is followed, each as soon as it has happened.
    let mut lines = std::io::BufReader::new(reader).lines();
    let mut last = (0, 0);
    for word in ["enable", "init+", "start+", "completing+", "done+"] {
        if word == "enable" {
            apply(&lab.value_patch("fix", 100), pid).expect(0);
        }
        let line = lines.next().expect("an event").expect("a line");
        let event: serde_json::Value = serde_json::from_str(&line).expect("a document of its own");
        assert_eq!((&event["event"], &event["patch"]), (&word.into(), &"fix".into()), "{line}");
        let number = |name: &str| event[name].as_u64().unwrap_or_else(|| panic!("no {name}: {line}"));
        assert!(number("number") == last.0 + 1 && number("time_ns") >= last.1 && number("tid") > 0, "{line}");
        last = (number("number"), number("time_ns"));
    }
    drop(target);
    assert_eq!(log.join().expect("it ends with the process").expect(0).stderr, "");
}

#[test]
fn names_cannot_command_the_terminal() {
    let lab = Lab::new();
    let plain = lab.compile_target("several.c", &[&twin()]);
    let program = lab.path("a\u{1b}[31mb");
    copy(plain, &program).expect("a copy");
    let target = Target::start(&program, &[], Options::default());
    apply(&lab.value_patch("fix", 100), target.pid()).expect(0);
    let pid = target.pid_text();
    for args in
        [&["status", "--threads", "--pid", &pid][..], &["apply", "nothing\u{1b}]0;x\u{7}.so", "--pid", &pid]]
    {
        let outcome = suture(args);
        let said = outcome.stdout + &outcome.stderr;
        assert!(!said.contains(['\u{1b}', '\u{7}']) && said.contains("\\u{1b}"), "{said:?}");
    }
    let name = report::status(target.pid())["comm"].clone();
    assert_eq!(name, "a\u{1b}[31mb", "JSON has it as it is");
}

fn twin() -> String {
    suture_tests::dist::root().join("tests/targets/several-twin.c").to_string_lossy().into_owned()
}

#[test]
fn of_two_commands_at_once_one_is_told_so() {
    let lab = Lab::new();
    let mut target = lab.start_several();
    let (pid, patch) = (target.pid_text(), lab.value_patch("fix", 100));
    let patch = patch.to_string_lossy();
    for _ in 0..4 {
        let both = [0, 1].map(|_| start(&["apply", &patch, "--pid", &pid], None)).map(|run| run.finish());
        let mut codes = both.each_ref().map(|outcome| outcome.code());
        codes.sort_unstable();
        assert_eq!(codes, [0, 1], "{both:?}");
        let refused = both.iter().find(|outcome| outcome.code() == 1).expect("one of them");
        refused.expect_refused_with_hint(&["already enabled"]);
        assert_eq!(target.call(1), 101);
        let both = [0, 1].map(|_| start(&["disable", "fix", "--pid", &pid], None)).map(|run| run.finish());
        let mut codes = both.each_ref().map(|outcome| outcome.code());
        codes.sort_unstable();
        assert_eq!(codes, [0, 1], "{both:?}");
        assert_eq!(target.call(1), 2);
    }
}

#[test]
fn an_interrupted_wait_leaves_the_transition_and_says_how_to_go_on() {
    let lab = Lab::new();
    let mut stall = Stall::start(&lab);
    let pid = stall.pid();
    let patch = stall::patch(&lab, "A", &["blocker", "f"]);
    stall.create_all(&["T1"]);
    stall.order("T1", "enter");
    for signal in [libc::SIGINT, libc::SIGTERM] {
        let applying = start(&["apply", &patch.to_string_lossy(), "--pid", &pid.to_string()], None);
        until_true("the transition", || report::transition(pid)["pending"] == 1);
        sys::kill(applying.pid(), signal);
        let outcome = applying.finish();
        let reverse = format!("suture reverse A --pid {pid}");
        assert!(outcome.expect(3).stdout.contains(&reverse), "{}", outcome.stdout);
        assert!(outcome.stdout.contains("on function blocker"), "{}", outcome.stdout);
        assert_eq!(report::transition(pid)["patch"], "A");
        assert_eq!(stall.order("T1", "f"), 1);
        do_what_it_says(&reverse).expect(0);
        assert_eq!(report::patches(pid), [""; 0]);
    }
    assert_eq!(stall.order("T1", "leave"), 1);
}

/// Runs a command line that the command itself has printed.
fn do_what_it_says(line: &str) -> suture_tests::Outcome {
    let words: Vec<&str> = line.split_whitespace().skip_while(|word| *word != "suture").skip(1).collect();
    assert!(!words.is_empty(), "no command in {line:?}");
    suture(&words)
}

#[test]
fn hints_can_be_pasted() {
    let lab = Lab::new();
    let mut stall = Stall::start(&lab);
    let pid = stall.pid();
    let (a, b) = (stall::patch(&lab, "A", &["blocker"]), stall::patch(&lab, "B", &["f"]));
    let hint = |outcome: &suture_tests::Outcome| {
        outcome.expect_refused_with_hint(&[]);
        let hint = outcome.stderr.lines().find_map(|l| l.trim_start().strip_prefix("try: "));
        hint.expect("a hint").split(';').next().unwrap_or_default().to_owned()
    };
    apply(&b, pid).expect(0);
    do_what_it_says(&hint(&apply(&b, pid))).expect(0);
    assert_eq!(report::patches(pid), [""; 0], "it was disabled");
    do_what_it_says(&hint(&disable("B", pid))).expect(0);
    do_what_it_says(&hint(&on("wait", "B", pid, &[]))).expect(0);
    on("set", "hooking", pid, &[]).expect(2);
    suture(&["set", "hooking", "0", "--pid", &pid.to_string()]).expect(0);
    do_what_it_says(&hint(&apply(&b, pid))).expect(0);
    stall.create_all(&["T1"]);
    stall.order("T1", "enter");
    on("apply", &a.to_string_lossy(), pid, &["--no-wait"]).expect(3);
    let waits = hint(&apply(&b, pid));
    stall.order("T1", "leave");
    // Unless it is over by now.
    let waited = do_what_it_says(&waits);
    assert!(waited.code() == 0 || waited.stderr.contains("not in transition"), "{}", waited.stderr);
    assert_eq!(report::patches(pid), ["A"]);
}

#[test]
fn numbers_and_names_that_are_none() {
    let usage = |args: &[&str], says: &str| {
        let outcome = suture(args);
        assert!(outcome.expect(2).stderr.contains(says), "{args:?}: {}", outcome.stderr);
        assert!(!outcome.stderr.contains("unexpected argument"), "{args:?}: {}", outcome.stderr);
    };
    for pid in ["-1", "0", "one", "99999999999", "1.5", ""] {
        usage(&["apply", "x.so", "--pid", pid], "whole number from 1");
        usage(&["log", "--pid", pid], "whole number from 1");
        usage(&["shadow", "--pid", pid], "whole number from 1");
    }
    for timeout in ["-1", "soon", "1e99", "NaN"] {
        usage(&["apply", "x.so", "--pid", "1", "--timeout", timeout], "0 to wait for ever");
    }
    for args in [&["disable", "", "--pid", "1"][..], &["apply", "", "--pid", "1"], &["status", "--name", ""]]
    {
        usage(args, "a value is required");
    }
    let long = "ä".repeat(300);
    suture(&["status", "--name", &long]).expect_refused_with_hint(&[&long]);
    suture(&["info", &long]).expect_refused(&[&long]);
    suture(&["info", "/"]).expect_refused(&["irectory"]);
}

/// The kernel keeps 15 bytes of a name, wherever they end.
#[test]
fn a_name_is_found_by_what_the_kernel_keeps_of_it() {
    let lab = Lab::new();
    let program = lab.path("ein-sehr-längerer-name");
    copy(lab.compile_target("several.c", &[&twin()]), &program).expect("a copy");
    let mut target = Target::start(&program, &[], Options::default());
    let patch = lab.value_patch("fix", 100);
    suture(&["apply", &patch.to_string_lossy(), "--name", "ein-sehr-längerer-name"]).expect(0);
    assert_eq!(target.call(1), 101);
}

#[test]
fn without_rights_what_is_there_is_not_denied() {
    let lab = Lab::new();
    let target = lab.start_several();
    let seen = suture_tests::command::suture_as(NOBODY, &["status"]);
    assert!(seen.expect(0).stdout.contains("that this user may look at"), "{}", seen.stdout);
    assert!(target.alive());
}
