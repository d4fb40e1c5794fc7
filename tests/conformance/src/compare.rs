//! Events expected against events seen.

use crate::demo::Entry;
use crate::product::LogEvent;
use crate::scn::Expected;

/// How two lists agree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Agreement {
    /// Nothing is missing.
    Complete,
    /// What was seen is as expected so far.
    SoFar,
    /// At this position of the list of events that have a fixed place.
    Differs(usize),
}

/// Words of the log about things the rows do not list.
const NOTICES: [&str; 3] = ["forced", "shadow-refused", "object-refused"];
/// Words of callbacks.
const CALLBACKS: [&str; 5] = ["pre_patch", "post_patch", "pre_unpatch", "post_unpatch", "dtor"];

/// The log in the notation of the rows. Every callback of the log is held against the program's own journal,
/// which also says what destructors found.
///
/// # Errors
/// When log and program disagree about which callbacks ran.
pub fn notation(log: &[LogEvent], journal: &[Entry]) -> Result<Vec<(u64, String)>, String> {
    let mut ran = journal.iter();
    let mut list = Vec::new();
    for event in log.iter().filter(|e| !NOTICES.contains(&e.word.as_str())) {
        let (word, patch, subject) = (&event.word, &event.patch, event.subject);
        let text = if CALLBACKS.contains(&word.as_str()) {
            let entry = ran.next();
            let same = |e: &&Entry| (&e.kind, &e.patch, e.state) == (word, patch, subject);
            let Some(entry) = entry.filter(same) else {
                return Err(format!(
                    "the log has {word}({patch},{subject}) where the program ran {}",
                    entry.map_or_else(|| "nothing".into(), callback)
                ));
            };
            match (word.as_str(), event.value) {
                ("dtor", _) => format!("dtor({patch},{subject},\"{}\")", entry.content),
                ("pre_patch", errno @ 1..) => format!("pre_patch({patch},{subject})=-{errno}"),
                _ => format!("{word}({patch},{subject})"),
            }
        } else {
            let object = event.object.clone().unwrap_or_else(|| subject.to_string());
            let object = object.trim_end_matches(".so");
            match word.as_str() {
                "apply" => format!("apply {patch}>{object}"),
                "revert" => format!("revert {patch}<{object}"),
                "signal" => "signal".into(),
                _ => format!("{word} {patch}"),
            }
        };
        list.push((event.number, text));
    }
    match ran.next() {
        // One that is running is in the journal already; it must be the last.
        Some(entry) if ran.next().is_some() => {
            Err(format!("the program ran {}, and the log knows nothing of it", callback(entry)))
        }
        _ => Ok(list),
    }
}

fn callback(entry: &Entry) -> String {
    format!("{}({},{})", entry.kind, entry.patch, entry.state)
}

/// Expected events up to and without the `stall`th │; all of them if there are fewer.
#[must_use]
pub fn until(expected: &[Expected], stall: usize) -> Vec<String> {
    let mut left = stall;
    let mut list = Vec::new();
    for entry in expected {
        match entry {
            Expected::Stall if left == 0 => break,
            Expected::Stall => left -= 1,
            Expected::Event(event) => list.push(event.clone()),
        }
    }
    list
}

fn is_gone(event: &str) -> bool {
    event.starts_with("gone ")
}

/// `…` in an expected event stands for anything.
fn agrees(expected: &str, seen: &str) -> bool {
    match expected.split_once('…') {
        Some((before, after)) => {
            seen.len() >= before.len() + after.len() && seen.starts_with(before) && seen.ends_with(after)
        }
        None => expected == seen,
    }
}

/// Compares. `gone` may come at any time after the event it stands behind.
#[must_use]
pub fn compare(expected: &[String], seen: &[String]) -> Agreement {
    let fixed = |list: &[String]| list.iter().filter(|e| !is_gone(e)).cloned().collect::<Vec<_>>();
    let (want, got) = (fixed(expected), fixed(seen));
    let same = want.iter().zip(&got).take_while(|(w, g)| agrees(w, g)).count();
    if same < got.len() {
        return Agreement::Differs(same);
    }
    // Each with the number of fixed events before it.
    let gone = |list: &[String]| {
        let places = list.iter().enumerate().filter(|(_, e)| is_gone(e));
        places.map(|(i, e)| (e.clone(), list[..i].iter().filter(|e| !is_gone(e)).count())).collect::<Vec<_>>()
    };
    let mut awaited = gone(expected);
    for (event, after) in gone(seen) {
        match awaited.iter().position(|(e, earliest)| *e == event && *earliest <= after) {
            Some(found) => drop(awaited.remove(found)),
            None => return Agreement::Differs(after),
        }
    }
    if same == want.len() && awaited.is_empty() { Agreement::Complete } else { Agreement::SoFar }
}

/// Both lists beside each other, with a mark at the first difference.
#[must_use]
pub fn side_by_side(expected: &[String], seen: &[String]) -> String {
    let width = expected.iter().map(|e| e.chars().count()).max().unwrap_or(0).max("expected".len());
    let row = |mark: &str, left: &str, right: &str| format!("  {mark} {left:width$} │ {right}\n");
    let mut text = row(" ", "expected", "seen");
    let blank = String::new();
    let mut differs = false;
    for at in 0..expected.len().max(seen.len()) {
        let (left, right) = (expected.get(at).unwrap_or(&blank), seen.get(at).unwrap_or(&blank));
        let first = !differs && !agrees(left, right);
        differs |= first;
        text += &row(if first { ">" } else { " " }, left, right);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(text: &str) -> Vec<String> {
        text.split(" · ").filter(|e| !e.is_empty()).map(str::to_owned).collect()
    }

    #[test]
    fn lists_agree_exactly_or_differ_at_a_place() {
        let want = list("enable A · init+ A · start+ A · done+ A");
        assert_eq!(compare(&want, &want), Agreement::Complete);
        assert_eq!(compare(&want, &want[..2]), Agreement::SoFar);
        assert_eq!(compare(&want, &list("enable A · start+ A")), Agreement::Differs(1));
        assert_eq!(compare(&want[..2], &want), Agreement::Differs(2), "one too many");
        assert_eq!(compare(&list(""), &list("")), Agreement::Complete);
    }

    #[test]
    fn gone_comes_any_time_after_its_place_but_not_before_nor_twice() {
        let want = list("done+ B · gone A · init- B · done- B · gone B");
        assert_eq!(
            compare(&want, &list("done+ B · init- B · done- B · gone A · gone B")),
            Agreement::Complete
        );
        assert_eq!(compare(&want, &list("done+ B · init- B · done- B · gone A")), Agreement::SoFar);
        assert_eq!(compare(&want, &list("gone A · done+ B")), Agreement::Differs(0));
        assert_eq!(compare(&want, &list("done+ B · gone A · init- B · gone B")), Agreement::Differs(2));
        assert_eq!(
            compare(&list("done- A · gone A"), &list("done- A · gone A · gone A")),
            Agreement::Differs(1)
        );
    }

    #[test]
    fn contents_may_not_matter() {
        let want = list("dtor(A,1,\"…\")");
        assert_eq!(compare(&want, &list("dtor(A,1,\"4\")")), Agreement::Complete);
        assert_eq!(compare(&want, &list("dtor(A,2,\"4\")")), Agreement::Differs(0));
    }

    #[test]
    fn swapped_callbacks_are_seen() {
        let want = list("init+ A · pre_patch(A,10) · pre_patch(A,11)");
        let seen = list("init+ A · pre_patch(A,11) · pre_patch(A,10)");
        assert_eq!(compare(&want, &seen), Agreement::Differs(1));
        let shown = side_by_side(&want, &seen);
        assert!(shown.contains("> pre_patch(A,10) │ pre_patch(A,11)"), "{shown}");
    }

    #[test]
    fn a_log_that_the_program_does_not_bear_out_is_no_evidence() {
        let event = |word: &str| LogEvent {
            number: 1,
            word: word.into(),
            patch: "A".into(),
            subject: 10,
            value: 0,
            object: None,
        };
        let entry =
            |kind: &str| Entry { kind: kind.into(), patch: "A".into(), state: 10, content: "[]".into() };
        assert!(notation(&[event("pre_patch")], &[]).unwrap_err().contains("where the program ran nothing"));
        assert!(notation(&[event("pre_patch")], &[entry("post_patch")]).is_err());
        assert!(
            notation(&[], &[entry("pre_patch"), entry("post_patch")]).unwrap_err().contains("knows nothing")
        );
        let list = notation(&[event("dtor"), event("forced")], &[entry("dtor"), entry("pre_patch")]).unwrap();
        assert_eq!(list, [(1, "dtor(A,10,\"[]\")".to_owned())]);
    }
}
