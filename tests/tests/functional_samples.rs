//! The samples do what they say. Those for servers and for C++ are tested with what they patch.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use suture_tests::command::{apply, disable, suture};
use suture_tests::dist::root;
use suture_tests::{Lab, Snapshot};

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
    let patch = rust_sample();
    changes_the_price(&lab, &patch, "rust-fix", "price 100 = 10710");
}

fn rust_sample() -> PathBuf {
    let target = root().join("target/samples-rust");
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--quiet", "--release", "--target-dir"]).arg(&target);
    let status = cargo.current_dir(root().join("samples/rust")).status().expect("running cargo");
    assert!(status.success(), "the Rust sample cannot be built");
    target.join("release/libsuture_sample_rust.so")
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
