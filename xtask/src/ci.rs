//! `cargo xtask ci`: what every change has to pass.

use anyhow::Result;

use crate::step::{self, Project, step};
use crate::{header, packages, suite};

const DENY: [&str; 3] = ["--", "-D", "warnings"];

fn check_format(project: &Project) -> Result<()> {
    step("checking the format");
    step::run(&mut project.cargo(["fmt", "--all", "--check"]))?;
    step::run(project.cargo(["fmt", "--check"]).current_dir(project.root.join("samples/rust")))
}

fn check_lints(project: &Project) -> Result<()> {
    step("linting the default members");
    step::run(project.cargo(["clippy", "--quiet", "--all-targets"]).args(DENY))?;
    step("linting the runtime as it is shipped");
    step::run(
        project
            .cargo(["clippy", "--quiet", "--profile", "runtime", "--package", "suture-preload"])
            .args(DENY),
    )?;
    step("linting the Rust sample");
    let target = project.target.join("samples-rust");
    let mut sample = project.cargo(["clippy", "--quiet", "--release", "--target-dir"]);
    step::run(sample.arg(target).args(DENY).current_dir(project.root.join("samples/rust")))
}

/// Runs all checks in order, the quick ones first; the first failure ends it.
pub fn run(project: &Project) -> Result<()> {
    packages::ensure(packages::TESTS)?;
    check_format(project)?;
    step("checking include/suture.h");
    header::run(project, true)?;
    check_lints(project)?;
    suite::models(project)?;
    suite::run(project, &[])
}
