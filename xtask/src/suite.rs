//! `cargo xtask test`: all tests of all packages, and one table of what ran.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::step::{Project, is_root, run as run_command, step};
use crate::{dist, packages};

/// What the test runners of a package said.
#[derive(Debug, Default)]
struct Outcome {
    passed: u64,
    failed: u64,
    ignored: u64,
    took: Duration,
    succeeded: bool,
}

/// Builds what the tests use and runs them, package by package; fails when any fails.
pub fn run(project: &Project, only: &[String]) -> Result<()> {
    let names = chosen(project, only)?;
    prepare(project)?;
    run_packages(project, &names, false)
}

/// Runs tests again and again until the time is over or one fails.
pub fn soak(project: &Project, seconds: u64, long: bool, only: &[String]) -> Result<()> {
    let default = [String::from("suture-tests")];
    let names = chosen(project, if only.is_empty() { &default } else { only })?;
    prepare(project)?;
    let (start, limit) = (Instant::now(), Duration::from_secs(seconds));
    let mut rounds = 0;
    while rounds == 0 || start.elapsed() < limit {
        rounds += 1;
        step(format!("soak: round {rounds}, {} of {seconds} s", start.elapsed().as_secs()));
        run_packages(project, &names, long).with_context(|| format!("failed in round {rounds}"))?;
    }
    println!("{rounds} rounds without a failure");
    Ok(())
}

/// Explores the models of the table of shadow variables. All its words are of another kind then, so it is compiled
/// in a directory of its own. (The models of the transition are among the runtime's tests.)
pub fn models(project: &Project) -> Result<()> {
    step("exploring the models of the table of shadow variables");
    let flags = std::env::var("RUSTFLAGS").unwrap_or_default();
    let mut command = project.cargo(["test", "--quiet", "--release", "--package", "suture-table", "--lib"]);
    command.arg("--target-dir").arg(project.target.join("loom"));
    run_command(command.arg("loom_").env("RUSTFLAGS", format!("{flags} --cfg loom")))
}

fn prepare(project: &Project) -> Result<()> {
    packages::ensure(packages::TESTS)?;
    dist::build(project)?;
    dist::samples(project)
}

fn run_packages(project: &Project, names: &[String], long: bool) -> Result<()> {
    let mut outcomes = Vec::new();
    for name in names {
        step(format!("testing {name}"));
        outcomes.push((name, test(project, name, long)?));
    }
    println!("\n{:<20} {:>7} {:>7} {:>8} {:>8}", "package", "passed", "failed", "ignored", "seconds");
    for (name, outcome) in &outcomes {
        let Outcome { passed, failed, ignored, took, succeeded } = outcome;
        // A runner that died counts no failed test.
        let remark = if *succeeded || *failed > 0 { "" } else { "  did not finish" };
        let seconds = took.as_secs_f64();
        println!("{name:<20} {passed:>7} {failed:>7} {ignored:>8} {seconds:>8.1}{remark}");
    }
    let failed: Vec<&str> =
        outcomes.iter().filter(|(_, outcome)| !outcome.succeeded).map(|(name, _)| name.as_str()).collect();
    if !failed.is_empty() {
        bail!("tests failed in {}", failed.join(", "));
    }
    Ok(())
}

/// Runs the tests of one package, passing their output on and reading the runners' last lines.
fn test(project: &Project, package: &str, long: bool) -> Result<Outcome> {
    let mut command = project.cargo(["test", "--quiet", "--no-fail-fast", "--package", package]);
    if long {
        command.env("SUTURE_LONG", "1");
    }
    if !is_root() {
        // The tests look into other processes; only they need the rights, not the compiler.
        command.env("CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER", "sudo --preserve-env");
    }
    let start = Instant::now();
    let mut child = command.stdout(Stdio::piped()).spawn().context("cannot run cargo test")?;
    let output = child.stdout.take().context("cargo test has no output")?;
    let mut outcome = Outcome::default();
    for line in BufReader::new(output).split(b'\n') {
        let line = line.context("cannot read the output of cargo test")?;
        let mut out = std::io::stdout().lock();
        out.write_all(&line)?;
        out.write_all(b"\n")?;
        count(&String::from_utf8_lossy(&line), &mut outcome);
    }
    outcome.succeeded = child.wait().context("cannot wait for cargo test")?.success();
    outcome.took = start.elapsed();
    Ok(outcome)
}

/// Adds a line such as `test result: ok. 3 passed; 0 failed; 0 ignored; …`.
fn count(line: &str, outcome: &mut Outcome) {
    let Some((_, counts)) = line.split_once("test result: ") else {
        return;
    };
    for field in counts.split([';', '.']) {
        match field.trim().split_once(' ') {
            Some((number, "passed")) => outcome.passed += number.parse::<u64>().unwrap_or(0),
            Some((number, "failed")) => outcome.failed += number.parse::<u64>().unwrap_or(0),
            Some((number, "ignored")) => outcome.ignored += number.parse::<u64>().unwrap_or(0),
            _ => {}
        }
    }
}

/// The packages given, or all default members in the order of the manifest.
fn chosen(project: &Project, only: &[String]) -> Result<Vec<String>> {
    let members = default_members(&mut project.cargo(["metadata", "--no-deps", "--format-version", "1"]))?;
    if only.is_empty() {
        return Ok(members);
    }
    if let Some(unknown) = only.iter().find(|name| !members.contains(name)) {
        bail!("no such package: {unknown}; there are {}", members.join(", "));
    }
    Ok(only.to_vec())
}

fn default_members(metadata: &mut Command) -> Result<Vec<String>> {
    let output = metadata.stderr(Stdio::inherit()).output().context("cannot run cargo metadata")?;
    let document: serde_json::Value =
        serde_json::from_slice(&output.stdout).context("cannot understand cargo metadata")?;
    let packages = document["packages"].as_array().context("cargo metadata lists no packages")?;
    let members = document["workspace_default_members"].as_array().context("no default members")?;
    let name = |id: &serde_json::Value| {
        packages.iter().find(|package| package["id"] == *id)?["name"].as_str().map(String::from)
    };
    members.iter().map(|id| name(id).context("a default member is not among the packages")).collect()
}

#[cfg(test)]
mod tests {
    use super::{Outcome, count};

    #[test]
    fn runner_lines_add_up() {
        let mut outcome = Outcome::default();
        count("running 3 tests", &mut outcome);
        count("test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out", &mut outcome);
        count("test result: FAILED. 10 passed; 4 failed; 0 ignored; 0 measured", &mut outcome);
        assert_eq!((outcome.passed, outcome.failed, outcome.ignored), (12, 4, 1));
    }
}
