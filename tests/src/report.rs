//! Reading the command's JSON documents (schema 1).

use crate::command::{on, suture};
use crate::poll;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// Details of `results[0]` of a document.
///
/// # Panics
/// When the first result is not `done`, or the document is of another schema.
#[must_use]
#[track_caller]
pub fn details(document: &Value) -> Value {
    assert_eq!(document["schema"], 1, "{document:#}");
    let first = &document["results"][0];
    assert_eq!(first["result"], "done", "{document:#}");
    first["details"].clone()
}

/// `suture apply --json`, which must succeed: its details.
///
/// # Panics
/// When it does not.
#[must_use]
#[track_caller]
pub fn apply(patch: &Path, pid: i32) -> Value {
    details(
        &suture(&["apply", &patch.to_string_lossy(), "--json", "--pid", &pid.to_string()]).expect(0).json(),
    )
}

/// `suture disable --json`, which must succeed: its details.
///
/// # Panics
/// When it does not.
#[must_use]
#[track_caller]
pub fn disable(name: &str, pid: i32) -> Value {
    details(&suture(&["disable", name, "--json", "--pid", &pid.to_string()]).expect(0).json())
}

/// `suture status --json`, which must succeed: its details.
///
/// # Panics
/// When it does not.
#[must_use]
#[track_caller]
pub fn status(pid: i32) -> Value {
    details(&suture(&["status", "--json", "--pid", &pid.to_string()]).expect(0).json())
}

/// Names of the patches in a process, oldest first.
///
/// # Panics
/// When its status cannot be read.
#[must_use]
#[track_caller]
pub fn patches(pid: i32) -> Vec<String> {
    let status = status(pid);
    let rows = status["patches"].as_array().cloned().unwrap_or_default();
    rows.iter().filter_map(|p| p["name"].as_str().map(str::to_owned)).collect()
}

/// Whether a patch is enabled in a process, once no worker is at work there any more and a transition that
/// nobody sees through, as a forked child inherits it, was brought to its end. A process without the runtime
/// has none.
///
/// # Panics
/// When the status cannot be read, or a worker does not leave.
#[must_use]
#[track_caller]
pub fn patched_at_last(pid: i32, name: &str) -> bool {
    poll::until("the worker to leave", || {
        let outcome = suture(&["status", "--json", "--pid", &pid.to_string()]);
        if outcome.code() == 1 && outcome.stdout.contains("without the runtime") {
            return Some(false);
        }
        let status = details(&outcome.expect(0).json());
        if status["worker"] != false {
            return None;
        }
        if status["transition"].is_object() {
            suture(&["wait", name, "--pid", &pid.to_string()]);
            return None;
        }
        let rows = status["patches"].as_array().cloned().unwrap_or_default();
        Some(rows.iter().any(|p| p["name"] == name && p["enabled"] == true))
    })
}

/// Where the functions of a patch stand: `armed`, `unarmed`, `lost`, `foreign` or `gone`, in descriptor order.
///
/// # Panics
/// When the patch is not in the process.
#[must_use]
#[track_caller]
pub fn sites(pid: i32, patch: &str) -> Vec<String> {
    let status = status(pid);
    let rows = status["patches"].as_array().cloned().unwrap_or_default();
    let row = rows.iter().find(|p| p["name"] == patch).unwrap_or_else(|| panic!("no {patch} in {status:#}"));
    let functions = row["functions"].as_array().cloned().unwrap_or_default();
    functions.iter().filter_map(|f| f["site"].as_str().map(str::to_owned)).collect()
}

/// The transition of a process, null when there is none.
///
/// # Panics
/// When its status cannot be read.
#[must_use]
#[track_caller]
pub fn transition(pid: i32) -> Value {
    status(pid)["transition"].clone()
}

/// The patch state of every thread of a process, by thread id.
///
/// # Panics
/// When its status cannot be read.
#[must_use]
#[track_caller]
pub fn thread_states(pid: i32) -> BTreeMap<i32, i64> {
    let document = suture(&["status", "--threads", "--json", "--pid", &pid.to_string()]).expect(0).json();
    let rows = details(&document)["thread_states"].as_array().cloned().unwrap_or_default();
    let number = |row: &Value, field: &str| row[field].as_i64().expect("a number");
    let state = |row| (i32::try_from(number(row, "tid")).expect("a thread id"), number(row, "patch_state"));
    rows.iter().map(state).collect()
}

/// The events of a process so far, as rows of the log.
///
/// # Panics
/// When its log cannot be read.
#[must_use]
#[track_caller]
pub fn log(pid: i32) -> Vec<Value> {
    let document = suture(&["log", "--json", "--pid", &pid.to_string()]).expect(0).json();
    document["events"].as_array().cloned().unwrap_or_default()
}

/// The events of a process so far, as the conformance scenarios write them: `init+ fix`.
///
/// # Panics
/// When its log cannot be read.
#[must_use]
#[track_caller]
pub fn events(pid: i32) -> Vec<String> {
    let text = |field: &Value| field.as_str().unwrap_or("?").to_owned();
    log(pid).iter().map(|e| format!("{} {}", text(&e["event"]), text(&e["patch"]))).collect()
}

/// Waits for the transition of a patch, which may be over by then: now it must be.
///
/// # Panics
/// When it is not.
#[track_caller]
pub fn complete(name: &str, pid: i32) {
    let done = on("wait", name, pid, &[]);
    assert!([0, 1].contains(&done.code()), "{}{}", done.stdout, done.stderr);
    let still = transition(pid);
    assert!(still.is_null(), "{still:#}\n{}{}", done.stdout, done.stderr);
}

/// Waits until no transition is going on.
///
/// # Panics
/// When that never is.
#[track_caller]
pub fn await_end(pid: i32) {
    poll::until_true("the transition to end", || transition(pid).is_null());
}

/// Waits until a transition is held up by one thread, and all others have moved.
///
/// # Panics
/// When it never is.
#[track_caller]
pub fn held_by_one(pid: i32) {
    poll::until_true("all threads but one to move", || {
        let transition = status(pid)["transition"].clone();
        transition["phase"] == "running" && transition["pending"] == 1
    });
}
