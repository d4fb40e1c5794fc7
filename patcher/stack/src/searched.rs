//! The code that must not be live on a stack, as address ranges, and the rules for its bounds.
//!
//! # Which addresses are inside
//!
//! | what is looked at | inside a function that is entered through a hook | inside any other range |
//! |---|---|---|
//! | return address | `(start, end]` | `(start, end]` |
//! | program counter | `(start, end)` | `[start, end)` |
//! | word of a stack, its meaning unknown | `(start, end]` | `[start, end]` |
//!
//! * A *return address* belongs to the call in front of it: `address − 1` is inside. It equals `end` where
//!   the call is the last instruction (one function in three), and it is never `start`: that would be a
//!   call in front of the function.
//! * A *program counter* is exact. At the entry of an original function stands the jump to its stub, so
//!   a thread exactly there has still to pass the dispatcher and runs nothing old. New functions, copies
//!   and split parts have no such jump: there `start` is inside.
//! * A *word* may be either: the program counter of a frame that a signal interrupted lies on the stack
//!   too. So it is inside if it would be as one or the other. Only for original functions may `start` be
//!   left out; elsewhere that would overlook a thread that a signal interrupted at the first
//!   instruction of a new function. A pointer to a new function is then a false hit, which costs a
//!   walk.
//!
//! # Which code is searched
//!
//! For each function of the transition: the original with its parts and its copy, always, since a lower
//! patch's function may have left by a jump into the original; the new function below, or when
//! unpatching every executable byte of the patch image. And all of the runtime's own code: whoever is
//! in a stub, a dispatcher or a copy has not decided yet.

use std::collections::BTreeMap;
use std::ops::Range;
use suture_elf::Base;
use suture_redirect::FunctionCode;
use suture_scan::{End, Hit, Interval, Outcome, Ranges, Scanner};
use suture_unwind::Module;

/// What code a range is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// The body of an original function, whose entry leads to a stub.
    Original,
    /// A part of it that lies elsewhere.
    Part,
    /// A new function, or other code of a patch image.
    New,
    /// The relocated copy of displaced instructions.
    Copy,
    /// The runtime's own code.
    Runtime,
    /// Not searched, but a raw scan must not pass over it: where signal handlers return to.
    SignalReturn,
    /// The same: where functions of `makecontext` return to.
    ContextReturn,
}

impl Kind {
    /// Whether code of this kind is searched for.
    fn is_searched(self) -> bool {
        !matches!(self, Self::SignalReturn | Self::ContextReturn)
    }
}

/// A range that an address is inside of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Match {
    /// The caller's number for the function; 0 for ranges that belong to none.
    pub function: u32,
    /// What the range is.
    pub kind: Kind,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Member {
    range: Range<u64>,
    of: Match,
}

impl Member {
    /// What a word of a stack must be to be inside.
    fn interval(&self) -> Interval {
        let first = if self.of.kind == Kind::Original { self.range.start + 1 } else { self.range.start };
        Interval { first, last: self.range.end }
    }

    fn has_return_address(&self, addr: u64) -> bool {
        self.range.start < addr && addr <= self.range.end
    }

    fn has_pc(&self, pc: u64) -> bool {
        let hooked = self.of.kind == Kind::Original && pc == self.range.start;
        self.range.contains(&pc) && !hooked
    }
}

/// Collects ranges.
#[derive(Clone, Debug, Default)]
pub struct SearchedBuilder(Vec<Member>);

impl SearchedBuilder {
    /// Nothing is searched yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// An original function with its parts, in an object at `base`.
    pub fn original(&mut self, function: u32, base: Base, code: &FunctionCode) {
        let addresses = |r: &Range<suture_elf::Vaddr>| (base + r.start).0..(base + r.end).0;
        self.add(function, Kind::Original, addresses(&code.body));
        code.parts.iter().for_each(|part| self.add(function, Kind::Part, addresses(part)));
    }

    /// Any range of addresses; empty ones are left out. The range of a copy, of a new function (each
    /// executable segment of its image when unpatching).
    pub fn add(&mut self, function: u32, kind: Kind, range: Range<u64>) {
        if range.start < range.end {
            self.0.push(Member { range, of: Match { function, kind } });
        }
    }

    /// Code of the runtime: stubs, dispatchers, copies of all transitions that ever were, trap handlers,
    /// its library.
    pub fn runtime(&mut self, range: Range<u64>) {
        self.add(0, Kind::Runtime, range);
    }

    /// What a raw scan must not pass over silently in any of the objects.
    pub fn markers(&mut self, modules: &[Module]) {
        for module in modules {
            module.signal_returns().into_iter().for_each(|r| self.add(0, Kind::SignalReturn, r));
            module.context_return().into_iter().for_each(|r| self.add(0, Kind::ContextReturn, r));
        }
    }

    /// The finished set. Ranges may overlap: a part can belong to several functions.
    #[must_use]
    pub fn build(mut self) -> Searched {
        self.0.sort_by_key(|m| (m.interval(), m.of));
        self.0.dedup();
        let members = self.0;
        // At each bound the set of ranges changes; between two bounds it is the same.
        let mut bounds: BTreeMap<u64, ()> = BTreeMap::new();
        for interval in members.iter().map(Member::interval) {
            bounds.insert(interval.first, ());
            bounds.insert(interval.last.saturating_add(1), ());
        }
        let (mut intervals, mut owners): (Vec<Interval>, Vec<Vec<u32>>) = (Vec::new(), Vec::new());
        let mut open: Vec<u32> = Vec::new();
        let mut next = 0;
        let mut starts = bounds.keys().copied().peekable();
        while let (Some(first), Some(&behind)) = (starts.next(), starts.peek()) {
            open.retain(|&i| members[i as usize].interval().last >= first);
            while members.get(next).is_some_and(|m| m.interval().first <= first) {
                open.push(next as u32);
                next += 1;
            }
            let last = behind - 1;
            match (intervals.last_mut(), owners.last()) {
                (Some(before), Some(same)) if before.last + 1 == first && *same == open => before.last = last,
                _ if open.is_empty() => {}
                _ => {
                    intervals.push(Interval { first, last });
                    owners.push(open.clone());
                }
            }
        }
        Searched { members, intervals, owners }
    }
}

/// The searched code of one transition.
#[derive(Clone, Debug, Default)]
pub struct Searched {
    members: Vec<Member>,
    /// What words are compared with: disjoint, ascending.
    intervals: Vec<Interval>,
    /// Members of each interval.
    owners: Vec<Vec<u32>>,
}

/// What a raw scan of a stack found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawScan {
    /// As the scanner has it.
    pub outcome: Outcome,
    /// The first hits.
    pub hits: Vec<Hit>,
    /// Address of the first word that returns into searched code.
    pub searched: Option<u64>,
    /// Address of the first word that functions of `makecontext` return to.
    pub context: Option<u64>,
    /// What the program counter is inside of.
    pub at_pc: Option<Match>,
}

impl RawScan {
    /// The thread has no searched code on its stack, proven.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.at_pc.is_none() && self.outcome.is_clean()
    }
}

/// Hits that a scan keeps. The busiest stack of mariadbd has two hundred words that return into any of
/// its code.
const HITS: usize = 4_096;

impl Searched {
    /// The table for [`suture_scan::Ranges`], here or in the target. Ranges of one index have the owners
    /// that [`Searched::owners`] gives.
    #[must_use]
    pub fn table(&self) -> &[Interval] {
        &self.intervals
    }

    /// Whose range an interval of the table is.
    pub fn owners(&self, index: u32) -> impl Iterator<Item = Match> + '_ {
        let owners = self.owners.get(index as usize).map(Vec::as_slice).unwrap_or_default();
        owners.iter().map(|&i| self.members[i as usize].of)
    }

    /// The range a return address is inside of.
    #[must_use]
    pub fn return_address(&self, addr: u64) -> Option<Match> {
        self.find(addr, |member| member.has_return_address(addr))
    }

    /// The range an exact program counter is inside of.
    #[must_use]
    pub fn pc(&self, pc: u64) -> Option<Match> {
        self.find(pc, |member| member.has_pc(pc))
    }

    fn find(&self, addr: u64, inside: impl Fn(&Member) -> bool) -> Option<Match> {
        let at = self.intervals.partition_point(|i| i.first <= addr).checked_sub(1)?;
        let owners = self.owners.get(at).filter(|_| addr <= self.intervals[at].last)?;
        let members = owners.iter().map(|&i| &self.members[i as usize]);
        members
            .filter(|m| m.of.kind.is_searched() && inside(m))
            .map(|m| m.of)
            .min_by_key(|m| (m.kind, m.function))
    }

    /// Scans a copied stack from its stack pointer on. `bytes` begins there.
    #[must_use]
    pub fn scan(&self, pc: u64, sp: u64, bytes: &[u8], end: End) -> RawScan {
        let ranges = Ranges::new(&self.intervals).expect("`build` makes disjoint intervals in order");
        let mut hits = vec![Hit::default(); HITS];
        let mut scanner = Scanner::new(&ranges, &mut hits, sp, end);
        let mut words = [0u64; 512];
        for chunk in bytes.chunks(8 * words.len()) {
            let whole = chunk.as_chunks::<8>().0;
            words.iter_mut().zip(whole).for_each(|(word, bytes)| *word = u64::from_le_bytes(*bytes));
            if scanner.feed(&words[..whole.len()]) == suture_scan::Step::Ended {
                break;
            }
        }
        let outcome = scanner.finish();
        hits.truncate(outcome.hits);
        let first = |wanted: &dyn Fn(Kind) -> bool| {
            let mut found = hits.iter().filter(|hit| self.owners(hit.range).any(|m| wanted(m.kind)));
            found.next().map(|hit| hit.at)
        };
        // What did not fit may be either.
        let lost = (outcome.seen > hits.len() as u64).then_some(sp);
        RawScan {
            outcome,
            searched: first(&Kind::is_searched).or(lost),
            context: first(&|kind| kind == Kind::ContextReturn).or(lost),
            at_pc: self.pc(pc),
            hits,
        }
    }
}

#[cfg(test)]
mod tests;
