//! Each way of writing into code, with the ways before it closed: the same patch comes and goes.

use suture_tests::command::{Outcome, suture, suture_without};
use suture_tests::lab::replacing_all;
use suture_tests::sys::Forbidden;
use suture_tests::target::Options;
use suture_tests::{Lab, Snapshot, Target, report};

fn punned(lab: &Lab, mdwe: bool) -> Target {
    lab.start_with("punned.c", &[], Options { mdwe, ..Options::default() })
}

fn run(forbidden: Option<Forbidden>, args: &[&str]) -> Outcome {
    forbidden.map_or_else(|| suture(args), |what| suture_without(what, args))
}

/// Three functions, by the classes asked for, three times; entries end as the file has them.
/// A process keeps the sites it has, so each set of classes needs a process of its own.
fn comes_and_goes(classes: &str, mdwe: bool, forbidden: Option<Forbidden>) {
    let lab = Lab::new();
    let mut target = punned(&lab, mdwe);
    let before = Snapshot::of(target.pid());
    let name = format!("by-{classes}");
    let patch = lab.patch(&name, &replacing_all(&name, &["alpha", "beta", "third"]));
    let pid = target.pid_text();
    for _ in 0..3 {
        let args = ["apply", &patch.to_string_lossy(), "--classes", classes, "--pid", &pid, "--json"];
        let details = report::details(&run(forbidden, &args).expect(0).json());
        let used = |f: &serde_json::Value| f["class"].as_str().is_some_and(|c| classes.contains(c));
        assert!(details["functions"].as_array().is_some_and(|f| f.iter().all(used)), "{details:#}");
        assert_eq!(target.ask("all 1"), "all 1001 1002 1003");
        assert_eq!(report::sites(target.pid(), &name), ["armed"; 3]);
        run(forbidden, &["disable", &name, "--pid", &pid]).expect(0);
        assert_eq!(target.ask("all 1"), "all 11 21 31");
        for function in ["alpha", "beta", "third"] {
            assert_eq!(target.entry(function), target.file_entry(function), "{function}");
        }
    }
    Snapshot::of(target.pid()).assert_same_program(&before);
}

#[test]
fn the_worker_stores_where_the_kernel_forbids_it_to_the_command() {
    for classes in ["PSA", "J"] {
        // Without a pwrite into code and without a poke only the worker is left.
        comes_and_goes(classes, false, Some(Forbidden::MemAndPoke));
    }
}

#[test]
fn ptrace_stores_where_the_program_forbids_it_to_itself_too() {
    for classes in ["PSA", "J"] {
        comes_and_goes(classes, true, Some(Forbidden::Mem));
    }
}

#[test]
fn a_program_that_forbids_it_to_itself_is_patched_from_outside() {
    for classes in ["PSA", "J"] {
        comes_and_goes(classes, true, None);
    }
}

#[test]
fn where_nobody_may_store_nothing_is_changed() {
    let lab = Lab::new();
    let mut target = punned(&lab, true);
    let before = Snapshot::of(target.pid());
    let patch = lab.patch("none", &replacing_all("none", &["alpha", "beta", "third"]));
    let args = ["apply".into(), patch.to_string_lossy().into_owned(), "--pid".into(), target.pid_text()];
    let refused = suture_without(Forbidden::MemAndPoke, &args);
    refused.expect_refused_with_hint(&["cannot write code", "force_override"]);
    Snapshot::of(target.pid()).assert_same_program(&before);
    Snapshot::of(target.pid()).assert_same_code(&before);
    assert_eq!(target.ask("all 1"), "all 11 21 31");
    suture(&args).expect(0);
    assert_eq!(target.ask("all 1"), "all 1001 1002 1003");
}
