//! The raw scan of a stack: every word, and where the stack is proven to end.
//!
//! The scan is a filter. *No hit and a proven end* means that no return address into a searched range
//! lies between the stack pointer and the end of the stack. A hit may be stale; an exact walk decides.
//!
//! # What a clean scan does not see
//!
//! Frames below the stack pointer. A signal handler may run on an alternate stack, and that stack may
//! be an array *inside* the thread's own stack, above the frames it interrupted: a scan from the
//! handler's stack pointer then reaches the true end of the stack and has passed none of them. So a
//! signal frame is never passed silently: [`Outcome::signal_frame`] says where the first one may be, by
//! the magic number that the kernel puts into its saved vector state, and the thread has to be walked.
//! The return trampolines of signal handlers and of `makecontext` belong into the table of ranges for
//! the same reason (the caller knows their indices).

use crate::Ranges;
use crate::ranges::BLOCK;

/// First magic number in the vector state of a signal frame (`FP_XSTATE_MAGIC1`), the low half of an
/// aligned word.
const SIGNAL_MAGIC: u32 = 0x4650_5853;
/// The second word of a thread's control block that points to itself (`tcbhead_t.self`).
const SELF_AGAIN: u64 = 0x10;
/// Candidates for a control block that are kept at one time. A false one has two words equal to their
/// own address and is dropped at its third test, so one is common and two are rare.
const CANDIDATES: usize = 4;

/// How the end of a stack is recognised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It is known: `__libc_stack_end` of the loader, for the main thread.
    Address(u64),
    /// glibc puts the control block of a thread above its frames: an aligned address `a` with
    /// `word[a] == a`, `word[a + 0x10] == a` and the thread's number at `a + tid_offset`.
    ThreadBlock {
        /// Number of the thread as the process itself sees it (the last one of `NSpid`).
        tid: u32,
        /// Offset of the number, from `_thread_db_pthread_tid` of libc.
        tid_offset: u32,
    },
    /// musl puts the control block there, too, but its second word about itself is in its neighbours' blocks: an
    /// aligned address `a` with `word[a] == a` and the thread's number at `a + tid_offset`. That can be something
    /// else: whoever scans has to look at the neighbours ([`StackEnd::Proven`] says where the block is).
    LinkedBlock {
        /// As above.
        tid: u32,
        /// As above.
        tid_offset: u32,
    },
    /// Nothing proves it.
    Unknown,
}

/// A word inside a range.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hit {
    /// Address of the word.
    pub at: u64,
    /// Index of the range in the table.
    pub range: u32,
}

/// Whether there is more to feed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The end was not reached.
    More,
    /// It was; further words are ignored.
    Ended,
}

/// Whether the scan reached the end of the stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StackEnd {
    /// Its address.
    Proven(u64),
    /// No: the scan covers less than the stack, or something else.
    Unproven,
}

/// What a scan found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Hits stored.
    pub hits: usize,
    /// Hits seen, stored or not.
    pub seen: u64,
    /// Address of the first word that looks like part of a signal frame.
    pub signal_frame: Option<u64>,
    /// The end.
    pub end: StackEnd,
}

impl Outcome {
    /// Nothing found on the whole of the stack, and nothing that could hide frames.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.seen == 0 && self.signal_frame.is_none() && matches!(self.end, StackEnd::Proven(_))
    }
}

/// What was found up to some address.
#[derive(Clone, Copy, Debug, Default)]
struct Found {
    stored: usize,
    seen: u64,
    signal_frame: Option<u64>,
}

/// An address that may be that of the thread's control block.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    at: u64,
    /// Found below it: what lies above is no stack.
    found: Found,
    self_again: bool,
}

/// Scans a stack that is fed in pieces of any length, upwards from the stack pointer and without gaps.
///
/// About 1 ns per word. Nothing is kept of the words, so pieces may share one buffer.
#[derive(Debug)]
pub struct Scanner<'r, 'h> {
    ranges: &'r Ranges<'r>,
    hits: &'h mut [Hit],
    next: u64,
    end: End,
    found: Found,
    candidates: [Option<Candidate>; CANDIDATES],
    ended: Option<u64>,
}

impl<'r, 'h> Scanner<'r, 'h> {
    /// Starts at the stack pointer. Hits are stored as far as `hits` has room, and counted beyond.
    ///
    /// A stack pointer that is no multiple of 8 is no stack pointer of compiled code: the scan then
    /// never ends proven.
    #[must_use]
    pub fn new(ranges: &'r Ranges<'r>, hits: &'h mut [Hit], sp: u64, end: End) -> Self {
        let usable = match end {
            End::Address(at) => at.is_multiple_of(8) && sp < at,
            End::ThreadBlock { tid_offset, .. } | End::LinkedBlock { tid_offset, .. } => {
                u64::from(tid_offset) > SELF_AGAIN && tid_offset.is_multiple_of(4)
            }
            End::Unknown => false,
        };
        let end = if usable && sp.is_multiple_of(8) { end } else { End::Unknown };
        let candidates = [None; CANDIDATES];
        Self { ranges, hits, next: sp, end, found: Found::default(), candidates, ended: None }
    }

    /// Address of the word that is expected next.
    #[must_use]
    pub fn next(&self) -> u64 {
        self.next
    }

    /// Whether anything was found so far that makes the stack unclean.
    #[must_use]
    pub fn has_hit(&self) -> bool {
        self.found.seen > 0 || self.found.signal_frame.is_some()
    }

    /// Scans the next words.
    pub fn feed(&mut self, words: &[u64]) -> Step {
        for block in words.chunks(BLOCK) {
            if self.ended.is_some() {
                return Step::Ended;
            }
            if self.is_plain(block) {
                self.next = self.next.wrapping_add(8u64.wrapping_mul(block.len() as u64));
            } else {
                for word in block {
                    if self.ended.is_none() {
                        self.look(*word);
                    }
                }
            }
        }
        if self.ended.is_some() { Step::Ended } else { Step::More }
    }

    /// What was found.
    #[must_use]
    pub fn finish(self) -> Outcome {
        let Found { stored, seen, signal_frame } = self.found;
        let end = self.ended.map_or(StackEnd::Unproven, StackEnd::Proven);
        Outcome { hits: stored, seen, signal_frame, end }
    }

    /// Whether a block surely needs no closer look.
    #[inline]
    fn is_plain(&self, block: &[u64]) -> bool {
        let mut special = self.ranges.may_contain_any(block);
        let mut at = self.next;
        for word in block {
            special |= (*word as u32 == SIGNAL_MAGIC) | (*word == at);
            at = at.wrapping_add(8);
        }
        // `at` is now behind the block.
        special |= match self.end {
            End::Address(end) => end <= at,
            End::ThreadBlock { .. } | End::LinkedBlock { .. } => self.candidates.iter().any(Option::is_some),
            End::Unknown => false,
        };
        !special
    }

    fn look(&mut self, word: u64) {
        let at = self.next;
        self.next = at.wrapping_add(8);
        if let End::ThreadBlock { tid, tid_offset } | End::LinkedBlock { tid, tid_offset } = self.end {
            if self.test_candidates(at, word, tid, u64::from(tid_offset)) {
                return;
            }
            let aligned = matches!(self.end, End::LinkedBlock { .. }) || at.is_multiple_of(16);
            if word == at && aligned {
                let candidate = Candidate { at, found: self.found, self_again: false };
                // Without room it is forgotten: the end then stays unproven, which is safe.
                if let Some(free) = self.candidates.iter_mut().find(|c| c.is_none()) {
                    *free = Some(candidate);
                }
            }
        }
        if word as u32 == SIGNAL_MAGIC && self.found.signal_frame.is_none() {
            self.found.signal_frame = Some(at);
        }
        if let Some(range) = self.ranges.find(word) {
            if let Some(free) = self.hits.get_mut(self.found.stored) {
                *free = Hit { at, range };
                self.found.stored = self.found.stored.saturating_add(1);
            }
            self.found.seen = self.found.seen.saturating_add(1);
        }
        if self.end == End::Address(self.next) {
            self.ended = Some(self.next);
        }
    }

    /// Puts the word to the candidates whose test it is. True when one passed the last test.
    fn test_candidates(&mut self, at: u64, word: u64, tid: u32, tid_offset: u64) -> bool {
        for slot in &mut self.candidates {
            let Some(candidate) = slot else { continue };
            let offset = at.wrapping_sub(candidate.at);
            if offset == SELF_AGAIN {
                let linked = matches!(self.end, End::LinkedBlock { .. });
                candidate.self_again = linked || word == candidate.at;
                if !candidate.self_again {
                    *slot = None;
                    continue;
                }
            }
            if offset == tid_offset & !7 {
                let half = if tid_offset & 4 == 0 { word as u32 } else { (word >> 32) as u32 };
                if candidate.self_again && half == tid {
                    self.ended = Some(candidate.at);
                    self.found = candidate.found;
                    return true;
                }
                *slot = None;
            }
        }
        false
    }
}

#[cfg(test)]
mod tests;
