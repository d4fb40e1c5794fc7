//! `cargo xtask bench`, `conformance`, `stress`, `servers`, `census` and `fuzz`: programs of the project with a life of their own.

use anyhow::Result;

use crate::step::{Project, is_root, privileged, run, step};
use crate::{dist, packages};

/// Runs the benchmarks against the finished products, with the arguments given.
pub fn bench(project: &Project, args: &[String]) -> Result<()> {
    dist::build(project)?;
    step("measuring");
    run(project.cargo(["run", "--quiet", "--release", "--package", "suture-benches", "--"]).args(args))
}

/// Runs the stress program with the arguments given.
pub fn stress(project: &Project, args: &[String]) -> Result<()> {
    step("stressing code stores");
    run(project.cargo(["run", "--quiet", "--release", "--package", "suture-stress", "--"]).args(args))
}

/// Runs the campaign on the distribution's servers with the arguments given.
pub fn servers(project: &Project, args: &[String]) -> Result<()> {
    packages::ensure(packages::SERVERS)?;
    dist::build(project)?;
    step("patching servers under load");
    of_the_tests(project, "suture-servers", args)
}

/// Counts in running programs what can be redirected, with the arguments given.
pub fn census(project: &Project, args: &[String]) -> Result<()> {
    packages::ensure(packages::CENSUS)?;
    dist::build(project)?;
    step("counting functions of running programs");
    of_the_tests(project, "suture-census", args)
}

/// Runs a program of the tests that looks into other processes.
fn of_the_tests(project: &Project, program: &str, args: &[String]) -> Result<()> {
    let mut command = project.cargo(["run", "--quiet", "--release", "--package", "suture-tests"]);
    if !is_root() {
        // Only it needs the rights, not the compiler.
        command.env("CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER", "sudo --preserve-env");
    }
    run(command.args(["--bin", program, "--"]).args(args))
}

/// Plays conformance rows with the arguments given, which may name files relative to where the user is.
pub fn conformance(project: &Project, args: &[String]) -> Result<()> {
    packages::ensure(packages::TESTS)?;
    dist::build(project)?;
    step("building the runner");
    run(&mut project.cargo(["build", "--quiet", "--package", "suture-conformance"]))?;
    let dist = format!("SUTURE_DIST={}", project.dist().display());
    run(privileged("env").arg(dist).arg(project.target.join("debug/suture-conformance")).args(args))
}

/// Runs random functions against their relocated copies for that long, each time others.
pub fn fuzz(project: &Project, seconds: u64) -> Result<()> {
    step(format!("running random functions against their copies for {seconds} s"));
    let mut tests = project.cargo(["test", "--quiet", "--release", "--package", "suture-redirect"]);
    run(tests.args(["--test", "fuzz", "--", "--nocapture"]).env("SUTURE_FUZZ_SECONDS", seconds.to_string()))
}
