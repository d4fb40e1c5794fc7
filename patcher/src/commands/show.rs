//! Printing, the same way for every command.

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use serde_json::Value;
use std::fmt::Display;
use std::io::{ErrorKind, IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use suture_patcher::cli::Output;
use suture_patcher::error::Error;
use suture_patcher::operation::Moved;
use suture_patcher::report::{self, Ending, Outcome};
use suture_patcher::run::Snapshot;
use suture_patcher::sys::{proc, user};

/// Something could not be written, and was reported.
static UNWRITTEN: AtomicBool = AtomicBool::new(false);

/// Prints a JSON document.
pub fn json(document: &Value) {
    put(&format!("{document:#}\n"));
}

/// Prints text on standard output.
pub fn text(text: impl Display) {
    put(&plain(&text.to_string()));
}

/// A reader who has closed the pipe wants no more; a full disk is worth a word.
fn put(text: &str) {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            if !UNWRITTEN.swap(true, Ordering::Relaxed) {
                say(&format!("suture: cannot write what was found or done: {error}\n"));
            }
        }
        Ok(()) | Err(_) => {}
    }
}

/// Prints text on standard error.
fn say(text: &str) {
    let _ = write!(std::io::stderr(), "{}", plain(text));
}

/// Whether some output was lost, other than by a reader who wanted no more.
pub fn is_incomplete() -> bool {
    UNWRITTEN.load(Ordering::Relaxed)
}

/// Names of threads, patches and files are other people's: what would command a terminal is written out.
fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() && c != '\n' { plain.extend(c.escape_default()) } else { plain.push(c) }
    }
    plain
}

/// Prints an error that is not about one of several processes, and gives the exit status.
pub fn failure(command: &str, error: &Error, output: Output) -> u8 {
    if output.json {
        json(&serde_json::json!({
            "schema": report::SCHEMA, "command": command, "error": report::error_json(error),
        }));
    } else {
        say(&report::error_text(error));
    }
    error.exit_code()
}

/// Turns results into outcomes; where processes were not named one by one, `skip` says which errors
/// only mean that the process does not concern the command.
pub fn outcomes<T>(
    results: Vec<(i32, Result<T, Error>)>,
    skip: impl Fn(&Error) -> Option<String>,
) -> Vec<Outcome<T>> {
    let each = results.into_iter().map(|(pid, result)| Outcome {
        pid,
        comm: proc::facts(pid).map(|f| f.comm).unwrap_or_default(),
        ending: match result {
            Ok(done) => Ending::Done(done),
            Err(error) => match skip(&error) {
                Some(why) => Ending::Skipped(why),
                None => Ending::Failed(error),
            },
        },
    });
    each.collect()
}

/// Tells those that are done from those that have only begun.
pub fn sort_out<T>(outcomes: Vec<Outcome<T>>, finished: impl Fn(&T) -> bool) -> Vec<Outcome<T>> {
    let sorted = outcomes.into_iter().map(|o| match o.ending {
        Ending::Done(details) if !finished(&details) => Outcome { ending: Ending::Unfinished(details), ..o },
        _ => o,
    });
    sorted.collect()
}

/// Lines about a transition that goes on: who holds it up, and what can be done.
pub fn pending(pid: i32, patch: &str, moved: &Moved) -> String {
    if moved.finished {
        return String::new();
    }
    let mut text = match &moved.waiting {
        Some(waiting) => format!("  in transition; {waiting}\n"),
        // Nobody was waited for, so nobody was looked at.
        None if moved.blockers.is_empty() => "  in transition; threads are being moved\n".into(),
        None => "  in transition; threads that were not moved yet:\n".into(),
    };
    for blocker in &moved.blockers {
        text += &format!("    {} ({}): {}\n", blocker.tid, blocker.name, blocker.why);
        for function in &blocker.backtrace {
            text += &format!("      {function}\n");
        }
    }
    text + &format!(
        "  it goes on by itself; see: suture status --pid {pid}; take it back: suture reverse {patch} --pid {pid}\n"
    )
}

/// What flags of a signal are set by Ctrl-C and SIGTERM.
pub fn interrupted() -> Arc<AtomicBool> {
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        // Without the handler an interrupt ends this process, and the worker takes everything back.
        let _ = signal_hook::flag::register(signal, Arc::clone(&interrupted));
    }
    interrupted
}

/// Prints outcomes and gives the exit status.
pub fn results<T: Serialize>(
    command: &str,
    outcomes: &[Outcome<T>],
    output: Output,
    line: impl Fn(&Outcome<T>, &T) -> String,
) -> u8 {
    if output.json {
        json(&report::outcomes_json(command, outcomes));
    } else {
        for outcome in outcomes {
            match &outcome.ending {
                Ending::Done(details) | Ending::Unfinished(details) => text(line(outcome, details)),
                Ending::Skipped(why) => text(format!("{} ({}): skipped: {why}\n", outcome.comm, outcome.pid)),
                Ending::Failed(error) => say(&report::error_text(error)),
            }
        }
        if outcomes.is_empty() {
            text("no process with the runtime in it");
            // Other users' memory maps cannot be read.
            text(if user::own() == 0 { "\n" } else { " that this user may look at\n" });
        }
    }
    report::exit_code(outcomes)
}

/// Refuses a command line that clap cannot judge.
pub fn usage(message: &str) -> u8 {
    say(&format!("suture: {message}\n"));
    suture_patcher::error::EXIT_USAGE
}

/// A live bar on a terminal, nothing elsewhere.
pub fn bar(total: usize, output: Output) -> impl FnMut(&Snapshot) {
    let bar = (std::io::stderr().is_terminal() && !output.json).then(|| {
        let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {msg}");
        ProgressBar::new(total as u64).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
    });
    move |snapshot: &Snapshot| {
        let Some(bar) = &bar else { return };
        bar.set_position(snapshot.done as u64);
        let work: Vec<String> = snapshot.at_work.iter().map(|(pid, step)| format!("{pid}: {step}")).collect();
        bar.set_message(work.join(", "));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_holds_a_transition_up_is_listed_if_anybody_was_looked_at() {
        let mut moved = Moved::default();
        let text = pending(7, "fix", &moved);
        assert!(
            text.starts_with("  in transition; threads are being moved\n  it goes on by itself"),
            "{text}"
        );
        moved.waiting = Some("a callback runs".into());
        assert!(pending(7, "fix", &moved).starts_with("  in transition; a callback runs\n"));
        moved.finished = true;
        assert_eq!(pending(7, "fix", &moved), "");
    }

    #[test]
    fn what_commands_a_terminal_is_written_out() {
        assert_eq!(
            plain("a \u{1b}[31mred\u{7} ä\n b\t\u{9b}2J\r"),
            "a \\u{1b}[31mred\\u{7} ä\n b\\t\\u{9b}2J\\r"
        );
    }
}
