//! The runtime's own memory.
//!
//! One small chunk in `.bss`, then chunks from `mmap`, managed by talc. The worker is the only user:
//! there is no lock, and nothing on the program's threads allocates. It is never the program's
//! allocator and takes nothing from it.
//!
//! After a fork the child's copy may be in any state, because the parent's worker may have been in the
//! middle of it. [`Arena::abandon`] then starts with fresh chunks; what lies in the old ones stays
//! readable and is never reused.
//!
//! # Safety
//!
//! Interior mutability without a lock rests on "only the worker", which the doorbell's claim of the
//! worker's word guarantees.
#![allow(unsafe_code)]

use crate::own_memory;
use crate::sys::mem;
use core::alloc::{GlobalAlloc, Layout};
use core::cell::UnsafeCell;
use talc::base::Talc;
use talc::base::binning::{Binning, DefaultBinning};
use talc::source::Source;

/// Bytes of the first chunk.
const FIRST: usize = 16 * 1024;
/// Least size of a mapped chunk.
const CHUNK: usize = 256 * 1024;

/// The first chunk.
#[repr(C, align(16))]
struct FirstChunk(UnsafeCell<[u8; FIRST]>);

// SAFETY: handed to the one arena, which only the worker uses.
unsafe impl Sync for FirstChunk {}

static FIRST_CHUNK: FirstChunk = FirstChunk(UnsafeCell::new([0; FIRST]));

/// Where talc gets its memory.
#[derive(Debug)]
struct Chunks {
    /// Memory to be used before any is mapped.
    first: Option<*mut u8>,
}

// SAFETY: `acquire` makes system calls only; it cannot reach this or any other allocator.
unsafe impl Source for Chunks {
    fn acquire<B: Binning>(talc: &mut Talc<Self, B>, layout: Layout) -> Result<(), ()> {
        if let Some(first) = talc.source.first.take() {
            // SAFETY: the chunk belongs to this arena and is given to it once.
            if unsafe { talc.claim(first, FIRST) }.is_some() {
                return Ok(());
            }
        }
        let overhead = layout.align().saturating_add(1024);
        let wanted = layout.size().checked_add(overhead).ok_or(())?;
        let len = wanted.max(CHUNK).checked_next_multiple_of(4096).ok_or(())?;
        let chunk = mem::map_anywhere(len as u64).map_err(drop)?;
        own_memory::note(chunk, len as u64);
        let base = core::ptr::with_exposed_provenance_mut(chunk as usize);
        // SAFETY: fresh memory nobody else knows, `len` bytes long.
        unsafe { talc.claim(base, len) }.map(drop).ok_or(())
    }
}

/// An allocator over chunks of its own.
pub struct Arena(UnsafeCell<Talc<Chunks, DefaultBinning>>);

// SAFETY: only the worker calls it (see the module), so there is one thread at a time.
unsafe impl Sync for Arena {}

impl Default for Arena {
    fn default() -> Self {
        Self::new()
    }
}

impl Arena {
    /// An arena that maps its chunks.
    pub const fn new() -> Self {
        Arena(UnsafeCell::new(Talc::new(Chunks { first: None })))
    }

    /// The arena that begins with the chunk in `.bss`, of which there is one.
    const fn with_first_chunk() -> Self {
        Arena(UnsafeCell::new(Talc::new(Chunks { first: Some(FIRST_CHUNK.0.get().cast()) })))
    }

    /// Gives the pages of free memory back to the kernel. The chunks stay mapped: what was free is free, and reads as
    /// zeros. A program that forks copies each page that was touched.
    ///
    /// What is free is found by asking for it: for the largest block of whole pages that is to be had, until there is
    /// none.
    ///
    /// # Safety
    ///
    /// Only the worker may call it.
    pub unsafe fn purge(&self) {
        /// Blocks at a time. What is left when they are used up stays touched.
        const MOST: usize = 64;
        let mut held = [const { None::<(*mut u8, Layout)> }; MOST];
        for place in &mut held {
            // SAFETY: one thread (the caller's promise).
            let Some((block, layout)) = (unsafe { self.largest() }) else { break };
            // SAFETY: whole pages of a block that was just allocated, and that nobody has looked at. The chunks are
            // private memory of the runtime. Refused, the pages stay as they are.
            let _ = unsafe { mem::forget(block.expose_provenance() as u64, layout.size() as u64) };
            *place = Some((block, layout));
        }
        for (block, layout) in held.into_iter().flatten() {
            // SAFETY: one thread; allocated above with this layout.
            unsafe { (*self.0.get()).deallocate(block, layout) };
        }
    }

    /// Allocates the largest block of whole pages that is free.
    ///
    /// # Safety
    ///
    /// Only the worker may call it.
    unsafe fn largest(&self) -> Option<(*mut u8, Layout)> {
        /// Gaps are at most twice as long, or are taken in pieces.
        const LARGEST: usize = 64 << 20;
        const PAGE: usize = mem::PAGE as usize;
        let mut best: Option<(*mut u8, Layout)> = None;
        for more in core::iter::successors(Some(LARGEST), |size| Some(size / 2).filter(|s| *s >= PAGE)) {
            let size = best.map_or(0, |(_, layout)| layout.size()).saturating_add(more);
            let Ok(layout) = Layout::from_size_align(size, PAGE) else { continue };
            if let Some((block, layout)) = best {
                // SAFETY: one thread (the caller's promise); allocated below with this layout.
                unsafe { (*self.0.get()).deallocate(block, layout) };
            }
            // SAFETY: one thread; sizes are not 0. What was freed a moment ago is to be had again.
            let take = |layout| unsafe { (*self.0.get()).try_allocate(layout) };
            let found = take(layout).map(|block| (block, layout));
            let found = found.or_else(|| best.and_then(|(_, layout)| Some((take(layout)?, layout))));
            best = found.map(|(block, layout)| (block.as_ptr(), layout));
        }
        best
    }

    /// Forgets all chunks: what was allocated stays readable for ever and must not be freed.
    ///
    /// # Safety
    ///
    /// Only the worker may call it, with nothing allocated that it will free.
    pub unsafe fn abandon(&self) {
        // SAFETY: one thread (the caller's promise); the old value has no destructor that matters.
        unsafe { self.0.get().write(Talc::new(Chunks { first: None })) };
    }
}

/// The arena everything in this crate allocates from.
pub static ARENA: Arena = Arena::with_first_chunk();

/// [`ARENA`] as the global allocator of `libsuture.so`.
#[derive(Debug)]
pub struct GlobalArena;

// SAFETY: forwards to an allocator.
unsafe impl GlobalAlloc for GlobalArena {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise.
        unsafe { ARENA.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { ARENA.dealloc(ptr, layout) }
    }
}

// SAFETY: talc keeps the contract of an allocator; one thread at a time (module).
unsafe impl GlobalAlloc for Arena {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: one thread; the size is not 0 (contract of `GlobalAlloc`).
        unsafe { (*self.0.get()).allocate(layout) }.map_or(core::ptr::null_mut(), |place| place.as_ptr())
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: one thread; the block is one of this arena's (contract of `GlobalAlloc`).
        unsafe { (*self.0.get()).deallocate(ptr, layout) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        /// Blocks never overlap and keep their content, whatever the order of allocations and frees.
        #[test]
        fn blocks_are_disjoint_and_keep_their_bytes(
            steps in prop::collection::vec((0usize..6000, 0u32..8, any::<bool>()), 1..120),
        ) {
            let arena = Arena::new();
            let mut live: BTreeMap<usize, (Layout, u8)> = BTreeMap::new();
            for (n, (size, align, free)) in steps.into_iter().enumerate() {
                if free && let Some((addr, (layout, fill))) = live.pop_first() {
                    let block = addr as *mut u8;
                    for i in 0..layout.size() {
                        // SAFETY: inside the block this test allocated and filled.
                        prop_assert_eq!(unsafe { block.add(i).read() }, fill);
                    }
                    // SAFETY: allocated below with this layout, freed once.
                    unsafe { arena.dealloc(block, layout) };
                    continue;
                }
                let layout = Layout::from_size_align(size + 1, 1 << align).unwrap();
                // SAFETY: the layout is not empty.
                let block = unsafe { arena.alloc(layout) };
                prop_assert!(!block.is_null());
                let addr = block as usize;
                prop_assert_eq!(addr % layout.align(), 0);
                let before = live.range(..=addr).next_back();
                prop_assert!(before.is_none_or(|(a, (l, _))| a + l.size() <= addr));
                let after = live.range(addr..).next();
                prop_assert!(after.is_none_or(|(a, _)| addr + layout.size() <= *a));
                let fill = n as u8;
                // SAFETY: inside the fresh block.
                unsafe { block.write_bytes(fill, layout.size()) };
                live.insert(addr, (layout, fill));
            }
        }
    }

    /// Pages of a range that are in memory.
    fn resident(addr: usize, len: usize) -> usize {
        let mut pages = vec![0u8; len.div_ceil(4096)];
        // SAFETY: the vector has a byte for each page of the range.
        let done = unsafe { libc::mincore(addr as *mut libc::c_void, len, pages.as_mut_ptr()) };
        assert_eq!(done, 0);
        pages.iter().filter(|page| **page & 1 != 0).count()
    }

    #[test]
    fn purged_memory_is_given_back_and_what_is_in_use_stays() {
        const LEN: usize = 64 << 10;
        let arena = Arena::new();
        let layout = Layout::from_size_align(LEN, 16).unwrap();
        // SAFETY: the layout is not empty; blocks are freed once, and only this thread uses the arena.
        unsafe {
            let blocks: Vec<*mut u8> = (0..8).map(|_| arena.alloc(layout)).collect();
            for (fill, block) in (1u8..).zip(&blocks) {
                assert!(!block.is_null());
                block.write_bytes(fill, LEN);
            }
            let (free, kept): (Vec<_>, Vec<_>) = (1u8..).zip(blocks).partition(|(fill, _)| fill % 4 != 0);
            for (_, block) in &free {
                arena.dealloc(*block, layout);
            }
            let inner = |block: *mut u8| (block.addr().next_multiple_of(4096), LEN - 2 * 4096);
            let touched = |blocks: &[(u8, *mut u8)]| {
                blocks
                    .iter()
                    .map(|(_, block)| inner(*block))
                    .map(|(at, len)| resident(at, len))
                    .sum::<usize>()
            };
            assert_eq!(touched(&free), 6 * 14);
            arena.purge();
            // Where a free range begins and ends talc has written its length.
            assert!(touched(&free) <= 8, "{}", touched(&free));
            assert_eq!(touched(&kept), 2 * 14);
            for (fill, block) in &kept {
                let bytes = core::slice::from_raw_parts(*block, LEN);
                assert!(bytes.iter().all(|byte| byte == fill));
                arena.dealloc(*block, layout);
            }
            let again: Vec<*mut u8> = (0..8).map(|_| arena.alloc(layout)).collect();
            let mut sorted: Vec<usize> = again.iter().map(|block| block.addr()).collect();
            sorted.sort_unstable();
            assert!(sorted.windows(2).all(|pair| pair[0] + LEN <= pair[1]));
        }
    }

    #[test]
    fn an_abandoned_arena_does_not_reuse_its_memory() {
        let arena = Arena::new();
        let layout = Layout::from_size_align(64, 8).unwrap();
        // SAFETY: the layout is not empty; nothing of the first life is freed after `abandon`.
        unsafe {
            let old = arena.alloc(layout);
            old.write_bytes(0x5a, 64);
            arena.abandon();
            for _ in 0..4096 {
                let new = arena.alloc(layout);
                assert!(!new.is_null() && new != old);
                new.write_bytes(0, 64);
            }
            assert_eq!(old.read(), 0x5a);
        }
    }
}
