//! The table of images the unwind answers are looked up in.
//!
//! One immutable array behind one pointer. Readers run on the program's threads, in signal handlers,
//! during an exception: a load, a binary search, nothing else. An old table is kept until every thread was
//! seen outside of the runtime's code after its successor was shown ([`free_old`]), so a reader that was
//! interrupted in one for an hour still reads valid memory.
//!
//! # Safety
//!
//! A published table is complete; its readers see nothing change. `previous` is the worker's alone.
#![allow(unsafe_code)]

use crate::list::{self, NoMemory};
use alloc_crate::vec::Vec;
use core::ptr::null_mut;
use core::sync::atomic::{AtomicPtr, Ordering};
use suture_abi::block::ImageRow;

/// One image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// First address.
    pub start: u64,
    /// Address after the last byte.
    pub end: u64,
    /// What is added to the file's addresses.
    pub base: u64,
    /// `.eh_frame_hdr`, or 0.
    pub eh_frame_hdr: u64,
    /// The link map that answers for it.
    pub link_map: u64,
    /// Program headers.
    pub phdr: u64,
    /// How many.
    pub phnum: u64,
    /// Name of the patch, NUL-terminated.
    pub name: [u8; 56],
}

/// Images by address.
#[derive(Debug, Default)]
pub struct Table {
    ranges: Vec<Range>,
    /// Images ever added, for caches that look at a count.
    pub added: u64,
    /// Images ever taken out.
    pub removed: u64,
    /// The table before this one, while a thread may be reading it.
    previous: AtomicPtr<Table>,
}

impl Table {
    /// The image that contains an address.
    pub fn find(&self, addr: u64) -> Option<&Range> {
        let after = self.ranges.partition_point(|r| r.start <= addr);
        self.ranges.get(after.checked_sub(1)?).filter(|r| addr < r.end)
    }

    /// All images, by address.
    pub fn all(&self) -> &[Range] {
        &self.ranges
    }

    /// This table with one more image.
    pub fn with(&self, range: Range) -> Result<Table, NoMemory> {
        let mut ranges = list::copy(&self.ranges, 1)?;
        let at = ranges.partition_point(|r| r.start < range.start);
        list::insert(&mut ranges, at, range)?;
        Ok(Table { ranges, added: self.added.saturating_add(1), removed: self.removed, ..Table::default() })
    }

    /// This table without the images that begin at some addresses.
    pub fn without(&self, starts: &[u64]) -> Result<Table, NoMemory> {
        let mut ranges = list::copy(&self.ranges, 0)?;
        ranges.retain(|r| !starts.contains(&r.start));
        let gone = self.ranges.len().saturating_sub(ranges.len()) as u64;
        let removed = self.removed.saturating_add(gone);
        Ok(Table { ranges, added: self.added, removed, ..Table::default() })
    }
}

/// The published table. Written by the worker, read by every thread.
static TABLE: AtomicPtr<Table> = AtomicPtr::new(null_mut());

/// The published table.
pub fn current() -> Option<&'static Table> {
    // SAFETY: null, or a table that `Ready::show` or `rescue` published: complete, and never changed again but for
    // `previous`. `free_old` frees it only after every thread was seen outside of the runtime's code since its
    // successor was shown, so not while the caller, which is in that code, holds the reference. What `rescue`
    // replaced no table leads to: it is never freed.
    // pairs with: `Ready::show`, `rescue`
    unsafe { TABLE.load(Ordering::Acquire).as_ref() }
}

/// A table that has its place in memory.
#[derive(Debug)]
pub struct Ready(*mut Table);

/// The published table with one more image.
pub fn ready(image: &ImageRow, name: [u8; 56]) -> Result<Ready, NoMemory> {
    let plan = image.plan;
    let range = Range {
        start: plan.start,
        end: plan.end,
        base: plan.base,
        eh_frame_hdr: plan.eh_frame_hdr,
        link_map: image.link_map,
        phdr: plan.phdr,
        phnum: plan.phnum,
        name,
    };
    let next = match current() {
        Some(table) => table.with(range)?,
        None => Table::default().with(range)?,
    };
    list::keep(next).map(Ready)
}

/// The published table without the images that begin at some addresses.
pub fn ready_without(starts: &[u64]) -> Result<Option<Ready>, NoMemory> {
    let Some(table) = current() else { return Ok(None) };
    list::keep(table.without(starts)?).map(|table| Some(Ready(table)))
}

impl Ready {
    /// Shows it to every reader. Only the worker may call it.
    pub fn show(self) {
        // SAFETY: made by `ready` or `ready_without`, not shown yet.
        unsafe { (*self.0).previous.store(TABLE.load(Ordering::Relaxed), Ordering::Relaxed) };
        // pairs with: `current`
        TABLE.store(self.0, Ordering::Release);
    }
}

/// Frees all tables but the one that is shown; gives how many.
///
/// # Safety
///
/// Only the worker may call it, and only if every thread was seen outside of the runtime's code since the table
/// was shown: none can have loaded the address of an older one and still be about to use it.
pub unsafe fn free_old() -> usize {
    let Some(table) = current() else { return 0 };
    let mut old = table.previous.swap(null_mut(), Ordering::Relaxed);
    let mut freed = 0usize;
    while !old.is_null() {
        // SAFETY: made by `list::keep` with capacity 1, in no reader's hands (the caller's promise), and taken
        // out of the chain above, so freed once.
        let table = unsafe { Vec::from_raw_parts(old, 1, 1) };
        old = table.first().map_or(null_mut(), |t| t.previous.load(Ordering::Relaxed));
        freed = freed.saturating_add(1);
    }
    freed
}

/// After a fork in the middle of something: the published table once more, in fresh memory. The one there was lies
/// in an arena that was given up: it stays for its readers, and neither it nor those before it may ever be freed.
/// Only the worker may call it.
pub fn rescue() -> Result<(), NoMemory> {
    if let Some(Ready(again)) = ready_without(&[])? {
        // Not shown as others are: its `previous` stays null.
        // pairs with: `current`
        TABLE.store(again, Ordering::Release);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn range(start: u64, end: u64) -> Range {
        Range { start, end, base: start, eh_frame_hdr: 0, link_map: 0, phdr: 0, phnum: 0, name: [0; 56] }
    }

    #[test]
    fn what_is_taken_out_is_counted_and_not_found() {
        let table = Table::default().with(range(10, 20)).unwrap().with(range(30, 40)).unwrap();
        let less = table.without(&[10, 50]).unwrap();
        assert_eq!((less.added, less.removed, less.all()), (2, 1, [range(30, 40)].as_slice()));
        assert_eq!((less.find(15), less.find(30)), (None, Some(&range(30, 40))));
        assert_eq!(less.with(range(10, 20)).unwrap().removed, 1);
    }

    proptest! {
        /// Binary search finds what a look at every range finds.
        #[test]
        fn find_agrees_with_a_linear_search(
            starts in prop::collection::btree_set(1u64..200, 0..20),
            order in any::<u64>(),
            addr in 0u64..2100,
        ) {
            let mut ranges: Vec<Range> = Vec::new();
            for (i, start) in starts.iter().enumerate() {
                ranges.push(range(start * 10, start * 10 + 1 + (i as u64 * 7) % 10));
            }
            let expected = ranges.iter().find(|r| r.start <= addr && addr < r.end).copied();
            let mut table = Table::default();
            let mut left = ranges.clone();
            let mut pick = order;
            while !left.is_empty() {
                let next = left.remove((pick % left.len() as u64) as usize);
                pick = pick.rotate_left(7) ^ 0x9e37;
                table = table.with(next).unwrap();
            }
            prop_assert_eq!(table.all(), &ranges[..]);
            prop_assert_eq!(table.find(addr).copied(), expected);
            prop_assert_eq!(table.added, ranges.len() as u64);
        }
    }
}
