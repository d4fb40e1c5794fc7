//! The samples do what they say. Those for servers and for C++ are tested with what they patch.

use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use suture_tests::command::{apply, disable, suture};
use suture_tests::dist::root;
use suture_tests::target::Options;
use suture_tests::{Lab, Snapshot, Target};

/// Applies a sample that replaces `price`, and takes it back, three times.
fn changes_the_price(lab: &Lab, patch: &Path, name: &str, of_100: &str) {
    let mut target = lab.start("shop.c", &[]);
    let before = Snapshot::of(target.pid());
    suture(&["info", &patch.to_string_lossy()]).expect(0);
    for _ in 0..3 {
        assert_eq!(target.ask("price 100"), "price 100 = 9000");
        apply(patch, target.pid()).expect(0);
        assert_eq!(target.ask("price 100"), of_100);
        disable(name, target.pid()).expect(0);
        assert_eq!(target.entry("price"), target.file_entry("price"));
    }
    assert_eq!(target.ask("price 100"), "price 100 = 9000");
    Snapshot::of(target.pid()).assert_same_program(&before);
}

#[test]
fn the_minimal_sample() {
    let lab = Lab::new();
    let patch = lab.patch_file(&root().join("samples/minimal.c"), "minimal");
    changes_the_price(&lab, &patch, "minimal", "price 100 = 10000");
}

/// The text in README that explains a patch is one.
#[test]
fn the_patch_of_the_first_screen() {
    let readme = fs::read_to_string(root().join("README.md")).expect("README.md");
    let text = readme.split("```c\n").nth(1).and_then(|rest| rest.split("```").next());
    let text = text.expect("a C patch in README.md");
    let lab = Lab::new();
    let patch = lab.patch("fix", text);
    changes_the_price(&lab, &patch, "fix-price", "price 100 = 11900");
}

/// It also calls the function it replaces.
#[test]
fn the_rust_sample() {
    let lab = Lab::new();
    let patch = rust_sample("rust");
    changes_the_price(&lab, &patch, "rust-fix", "price 100 = 10710");
}

fn rust_sample(name: &str) -> PathBuf {
    let target = root().join("target/samples-rust");
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--quiet", "--release", "--target-dir"]).arg(&target);
    let status = cargo.current_dir(root().join("samples").join(name)).status().expect("running cargo");
    assert!(status.success(), "the Rust sample {name} cannot be built");
    target.join(format!("release/libsuture_sample_{}.so", name.replace('-', "_")))
}

/// The program that the samples of states and shadow variables are for, with the runtime preloaded, and
/// without.
fn in_the_warehouse(test: impl Fn(&Lab, Target)) {
    for preload in [true, false] {
        let lab = Lab::new();
        // Callers in the same file would rely on what the old functions leave alone.
        let program = lab.compile_target("warehouse.c", &["-fno-ipa-ra"]);
        test(&lab, Target::start(&program, &[], Options { preload, ..Options::default() }));
    }
}

fn sample(lab: &Lab, name: &str) -> PathBuf {
    lab.patch_file(&root().join(format!("samples/{name}.c")), name)
}

/// Events of callbacks.
fn callbacks(pid: i32) -> Vec<String> {
    let log = suture(&["log", "--json", "--pid", &pid.to_string()]).expect(0).json();
    let rows = log["events"].as_array().cloned().unwrap_or_default();
    let word = |row: &Value| row["event"].as_str().unwrap_or("?").to_owned();
    let kinds = ["pre_patch", "post_patch", "pre_unpatch", "post_unpatch"];
    rows.iter().map(word).filter(|event| kinds.contains(&event.as_str())).collect()
}

/// How many shadow variables the process has.
fn variables(pid: i32) -> usize {
    let shadow = suture(&["shadow", "--json", "--pid", &pid.to_string()]).expect(0).json();
    shadow["variables"].as_array().map(Vec::len).unwrap_or_else(|| panic!("{shadow:#}"))
}

#[test]
fn global_data_is_changed_when_all_threads_can_bear_it() {
    in_the_warehouse(|lab, mut target| {
        let (pid, pid_text) = (target.pid(), target.pid_text());
        let patch = sample(lab, "global-data");
        assert_eq!(target.ask("total 5"), "total 5 = -1");
        // A thread is in old code: the data stays, and turning round leaves it as it was.
        target.tell("enter");
        assert_eq!(target.line(), "inside");
        suture(&["apply", &patch.to_string_lossy(), "--pid", &pid_text, "--timeout", "1"]).expect(3);
        assert_eq!(target.ask("limit"), "limit 4");
        assert_eq!(variables(pid), 1, "prepared");
        suture(&["reverse", "basket", "--pid", &pid_text]).expect(0);
        assert_eq!(target.ask("limit"), "limit 4");
        assert_eq!(variables(pid), 0);
        assert_eq!(callbacks(pid), ["pre_patch"]);
        target.tell("leave");
        assert_eq!(target.line(), "left 10");

        apply(&patch, pid).expect(0);
        assert_eq!(target.ask("limit"), "limit 1000");
        assert_eq!(target.ask("total 5"), "total 5 = 60");
        assert_eq!(target.ask("total 200"), "total 200 = 21900");
        disable("basket", pid).expect(0);
        assert_eq!(target.ask("limit"), "limit 4");
        assert_eq!(target.ask("total 5"), "total 5 = -1");
        assert_eq!(variables(pid), 0);
        assert_eq!(callbacks(pid), ["pre_patch", "pre_patch", "post_patch", "pre_unpatch"]);
        assert!(target.finish().success());
    });
}

/// The next version takes the state over: nothing runs, nothing changes in between, and it can undo what the
/// first version did.
#[test]
fn a_cumulative_patch_keeps_the_state_of_the_one_it_replaces() {
    in_the_warehouse(|lab, mut target| {
        let pid = target.pid();
        let (first, second) = (sample(lab, "global-data"), sample(lab, "global-data-2"));
        apply(&first, pid).expect(0);
        assert_eq!(target.ask("total 20"), "total 20 = 390");
        let before = callbacks(pid);
        apply(&second, pid).expect(0);
        assert_eq!(suture_tests::report::patches(pid), ["basket-2"]);
        assert_eq!(target.ask("limit"), "limit 1000");
        assert_eq!(target.ask("total 20"), "total 20 = 351");
        assert_eq!(callbacks(pid), before, "a state that is kept has no callbacks");
        assert_eq!(variables(pid), 1);
        disable("basket-2", pid).expect(0);
        assert_eq!(target.ask("limit"), "limit 4", "what the first version had kept");
        assert_eq!(target.ask("total 20"), "total 20 = -1");
        assert_eq!(variables(pid), 0);
        // Without the first version it does the same alone.
        apply(&second, pid).expect(0);
        assert_eq!(target.ask("total 20"), "total 20 = 351");
        disable("basket-2", pid).expect(0);
        assert_eq!(target.ask("limit"), "limit 4");
        assert!(target.finish().success());
    });
}

#[test]
fn a_callback_corrects_what_was_made_before() {
    in_the_warehouse(|lab, mut target| {
        let pid = target.pid();
        let patch = sample(lab, "fix-existing");
        assert_eq!(target.ask("open 1"), "opened 1");
        assert_eq!(target.ask("open 2"), "opened 2");
        assert_eq!(target.ask("take 1 100001"), "take 1 = -1", "there is a bug");
        apply(&patch, pid).expect(0);
        assert_eq!(target.ask("take 2 100001"), "take 2 = -1");
        assert_eq!(target.ask("take 2 100000"), "take 2 = 0");
        assert_eq!(target.ask("open 3"), "opened 3");
        assert_eq!(target.ask("take 3 100002"), "take 3 = -1");
        assert_eq!(target.ask("take 3 100000"), "take 3 = 0");
        assert_eq!(variables(pid), 2, "the shelves that were corrected");
        assert_eq!(target.ask("shut 1"), "shut 1");
        assert_eq!(variables(pid), 1);
        disable("no-overdraw", pid).expect(0);
        assert_eq!(target.ask("take 2 7"), "take 2 = -7", "as it was");
        assert_eq!(target.ask("take 3 7"), "take 3 = -1", "it was never otherwise");
        assert_eq!(variables(pid), 0);
        assert!(target.finish().success());
    });
}

/// In C and in Rust.
#[test]
fn objects_get_locks_they_have_no_room_for() {
    let rust = rust_sample("rust-lock");
    in_the_warehouse(|lab, mut target| {
        let pid = target.pid();
        let c = sample(lab, "shadow-lock");
        for (patch, name) in [(&c, "shelf-lock"), (&rust, "rust-lock")] {
            assert_eq!(target.ask("open 1"), "opened 1");
            apply(patch, pid).expect(0);
            assert_eq!(target.ask("open 2"), "opened 2");
            assert_eq!(variables(pid), 1, "made with the shelf");
            assert_eq!(target.ask("rush 2 8 2000"), "rush 2 = 84000");
            assert_eq!(target.ask("rush 1 8 2000"), "rush 1 = 84000", "made with the first use");
            assert_eq!(variables(pid), 2);
            assert_eq!(target.ask("shut 2"), "shut 2");
            assert_eq!(variables(pid), 1, "gone with the shelf");
            disable(name, pid).expect(0);
            assert_eq!(variables(pid), 0, "gone with the patch");
            assert_eq!(target.ask("shut 1"), "shut 1");
        }
        assert!(target.finish().success());
    });
}

/// Whoever opens a sample finds what it is for and how to use it; whoever reads README finds all samples.
#[test]
fn samples_are_explained() {
    let readme = fs::read_to_string(root().join("README.md")).expect("README.md");
    let mut seen = 0;
    for entry in fs::read_dir(root().join("samples")).expect("samples") {
        let path = entry.expect("an entry").path();
        let source = if path.is_dir() { path.join("src/lib.rs") } else { path.clone() };
        let text = fs::read_to_string(&source).unwrap_or_else(|e| panic!("{}: {e}", source.display()));
        for word in ["Purpose:", "Usage:"] {
            assert!(text.contains(word), "{} lacks {word}", source.display());
        }
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        assert!(readme.contains(&format!("`samples/{name}`")), "README.md does not name samples/{name}");
        seen += 1;
    }
    assert!(seen >= 5, "only {seen} samples");
}
