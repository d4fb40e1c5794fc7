//! Stacks that no thread stands on: suspended coroutines.
//!
//! A coroutine that is suspended inside searched code has its frames in the heap, or wherever its
//! stack is, and no thread's registers lead there. So once per transition all private writable memory is
//! searched for words that may be return addresses into searched code: inside a range, and with a call
//! in front. Measured on programs without coroutines, a word looks like a return address into *any*
//! code a few hundred times in all of python's memory, so a patch of a few functions is hardly ever
//! hit by chance.
//!
//! # What is not seen
//!
//! * Memory that is shared (mappings of files and of `memfd`).
//! * The dead part below the stack pointer of a known stack, which is full of old return addresses: the
//!   caller passes whole stacks as known. A coroutine whose stack is an array on a thread's own stack
//!   is noticed otherwise, if `makecontext` made it: see [`crate::Doubt::Inside`].
//! * The other direction: stacks of threads that have ended are kept by the C library for later and
//!   still hold return addresses. They are found, and have to be judged by a person.

use std::ops::Range;
use suture_elf::{Addr, MapsSnapshot, Memory, PAGE};
use suture_scan::{Interval, Ranges};
use thiserror::Error;

/// Pages asked for and bytes read at one time.
const PAGES: usize = 256;
/// Hits that are kept.
const MAX_HITS: usize = 64;

/// Bits of an entry of `/proc/PID/pagemap`.
const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
/// The page is the file's own, never written by the process, or shared.
const FILE_OR_SHARED: u64 = 1 << 61;

/// The page map cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the page map cannot be read at page {page:#x}")]
pub struct PagesError {
    /// Number of the first page asked for.
    pub page: u64,
}

/// Which pages a process has touched: `/proc/PID/pagemap`, or a test's array.
pub trait Pages {
    /// Fills in the entries of the pages from number `page` on (address / 4096).
    ///
    /// # Errors
    /// When they cannot be read.
    fn entries(&self, page: u64, entries: &mut [u64]) -> Result<(), PagesError>;
}

/// An open `/proc/PID/pagemap`.
impl Pages for std::fs::File {
    fn entries(&self, page: u64, entries: &mut [u64]) -> Result<(), PagesError> {
        use std::os::unix::fs::FileExt;
        let mut bytes = vec![0; 8 * entries.len()];
        self.read_exact_at(&mut bytes, 8 * page).map_err(|_| PagesError { page })?;
        entries.iter_mut().zip(bytes.as_chunks::<8>().0).for_each(|(e, b)| *e = u64::from_le_bytes(*b));
        Ok(())
    }
}

/// What is searched, and where not.
#[derive(Clone, Copy)]
pub struct Search<'a> {
    /// The memory map.
    pub maps: &'a MapsSnapshot,
    /// The process's memory.
    pub memory: &'a dyn Memory,
    /// Its page map.
    pub pages: &'a dyn Pages,
    /// Searched code.
    pub table: &'a [Interval],
    /// Memory that is looked at otherwise: stacks of all threads, whole; the runtime's own.
    pub known: &'a [Range<u64>],
    /// Whether a call stands in front of an address:
    /// [`Unwinder::follows_call`](suture_unwind::Unwinder::follows_call).
    pub follows_call: &'a dyn Fn(u64) -> bool,
    /// Most bytes to read.
    pub most: u64,
}

impl std::fmt::Debug for Search<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Search").field("known", &self.known).field("most", &self.most).finish_non_exhaustive()
    }
}

/// A word that may be a return address on a hidden stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HiddenWord {
    /// Where it lies.
    pub at: u64,
    /// The return address.
    pub word: u64,
    /// Index in the table.
    pub range: u32,
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hidden {
    /// The first words found.
    pub words: Vec<HiddenWord>,
    /// Words found.
    pub found: u64,
    /// Bytes that were read.
    pub searched: u64,
    /// Bytes that could not be read; mappings that went away meanwhile.
    pub unreadable: u64,
    /// The limit was reached: memory behind `searched` bytes was not looked at.
    pub capped: bool,
}

impl Hidden {
    /// Nothing was found, and everything was looked at.
    #[must_use]
    pub fn is_clear(&self) -> bool {
        self.found == 0 && !self.capped && self.unreadable == 0
    }
}

/// Searches the private writable memory of a process.
///
/// # Errors
/// When the page map cannot be read, or the table is not in order.
pub fn search(what: &Search<'_>) -> Result<Hidden, PagesError> {
    let ranges = Ranges::new(what.table).map_err(|_| PagesError { page: 0 })?;
    let mut state = State { what, ranges, bytes: vec![0; PAGES * PAGE as usize], hidden: Hidden::default() };
    for region in what.maps.regions.iter().filter(|r| r.read && r.write && !r.shared) {
        for part in without(region.start..region.end, what.known) {
            state.search_part(part)?;
        }
    }
    Ok(state.hidden)
}

struct State<'a> {
    what: &'a Search<'a>,
    ranges: Ranges<'a>,
    /// Kept for all reads: fresh memory of this size costs more than what is read into it.
    bytes: Vec<u8>,
    hidden: Hidden,
}

impl State<'_> {
    fn search_part(&mut self, part: Range<u64>) -> Result<(), PagesError> {
        let mut entries = [0u64; PAGES];
        let mut page = part.start / PAGE;
        let end = part.end.div_ceil(PAGE);
        while page < end && !self.hidden.capped {
            let count = usize::try_from(end - page).unwrap_or(PAGES).min(PAGES);
            let entries = &mut entries[..count];
            self.what.pages.entries(page, entries)?;
            // Runs of pages that the process has written. Reading others would make them exist.
            let mut at = 0;
            for run in entries.chunk_by(|a, b| is_own(*a) == is_own(*b)) {
                let first = page + at as u64;
                at += run.len();
                if is_own(run[0]) {
                    let bytes = first * PAGE..(first + run.len() as u64) * PAGE;
                    self.search_run(bytes.start.max(part.start)..bytes.end.min(part.end));
                }
            }
            page += count as u64;
        }
        Ok(())
    }

    fn search_run(&mut self, run: Range<u64>) {
        let hidden = &mut self.hidden;
        let length = run.end.saturating_sub(run.start);
        let left = self.what.most.saturating_sub(hidden.searched);
        hidden.capped |= length > left;
        let length = length.min(left) & !7;
        let Some(bytes) = self.bytes.get_mut(..length as usize).filter(|b| !b.is_empty()) else { return };
        if self.what.memory.read(Addr(run.start), bytes).is_err() {
            hidden.unreadable += length;
            return;
        }
        hidden.searched += length;
        let mut words = [0u64; 512];
        for (piece, bytes) in bytes.chunks(8 * words.len()).enumerate() {
            let whole = bytes.as_chunks::<8>().0;
            words.iter_mut().zip(whole).for_each(|(word, bytes)| *word = u64::from_le_bytes(*bytes));
            self.ranges.each_hit(&words[..whole.len()], |index, range| {
                let word = words[index];
                let at = run.start + (8 * (piece * words.len() + index)) as u64;
                if (self.what.follows_call)(word) && !is_saved_context(self.what.memory, at) {
                    hidden.found += 1;
                    if hidden.words.len() < MAX_HITS {
                        hidden.words.push(HiddenWord { at, word, range });
                    }
                }
            });
        }
    }
}

/// Whether the word at an address is the program counter that `getcontext` or `swapcontext` saved.
///
/// The kernel's and glibc's `ucontext_t` has it behind the stack pointer, and in front of the address of its own
/// vector state. It is no frame: the word below the saved stack pointer is the same return address while the
/// frame lives, and is found on the stack it lies on. Programs keep these structures for long.
fn is_saved_context(memory: &dyn Memory, at: u64) -> bool {
    const RIP: u64 = 0xa8;
    const FPREGS: u64 = 0xe0;
    const FPREGS_MEM: u64 = 0x1a8;
    let start = at.wrapping_sub(RIP);
    memory.read_u64(Addr(start.wrapping_add(FPREGS))) == Ok(start.wrapping_add(FPREGS_MEM))
}

fn is_own(entry: u64) -> bool {
    entry & (PRESENT | SWAPPED) != 0 && entry & FILE_OR_SHARED == 0
}

/// The pieces of a range outside others.
fn without(range: Range<u64>, known: &[Range<u64>]) -> Vec<Range<u64>> {
    let mut pieces = vec![range];
    for taken in known {
        pieces = pieces
            .into_iter()
            .flat_map(|p| {
                [p.start..p.end.min(taken.start).max(p.start), p.start.max(taken.end).min(p.end)..p.end]
            })
            .filter(|p| p.start < p.end)
            .collect();
    }
    pieces
}

#[cfg(test)]
mod tests;
