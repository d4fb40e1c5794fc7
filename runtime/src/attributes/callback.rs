//! How the last callback of a patch ended, as the event ring and the host tell it.

use super::text::{Out, number};
use suture_abi::errno;
use suture_abi::event::{Event, word};
use suture_abi::host::VANISHED;

/// The last callback of a patch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LastCallback {
    /// Which: one of the words of [`suture_abi::event`].
    pub callback: u32,
    /// State it belongs to.
    pub state: u64,
    /// What became of it.
    pub how: How,
    /// Nanoseconds since 1970 when it was given to the thread that runs it, or came back.
    pub since_ns: u64,
}

/// What became of a callback.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// It runs.
    Running,
    /// It returned this positive errno, or 0.
    Returned(u64),
    /// It was ended by this signal.
    Crashed(u64),
    /// Its thread ended in it.
    Ended,
}

impl LastCallback {
    /// Whether a word is that of a callback that is over.
    pub const fn is_one(word: u32) -> bool {
        matches!(word, word::PRE_PATCH | word::POST_PATCH | word::PRE_UNPATCH | word::POST_UNPATCH)
    }

    /// The newest among events of one patch, the newest of which comes first, whose word is wanted.
    pub fn newest(mut events: impl Iterator<Item = Event>, wanted: impl Fn(u32) -> bool) -> Option<Self> {
        let last = events.find(|e| wanted(e.word))?;
        // A callback that was ended is logged twice: how it ended, then that it is over.
        let crash = events.next().filter(|e| e.word == word::CALLBACK_CRASHED && e.subject == last.subject);
        let how = match crash {
            Some(crash) if crash.value == u64::from(VANISHED) => How::Ended,
            Some(crash) => How::Crashed(crash.value),
            None => How::Returned(last.value),
        };
        Some(Self { callback: last.word, state: last.subject, how, since_ns: last.time_ns })
    }

    /// In words.
    pub fn show(&self, out: &mut impl Out) {
        out.put(word::spelling(self.callback).as_bytes());
        out.put(b"(");
        number(out, self.state);
        match self.how {
            How::Running => out.put(b") is running"),
            How::Returned(0) => out.put(b") returned"),
            How::Returned(code) => {
                out.put(b") failed: ");
                match errno::name(code) {
                    Some(name) => out.put(name.as_bytes()),
                    None => {
                        out.put(b"errno ");
                        number(out, code);
                    }
                }
            }
            How::Crashed(signal) => {
                out.put(b") was ended by signal ");
                number(out, signal);
            }
            How::Ended => out.put(b") never came back: its thread ended in it"),
        }
    }
}
