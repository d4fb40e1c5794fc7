//! `suture log`.

use super::show;
use std::time::Duration;
use suture_patcher::cli::Output;
use suture_patcher::error::Error;
use suture_patcher::log::{self, EventText};
use suture_patcher::report;
use suture_patcher::sys::output::closes_within;
use suture_patcher::target::Target;

/// How often a followed log is looked at; nothing in the target says when it grows.
const POLL: Duration = Duration::from_millis(100);

pub fn run(pid: i32, follow: bool, output: Output) -> u8 {
    match print(pid, follow, output) {
        Ok(()) => 0,
        Err(Error::Vanished { .. } | Error::NoProcess { .. }) if follow => 0,
        Err(error) => show::failure("log", &error, output),
    }
}

fn print(pid: i32, follow: bool, output: Output) -> Result<(), Error> {
    let target = Target::open(pid)?;
    let mut after = 0;
    let first = log::read(&target, after)?;
    if output.json && !follow {
        show::json(&serde_json::json!({ "schema": report::SCHEMA, "command": "log", "events": first }));
        return Ok(());
    }
    let mut events = first;
    loop {
        for event in &events {
            // Followed, JSON is one document a line: there is no end to close a list at.
            if output.json {
                show::text(format!("{}\n", serde_json::json!(event)));
            } else {
                show::text(line(event));
            }
            after = event.number;
        }
        if !follow || closes_within(POLL) || show::is_incomplete() {
            return Ok(());
        }
        target.still_there()?;
        events = log::read(&target, after)?;
    }
}

fn line(event: &EventText) -> String {
    let subject = match (&event.object, event.subject) {
        (Some(object), _) => format!(",{object}"),
        (None, 0) => String::new(),
        (None, subject) => format!(",{subject}"),
    };
    let value = if event.value == 0 { String::new() } else { format!("  {:#x}", event.value) };
    let (number, time) = (event.number, report::utc(event.time_ns));
    format!("{number:5}  {time}  {:13} {}{subject}{value}\n", event.event, event.patch)
}
