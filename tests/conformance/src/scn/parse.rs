//! Files: rows and their parts.

use super::Mistake;
use super::events::{self, Expected};
use super::patch::{Code, Patch, check_name};
use super::step::{self, Action, Known, Step};
use std::path::Path;

/// A row.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Row {
    /// Its id in the tables.
    pub id: String,
    /// What it is about.
    pub title: String,
    /// File it is in.
    pub file: String,
    /// Line it begins on.
    pub line: usize,
    /// Why it is not run, if it is not.
    pub skip: Option<String>,
    /// What the product lacks for it: it runs, must fail, and counts as skipped.
    pub awaits: Option<String>,
    /// Patches.
    pub patches: Vec<Patch>,
    /// Libraries that the program loads at first.
    pub loaded: Vec<String>,
    /// Libraries there are files of.
    pub libraries: Vec<String>,
    /// Patches at whose enable no file of an absent library is known.
    pub blind: Vec<String>,
    /// Threads besides `M`, the main thread.
    pub threads: Vec<String>,
    /// What is done before events count.
    pub setup: Vec<Step>,
    /// What is done.
    pub steps: Vec<Step>,
    /// Events of the steps.
    pub events: Vec<Expected>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Part {
    #[default]
    Head,
    Setup,
    Steps,
    Events,
}

struct Open {
    row: Row,
    part: Part,
    known: Known,
    /// Text of the events, and the line it begins on.
    events: (usize, String),
}

/// Reads a file.
///
/// # Errors
/// A [`Mistake`], or that it cannot be read.
pub fn read(path: &Path) -> Result<Vec<Row>, Mistake> {
    let file = path.display().to_string();
    let text = std::fs::read_to_string(path).map_err(|e| Mistake {
        file: file.clone(),
        line: 1,
        what: format!("cannot read it: {e}"),
    })?;
    rows(&file, &text)
}

/// Reads the text of a file of that name.
///
/// # Errors
/// The first mistake.
pub fn rows(file: &str, text: &str) -> Result<Vec<Row>, Mistake> {
    let mistake = |line: usize, what: String| Mistake { file: file.to_owned(), line, what };
    let mut rows: Vec<Row> = Vec::new();
    let mut open: Option<Open> = None;
    for (index, full) in text.lines().enumerate() {
        let number = index + 1;
        let line = without_comment(full).trim();
        if line.is_empty() {
            continue;
        }
        if let Some(title) = line.strip_prefix("row ") {
            rows.extend(open.take().map(close).transpose().map_err(|(n, what)| mistake(n, what))?);
            let row = begin(file, number, title, &rows).map_err(|what| mistake(number, what))?;
            open = Some(row);
            continue;
        }
        let Some(open) = &mut open else {
            return Err(mistake(
                number,
                format!("{line:?} is in no row: a row begins with `row ID what it is about`"),
            ));
        };
        take(open, number, line).map_err(|what| mistake(number, what))?;
    }
    rows.extend(open.take().map(close).transpose().map_err(|(n, what)| mistake(n, what))?);
    if rows.is_empty() {
        return Err(mistake(1, "there is no row in it".into()));
    }
    Ok(rows)
}

/// A comment begins with `#` at the start of a line or after a blank.
fn without_comment(line: &str) -> &str {
    if line.starts_with('#') {
        return "";
    }
    line.find(" #").map_or(line, |at| &line[..at])
}

fn begin(file: &str, line: usize, title: &str, rows: &[Row]) -> Result<Open, String> {
    let (id, title) = title.trim().split_once(' ').unwrap_or((title.trim(), ""));
    check_name(id)?;
    if let Some(other) = rows.iter().find(|r| r.id == id) {
        return Err(format!("there is a row {id} on line {}", other.line));
    }
    let row = Row {
        id: id.to_owned(),
        title: title.trim().to_owned(),
        file: file.to_owned(),
        line,
        ..Row::default()
    };
    let known = Known { patches: Vec::new(), threads: vec!["M".into()] };
    Ok(Open { row, part: Part::Head, known, events: (line, String::new()) })
}

fn take(open: &mut Open, number: usize, line: &str) -> Result<(), String> {
    let (first, rest) = line.split_once(' ').unwrap_or((line, ""));
    let part = match first {
        "setup" => Part::Setup,
        "steps" => Part::Steps,
        "events" => Part::Events,
        _ => return inside(open, number, line, first, rest.trim()),
    };
    // Each at most once, in this order.
    let order = |p: Part| [Part::Head, Part::Setup, Part::Steps, Part::Events].iter().position(|q| *q == p);
    if order(part) <= order(open.part) {
        return Err(format!("`{first}` comes once, in the order setup, steps, events"));
    }
    open.part = part;
    if part == Part::Events {
        open.events = (number, rest.to_owned());
    } else if !rest.trim().is_empty() {
        return Err(format!("`{first}` stands alone on its line"));
    }
    Ok(())
}

fn inside(open: &mut Open, number: usize, line: &str, first: &str, rest: &str) -> Result<(), String> {
    match open.part {
        Part::Head => declare(open, first, rest),
        Part::Events => {
            open.events.1.push('\n');
            open.events.1.push_str(line);
            Ok(())
        }
        part @ (Part::Setup | Part::Steps) => {
            let action = step::parse(line, &mut open.known)?;
            let step = Step { line: number, text: line.to_owned(), action };
            if part == Part::Setup && step.action == Action::Stall {
                return Err("there is nothing to stall at before the steps".into());
            }
            if part == Part::Setup {
                open.row.setup.push(step)
            } else {
                open.row.steps.push(step)
            }
            Ok(())
        }
    }
}

fn declare(open: &mut Open, first: &str, rest: &str) -> Result<(), String> {
    let row = &mut open.row;
    let words: Vec<&str> = rest.split_whitespace().collect();
    match (first, &words[..]) {
        ("skip", [_, ..]) => row.skip = Some(rest.trim_matches('"').to_owned()),
        ("awaits", [_, ..]) => row.awaits = Some(rest.trim_matches('"').to_owned()),
        ("patch", [_, ..]) => {
            let patch = Patch::parse(rest)?;
            if row.patches.iter().any(|p| p.label == patch.label) {
                return Err(format!("patch {} is declared twice", patch.label));
            }
            open.known.patches.push((patch.label.clone(), patch.name.clone()));
            row.patches.push(patch);
        }
        ("state", [path, how @ ..]) => {
            let (label, id) = path.split_once('.').ok_or("`state` is about PATCH.STATE")?;
            let patch = row.patches.iter_mut().find(|p| p.label == label);
            let patch = patch.ok_or_else(|| format!("patch {label:?} is not declared in this row"))?;
            let id = id.parse().map_err(|_| format!("{id:?} is no state"))?;
            let state = patch.state(id).ok_or_else(|| format!("patch {label} has no state {id}"))?;
            state.change(how)?;
        }
        ("code", [path, how @ ..]) => {
            let (label, function) = path.split_once('.').ok_or("`code` is about PATCH.FUNCTION")?;
            let patch = row.patches.iter_mut().find(|p| p.label == label);
            let patch = patch.ok_or_else(|| format!("patch {label:?} is not declared in this row"))?;
            if !patch.functions.iter().any(|f| f.path() == function) {
                return Err(format!("patch {label} has no function {function}"));
            }
            patch.code.push((function.to_owned(), Code::parse(how)?));
        }
        ("lib", [name]) => {
            check_name(name)?;
            row.libraries.push((*name).to_owned());
            row.loaded.push((*name).to_owned());
        }
        ("lib", [name, "absent"]) => {
            check_name(name)?;
            row.libraries.push((*name).to_owned());
        }
        ("blind", [_, ..]) => {
            for name in &words {
                if !row.patches.iter().any(|p| p.label == *name) {
                    return Err(format!("patch {name:?} is not declared in this row"));
                }
                row.blind.push((*name).to_owned());
            }
        }
        ("threads", [_, ..]) => {
            for name in &words {
                check_name(name)?;
                if open.known.threads.iter().any(|t| t == name) {
                    return Err(format!("thread {name} is declared twice"));
                }
                open.known.threads.push((*name).to_owned());
                row.threads.push((*name).to_owned());
            }
        }
        _ => {
            return Err(format!(
                "{first:?} is no part of a row: patch, state, code, lib, blind, threads, skip, awaits, setup, steps, events"
            ));
        }
    }
    Ok(())
}

fn close(open: Open) -> Result<Row, (usize, String)> {
    let Open { mut row, part, events: (line, text), .. } = open;
    if part != Part::Events {
        return Err((row.line, format!("row {} has no events (`events –` if there are none)", row.id)));
    }
    row.events = events::parse(&text, &row.patches).map_err(|what| (line, what))?;
    let stalls = row.steps.iter().filter(|s| s.action == Action::Stall).count();
    let marks = row.events.iter().filter(|e| **e == Expected::Stall).count();
    if stalls != marks {
        return Err((
            line,
            format!("row {} has {marks} │ in its events and {stalls} `stall` in its steps", row.id),
        ));
    }
    Ok(row)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "# a file\nrow BAS-1 basic function patching\n  patch A{f}\n  threads T1\n  steps\n    enable A = 0   # done\n    call f by T1 = A:f\n  events UP(A;–;–)\n    · init- A\n\nrow BAS-2\n  skip because\n  events –\n";

    #[test]
    fn a_file_is_read() {
        let rows = rows("x.scn", GOOD).unwrap();
        assert_eq!(rows.len(), 2);
        assert_eq!((rows[0].id.as_str(), rows[0].title.as_str()), ("BAS-1", "basic function patching"));
        assert_eq!(rows[0].events.len(), 6);
        assert_eq!(rows[0].steps[0].line, 6);
        assert_eq!(rows[1].skip.as_deref(), Some("because"));
    }

    #[test]
    fn a_bad_file_says_where_and_what() {
        for (text, line, word) in [
            ("", 1, "no row"),
            ("enable A = 0\n", 1, "in no row"),
            ("row A-1\nrow A-1\nevents –\n", 1, "has no events"),
            ("row A-1\nevents –\nrow A-1\nevents –\n", 3, "there is a row A-1 on line 1"),
            ("row A-1\npatch A{f}\npatch A{g}\nevents –\n", 3, "declared twice"),
            ("row A-1\nsteps\nenable B = 0\nevents –\n", 3, "not declared"),
            ("row A-1\nsteps\nsetup\nevents –\n", 3, "in the order"),
            ("row A-1\nsteps now\nevents –\n", 2, "stands alone"),
            ("row A-1\npatch A{f}\nsteps\nstall\nevents UP(A;–;–)\n", 5, "0 │ in its events and 1 `stall`"),
            ("row A-1\npatch A{f}\n\nevents UP(A;–)\n", 4, "three parts"),
            ("row A-1\nstate A.10 bare\nevents –\n", 2, "not declared"),
            ("row A-1\npatch A{f;9}\nstate A.10 bare\nevents –\n", 3, "has no state 10"),
            ("row A-1\nsetup\nstall\nevents –\n", 3, "nothing to stall at"),
            ("row A-1\nfruit apple\nevents –\n", 2, "no part of a row"),
        ] {
            let mistake = rows("x.scn", text).unwrap_err();
            assert_eq!(mistake.line, line, "{mistake}");
            assert!(mistake.to_string().starts_with(&format!("x.scn:{line}: ")), "{mistake}");
            assert!(mistake.what.contains(word), "{mistake}");
        }
    }
}
