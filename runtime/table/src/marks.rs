//! Marks: who is not in a bucket, in four bytes.
//!
//! A lookup of what is not there would cost a line of the processor's cache, and the lines of a large table do not
//! fit into the cache. So every bucket has a *cell* besides, 16 of which lie in one line. Each variable has four of
//! 28 marks, by its hash, and the cell has a bit for each: set, if no variable of the bucket has that mark. (In
//! that sense, because a cell that was never written is zero and so says nothing.)
//!
//! *The promise*: the bits of a committed variable's marks are not set. One that is not set without need costs time,
//! nothing else.
//!
//! * A bucket that is **set up** gets its bits by one compare-and-swap from zero, before it can be used. Set up is a
//!   bit itself, so that a helper who was asleep meanwhile can do it no more.
//! * An insertion places its slot, **adds** its marks by a read-modify-write, and only then commits.
//! * A removal withdraws, empties its slot, and **cleans**: it claims the cell ([`Cell::CLEANING`], by
//!   compare-and-swap, one at a time), reads all slots that are not free, committed or not, and swaps the whole cell
//!   for what they need. An insertion that comes meanwhile leaves [`Cell::DISTURBED`], with which the swap fails.
//!
//! *Why it holds.* Take an insertion's read-modify-write and a cleaning that ended with its swap, in the order of
//! changes of the cell. If the insertion comes after the swap its bits are cleared then. If it comes between claim and
//! swap the swap fails. If it comes before the claim, the claim reads from it (through other read-modify-writes, which
//! go on with its release), so the cleaner sees the slot, and heeds its marks unless the slot was emptied again, which
//! is after its withdrawal. Since one cleans at a time, nobody else takes `DISTURBED` away. A draft that tries again in
//! the same bucket adds nothing: its slot is still placed, so no cleaner overlooks it. Slots that came with their bucket
//! were there before it was set up, which a claim reads from as well.
//!
//! When its bucket moves the cell is **closed**: as if all marks had been added, and nobody cleans it any more.
//!
//! A cleaner that vanishes in the middle (a forked child has only the thread that forked) leaves its claim for ever:
//! the bucket is not cleaned any more until it moves. Neither is a bucket that ever had a slot outside its line
//! ([`Cell::OUTSIDE`]), for the cleaner reads the line only. Nobody waits for anybody.

use crate::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use crate::atomic::{AtomicU32, AtomicU64};
use crate::control::{Part, is_left_out};
use crate::hash::{MIX, fold};
use crate::word::Slot;

/// Marks there are.
const COUNT: u32 = 28;

/// Four marks for each of 256 hashes, in no order. (A table, because to put them together would take twenty instructions
/// more in every lookup, which is a third of it.)
#[allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)] // by the compiler, which would refuse it
static FOURS: [u32; 256] = {
    let (mut fours, mut n, mut random) = ([0u32; 256], 0, MIX);
    while n < 256 {
        while fours[n].count_ones() < 4 {
            random = fold(random, MIX);
            fours[n] |= 1 << ((random >> 32) % COUNT as u64);
        }
        n += 1;
    }
    fours
};

/// The marks of some variables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Marks(u32);

impl Marks {
    /// Of no variable.
    pub const NONE: Marks = Marks(0);
    const ALL: u32 = (1 << COUNT) - 1;

    /// Of the variable with this hash: by its lowest 8 bits, which its slot keeps.
    #[inline]
    #[allow(clippy::indexing_slicing)] // 256 by 8 bits
    pub fn of(hash: u64) -> Self {
        Marks(FOURS[(hash & 0xff) as usize])
    }

    /// Those of both.
    #[inline]
    pub const fn and(self, other: Marks) -> Self {
        Marks(self.0 | other.0)
    }
}

/// What a cell holds: `OUTSIDE | DISTURBED | CLEANING | SET_UP | marks that are absent`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cell(u32);

impl Cell {
    /// It was written.
    pub const SET_UP: u32 = 1 << 28;
    /// Somebody is about to swap the cell.
    pub const CLEANING: u32 = 1 << 29;
    /// Marks were added meanwhile.
    pub const DISTURBED: u32 = 1 << 30;
    /// The bucket has had slots outside its line.
    pub const OUTSIDE: u32 = 1 << 31;

    /// Where there are these marks and no others.
    const fn exactly(marks: Marks) -> Self {
        Cell(Self::SET_UP | (Marks::ALL & !marks.0))
    }

    /// Whether there is one of these marks that no committed variable has.
    #[inline]
    pub const fn lacks(self, marks: Marks) -> bool {
        self.0 & marks.0 != 0
    }

    /// Whether somebody is about to swap it.
    #[cfg(test)]
    pub const fn is_claimed(self) -> bool {
        self.0 & Self::CLEANING != 0
    }

    const fn outside(self, outside: bool) -> Self {
        Cell(self.0 | if outside { Self::OUTSIDE } else { 0 })
    }

    const fn with(self, marks: Marks) -> Self {
        let disturbed = if self.0 & Self::CLEANING != 0 { Self::DISTURBED } else { 0 };
        Cell(self.0 & !marks.0 | disturbed)
    }
}

/// Reads a cell.
#[inline]
pub fn read(cell: &AtomicU32) -> Cell {
    Cell(cell.load(Acquire))
}

/// Sets a bucket's cell up, unless somebody has. `outside`: it has slots outside its line.
pub fn set_up(cell: &AtomicU32, marks: Marks, outside: bool) {
    let _ = cell.compare_exchange(0, Cell::exactly(marks).outside(outside).0, AcqRel, Acquire);
}

/// Adds the marks of a slot that was placed. `outside`: not in the bucket's line.
#[inline]
pub fn add(cell: &AtomicU32, marks: Marks, outside: bool) {
    if is_left_out(Part::Marks) {
        return;
    }
    let mut now = Cell(cell.load(Relaxed));
    loop {
        // A write even if nothing changes: a claim that comes later reads from it. (module)
        match cell.compare_exchange_weak(now.0, now.with(marks).outside(outside).0, AcqRel, Relaxed) {
            Ok(_) => return,
            Err(other) => now = Cell(other),
        }
    }
}

/// Makes a cell say nothing, for ever: its bucket is about to move.
pub fn close(cell: &AtomicU32) {
    if !is_left_out(Part::Close) {
        add(cell, Marks(Marks::ALL), true);
    }
}

/// Takes away the marks that no slot of the line needs, if nobody else is at it.
#[inline]
pub fn clean(cell: &AtomicU32, slots: &[AtomicU64]) {
    let now = cell.load(Relaxed);
    let claimed = if is_left_out(Part::Claim) { Cell::CLEANING } else { 0 };
    if now & !Marks::ALL & !claimed != Cell::SET_UP {
        return;
    }
    let claimed = now | Cell::CLEANING;
    // pairs with: the release of `add`. The slots of whoever was here before are seen.
    if cell.compare_exchange(now, claimed, AcqRel, Relaxed).is_err() {
        return;
    }
    let needed = slots.iter().map(|slot| Slot(slot.load(Relaxed)).marks());
    let cleaned = Cell::exactly(needed.fold(Marks::NONE, Marks::and));
    let expected = if is_left_out(Part::Disturbed) { cell.load(Relaxed) } else { claimed };
    if cell.compare_exchange(expected, cleaned.0, Release, Relaxed).is_err() {
        // All marks stay.
        cell.fetch_and(!(Cell::CLEANING | Cell::DISTURBED), Release);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::word::Block;

    fn slot(hash: u64) -> AtomicU64 {
        AtomicU64::new(Slot::of(Block { addr: 0x7fff_ffff_ffe0, large: true }, hash).0)
    }

    #[test]
    fn marks_are_four_of_28_and_nearly_equally_frequent() {
        let mut counts = [0; 28];
        for hash in 0..=0xffu64 {
            let marks = Marks::of(hash | 0xabcd_0100);
            assert_eq!(Slot(slot(hash).load(Relaxed)).marks(), marks);
            assert_eq!(marks.0.count_ones(), 4);
            (0..28).filter(|n| marks.0 & 1 << n != 0).for_each(|n| counts[n] += 1);
        }
        assert!(counts.iter().all(|n| (20..=55).contains(n)), "{counts:?}");
        assert_eq!((Slot::UNSET.marks(), Slot::EMPTY.marks()), (Marks::NONE, Marks::NONE));
    }

    #[test]
    fn a_cell_says_nothing_before_it_is_set_up_and_is_set_up_once() {
        let cell = AtomicU32::new(0);
        assert!((0..=0xff).all(|hash| !read(&cell).lacks(Marks::of(hash))));
        set_up(&cell, Marks::of(0), false);
        set_up(&cell, Marks::NONE, true);
        assert!(!read(&cell).lacks(Marks::of(0)) && read(&cell).lacks(Marks::of(0xff)));
    }

    #[test]
    fn cleaning_leaves_the_marks_of_slots_in_use() {
        let cell = AtomicU32::new(0);
        set_up(&cell, Marks::NONE, false);
        let (stays, goes) = (Marks::of(4), Marks::of(0xff));
        add(&cell, stays, false);
        add(&cell, goes, false);
        assert!(!read(&cell).lacks(stays) && !read(&cell).lacks(goes));
        let slots = [slot(4), AtomicU64::new(Slot::EMPTY.0), AtomicU64::new(Slot::UNSET.0)];
        clean(&cell, &slots);
        assert_eq!(read(&cell), Cell::exactly(stays));
    }

    #[test]
    fn a_closed_cell_says_nothing_and_stays_closed() {
        let cell = AtomicU32::new(0);
        set_up(&cell, Marks::NONE, false);
        close(&cell);
        clean(&cell, &[AtomicU64::new(Slot::EMPTY.0)]);
        assert!((0..=0xff).all(|hash| !read(&cell).lacks(Marks::of(hash))));
    }

    #[test]
    fn cells_that_others_have_claimed_or_that_do_not_tell_all_stay() {
        for (flags, outside) in [(Cell::CLEANING, false), (0, true)] {
            let cell = AtomicU32::new(flags | Cell::SET_UP);
            add(&cell, Marks::of(0), outside);
            let before = read(&cell);
            clean(&cell, &[AtomicU64::new(Slot::EMPTY.0)]);
            assert_eq!(read(&cell), before);
        }
    }
}
