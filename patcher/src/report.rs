//! What the user sees: plain lines, or one JSON document (schema 1).

use crate::error::Error;
use crate::shadow::Count;
use crate::states::StateStatus;
use crate::status::{FunctionStatus, PatchStatus, ProcessStatus};
use crate::transition::TransitionStatus;
use serde::Serialize;
use serde_json::{Value, json};
use std::fmt::Write;

/// Version of the JSON documents. It moves when a field changes its meaning or goes away.
pub const SCHEMA: u32 = 1;

/// How a command ended on one process.
#[derive(Debug)]
pub enum Ending<T> {
    /// Done, with details.
    Done(T),
    /// Begun, and not at its end yet.
    Unfinished(T),
    /// The process does not concern this patch; why.
    Skipped(String),
    /// Refused or failed; the process is unchanged.
    Failed(Error),
}

/// A command's outcome on one process.
#[derive(Debug)]
pub struct Outcome<T> {
    /// Process id.
    pub pid: i32,
    /// Its name, or empty when it could not be read.
    pub comm: String,
    /// How it ended.
    pub ending: Ending<T>,
}

/// Exit status over all processes.
#[must_use]
pub fn exit_code<T>(outcomes: &[Outcome<T>]) -> u8 {
    let failed = |o: &&Outcome<T>| matches!(o.ending, Ending::Failed(_));
    let unfinished = outcomes.iter().any(|o| matches!(o.ending, Ending::Unfinished(_)));
    match (outcomes.iter().filter(failed).count(), outcomes) {
        (0, _) if unfinished => crate::error::EXIT_UNFINISHED,
        (0, _) => crate::error::EXIT_DONE,
        (_, [Outcome { ending: Ending::Failed(e), .. }]) => e.exit_code(),
        (n, all) if n == all.len() => crate::error::EXIT_REFUSED,
        _ => crate::error::EXIT_PARTLY,
    }
}

/// An error as JSON.
#[must_use]
pub fn error_json(error: &Error) -> Value {
    json!({ "errno": error.errno(), "message": error.to_string(), "hint": error.hint() })
}

/// An error as lines for a terminal.
#[must_use]
pub fn error_text(error: &Error) -> String {
    let mut text = format!("suture: {error}\n");
    if let Some(hint) = error.hint() {
        let _ = writeln!(text, "  try: {hint}");
    }
    text
}

/// Outcomes as JSON.
pub fn outcomes_json<T: Serialize>(command: &str, outcomes: &[Outcome<T>]) -> Value {
    let results = outcomes.iter().map(|o| {
        let mut row = json!({ "pid": o.pid, "comm": o.comm });
        match &o.ending {
            Ending::Done(details) => {
                row["result"] = "done".into();
                row["details"] = serde_json::to_value(details).unwrap_or_default();
            }
            Ending::Unfinished(details) => {
                row["result"] = "unfinished".into();
                row["details"] = serde_json::to_value(details).unwrap_or_default();
            }
            Ending::Skipped(why) => {
                row["result"] = "skipped".into();
                row["why"] = why.as_str().into();
            }
            Ending::Failed(error) => {
                row["result"] = "failed".into();
                row["error"] = error_json(error);
            }
        }
        row
    });
    json!({ "schema": SCHEMA, "command": command, "results": results.collect::<Vec<_>>() })
}

/// Status of processes as lines.
#[must_use]
pub fn status_text(status: &ProcessStatus) -> String {
    let mut text = String::new();
    let patches = match status.patches.len() {
        0 => "no patch".to_owned(),
        1 => "1 patch".to_owned(),
        n => format!("{n} patches"),
    };
    let _ = writeln!(
        text,
        "{} (process {}, {} threads): {patches}, runtime {}, {} KiB mapped{}",
        status.comm,
        status.pid,
        status.threads,
        status.runtime,
        status.mapped_bytes / 1024,
        if status.worker { ", a command is at work" } else { "" },
    );
    // One that is on its way is coming, unless the transition goes the other way.
    let coming = status.transition.as_ref().is_some_and(|t| t.direction != "unpatching");
    status.patches.iter().for_each(|patch| patch_text(&mut text, patch, coming));
    if let Some(transition) = &status.transition {
        transition_text(&mut text, transition);
    }
    for thread in status.thread_states.iter().flatten() {
        let _ =
            writeln!(text, "  thread {} ({}): patch_state {}", thread.tid, thread.name, thread.patch_state);
    }
    status.shadow.iter().for_each(|count| text += &shadow_line("  ", count));
    if !status.hooking {
        let _ = writeln!(text, "  hooking is switched off: patches are refused");
    }
    for hook in &status.hooks {
        let _ = writeln!(text, "  runtime hook {} (class {}): {}", hook.name, hook.class, hook.site);
    }
    for image in &status.images_kept {
        let (patch, size, why) = (image.patch, image.bytes / 1024, image.why);
        let _ = writeln!(text, "  code of patch number {patch}, which has gone, is kept ({size} KiB): {why}");
    }
    if status.sites_lost > 0 {
        let _ = writeln!(
            text,
            "  WARNING: {} redirection(s) lost: a probe, breakpoint or madvise undid the jump",
            status.sites_lost
        );
    }
    text
}

fn patch_text(text: &mut String, patch: &PatchStatus, coming: bool) {
    let state = match (patch.enabled, patch.transition) {
        (true, false) => "enabled",
        (false, true) if coming => "being enabled",
        (true, true) => "enabled, in transition",
        (false, true) => "being disabled",
        (false, false) => "prepared, not enabled",
    };
    let since = utc(patch.since_ns);
    let _ = writeln!(text, "  {}. {}  {state}  since {since}", patch.stack_order, patch.name);
    if let Some(file) = &patch.file {
        let _ = writeln!(text, "     file {file}");
    }
    patch.functions.iter().for_each(|f| function_line(text, f));
    patch.states.iter().for_each(|s| state_line(text, &patch.name, s));
    if let Some(callback) = &patch.last_callback {
        let _ = writeln!(text, "     {}", callback.text());
    }
    for object in &patch.objects_absent {
        let _ = writeln!(text, "     {object}: not loaded, not patched: no file of it was known");
    }
    patch.late.iter().for_each(|late| {
        let _ = writeln!(text, "     {}", late.text());
    });
    if let Some(gdb) = &patch.gdb {
        let _ = writeln!(text, "     gdb: {gdb}");
    }
}

fn transition_text(text: &mut String, t: &TransitionStatus) {
    let forced = if t.forced { ", forced" } else { "" };
    let _ = writeln!(
        text,
        "  transition of {}: {}{forced}, {} of {} threads to go, {} failed attempt(s), since {}",
        t.patch,
        t.direction,
        t.pending,
        t.threads,
        t.attempts,
        utc(t.since_ns)
    );
    if let Some(what) = t.waits_for.filter(|what| *what != "threads") {
        let _ = writeln!(text, "     waits for {what}");
    }
    if let Some(callback) = &t.callback {
        let _ = writeln!(text, "     {callback}");
    }
    for blocker in &t.blockers {
        let _ = writeln!(text, "     {} ({}): {}", blocker.tid, blocker.name, blocker.why);
        for function in &blocker.backtrace {
            let _ = writeln!(text, "       {function}");
        }
    }
}

fn state_line(text: &mut String, patch: &str, state: &StateStatus) {
    let flags = [(state.is_shadow, " is_shadow"), (state.block_disable, " block_disable")];
    let flags: String = flags.iter().filter(|(set, _)| *set).map(|(_, name)| *name).collect();
    let others: Vec<&str> = state.holders.iter().map(String::as_str).filter(|h| *h != patch).collect();
    let others =
        if others.is_empty() { String::new() } else { format!("  also held by {}", others.join(" ")) };
    let _ = writeln!(text, "     state {}{flags}{others}", state.id);
}

/// How many shadow variables an id has.
#[must_use]
pub fn shadow_line(indent: &str, count: &Count) -> String {
    let variables = if count.variables == 1 { "variable" } else { "variables" };
    format!(
        "{indent}shadow id {} ({:#x}): {} {variables}, {} bytes\n",
        count.id, count.id, count.variables, count.bytes
    )
}

fn function_line(text: &mut String, f: &FunctionStatus) {
    let mark = match f.site {
        "armed" if f.direct => "  direct".into(),
        "armed" => String::new(),
        "unarmed" => "  not armed".into(),
        "waiting" => "  until it is loaded".into(),
        site => format!("  SITE {}", site.to_uppercase()),
    };
    let nop = if f.nop { "  (back to the old function)" } else { "" };
    let _ = writeln!(
        text,
        "     {}: {}  class {}  {:#x} -> {:#x}{nop}{mark}",
        f.object, f.name, f.class, f.old, f.new
    );
}

/// A time as `2026-11-24 13:05:07 UTC` (days to civil date after Hinnant's public-domain algorithm).
#[must_use]
pub fn utc(ns: u64) -> String {
    let seconds = ns / 1_000_000_000;
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let z = days + 719_468;
    let era = z / 146_097;
    let doe = z % 146_097;
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let day = doy - (153 * mp + 2) / 5 + 1;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    let year = yoe + era * 400 + u64::from(month <= 2);
    format!("{year}-{month:02}-{day:02} {:02}:{:02}:{:02} UTC", rest / 3600, rest / 60 % 60, rest % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_civil_utc() {
        assert_eq!(utc(0), "1970-01-01 00:00:00 UTC");
        assert_eq!(utc(951_827_696_000_000_000), "2000-02-29 12:34:56 UTC");
        assert_eq!(utc(1_795_525_507_999_999_999), "2026-11-24 13:05:07 UTC");
    }

    #[test]
    fn the_exit_status_tells_one_all_and_some_apart() {
        let done = || Outcome { pid: 1, comm: String::new(), ending: Ending::Done(()) };
        let failed =
            || Outcome { pid: 1, comm: String::new(), ending: Ending::Failed(Error::Vanished { pid: 1 }) };
        let skipped = || Outcome { pid: 1, comm: String::new(), ending: Ending::Skipped(String::new()) };
        assert_eq!(exit_code(&[done(), skipped()]), 0);
        assert_eq!(exit_code(&[failed()]), 1);
        assert_eq!(exit_code(&[failed(), failed()]), 1);
        assert_eq!(exit_code(&[failed(), done()]), 4);
        assert_eq!(exit_code(&[failed(), skipped()]), 4);
    }
}
