//! The search for stacks that nobody knows, made before looks at threads.

use super::look::Looker;
use super::own_stacks;
use super::threads::{self, Thread};
use crate::error::Error;
use crate::target::books::Books;
use std::collections::HashMap;
use std::ops::Range;
use suture_elf::MapsSnapshot;
use suture_scan::proc::Syscall;
use suture_stack::hidden::Hidden;
use suture_stack::registered::{self, Stack};

/// What was found before the threads are looked at.
#[derive(Debug)]
pub struct Guard {
    /// Number of the worker.
    worker: u32,
    /// The runtime's own memory.
    fixed: Vec<Range<u64>>,
    /// Records of the threads before the search.
    before: HashMap<u32, u64>,
    hidden: Option<Word>,
}

/// A word that may be a return address on a stack that nobody knows.
#[derive(Clone, Debug)]
pub struct Word {
    /// The word; `None` if more memory is there than is searched.
    pub word: Option<u64>,
    /// Where it lies.
    pub place: String,
}

impl Guard {
    /// Reads the records, then searches.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn new(looker: &Looker<'_>, books: &Books) -> Result<Self, Error> {
        let mappings = books.mappings.iter().map(|m| m.addr..m.addr.saturating_add(m.len));
        let fixed = mappings.chain(books.own.iter().cloned()).collect();
        Self { worker: books.worker, fixed, before: HashMap::new(), hidden: None }
            .searched(looker, own_stacks::MOST)
    }

    /// Searches anew while a thread is held that would not stand still: its records change faster than memory
    /// is searched. No more memory than this, for its sake.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn while_held(&self, looker: &Looker<'_>) -> Result<Self, Error> {
        const MOST_HELD: u64 = 64 << 20;
        let (worker, fixed) = (self.worker, self.fixed.clone());
        Self { worker, fixed, before: HashMap::new(), hidden: None }.searched(looker, MOST_HELD)
    }

    fn searched(self, looker: &Looker<'_>, most: u64) -> Result<Self, Error> {
        let target = looker.target;
        let maps = &target.maps()?;
        let threads = threads::read(target, self.worker)?;
        let before =
            threads.iter().filter_map(|t| Some((t.own, looker.records.word(target, t.own)?))).collect();
        let stacks =
            registered::read(&target.memory, looker.stacks).map_err(|e| Error::from_memory(target, e))?;
        let mut known: Vec<_> = stacks.iter().map(Stack::range).chain(self.fixed.iter().cloned()).collect();
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
            own_stacks::whole(maps, sp, looker.end_of_stack(*t, sp)?)
        };
        known.extend(threads.iter().filter_map(own));
        let main = maps.regions.iter().filter(|r| r.path.as_deref() == Some("[stack]"));
        known.extend(main.map(|r| r.start..r.end));
        let unwinder = looker.unwinder.borrow();
        let follows_call = |addr| unwinder.follows_call(addr);
        let found = own_stacks::look_for(target, maps, &looker.searched, &known, most, &follows_call)?;
        drop(unwinder);
        let hidden = first(looker, &threads, maps, &found).or_else(|| {
            found
                .capped
                .then(|| Word { word: None, place: format!("more than {} MiB of memory", most >> 20) })
        });
        Ok(Self { before, hidden, ..self })
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
    let of_thread = |at: u64| threads.iter().any(|t| looker.end_of_stack(*t, at).is_some());
    let word = found.words.iter().find(|w| !of_thread(w.at))?;
    Some(Word { word: Some(word.word), place: own_stacks::place(maps, word.at) })
}
