//! Results.

use serde_json::{Value, json};
use std::fmt::Write;

/// Version of the JSON document.
pub const SCHEMA: u32 = 1;

/// How the runtime got into the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Loaded with it.
    Preloaded,
    /// Put in while it ran.
    Injected,
}

impl Mode {
    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Preloaded => "preloaded",
            Self::Injected => "injected",
        }
    }
}

/// How a row ended in a mode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// As the table says.
    Pass,
    /// What is different.
    Fail(String),
    /// Why it was not judged.
    Skip(String),
}

/// A row's result in a mode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Row.
    pub id: String,
    /// Mode.
    pub mode: Mode,
    /// How it ended.
    pub ending: Ending,
}

fn parts(ending: &Ending) -> (&'static str, &str) {
    match ending {
        Ending::Pass => ("pass", ""),
        Ending::Fail(why) => ("fail", why),
        Ending::Skip(why) => ("skip", why),
    }
}

/// The JSON document.
#[must_use]
pub fn document(outcomes: &[Outcome]) -> Value {
    let row = |o: &Outcome| {
        let (result, detail) = parts(&o.ending);
        json!({ "id": o.id, "mode": o.mode.name(), "result": result, "detail": detail })
    };
    json!({ "schema": SCHEMA, "rows": outcomes.iter().map(row).collect::<Vec<_>>() })
}

/// One outcome as lines.
#[must_use]
pub fn line(outcome: &Outcome) -> String {
    let (result, detail) = parts(&outcome.ending);
    let (id, mode) = (&outcome.id, outcome.mode.name());
    match &outcome.ending {
        Ending::Pass => format!("{id:8} {mode:10} {result}\n"),
        Ending::Skip(_) => format!("{id:8} {mode:10} {result}: {detail}\n"),
        Ending::Fail(_) => format!("{id:8} {mode:10} {result}: {}\n", detail.trim_end()),
    }
}

/// Counts per group (the letters before the dash) and the skipped rows.
#[must_use]
pub fn summary(outcomes: &[Outcome]) -> String {
    let mut groups: Vec<(&str, [usize; 3])> = Vec::new();
    for outcome in outcomes {
        let group = outcome.id.split('-').next().unwrap_or("");
        let which = match outcome.ending {
            Ending::Pass => 0,
            Ending::Fail(_) => 1,
            Ending::Skip(_) => 2,
        };
        match groups.iter_mut().find(|(name, _)| *name == group) {
            Some((_, counts)) => counts[which] += 1,
            None => {
                let mut counts = [0; 3];
                counts[which] = 1;
                groups.push((group, counts));
            }
        }
    }
    let mut text = format!("\n{:8} {:>5} {:>5} {:>5}\n", "group", "pass", "fail", "skip");
    for (name, [pass, fail, skip]) in &groups {
        let _ = writeln!(text, "{name:8} {pass:>5} {fail:>5} {skip:>5}");
    }
    text
}

/// Whether anything failed.
#[must_use]
pub fn failed(outcomes: &[Outcome]) -> bool {
    outcomes.iter().any(|o| matches!(o.ending, Ending::Fail(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_has_the_agreed_shape() {
        let outcomes = [
            Outcome { id: "BAS-1".into(), mode: Mode::Preloaded, ending: Ending::Pass },
            Outcome { id: "BAS-1".into(), mode: Mode::Injected, ending: Ending::Fail("why".into()) },
            Outcome { id: "OBJ-1".into(), mode: Mode::Injected, ending: Ending::Skip("not yet".into()) },
        ];
        assert_eq!(
            document(&outcomes),
            json!({ "schema": 1, "rows": [
                { "id": "BAS-1", "mode": "preloaded", "result": "pass", "detail": "" },
                { "id": "BAS-1", "mode": "injected", "result": "fail", "detail": "why" },
                { "id": "OBJ-1", "mode": "injected", "result": "skip", "detail": "not yet" },
            ]})
        );
        assert!(failed(&outcomes) && !failed(&outcomes[..1]));
        assert!(summary(&outcomes).contains("BAS          1     1     0"), "{}", summary(&outcomes));
    }
}
