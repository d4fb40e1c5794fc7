//! Running the command under test.

use crate::error::Error;
use crate::lab::Lab;
use serde_json::Value;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// What one run of the command took and said.
#[derive(Clone, Debug)]
pub struct Run {
    /// From before the start of the process until its end was seen.
    pub wall: Duration,
    /// Its JSON document.
    pub report: Value,
}

impl Run {
    /// A number from the details about the first process.
    ///
    /// # Errors
    /// When the report has no such number.
    pub fn detail(&self, key: &str) -> Result<f64, Error> {
        let details = &self.report["results"][0]["details"];
        details[key].as_f64().ok_or_else(|| Error::Command {
            args: "apply --json".into(),
            status: "a report".into(),
            said: format!("no number {key:?} in {details}"),
        })
    }
}

/// Enables a patch in processes.
///
/// # Errors
/// When the command does not exit with 0.
pub fn apply(lab: &Lab, patch: &Path, pids: &[i32], classes: Option<&str>) -> Result<Run, Error> {
    match classes {
        Some(classes) => apply_with(lab, patch, pids, &["--classes", classes]),
        None => apply_with(lab, patch, pids, &[]),
    }
}

/// The same, with other options.
///
/// # Errors
/// When the command does not exit with 0.
pub fn apply_with(lab: &Lab, patch: &Path, pids: &[i32], more: &[&str]) -> Result<Run, Error> {
    let patch = patch.to_string_lossy();
    let args = [&["apply", &patch], more].concat();
    run(lab, args.into_iter().map(str::to_owned).collect(), pids)
}

/// Begins to enable a patch whose transition a thread holds up.
///
/// # Errors
/// When the command does not say that it is unfinished.
pub fn begin(lab: &Lab, patch: &Path, pid: i32) -> Result<Run, Error> {
    const UNFINISHED: i32 = 3;
    let args = ["apply".to_owned(), patch.to_string_lossy().into_owned(), "--no-wait".to_owned()];
    run_to(lab, args.to_vec(), &[pid], UNFINISHED)
}

/// Puts the runtime into a process.
///
/// # Errors
/// When the command does not exit with 0.
pub fn inject(lab: &Lab, pid: i32) -> Result<Run, Error> {
    run(lab, vec!["inject".to_owned()], &[pid])
}

/// Disables a patch in processes.
///
/// # Errors
/// When the command does not exit with 0.
pub fn disable(lab: &Lab, name: &str, pids: &[i32]) -> Result<Run, Error> {
    run(lab, vec!["disable".to_owned(), name.to_owned()], pids)
}

/// Reads a patch file and touches no process: what the command costs the machine by just running.
///
/// # Errors
/// When the command does not exit with 0.
pub fn info(lab: &Lab, patch: &Path) -> Result<Run, Error> {
    run(lab, vec!["info".to_owned(), patch.to_string_lossy().into_owned()], &[])
}

fn run(lab: &Lab, args: Vec<String>, pids: &[i32]) -> Result<Run, Error> {
    run_to(lab, args, pids, 0)
}

fn run_to(lab: &Lab, mut args: Vec<String>, pids: &[i32], status: i32) -> Result<Run, Error> {
    args.push("--json".into());
    if !pids.is_empty() {
        args.push("--pid".into());
        args.extend(pids.iter().map(ToString::to_string));
    }
    let start = Instant::now();
    let done = Command::new(&lab.suture).args(&args).output();
    let wall = start.elapsed();
    let done = done.map_err(crate::error::io("run the command"))?;
    let failed =
        |said: String| Error::Command { args: args.join(" "), status: done.status.to_string(), said };
    if done.status.code() != Some(status) {
        let both = [done.stderr.as_slice(), done.stdout.as_slice()].concat();
        return Err(failed(String::from_utf8_lossy(&both).chars().take(2000).collect()));
    }
    let report =
        serde_json::from_slice(&done.stdout).map_err(|e| failed(format!("no JSON document: {e}")))?;
    Ok(Run { wall, report })
}
