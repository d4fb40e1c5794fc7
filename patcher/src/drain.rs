//! Gives the memory of patches back that have gone: their images are unmapped.
//!
//! Three things keep an image. *A thread that is in it*: every thread is looked at as in a transition, with the
//! whole image, all arenas and all of the runtime searched; no answer is no. *An address in it that the program
//! has stored*: a function pointer or a string of the patch. The kernel leaves that to the author of a module; here
//! the memory of the program is searched, because a program does not expect that a string it was given goes away.
//! What only a register holds is not seen. *A forced transition*, for ever.
//!
//! Nobody is disturbed for memory: threads that always run are stopped for a look only when many images have come
//! together, so that their number stays bounded. What cannot be given back now is tried again by the next command.

mod held;

use crate::error::Error;
use crate::session::Session;
use crate::target::Target;
use crate::target::books::{self, Books};
use crate::transition::late::Late;
use crate::transition::look::{Looker, Why};
use crate::transition::own_stacks;
use crate::transition::threads::{self, Thread};
use crate::view::{self, Cache};
use held::{Words, known};
use std::collections::HashSet;
use std::ops::Range;
use std::time::Duration;
use suture_abi::batch::{PROT_EXEC, ROLE_ARENA};
use suture_abi::block::{
    IMAGE_LEFT, IMAGE_ON_STACK, IMAGE_PINNED, IMAGE_POINTED_AT, IMAGE_UNSEARCHED, IMAGE_UNSURE, ImageRow,
};
use suture_abi::channel::op;
use suture_elf::{Addr, MapsSnapshot, Memory};
use suture_scan::Interval;
use suture_scan::proc::Syscall;

/// Most memory that is searched for addresses in images.
const MOST: u64 = 1 << 30;
/// So many images may be left before threads that run all the time are stopped for a look.
const PATIENT: usize = 8;
/// Times a thread that runs is looked at.
const LOOKS: u32 = 10;
/// Pause between two looks at threads that run.
const PAUSE: Duration = Duration::from_micros(300);
/// Readings of the task directory.
const READINGS: u32 = 20;

/// What became of the images that were left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drained {
    /// Images that were unmapped.
    pub unmapped: usize,
    /// Images that are left.
    pub left: usize,
}

/// Unmaps the images of patches that have gone, as far as that can be done now.
///
/// # Errors
/// When the process is gone, or cannot be looked at.
pub fn drain(session: &mut Session<'_>, cache: &Cache) -> Result<Drained, Error> {
    let books = books::read(session.target, session.block)?;
    let left: Vec<ImageRow> = books.images.iter().filter(|i| i.flags & IMAGE_LEFT != 0).copied().collect();
    let open: Vec<ImageRow> = left.iter().filter(|i| i.flags & IMAGE_PINNED == 0).copied().collect();
    if open.is_empty() || books.transition.is_some() {
        return Ok(Drained { unmapped: 0, left: left.len() });
    }
    let found = Drain::new(session.target, &books, cache)?.judge(&open)?;
    let payload: Vec<u8> =
        found.iter().flat_map(|(id, why)| [*id, *why]).flat_map(u32::to_le_bytes).collect();
    let left = match session.request(op::DRAINED, [books.generation, 0, 0, 0], &payload)? {
        Ok([left, ..]) => usize::try_from(left).unwrap_or(left_of(&books)),
        // A host is there: it may be on its way out of a callback.
        Err(_) => left_of(&books),
    };
    Ok(Drained { unmapped: left_of(&books).saturating_sub(left), left })
}

/// Whether there are images that a look may find to be left by everybody.
#[must_use]
pub fn has_open(books: &Books) -> bool {
    books.images.iter().any(|i| i.flags & (IMAGE_LEFT | IMAGE_PINNED) == IMAGE_LEFT)
}

/// Why an image stays, in words.
#[must_use]
pub fn reason(flags: u32) -> &'static str {
    match flags {
        _ if flags & IMAGE_PINNED != 0 => "threads were forced out of it",
        _ if flags & IMAGE_ON_STACK != 0 => "a thread may return into it",
        _ if flags & IMAGE_POINTED_AT != 0 => "memory of the program holds an address in it",
        _ if flags & IMAGE_UNSURE != 0 => "a thread that runs, or whose stack is unclear, may be in it",
        _ if flags & IMAGE_UNSEARCHED != 0 => "there is too much memory to search for addresses in it",
        _ => "nobody has looked since",
    }
}

/// Images whose patches have gone.
#[must_use]
pub fn left_of(books: &Books) -> usize {
    books.images.iter().filter(|i| i.flags & IMAGE_LEFT != 0).count()
}

struct Drain<'t> {
    target: &'t Target,
    books: &'t Books,
    looker: Looker<'t>,
    /// The program may have stacks nobody knows: a return address anywhere counts.
    hidden: bool,
}

impl<'t> Drain<'t> {
    fn new(target: &'t Target, books: &'t Books, cache: &Cache) -> Result<Self, Error> {
        let view = view::process(target, view::maps(target)?, cache)?;
        let hidden = own_stacks::find(target, &view, books)?.guarded;
        let looker = Looker::searching(target, books, cache, Vec::new())?;
        Ok(Self { target, books, looker, hidden })
    }

    /// 0 for each image that can go, or why it stays.
    fn judge(&mut self, open: &[ImageRow]) -> Result<Vec<(u32, u32)>, Error> {
        let mut late = Late::default();
        let stop = open.len() > PATIENT;
        let mut found = Vec::new();
        // Most often all can go, and one look at each thread says so.
        let all = self.threads_outside(open, stop, &mut late)?;
        for image in open {
            let why = match all {
                0 => 0,
                why if open.len() == 1 => why,
                _ => self.threads_outside(std::slice::from_ref(image), stop, &mut late)?,
            };
            found.push((image.id, why));
        }
        late.let_all_go();
        self.search(open, &mut found)?;
        Ok(found)
    }

    /// 0 if every thread was seen outside of some images, else why that cannot be said.
    fn threads_outside(&mut self, images: &[ImageRow], stop: bool, late: &mut Late) -> Result<u32, Error> {
        self.looker.search_for(searched(self.books, images));
        let mut seen: HashSet<Thread> = HashSet::new();
        let mut agreed = 0;
        for _ in 0..READINGS {
            let now = threads::read(self.target, self.books.worker)?;
            let new: Vec<Thread> = now.into_iter().filter(|t| !seen.contains(t)).collect();
            agreed = if new.is_empty() { agreed + 1 } else { 0 };
            // One reading may miss a thread while others come and go.
            if agreed == 2 {
                return Ok(0);
            }
            match self.outside(&new, stop, late)? {
                0 => seen.extend(new),
                why => return Ok(why),
            }
        }
        Ok(IMAGE_UNSURE)
    }

    fn outside(&self, threads: &[Thread], stop: bool, late: &mut Late) -> Result<u32, Error> {
        let mut running = threads.to_vec();
        // Those that do not run, and whose stack is unclear, are so at the next look, too.
        let mut unclear = Vec::new();
        for round in 0..LOOKS {
            if round > 0 && !running.is_empty() {
                std::thread::sleep(PAUSE);
            }
            let mut still = Vec::new();
            for thread in running {
                match self.looker.outside(thread) {
                    Ok(()) => {}
                    Err(Why::OnStack { .. }) => return Ok(IMAGE_ON_STACK),
                    Err(Why::Running) => still.push(thread),
                    Err(Why::Stopped | Why::Unreliable(_)) if !stop => return Ok(IMAGE_UNSURE),
                    Err(Why::Stopped | Why::Unreliable(_)) => unclear.push(thread),
                }
            }
            running = still;
        }
        for thread in running.into_iter().chain(unclear) {
            if !stop {
                return Ok(IMAGE_UNSURE);
            }
            match self.looker.outside_when_stopped(thread, late)? {
                Ok(()) => {}
                Err(Why::OnStack { .. }) => return Ok(IMAGE_ON_STACK),
                Err(_) => return Ok(IMAGE_UNSURE),
            }
        }
        Ok(0)
    }

    /// Looks for addresses in the images that would go. What an image that stays holds counts.
    fn search(&self, open: &[ImageRow], found: &mut [(u32, u32)]) -> Result<(), Error> {
        let maps = self.target.maps()?;
        let stacks = self.stacks(&maps)?;
        loop {
            let goes = |image: &&ImageRow| found.contains(&(image.id, 0));
            let going: Vec<&ImageRow> = open.iter().filter(goes).collect();
            let before = going.len();
            if before == 0 {
                return Ok(());
            }
            let held = self.pointed_at(&going, &maps, &stacks)?;
            for (id, why) in &held {
                found.iter_mut().filter(|(image, _)| image == id).for_each(|(_, found)| *found = *why);
            }
            if held.is_empty() {
                return Ok(());
            }
        }
    }

    /// The stacks of threads: where the live part begins, and the whole.
    fn stacks(&self, maps: &MapsSnapshot) -> Result<Vec<(u64, Range<u64>)>, Error> {
        let of = |thread: Thread| {
            let path = format!("/proc/{}/task/{}/syscall", self.target.pid(), thread.tid);
            let sp = match Syscall::parse(&std::fs::read(path).ok()?)? {
                Syscall::Blocked { sp, .. } | Syscall::Elsewhere { sp, .. } => sp,
                Syscall::Running => return None,
            };
            let end = self.looker.end_of_stack(thread, sp)?;
            Some((sp & !7, own_stacks::whole(maps, sp, end)?))
        };
        Ok(threads::read(self.target, self.books.worker)?.into_iter().filter_map(of).collect())
    }

    /// Images of some that memory holds an address in.
    fn pointed_at(
        &self,
        going: &[&ImageRow],
        maps: &MapsSnapshot,
        stacks: &[(u64, Range<u64>)],
    ) -> Result<Vec<(u32, u32)>, Error> {
        let follows_call = |word: u64| self.looker.follows_call(word);
        let words = Words { going, hidden: self.hidden, follows_call: &follows_call };
        let known = known(self.books, going, stacks);
        let counts = |word: u64| words.counts(word);
        let found = own_stacks::look_for(self.target, maps, &words.table(), &known, MOST, &counts)?;
        let all_of_it = found.found == found.words.len() as u64 && !found.capped;
        let of_thread = |at: u64| {
            threads::read(self.target, self.books.worker)
                .is_ok_and(|all| all.iter().any(|t| self.looker.end_of_stack(*t, at).is_some()))
        };
        let in_memory = found.words.iter().filter(|w| words.counts_at(w.word, || of_thread(w.at)));
        let mut held: Vec<u64> = in_memory.map(|w| w.word).collect();
        for (sp, whole) in stacks {
            held.extend(self.live_words(*sp..whole.end).filter(|word| words.counts_in_frame(*word)));
        }
        Ok(words.verdict(&held, all_of_it))
    }

    /// Words of the live part of a stack.
    fn live_words(&self, live: Range<u64>) -> impl Iterator<Item = u64> {
        let length = usize::try_from(live.end.saturating_sub(live.start)).unwrap_or(0);
        let bytes = self.target.memory.read_vec(Addr(live.start), length).unwrap_or_default();
        bytes.as_chunks::<8>().0.iter().map(|b| u64::from_le_bytes(*b)).collect::<Vec<_>>().into_iter()
    }
}

/// What no thread may be in when images go.
fn searched(books: &Books, images: &[ImageRow]) -> Vec<Interval> {
    let arenas = books.mappings.iter().filter(|m| m.role == ROLE_ARENA && m.prot & PROT_EXEC != 0);
    let mut found: Vec<Interval> = images
        .iter()
        .map(|i| i.plan.start..i.plan.end)
        .chain(arenas.map(|m| m.addr..m.addr.saturating_add(m.len)))
        // The library comes first in the list of the runtime's memory.
        .chain(books.own.first().cloned())
        .chain([books.path.clone()])
        .map(|r| Interval { first: r.start, last: r.end })
        .chain(books.near())
        .collect();
    found.sort_unstable();
    found.dedup_by(|next, kept| {
        let joins = next.first <= kept.last;
        kept.last = if joins { kept.last.max(next.last) } else { kept.last };
        joins
    });
    found
}

#[cfg(test)]
mod tests;
