//! The table of images the unwind answers are looked up in.
//!
//! One immutable array behind one pointer. Readers run on the program's threads, in signal handlers,
//! during an exception: a load, a binary search, nothing else. Old tables are never freed, so a reader
//! that was interrupted in one for an hour still reads valid memory (they cost 128 bytes per image and
//! enable).
//!
//! # Safety
//!
//! A published table is complete and never changes.
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
        Ok(Table { ranges, added: self.added.saturating_add(1) })
    }
}

/// The published table. Written by the worker, read by every thread.
static TABLE: AtomicPtr<Table> = AtomicPtr::new(null_mut());

/// The published table.
pub fn current() -> Option<&'static Table> {
    // SAFETY: what is published is complete, never changes and is never freed.
    // pairs with: `Ready::show`
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

impl Ready {
    /// Shows it to every reader. Only the worker may call it.
    pub fn show(self) {
        // pairs with: `current`
        TABLE.store(self.0, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn range(start: u64, end: u64) -> Range {
        Range { start, end, base: start, eh_frame_hdr: 0, link_map: 0, phdr: 0, phnum: 0, name: [0; 56] }
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
