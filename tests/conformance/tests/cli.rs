//! The runner as a program: exit status, JSON, and files with mistakes.

use std::path::PathBuf;
use std::process::{Command, Output};
use suture_tests::dist::dist;

fn run(text: &str, args: &[&str]) -> (PathBuf, Output) {
    let folder = tempfile::tempdir().expect("a directory");
    let file = folder.path().join("x.scn");
    std::fs::write(&file, text).expect("a file");
    let mut command = Command::new(env!("CARGO_BIN_EXE_suture-conformance"));
    let product = dist().suture.parent().expect("a directory").to_owned();
    let output = command.env("SUTURE_DIST", product).arg(&file).args(args).output();
    (file, output.expect("running it"))
}

const PASSES: &str = "row X-1 one\n  steps\n    call f = orig:f\n  events –\n";
const FAILS: &str = "row X-2 two\n  steps\n    call f = A:f\n  events –\n";
const SKIPPED: &str = "row X-3 three\n  skip not today\n  events –\n";

#[test]
fn a_file_with_a_mistake_is_answered_with_its_place() {
    for (text, line, what) in [
        ("row X-1\n  steps\n    enable A = 0\n  events –\n", 3, "patch \"A\" is not declared"),
        ("row X-1\n  patch A{f}\n  steps\n    enable A = 0\n  events UP(A;–)\n", 5, "three parts"),
        ("", 1, "there is no row"),
    ] {
        let (file, output) = run(text, &[]);
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.starts_with(&format!("{}:{line}: ", file.display())) && said.contains(what), "{said}");
        assert!(output.stdout.is_empty(), "{output:?}");
    }
}

#[test]
fn results_are_told_as_text_and_as_json() {
    let (_, output) = run(&[PASSES, FAILS, SKIPPED].concat(), &["--json", "--mode", "preloaded"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let document: serde_json::Value = serde_json::from_slice(&output.stdout).expect("a document");
    assert_eq!(document["schema"], 1);
    let results: Vec<_> = document["rows"].as_array().expect("rows").iter().map(|r| &r["result"]).collect();
    assert_eq!(results, ["pass", "fail", "skip"]);
    assert_eq!(document["rows"][2]["detail"], "not today");
    let (_, output) = run(&[PASSES, SKIPPED].concat(), &[]);
    assert_eq!(output.status.code(), Some(0), "skipped rows do not fail: {output:?}");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains("X            2     0     2"), "both modes, counted: {said}");
}

#[test]
fn a_row_that_nobody_has_is_a_mistake() {
    let (_, output) = run(PASSES, &["--row", "Y"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
}
