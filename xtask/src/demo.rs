//! `cargo xtask demo`: before, apply, after, disable, after, each compared with what it must be.

mod load;
mod redis;
mod service;

use std::fmt;
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use crate::dist;
use crate::step::{Project, shown, step};

/// What is patched.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Target {
    /// The project's own multi-threaded demo service
    Service,
    /// The distribution's redis-server
    Redis,
}

/// Builds everything and runs the demo; fails when any step differs from what is expected.
pub fn run(project: &Project, target: Target) -> Result<()> {
    dist::build(project)?;
    dist::samples(project)?;
    let mut script = Script::default();
    match target {
        Target::Service => service::run(project, &mut script)?,
        Target::Redis => redis::run(project, &mut script)?,
    }
    script.finish()
}

/// Compares what is seen with what must be seen, and counts the differences.
#[derive(Debug, Default)]
struct Script {
    steps: u32,
    wrong: u32,
}

impl Script {
    /// One observation.
    fn expect<T: PartialEq + fmt::Display>(&mut self, what: &str, found: T, wanted: T) {
        self.steps += 1;
        if found == wanted {
            println!("  ok     {what} -> {found}");
        } else {
            self.wrong += 1;
            println!("  WRONG  {what} -> {found}, expected {wanted}");
        }
    }

    /// One condition.
    fn require(&mut self, what: &str, holds: bool) {
        self.expect(what, if holds { "yes" } else { "no" }, "yes");
    }

    /// Runs the command under test and shows what it prints; it must exit with 0.
    fn suture(&mut self, command: &mut Command) -> Result<String> {
        step(shown(command));
        let output = command.output().with_context(|| format!("cannot run {}", shown(command)))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        for line in text.lines().chain(String::from_utf8_lossy(&output.stderr).lines()) {
            println!("  | {line}");
        }
        self.expect("exit code", output.status.code().unwrap_or(-1), 0);
        Ok(text)
    }

    fn finish(self) -> Result<()> {
        if self.wrong > 0 {
            bail!("{} of {} steps differ from what is expected", self.wrong, self.steps);
        }
        println!("all {} steps as expected", self.steps);
        Ok(())
    }
}
