//! Arenas: where stubs, copies, dispatchers and slots of a plan lie.

use crate::pages::PAGE;
use std::ops::Range;
use suture_elf::maps::REACH;
use suture_elf::{Addr, MapsSnapshot, Region};

/// Room left between an arena and its neighbours, so that it neither blocks their growth nor merges
/// with them in the kernel's books.
const GUARD: u64 = 0x1_0000;
/// Code of one site at most: stub, copy, dispatcher, padding.
const SITE_CODE: u64 = 512;
/// Data of one site: slot and choice word.
const SITE_WORDS: u64 = 16;
/// Stubs and copies start at multiples of this.
const ALIGN: usize = 16;

/// Code pages and slot pages in one hole of the address space.
#[derive(Clone, Debug)]
pub(crate) struct Arena {
    code: Range<u64>,
    slots: Range<u64>,
    bytes: Vec<u8>,
    slot_count: u64,
}

impl Arena {
    /// Places an arena for `sites` sites in a free hole that is in reach of the whole of `near`, as
    /// close to `object`, a part of it, as can be.
    pub fn place(
        maps: &MapsSnapshot,
        taken: &[Range<u64>],
        object: &Range<u64>,
        near: &Range<u64>,
        sites: usize,
    ) -> Option<Self> {
        let code = (sites as u64 * SITE_CODE).next_multiple_of(PAGE);
        let slots = (sites as u64 * SITE_WORDS).next_multiple_of(PAGE);
        let len = code + slots;
        let mut maps = maps.clone();
        maps.regions.extend(taken.iter().map(|r| Region { start: r.start, end: r.end, ..Region::default() }));
        maps.regions.sort_by_key(|r| r.start);
        let close = maps.holes_near(object, len, GUARD, REACH);
        let close = close.into_iter().find(|at| reaches(&(*at..*at + len), near));
        let at = close.or_else(|| maps.free_hole_near(near, len, GUARD, REACH))?;
        Some(Self { code: at..at + code, slots: at + code..at + len, bytes: Vec::new(), slot_count: 0 })
    }

    /// The whole of it.
    pub fn range(&self) -> Range<u64> {
        self.code.start..self.slots.end
    }

    /// Whether everything in it reaches the whole of `near`, and there is room for one more site.
    pub fn suits(&self, near: &Range<u64>) -> bool {
        self.bytes.len() as u64 + SITE_CODE <= self.code.end - self.code.start
            && self.slot_count * SITE_WORDS < self.slots.end - self.slots.start
            && reaches(&self.range(), near)
    }

    /// Where the next piece of code will lie.
    pub fn next(&self) -> Addr {
        Addr(self.code.start + self.bytes.len().next_multiple_of(ALIGN) as u64)
    }

    /// Appends code at [`Arena::next`].
    pub fn push(&mut self, code: &[u8]) {
        self.bytes.resize(self.bytes.len().next_multiple_of(ALIGN), 0xcc);
        self.bytes.extend_from_slice(code);
    }

    /// Address of the next slot; the choice word follows it. [`Arena::take_slot`] makes both used.
    pub fn next_slot(&self) -> Addr {
        Addr(self.slots.start + SITE_WORDS * self.slot_count)
    }

    /// Uses slot and choice word.
    pub fn take_slot(&mut self) {
        self.slot_count += 1;
    }

    /// Takes back everything pushed since the code was `len` bytes long.
    pub fn truncate(&mut self, len: usize) {
        self.bytes.truncate(len);
    }

    /// Bytes of code so far.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Code padded to whole pages, with its address.
    pub fn code_pages(&self) -> (u64, Vec<u8>) {
        let mut bytes = self.bytes.clone();
        bytes.resize(bytes.len().next_multiple_of(PAGE as usize), 0xcc);
        (self.code.start, bytes)
    }

    /// Slot pages that are used.
    pub fn slot_pages(&self) -> Range<u64> {
        self.slots.start..self.slots.start + (self.slot_count * SITE_WORDS).next_multiple_of(PAGE)
    }
}

fn reaches(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.end.max(b.end) - a.start.min(b.start) <= REACH
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arenas_lie_in_reach_and_apart() {
        let maps = MapsSnapshot::parse("7f0000000000-7f0000200000 r-xp 00000000 fe:01 99  /lib/libc.so.6\n")
            .unwrap();
        let near = 0x7f00_0000_0000..0x7f00_0020_0000;
        let first = Arena::place(&maps, &[], &near, &near, 3).unwrap();
        let second = Arena::place(&maps, &[first.range()], &near, &near, 3).unwrap();
        let low = 0x7eff_9000_0000..0x7f00_0020_0000;
        let below = Arena::place(&maps, &[first.range(), second.range()], &near, &low, 1_000).unwrap();
        for (arena, near) in [(&first, &near), (&second, &near), (&below, &low)] {
            assert!(maps.is_free(&arena.range()));
            assert!(reaches(&arena.range(), near) && arena.suits(near));
        }
        assert!(first.range().end <= second.range().start || second.range().end <= first.range().start);
        assert!(Arena::place(&maps, &[], &near, &(0..0x7f00_0000_0000), 1).is_none());
    }

    #[test]
    fn code_and_slots_advance() {
        let maps = MapsSnapshot::parse("7f0000000000-7f0000200000 r-xp 00000000 fe:01 99  /x\n").unwrap();
        let near = 0x7f00_0000_0000..0x7f00_0020_0000;
        let mut arena = Arena::place(&maps, &[], &near, &near, 1).unwrap();
        let start = arena.next();
        arena.push(&[1, 2, 3]);
        assert_eq!(arena.next(), start + 16);
        arena.push(&[4]);
        let (at, code) = arena.code_pages();
        assert_eq!((Addr(at), code.len(), code[2], code[3], code[16]), (start, 0x1000, 3, 0xcc, 4));
        assert!(arena.slot_pages().is_empty());
        arena.take_slot();
        assert_eq!(arena.slot_pages().end - arena.slot_pages().start, 0x1000);
    }
}
