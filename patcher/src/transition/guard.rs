//! The search for stacks that nobody knows, made before looks at threads.

use super::look::Looker;
use super::own_stacks;
use super::registered::{self, Stack};
use super::threads::{self, Thread};
use crate::error::Error;
use crate::target::books::Books;
use std::collections::HashMap;
use suture_elf::MapsSnapshot;
use suture_scan::proc::Syscall;
use suture_stack::hidden::Hidden;

/// What was found before the threads are looked at.
#[derive(Debug)]
pub struct Guard {
    /// Records of the threads before the search.
    before: HashMap<u32, u64>,
    hidden: Option<Word>,
}

/// A word that may be a return address on a stack that nobody knows.
#[derive(Clone, Debug)]
pub struct Word {
    /// The word.
    pub word: u64,
    /// Where it lies.
    pub place: String,
}

impl Guard {
    /// Reads the records, then searches.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn new(looker: &Looker<'_>, books: &Books, maps: &MapsSnapshot) -> Result<Self, Error> {
        let target = looker.target;
        let threads = threads::read(target, books.worker)?;
        let before =
            threads.iter().filter_map(|t| Some((t.own, looker.records.word(target, t.own)?))).collect();
        let stacks = registered::read(target, books.stacks).map_err(|e| Error::from_memory(target, e))?;
        let mut known: Vec<_> = stacks.iter().map(Stack::range).chain(books.own.iter().cloned()).collect();
        known.extend(books.mappings.iter().map(|m| m.addr..m.addr.saturating_add(m.len)));
        // What is live on threads' own stacks is found when they are looked at.
        let sp = |tid: i32| {
            let line = std::fs::read(format!("/proc/{}/task/{tid}/syscall", target.pid())).ok()?;
            match Syscall::parse(&line)? {
                Syscall::Blocked { sp, .. } | Syscall::Elsewhere { sp, .. } => Some(sp),
                Syscall::Running => None,
            }
        };
        let own = |t: &Thread| {
            let sp = sp(t.tid)?;
            own_stacks::whole(maps, sp, looker.own_end(*t, sp)?)
        };
        known.extend(threads.iter().filter_map(own));
        let main = maps.regions.iter().filter(|r| r.path.as_deref() == Some("[stack]"));
        known.extend(main.map(|r| r.start..r.end));
        let unwinder = looker.unwinder.borrow();
        let follows_call = |addr| unwinder.follows_call(addr);
        let found = own_stacks::look_for(target, maps, &looker.searched, &known, &follows_call)?;
        drop(unwinder);
        Ok(Self { before, hidden: first(looker, &threads, maps, &found) })
    }

    /// Whether a thread's record is still what it was before the search.
    #[must_use]
    pub fn allows(&self, thread: Thread, word: u64) -> bool {
        self.before.get(&thread.own) == Some(&word)
    }

    /// A word outside of all known stacks that may return into searched code.
    #[must_use]
    pub fn hidden(&self) -> Option<&Word> {
        self.hidden.as_ref()
    }
}

/// The first word that does not lie on the stack of a thread that ran when it was asked where it is.
fn first(looker: &Looker<'_>, threads: &[Thread], maps: &MapsSnapshot, found: &Hidden) -> Option<Word> {
    let of_thread = |at: u64| threads.iter().any(|t| looker.own_end(*t, at).is_some());
    let word = found.words.iter().find(|w| !of_thread(w.at))?;
    Some(Word { word: word.word, place: own_stacks::place(maps, word.at) })
}
