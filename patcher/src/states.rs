//! States of patches and their callbacks, as they are shown.
//!
//! Read from outside: rows, event log and the word of the host (the thread of the program that runs
//! callbacks).

use crate::error::Error;
use crate::target::Target;
use crate::target::books::{self, Books};
use serde::Serialize;
use std::mem::offset_of;
use suture_abi::block::{RuntimeBlock, StateRow};
use suture_abi::descriptor::{STATE_BLOCK_DISABLE, STATE_IS_SHADOW};
use suture_abi::event::{Event, word};
use suture_abi::host::{GIVEN, Host, RUNNING};
use suture_elf::{Addr, Memory};
use suture_runtime::attributes::callback::{How, LastCallback};
use suture_runtime::attributes::text::Out;

/// A state of a listed patch.
#[derive(Clone, Debug, Serialize)]
pub struct StateStatus {
    /// Id.
    pub id: u64,
    /// Its shadow variables are freed with it.
    pub is_shadow: bool,
    /// It cannot be given up.
    pub block_disable: bool,
    /// Callbacks it has.
    pub callbacks: Vec<&'static str>,
    /// Listed patches that have a state of this id, oldest first: its callbacks run when the first comes and
    /// when the last goes.
    pub holders: Vec<String>,
}

/// The last callback of a patch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CallbackStatus {
    /// Which: `pre_patch` and so on.
    pub callback: &'static str,
    /// State it belongs to.
    pub state: u64,
    /// `running`, `returned`, `crashed` (by the signal `value`) or `ended` (its thread ended in it).
    pub how: &'static str,
    /// What it returned (positive errno, 0 for none), or the signal.
    pub value: u64,
    /// Nanoseconds since 1970 when it was given to the thread that runs it, or came back.
    pub since_ns: u64,
    #[serde(skip)]
    last: LastCallback,
}

/// States of a patch, in the order in which they are visited.
#[must_use]
pub fn of_patch(books: &Books, patch: u32) -> Vec<StateStatus> {
    let holds = |id: u64, patch: u32| books.states.iter().any(|s| s.patch == patch && s.plan.id == id);
    let show = |row: &StateRow| {
        let plan = &row.plan;
        let callbacks = [
            ("pre_patch", plan.pre_patch),
            ("post_patch", plan.post_patch),
            ("pre_unpatch", plan.pre_unpatch),
            ("post_unpatch", plan.post_unpatch),
            ("shadow_dtor", plan.shadow_dtor),
        ];
        let holders = books.patches.iter().filter(|p| holds(plan.id, p.row.id));
        StateStatus {
            id: plan.id,
            is_shadow: plan.flags & STATE_IS_SHADOW != 0,
            block_disable: plan.flags & STATE_BLOCK_DISABLE != 0,
            callbacks: callbacks.iter().filter(|(_, code)| *code != 0).map(|(name, _)| *name).collect(),
            holders: holders.map(|p| p.name.clone()).collect(),
        }
    };
    books.states.iter().filter(|s| s.patch == patch).map(show).collect()
}

/// What callbacks have come to in a process: events, and the job of the host.
#[derive(Debug, Default)]
pub struct Callbacks {
    events: Vec<Event>,
    running: Option<(u32, CallbackStatus)>,
}

impl Callbacks {
    /// Reads them.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn read(target: &Target, block: Addr) -> Result<Self, Error> {
        let host = offset_of!(RuntimeBlock, host);
        let word = |field: usize| books::word(target, block, host + field);
        let quad = |field: usize| {
            let read = target.memory.read_u64(block + (host + field) as u64);
            read.map_err(|e| Error::from_memory(target, e))
        };
        let running = match word(offset_of!(Host, state))? {
            GIVEN | RUNNING => {
                let last = LastCallback {
                    callback: word(offset_of!(Host, kind))?,
                    state: quad(offset_of!(Host, subject))?,
                    how: How::Running,
                    since_ns: quad(offset_of!(Host, since_ns))?,
                };
                Some((word(offset_of!(Host, patch))?, CallbackStatus::of(last)))
            }
            _ => None,
        };
        Ok(Self { events: books::events(target, block, 0)?, running })
    }

    /// The last callback of a patch that the log still knows.
    #[must_use]
    pub fn last(&self, patch: u32) -> Option<CallbackStatus> {
        if let Some((_, running)) = self.running.as_ref().filter(|(of, _)| *of == patch) {
            return Some(running.clone());
        }
        self.newest(patch, LastCallback::is_one)
    }

    /// The last `pre_patch` of a patch, if it made its enable fail.
    #[must_use]
    pub fn last_to_fail(&self, patch: u32) -> Option<CallbackStatus> {
        self.newest(patch, |word| word == word::PRE_PATCH).filter(|c| c.how != "returned" || c.value != 0)
    }

    fn newest(&self, patch: u32, wanted: impl Fn(u32) -> bool) -> Option<CallbackStatus> {
        let own = self.events.iter().filter(|e| e.patch == patch).rev().copied();
        LastCallback::newest(own, wanted).map(CallbackStatus::of)
    }
}

impl CallbackStatus {
    fn of(last: LastCallback) -> Self {
        let (how, value) = match last.how {
            How::Running => ("running", 0),
            How::Returned(errno) => ("returned", errno),
            How::Crashed(signal) => ("crashed", signal),
            How::Ended => ("ended", 0),
        };
        let LastCallback { callback, state, since_ns, .. } = last;
        Self { callback: word::spelling(callback), state, how, value, since_ns, last }
    }

    /// The same with an errno in words.
    #[must_use]
    pub fn explained(&self) -> String {
        let errno = i32::try_from(self.value).ok().filter(|errno| self.how == "returned" && *errno != 0);
        let words = errno.map(|errno| format!(" ({})", std::io::Error::from_raw_os_error(errno)));
        self.text() + &words.unwrap_or_default()
    }

    /// In the words in which the process itself reads it.
    #[must_use]
    pub fn text(&self) -> String {
        struct Said(Vec<u8>);
        impl Out for Said {
            fn put(&mut self, bytes: &[u8]) {
                self.0.extend_from_slice(bytes);
            }
        }
        let mut said = Said(Vec::new());
        self.last.show(&mut said);
        String::from_utf8_lossy(&said.0).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use suture_abi::host::VANISHED;

    fn event(word: u32, patch: u32, subject: u64, value: u64) -> Event {
        Event { number: 1, time_ns: 5, word, tid: 0, patch, reserved: 0, subject, value, name: [0; 56] }
    }

    fn last(events: &[Event]) -> Option<String> {
        Callbacks { events: events.to_vec(), running: None }.last(1).map(|c| c.text())
    }

    #[test]
    fn the_last_callback_is_the_patchs_own() {
        let other = event(word::POST_PATCH, 2, 10, 0);
        assert_eq!(last(&[other]), None);
        let failed = event(word::PRE_PATCH, 1, 11, 19);
        let events = [event(word::PRE_PATCH, 1, 10, 0), failed, event(word::FAIL, 1, 0, 19), other];
        assert_eq!(last(&events).as_deref(), Some("pre_patch(11) failed: ENODEV"));
        let callbacks = Callbacks { events: events.to_vec(), running: None };
        let explained = callbacks.last_to_fail(1).map(|c| c.explained());
        let expected = "pre_patch(11) failed: ENODEV (No such device (os error 19))";
        assert_eq!(explained.as_deref(), Some(expected));
    }

    #[test]
    fn a_crash_is_told_from_an_error() {
        let over = event(word::POST_UNPATCH, 1, 10, 14);
        let crashed = |how| [event(word::CALLBACK_CRASHED, 1, 10, how), over];
        assert_eq!(last(&crashed(11)).as_deref(), Some("post_unpatch(10) was ended by signal 11"));
        let vanished = crashed(u64::from(VANISHED));
        assert_eq!(
            last(&vanished).as_deref(),
            Some("post_unpatch(10) never came back: its thread ended in it")
        );
        let earlier = [event(word::CALLBACK_CRASHED, 1, 9, 11), event(word::POST_PATCH, 1, 10, 0)];
        assert_eq!(last(&earlier).as_deref(), Some("post_patch(10) returned"));
    }
}
