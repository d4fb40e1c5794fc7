//! `cargo xtask bench` and `stress`: programs of the project with a life of their own.

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
