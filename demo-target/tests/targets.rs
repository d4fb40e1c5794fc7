//! Every target compiles without a warning and answers as its first comment says.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Compiles a target and returns the program.
fn build(source: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("targets");
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join(source.replace('.', "-"));
    let compiler = if source.ends_with(".cpp") { "c++" } else { "cc" };
    let output = Command::new(compiler)
        .args(["-O2", "-g", "-Wall", "-Wextra", "-Werror", "-pthread"])
        .arg(folder.join(source))
        .arg("-o")
        .arg(&program)
        .output()
        .unwrap_or_else(|error| panic!("cannot run {compiler}: {error}"));
    assert!(output.status.success(), "{source}: {}", String::from_utf8_lossy(&output.stderr));
    program
}

/// Answers of a target to some commands, `ready` first; it must end with status 0.
fn answers(source: &str, args: &[&str], commands: &[&str]) -> Vec<String> {
    let mut child = Command::new(build(source))
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the program was just made");
    let questions = commands.iter().flat_map(|command| [command, "\n"]).collect::<String>();
    let mut stdin = child.stdin.take().expect("it was piped");
    stdin.write_all(questions.as_bytes()).expect("the target reads");
    drop(stdin);
    let output = child.wait_with_output().expect("the target ends at the end of its input");
    assert!(output.status.success(), "{source}: {}", output.status);
    String::from_utf8(output.stdout).expect("answers are text").lines().map(String::from).collect()
}

/// The number behind a word of an answer.
fn number(answer: &str, word: &str) -> f64 {
    let mut words = answer.split(' ').skip_while(|w| *w != word).skip(1);
    words
        .next()
        .and_then(|n| n.parse().ok())
        .unwrap_or_else(|| panic!("no number after {word:?} in {answer:?}"))
}

#[test]
fn single_puts_characters() {
    let said = answers("single.c", &[], &["call 4", "fputc 1000", "written", "nonsense"]);
    assert_eq!((said[0].as_str(), said[1].as_str()), ("ready", "call 4 = 5"));
    assert!(number(&said[2], "ns") > 0.0);
    assert!(number(&said[3], "written") >= 1000.0);
    assert_eq!(said[4], "unknown nonsense");
}

#[test]
fn spin_turns_with_and_without_threads() {
    for threads in ["0", "2"] {
        let said = answers("spin.c", &[threads], &["call 1", "turns"]);
        assert_eq!(said[1], "call 1 = 2");
        assert_eq!(number(&said[2], "new"), 0.0, "nobody patched it");
        if threads == "0" {
            assert!(number(&said[2], "turns") >= f64::from(1 << 20));
        }
    }
}

#[test]
fn mask_masks_all_but_the_impossible() {
    let said = answers("mask.c", &["2"], &["mask"]);
    // KILL and STOP cannot be masked; libc keeps 32 and 33 for itself.
    assert_eq!(said[1], "mask fffffffe7ffbfeff pending 0 early 0");
}

#[test]
fn mainexit_lives_on() {
    assert_eq!(answers("mainexit.c", &[], &["threads", "call 0"]), ["ready", "threads 3", "call 0 = 1"]);
}

#[test]
fn threads_wait_undisturbed() {
    let said = answers("threads.c", &["24", "2"], &["poll 20", "early", "calls"]);
    assert!(number(&said[1], "took") >= 20.0);
    assert_eq!(said[2], "early 0");
    assert_eq!(number(&said[3], "new"), 0.0, "nobody patched it");
}

#[test]
fn cxx_leaves_no_guard_behind() {
    let said = answers("cxx.cpp", &[], &["call 3", "call 0", "cancel", "exit"]);
    let wanted = [
        "ready",
        "call 3 = 114 guards 0",
        "call 0 caught depth 0 guards 0",
        "cancel 1 guards 0",
        "exit 7 guards 0",
    ];
    assert_eq!(said, wanted);
}

#[test]
fn regs_finds_nothing_wrong_undisturbed() {
    let said = answers("regs.c", &["4"], &["rounds 400", "report"]);
    assert!(number(&said[2], "rounds") >= 400.0);
    assert_eq!(number(&said[2], "wrong"), 0.0, "{}", said[2]);
}

#[test]
fn the_warehouse_has_its_bugs() {
    let commands = ["limit", "total 4", "total 5", "open 2", "take 2 100001", "shut 2", "take 2 1"];
    let said = answers("warehouse.c", &[], &commands);
    let expected = ["ready", "limit 4", "total 4 = 46", "total 5 = -1", "opened 2", "take 2 = -1", "shut 2"];
    assert_eq!(said[..7], expected);
    assert_eq!(said[7], "unknown take 2 1");
}
