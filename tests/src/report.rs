//! Reading the command's JSON documents (schema 1).

use crate::command::suture;
use crate::poll;
use serde_json::Value;
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

/// Where the functions of a patch stand: `armed`, `lost` or `foreign`, in descriptor order.
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
