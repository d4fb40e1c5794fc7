//! The command under test.

use crate::scn::{Verb, Want};
use serde_json::Value;
use std::path::{Path, PathBuf};
use suture_tests::command::{Outcome, Running, start};
use suture_tests::suture;

/// Seconds a command waits that must come to its end.
const PATIENCE: &str = "30";
/// Seconds one looks that must be held up.
const LOOK: &str = "1";

/// Exit status: done.
const DONE: i32 = 0;
/// Exit status: refused.
const REFUSED: i32 = 1;
/// Exit status: begun, and not at its end.
const UNFINISHED: i32 = 3;

/// An event as the log has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogEvent {
    /// Its number.
    pub number: u64,
    /// Word of the log.
    pub word: String,
    /// Name of the patch.
    pub patch: String,
    /// State or object.
    pub subject: u64,
    /// Errno or another number.
    pub value: u64,
    /// Name of the object, where the log has one.
    pub object: Option<String>,
}

/// Begins a command about a patch, in a process. `libraries` are files that an enable is told of.
#[must_use]
pub fn begin(verb: Verb, patch: &str, file: &Path, libraries: &[PathBuf], pid: i32, want: &Want) -> Running {
    let (pid, file) = (pid.to_string(), file.display().to_string());
    let (verb, subject) = match verb {
        Verb::Enable => ("apply", file.as_str()),
        Verb::Disable => ("disable", patch),
        Verb::Reverse => ("reverse", patch),
        Verb::Force => ("force", patch),
        Verb::Wait => ("wait", patch),
    };
    let wait: &[&str] = match want {
        Want::Started => &["--no-wait"],
        Want::Stalled => &["--timeout", LOOK],
        _ => &["--timeout", PATIENCE],
    };
    let mut args = [&[verb, subject, "--json", "--pid", &pid], wait].concat();
    let files: Vec<String> = libraries.iter().map(|f| f.display().to_string()).collect();
    for file in files.iter().filter(|_| verb == "apply") {
        args.extend(["--object-file", file]);
    }
    start(&args, None)
}

/// Judges how a command ended.
///
/// # Errors
/// What is different.
pub fn judge(outcome: &Outcome, want: &Want) -> Result<(), String> {
    let code = outcome.code();
    let end = match want {
        Want::Done | Want::Later => code == DONE,
        // What nobody holds up may be over before anybody looks.
        Want::Started => code == UNFINISHED || code == DONE,
        Want::Stalled => code == UNFINISHED,
        Want::Refused(errno, words) => {
            let error = error(outcome);
            let text = format!("{} {}", text(&error["message"]), text(&error["hint"]));
            return match text.contains(words.as_str()) && error["errno"] == errno.as_str() && code == REFUSED
            {
                true => Ok(()),
                false => Err(format!("wanted {errno} {words:?}, got {}", said(outcome))),
            };
        }
    };
    if end { Ok(()) } else { Err(format!("wanted {}, got {}", name(want), said(outcome))) }
}

fn name(want: &Want) -> &'static str {
    match want {
        Want::Done | Want::Later => "0",
        Want::Started => "started",
        Want::Stalled => "stalled",
        Want::Refused(..) => "a refusal",
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("")
}

fn error(outcome: &Outcome) -> Value {
    let document: Value = serde_json::from_str(&outcome.stdout).unwrap_or_default();
    let of_process = &document["results"][0]["error"];
    if of_process.is_null() { document["error"].clone() } else { of_process.clone() }
}

/// An outcome in one line.
fn said(outcome: &Outcome) -> String {
    let error = error(outcome);
    if !error.is_null() {
        return format!("exit {}: {} {}", outcome.code(), text(&error["errno"]), text(&error["message"]));
    }
    let document: Value = serde_json::from_str(&outcome.stdout).unwrap_or_default();
    let result = text(&document["results"][0]["result"]).to_owned();
    format!("exit {}: {result}{}", outcome.code(), outcome.stderr.trim_end())
}

/// Puts the runtime into a process.
///
/// # Errors
/// When the command says no.
pub fn inject(pid: i32) -> Result<(), String> {
    judge(&suture(&["inject", "--json", "--pid", &pid.to_string()]), &Want::Done)
}

/// `suture set PATH VALUE`.
///
/// # Errors
/// When it ends differently.
pub fn set(path: &str, value: &str, pid: i32, want: &Want) -> Result<(), String> {
    judge(&suture(&["set", path, value, "--json", "--pid", &pid.to_string()]), want)
}

/// What `suture get PATH` prints.
///
/// # Errors
/// When it fails.
pub fn get(path: &str, pid: i32) -> Result<String, String> {
    let outcome = suture(&["get", path, "--pid", &pid.to_string()]);
    let is_done = outcome.code() == DONE;
    if is_done { Ok(outcome.stdout.trim().to_owned()) } else { Err(said(&outcome) + outcome.stderr.trim()) }
}

/// Status of a process.
///
/// # Errors
/// When the command fails.
pub fn status(pid: i32) -> Result<Value, String> {
    let outcome = suture(&["status", "--threads", "--json", "--pid", &pid.to_string()]);
    judge(&outcome, &Want::Done)?;
    let document: Value = serde_json::from_str(&outcome.stdout).map_err(|e| format!("no status: {e}"))?;
    Ok(document["results"][0]["details"].clone())
}

/// The event log of a process.
///
/// # Errors
/// When the command fails.
pub fn log(pid: i32) -> Result<Vec<LogEvent>, String> {
    let outcome = suture(&["log", "--json", "--pid", &pid.to_string()]);
    judge(&outcome, &Want::Done)?;
    let document: Value = serde_json::from_str(&outcome.stdout).map_err(|e| format!("no log: {e}"))?;
    let events = document["events"].as_array().ok_or("the log has no list of events")?;
    let number = |value: &Value| value.as_u64().unwrap_or(0);
    let one = |event: &Value| LogEvent {
        number: number(&event["number"]),
        word: text(&event["event"]).to_owned(),
        patch: text(&event["patch"]).to_owned(),
        subject: number(&event["subject"]),
        value: number(&event["value"]),
        object: event["object"].as_str().map(str::to_owned),
    };
    Ok(events.iter().map(one).collect())
}
