//! `cargo xtask sanitize`: the table of shadow variables under miri, AddressSanitizer and ThreadSanitizer.
//!
//! Needs a nightly toolchain with `miri` and `rust-src`, which rustup adds; nothing else of the project does.

use anyhow::{Context, Result};
use std::process::Command;

use crate::step::{Project, run, step};

/// With the sanitizers the standard library is compiled, too, so that its words are watched like ours.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// What watches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Tool {
    /// An interpreter that knows the rules of the language, and gives loads old values where they may have them
    Miri,
    /// Bytes that are not one's own
    Address,
    /// Accesses that nothing orders
    Thread,
}

/// Runs the tests of the table under the tools given, or all.
pub fn run_all(project: &Project, tools: &[Tool]) -> Result<()> {
    let mut nightly = Command::new("rustup");
    nightly.args(["component", "add", "--toolchain", "nightly", "miri", "rust-src"]);
    run(&mut nightly).context("a nightly toolchain is needed: rustup toolchain install nightly")?;
    let all = [Tool::Miri, Tool::Address, Tool::Thread];
    for tool in if tools.is_empty() { &all } else { tools } {
        match tool {
            Tool::Miri => miri(project)?,
            Tool::Address => {
                sanitizer(project, "address", &["shadow::", "--skip", FORKS])?;
                // Alone: each of its thousand forks would copy the page tables of all that the others leave.
                sanitizer(project, "address", &[FORKS])?;
            }
            // A process with threads that forks is beyond it. The other tool follows the child.
            Tool::Thread => sanitizer(project, "thread", &["shadow::", "--skip", FORKS])?,
        }
    }
    Ok(())
}

/// The test that forks.
const FORKS: &str = "a_forked_child_has_a_working_table";

/// The protocol over vectors: the runtime's own memory is made by system calls, which miri does not know.
fn miri(project: &Project) -> Result<()> {
    step("interpreting the table of shadow variables");
    // With eight schedules. The statistics of the hash have nothing to do with memory.
    let flags = "-Zmiri-many-seeds=0..8";
    let mut command = cargo(project, "miri");
    command.args(["miri", "test", "--package", "suture-table", "--lib", "--", "--skip", "hash"]);
    run(command.env("MIRIFLAGS", flags))
}

/// The table over its real memory, with real threads. `tests` are arguments of the test program.
fn sanitizer(project: &Project, name: &str, tests: &[&str]) -> Result<()> {
    step(format!("running the tests of the shadow variables with the {name} sanitizer"));
    let mut command = cargo(project, name);
    command.args(["test", "-Zbuild-std", "--target", TARGET, "--release", "--package", "suture-runtime"]);
    command.args(["--lib", "--"]).args(tests);
    // Each test has a table of its own, which stays as the library's does: that is no leak.
    command.env("ASAN_OPTIONS", "detect_leaks=0");
    run(command.env("RUSTFLAGS", format!("-Zsanitizer={name}")))
}

/// The nightly cargo, in a directory of its own.
fn cargo(project: &Project, name: &str) -> Command {
    let mut command = Command::new("rustup");
    command.args(["run", "nightly", "cargo"]).current_dir(&project.root);
    command.env("CARGO_TARGET_DIR", project.target.join(format!("sanitize-{name}")));
    // What runs this is the project's own toolchain, and says so to its children.
    command.env_remove("RUSTUP_TOOLCHAIN").env_remove("CARGO").env_remove("RUSTC");
    command
}
