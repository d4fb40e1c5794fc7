//! Every broken rule is noticed, and none is noticed where it is kept.

use std::path::Path;
use std::time::Duration;

use suture_stress::control::CONTROLS;
use suture_stress::supervise::{End, Outcome, supervise};

fn control(name: &str, mended: bool) -> Outcome {
    let seconds = if mended { "1" } else { "15" };
    let mut arguments: Vec<String> =
        ["--control", name, "--threads", "3", "--seconds", seconds].map(str::to_owned).to_vec();
    arguments.extend(mended.then(|| "--mended".to_owned()));
    let exe = Path::new(env!("CARGO_BIN_EXE_suture-stress"));
    supervise(exe, &arguments, Duration::from_secs(60)).expect("a worker")
}

#[test]
fn every_broken_rule_is_caught() {
    for broken in CONTROLS {
        let outcome = control(broken.name, false);
        assert!(!matches!(outcome.end, End::Failed(_)), "{}: {outcome}", broken.name);
        assert!(outcome.caught(), "{} survived: {outcome}", broken.name);
    }
}

#[test]
fn every_mended_rule_is_clean() {
    for mended in CONTROLS {
        let outcome = control(mended.name, true);
        assert!(outcome.is_clean(), "{} mended: {outcome}", mended.name);
    }
}
