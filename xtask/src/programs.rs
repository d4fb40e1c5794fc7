//! `cargo xtask bench`, `stress` and `fuzz`: programs of the project with a life of their own.

use anyhow::Result;

use crate::dist;
use crate::step::{Project, run, step};

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

/// Runs random functions against their relocated copies for that long, each time others.
pub fn fuzz(project: &Project, seconds: u64) -> Result<()> {
    step(format!("running random functions against their copies for {seconds} s"));
    let mut tests = project.cargo(["test", "--quiet", "--release", "--package", "suture-redirect"]);
    run(tests.args(["--test", "fuzz", "--", "--nocapture"]).env("SUTURE_FUZZ_SECONDS", seconds.to_string()))
}
