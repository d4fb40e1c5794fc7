//! The event log, read from outside.

use crate::error::Error;
use crate::target::{Target, books, runtime};
use serde::Serialize;
use suture_abi::event::{Event, word};

/// One event, in words.
#[derive(Clone, Debug, Serialize)]
pub struct EventText {
    /// 1-based number since the process started.
    pub number: u64,
    /// Nanoseconds since 1970.
    pub time_ns: u64,
    /// Event word of the conformance scenarios.
    pub event: &'static str,
    /// Patch it is about.
    pub patch: String,
    /// State, site or object it is about, or 0.
    pub subject: u64,
    /// Name of the object it is about, if it is about one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub object: Option<String>,
    /// Thread that wrote it.
    pub tid: u32,
    /// Address, errno or another number that goes with the word.
    pub value: u64,
}

impl From<Event> for EventText {
    fn from(event: Event) -> Self {
        let end = event.name.iter().position(|&b| b == 0).unwrap_or(event.name.len());
        Self {
            number: event.number,
            time_ns: event.time_ns,
            event: word::spelling(event.word),
            patch: String::from_utf8_lossy(&event.name[..end]).into_owned(),
            subject: event.subject,
            object: None,
            tid: event.tid,
            value: event.value,
        }
    }
}

/// Reads the events after number `after`.
///
/// # Errors
/// No process, no rights, no runtime.
pub fn read(target: &Target, after: u64) -> Result<Vec<EventText>, Error> {
    let block = runtime::block(target)?;
    let events = books::events(target, block, after)?;
    let about_objects =
        |e: &Event| matches!(e.word, word::APPLY_OBJECT | word::REVERT_OBJECT | word::OBJECT_REFUSED);
    // Names are in the books; without need those are not read.
    let books = events.iter().any(about_objects).then(|| books::read(target, block)).transpose()?;
    let named = |event: Event| {
        let object =
            books.as_ref().filter(|_| about_objects(&event)).and_then(|b| b.object_name(event.subject));
        EventText { object, ..EventText::from(event) }
    };
    Ok(events.into_iter().map(named).collect())
}
