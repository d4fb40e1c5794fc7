//! What the tests of the built library share: building it, a program that loads it, a doorbell.

#![allow(dead_code)] // every test file uses its own part of this

pub mod client;
pub mod ring;
pub mod target;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Builds `libsuture.so` as it ships and gives its path.
pub fn library() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| {
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("preload");
        let built = Command::new(env!("CARGO"))
            .args(["build", "--quiet", "--package", "suture-preload", "--profile", "runtime"])
            .arg("--manifest-path")
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("preload/Cargo.toml"))
            .arg("--target-dir")
            .arg(&target)
            .status()
            .expect("cargo runs");
        assert!(built.success(), "building libsuture.so failed");
        target.join("runtime/libsuture.so")
    })
}

/// Builds the victim and gives its path.
pub fn victim() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/common/victim.c");
        let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("victim-{}", std::process::id()));
        let built = Command::new("gcc")
            .args(["-O2", "-pthread", "-o"])
            .arg(&out)
            .arg(source)
            .status()
            .expect("gcc runs");
        assert!(built.success(), "building the victim failed");
        out
    })
}

/// Waits (at most 20 s) until `test` gives a value.
pub fn eventually<T>(what: &str, mut test: impl FnMut() -> Option<T>) -> T {
    let give_up = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(value) = test() {
            return value;
        }
        assert!(Instant::now() < give_up, "timed out waiting for {what}");
        std::thread::sleep(Duration::from_micros(200));
    }
}
