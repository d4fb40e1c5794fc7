//! Another library that redirects functions, in the same program and on the same function.

use std::path::Path;
use suture_tests::command::{apply, disable, suture};
use suture_tests::target::Options;
use suture_tests::{Lab, Target, report};

/// A program with `ilhook` in it, which writes a jump of 5 or 14 bytes over the entry.
fn hooked() -> Target {
    Target::start(Path::new(env!("CARGO_BIN_EXE_suture-hooked")), &[], Options::default())
}

#[test]
fn an_entry_that_belongs_to_another_library_is_refused() {
    let lab = Lab::new();
    let patch = lab.value_patch("fix", 100);
    let mut target = hooked();
    assert_eq!(target.ask("hook"), "hooked");
    assert_eq!(target.call(1), 1002);
    let foreign = target.entry("value");
    assert_ne!(foreign, target.file_entry("value"));
    let named: Vec<String> = foreign.iter().take(5).map(|byte| format!("{byte:02x}")).collect();
    let named = format!("[{}] instead of the file's", named.join(", "));
    apply(&patch, target.pid()).expect_refused_with_hint(&["value", &named]);
    let json =
        suture(&["apply", "--json", &patch.to_string_lossy(), "--pid", &target.pid_text()]).expect(1).json();
    assert_eq!(json["results"][0]["error"]["errno"], "EBUSY", "{json:#}");
    assert_eq!(target.entry("value"), foreign);
    assert_eq!(target.call(1), 1002, "the other one still works");
    assert_eq!(report::patches(target.pid()), [""; 0]);
    assert_eq!(target.ask("unhook"), "unhooked");
    apply(&patch, target.pid()).expect(0);
    assert_eq!(target.call(1), 101);
    disable("fix", target.pid()).expect(0);
    assert_eq!(target.call(1), 2);
    assert_eq!(target.entry("value"), target.file_entry("value"));
    assert!(target.finish().success());
}

/// The other library finds our jump at the entry and carries it along.
#[test]
fn a_library_that_hooks_over_a_patch_is_noticed_and_left_alone() {
    let lab = Lab::new();
    let patch = lab.value_patch("fix", 100);
    let mut target = hooked();
    apply(&patch, target.pid()).expect(0);
    assert_eq!(report::sites(target.pid(), "fix"), ["armed"]);
    assert_eq!(target.ask("hook"), "hooked");
    let foreign = target.entry("value");
    assert_eq!(target.call(1), 1101, "theirs before ours");
    assert_eq!(report::sites(target.pid(), "fix"), ["foreign"]);
    assert_eq!(report::status(target.pid())["sites_lost"], 1);
    // What comes and goes changes what our part of the way leads to; their bytes stay.
    disable("fix", target.pid()).expect(0);
    assert_eq!(target.call(1), 1002);
    assert_eq!(target.entry("value"), foreign);
    assert_eq!(report::patches(target.pid()), [""; 0]);
    // They put back what they had found: our jump, which still leads to the old function.
    assert_eq!(target.ask("unhook"), "unhooked");
    assert_eq!(target.call(1), 2);
    apply(&patch, target.pid()).expect(0);
    assert_eq!(target.call(1), 101);
    assert_eq!(report::sites(target.pid(), "fix"), ["armed"]);
    disable("fix", target.pid()).expect(0);
    assert_eq!(target.call(1), 2);
    assert_eq!(target.entry("value"), target.file_entry("value"));
    assert!(target.finish().success());
}
