//! Blocks: the memory of variables.
//!
//! Blocks of one id and size lie in slabs of 64 KiB that are never given back, so that a header is a
//! header for ever. There are some stripes of slabs, so that threads seldom meet. A thread takes a block
//!
//! 1. from the stack of free blocks of that id and size of its stripe;
//! 2. else from the part of its stripe's newest slab that was never used;
//! 3. else from another stripe's stack;
//! 4. else from a new slab.
//!
//! A block goes back to the stripe its slab was made for, whoever gives it back: blocks of one slab share lines of
//! the processor's cache, and two threads that took turns with two of them would wait for each other at every one.
//!
//! Every step is one compare-and-swap and nobody waits for anybody, so that it can be done in a handler
//! and survives a fork at any instruction: a block that a vanished thread was about to take or give is
//! lost to the child, and nothing else.
//!
//! *No top comes back unnoticed* (ABA): a stack's word holds the number of its top block and a count of
//! changes, 32 bits each. To go wrong, a thread has to stop between two of its instructions for exactly
//! 2³² changes, which at 20 ns each are 86 seconds.
//!
//! *Every slab is in the list of its id*: a slab names the one before it, and one compare-and-swap makes it
//! the newest and the head of the list.
//!
//! Bytes of more than [`MOST_SMALL`] get pages of their own, which go back to the system with the
//! variable; their block says where they are.
//!
//! # Safety
//!
//! Addresses that are dereferenced here come from words that only this module writes and that name mapped,
//! zeroed memory from then on for ever. All of that memory is read and written by atomics.
#![allow(unsafe_code)]

use crate::sys::mem;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicU32, AtomicU64};
use suture_abi::shadow::{
    BlockRow, CLASSES, FIRST_BLOCK, HEADS, IdRow, SLAB_LEN, STRIDES, STRIPES, SlabRow, StripeRow,
};
use suture_table::bucket::begin_life;
use suture_table::hash::{MIX, fold};
use suture_table::memory::{Header, NoMemory};
use suture_table::word::{Block, Extent};

/// Most bytes of a variable that lie in its block.
pub const MOST_SMALL: usize = 8160;
/// The class of blocks whose bytes are elsewhere.
const LARGE_CLASS: usize = CLASSES - 1;
/// Memory asked of the system at once. Untouched pages of it cost nothing, and to ask takes some tens of
/// microseconds: one in 40 000 insertions of small variables does.
const RUN_LEN: u64 = SLAB_LEN * 64;
/// Bytes of a header.
const HEADER: u64 = size_of::<Header>() as u64;
/// Slab numbers in one table, and block numbers in one slab.
const TABLE: u32 = 1024;
/// Tables.
const TABLES: usize = 4096;

/// What is kept for an id. Never freed.
#[repr(C, align(64))]
#[derive(Debug)]
pub struct Id {
    /// Set before it is published.
    pub id: AtomicU64,
    /// The next one with the same head. Set before it is published.
    next: AtomicU64,
    /// Kinds of refusals that were reported since its variables were last freed.
    pub reported: AtomicU64,
    /// By stripe.
    stripes: [Stripe; STRIPES],
}

#[repr(C, align(64))]
#[derive(Debug)]
struct Stripe {
    /// Address of the newest slab.
    newest: [AtomicU64; CLASSES],
    /// Stacks of free blocks: `count of changes | number of the top block + 1`.
    free: [AtomicU64; CLASSES],
}

/// The start of a slab. Everything but `used` is set before it is published.
#[repr(C, align(64))]
#[derive(Debug)]
struct Slab {
    before: AtomicU64,
    /// Address of its [`Id`].
    owner: AtomicU64,
    number: AtomicU32,
    class: AtomicU32,
    capacity: AtomicU32,
    /// Blocks that were ever taken; may run past the capacity.
    used: AtomicU32,
    /// The stripe its free blocks go to.
    stripe: AtomicU32,
}

const _: () = {
    assert!(size_of::<Id>() == size_of::<IdRow>() && size_of::<Slab>() == size_of::<SlabRow>());
    assert!(core::mem::offset_of!(Id, stripes) == core::mem::offset_of!(IdRow, stripes));
    assert!(size_of::<Stripe>() == size_of::<StripeRow>() && STRIPES.is_power_of_two());
    assert!(STRIPES.is_multiple_of(suture_table::guard::STRIPES));
    assert!(size_of::<Header>() == size_of::<BlockRow>());
};

/// All blocks.
#[repr(C)]
#[derive(Debug)]
pub struct Blocks {
    /// Addresses of [`Id`]s, by the lowest bits of a hash of the id.
    ids: [AtomicU64; HEADS],
    /// Addresses of tables of addresses of slabs, by number.
    tables: [AtomicU64; TABLES],
    /// Slab numbers given.
    numbers: AtomicU32,
    /// The rest of a piece for small things: its next free address.
    piece: AtomicU64,
    /// The rest of a run: its next free slab. A multiple of [`RUN_LEN`] is the end of one, or 0.
    run: AtomicU64,
}

fn at<'t, T>(addr: u64) -> Option<&'t T> {
    let place = core::ptr::with_exposed_provenance::<T>(addr as usize);
    // SAFETY: the module's rule: 0, or the address of one that is never unmapped; all fields are atomics.
    unsafe { place.as_ref() }
}

/// Bytes of a block beyond the header, in these units, say its class.
const UNIT: usize = 32;
/// Classes of variables of `n * UNIT` bytes and somewhat fewer. A walk over the strides would be guessed wrong by
/// the processor where sizes are mixed.
#[allow(clippy::indexing_slicing)] // by the compiler, which would refuse it
const CLASS_OF: [u8; MOST_SMALL / UNIT + 1] = {
    let mut classes = [0; MOST_SMALL / UNIT + 1];
    let (mut units, mut class) = (0, 0);
    while units < classes.len() {
        while (units * UNIT) as u64 + HEADER > STRIDES[class] {
            class += 1;
        }
        classes[units] = class as u8;
        units += 1;
    }
    classes
};

/// The class of variables of `size` bytes.
fn class_of(size: usize) -> usize {
    CLASS_OF.get(size.div_ceil(UNIT)).map_or(LARGE_CLASS, |class| usize::from(*class))
}

fn stride_of(class: usize) -> u64 {
    STRIDES.get(class).copied().unwrap_or(64)
}

/// Bits of a stripe's number.
const STRIPE_BITS: u32 = STRIPES.ilog2();

/// Which stripe the calling thread uses: by where its stack is.
#[inline]
pub fn stripe() -> usize {
    let here = 0u8;
    let addr = (&raw const here).addr() as u64;
    ((addr >> 20).wrapping_mul(MIX) >> 64u32.wrapping_sub(STRIPE_BITS)) as usize
}

impl Default for Blocks {
    fn default() -> Self {
        Self::new()
    }
}

impl Blocks {
    /// None.
    pub const fn new() -> Self {
        #[allow(clippy::declare_interior_mutable_const)] // to repeat it
        const ZERO: AtomicU64 = AtomicU64::new(0);
        Blocks {
            ids: [ZERO; HEADS],
            tables: [ZERO; TABLES],
            numbers: AtomicU32::new(0),
            piece: ZERO,
            run: ZERO,
        }
    }

    /// Address of the heads, for readers outside.
    pub fn heads(&self) -> u64 {
        (&raw const self.ids).expose_provenance() as u64
    }

    // ---- ids ----

    fn head(&self, id: u64) -> Option<&AtomicU64> {
        self.ids.get((fold(id, MIX) as usize) % HEADS)
    }

    /// What is kept for an id, if anything.
    pub fn known(&self, id: u64) -> Option<&Id> {
        let mut next = self.head(id)?.load(Acquire);
        while let Some(entry) = at::<Id>(next) {
            if entry.id.load(Relaxed) == id {
                return Some(entry);
            }
            next = entry.next.load(Relaxed);
        }
        None
    }

    #[inline]
    fn id(&self, id: u64) -> Result<&Id, NoMemory> {
        self.known(id).map_or_else(|| self.make_id(id), Ok)
    }

    #[cold]
    #[inline(never)]
    fn make_id(&self, id: u64) -> Result<&Id, NoMemory> {
        let addr = self.small(size_of::<Id>() as u64)?;
        let (entry, head) = (at::<Id>(addr).ok_or(NoMemory)?, self.head(id).ok_or(NoMemory)?);
        entry.id.store(id, Relaxed);
        loop {
            let first = head.load(Acquire);
            if let Some(known) = self.known(id) {
                // Somebody was faster; one entry's memory is lost.
                return Ok(known);
            }
            entry.next.store(first, Relaxed);
            // Release: the entry is seen as a whole. Fails if one was added since it was not found.
            if head.compare_exchange(first, addr, Release, Relaxed).is_ok() {
                return Ok(entry);
            }
        }
    }

    /// A fresh slab or piece, aligned to its length.
    fn map_aligned(&self) -> Result<u64, NoMemory> {
        let mut now = self.run.load(Relaxed);
        loop {
            let is_over = now & RUN_LEN.wrapping_sub(1) == 0;
            let addr = if is_over { map_run()? } else { now };
            match self.run.compare_exchange(now, addr.wrapping_add(SLAB_LEN), Relaxed, Relaxed) {
                Ok(_) => return Ok(addr),
                Err(other) => {
                    if is_over {
                        // SAFETY: just mapped, and nobody knows it.
                        let _ = unsafe { mem::unmap(addr, RUN_LEN) };
                    }
                    now = other;
                }
            }
        }
    }

    /// Zeroed memory that is never freed, a multiple of 64 bytes.
    fn small(&self, len: u64) -> Result<u64, NoMemory> {
        loop {
            let now = self.piece.load(Acquire);
            let end = now.wrapping_add(len);
            // A piece is aligned to its length: 0, or an end in another piece, is none.
            if now != 0 && (now ^ end.wrapping_sub(1)) < SLAB_LEN {
                // At its last byte the next address would be the next piece's first.
                let rest = if end.is_multiple_of(SLAB_LEN) { 0 } else { end };
                if self.piece.compare_exchange(now, rest, AcqRel, Relaxed).is_ok() {
                    return Ok(now);
                }
                continue;
            }
            let piece = self.map_aligned()?;
            if self.piece.compare_exchange(now, piece.wrapping_add(len), AcqRel, Relaxed).is_ok() {
                return Ok(piece);
            }
            // SAFETY: just mapped, and nobody knows it.
            let _ = unsafe { mem::unmap(piece, SLAB_LEN) };
        }
    }

    // ---- slabs ----

    fn table(&self, number: u32) -> Option<&[AtomicU64; TABLE as usize]> {
        at(self.tables.get((number / TABLE) as usize)?.load(Acquire))
    }

    fn slab(&self, number: u32) -> Option<&Slab> {
        at(self.table(number)?.get((number % TABLE) as usize)?.load(Acquire))
    }

    /// A slab of its own for the caller, that knows the one before it.
    fn make_slab(&self, owner: &Id, stripe: usize, before: u64, class: usize) -> Result<u64, NoMemory> {
        let number = self.numbers.fetch_add(1, Relaxed);
        let place = self.tables.get((number / TABLE) as usize).ok_or(NoMemory)?;
        if place.load(Acquire) == 0 {
            let table = self.small(u64::from(TABLE).wrapping_mul(8))?;
            // If somebody was faster one table's memory is lost.
            let _ = place.compare_exchange(0, table, AcqRel, Acquire);
        }
        let addr = self.map_aligned()?;
        let slab = at::<Slab>(addr).ok_or(NoMemory)?;
        let capacity = SLAB_LEN.saturating_sub(FIRST_BLOCK).checked_div(stride_of(class)).unwrap_or(0);
        slab.before.store(before, Relaxed);
        slab.owner.store((&raw const *owner).expose_provenance() as u64, Relaxed);
        slab.number.store(number, Relaxed);
        slab.class.store(class as u32, Relaxed);
        slab.stripe.store(stripe as u32, Relaxed);
        slab.capacity.store(capacity as u32, Relaxed);
        let entry = self.table(number).and_then(|t| t.get((number % TABLE) as usize)).ok_or(NoMemory)?;
        entry.store(addr, Release);
        Ok(addr)
    }

    /// Undoes [`Blocks::make_slab`] for a slab that nobody else knows. Its number is lost.
    fn drop_slab(&self, addr: u64) {
        let number = at::<Slab>(addr).map(|slab| slab.number.load(Relaxed));
        if let Some(entry) = number.and_then(|n| self.table(n)?.get((n % TABLE) as usize)) {
            entry.store(0, Relaxed);
        }
        // SAFETY: mapped by `make_slab`; no block of it was ever given to anybody.
        let _ = unsafe { mem::unmap(addr, SLAB_LEN) };
    }

    // ---- blocks ----

    /// A free block with `size` zeroed bytes, the caller's own: in a new life, without a key.
    #[inline(never)]
    pub fn take(&self, id: u64, size: usize) -> Result<Block, NoMemory> {
        let (class, entry, first) = (class_of(size), self.id(id)?, stripe());
        let own = entry.stripes.get(first).ok_or(NoMemory)?;
        let (free, newest) = own.free.get(class).zip(own.newest.get(class)).ok_or(NoMemory)?;
        let ((addr, index), was_used) = match self.pop(free, class) {
            Some(popped) => (popped, true),
            None => self.find(entry, newest, first, class)?,
        };
        let block = Block { addr, large: class == LARGE_CLASS };
        let header = at::<Header>(addr).ok_or(NoMemory)?;
        // One that was never used is not read: on a fresh page the system would map its page of zeros, and fault
        // once more at the first store.
        let life = if was_used { Extent(header.extent.load(Relaxed)).life() } else { 0 };
        let small = if block.large { 0 } else { size as u64 };
        begin_life(header, Extent::new(life.wrapping_add(1), index, small));
        if block.large {
            self.take_pages(block, size)?;
        } else if was_used {
            // Fresh pages are zero.
            self.zero(block, size);
        }
        Ok(block)
    }

    fn zero(&self, block: Block, size: usize) {
        let first = core::ptr::with_exposed_provenance::<AtomicU64>(block.addr.wrapping_add(HEADER) as usize);
        // SAFETY: the module's rule: the block's class has room for `size` bytes behind the header, rounded up to
        // the 32 that strides and headers are multiples of.
        let words = unsafe { core::slice::from_raw_parts(first, size.min(MOST_SMALL).div_ceil(8)) };
        words.iter().for_each(|word| word.store(0, Relaxed));
    }

    /// A block from elsewhere than the own stack, its number in its slab, and whether it was used before.
    #[inline(never)]
    fn find(
        &self,
        entry: &Id,
        newest: &AtomicU64,
        stripe: usize,
        class: usize,
    ) -> Result<((u64, u64), bool), NoMemory> {
        if let Some(fresh) = unused(newest.load(Acquire), class) {
            return Ok((fresh, false));
        }
        match self.pop_other(entry, class, stripe) {
            Some(popped) => Ok((popped, true)),
            None => Ok((self.unused_of_new(entry, newest, stripe, class)?, false)),
        }
    }

    /// A block that was never used, of a new slab, and its number in it.
    #[cold]
    #[inline(never)]
    fn unused_of_new(
        &self,
        entry: &Id,
        newest: &AtomicU64,
        stripe: usize,
        class: usize,
    ) -> Result<(u64, u64), NoMemory> {
        loop {
            let addr = newest.load(Acquire);
            // Somebody may have made one meanwhile.
            if let Some(fresh) = unused(addr, class) {
                return Ok(fresh);
            }
            let made = self.make_slab(entry, stripe, addr, class)?;
            if newest.compare_exchange(addr, made, AcqRel, Relaxed).is_err() {
                self.drop_slab(made);
            }
        }
    }

    #[cold]
    #[inline(never)]
    fn take_pages(&self, block: Block, size: usize) -> Result<(), NoMemory> {
        let len = (size as u64).checked_next_multiple_of(mem::PAGE);
        match len.map(mem::map_anywhere) {
            Some(Ok(pages)) => {
                let [place, length] = large_words(block).ok_or(NoMemory)?;
                length.store(size as u64, Relaxed);
                place.store(pages, Release);
                Ok(())
            }
            _ => {
                self.push(block);
                Err(NoMemory)
            }
        }
    }

    /// Gives a block back. Nobody else may know it.
    #[inline]
    pub fn give_back(&self, block: Block) {
        if block.large {
            self.give_pages_back(block);
        }
        self.push(block);
    }

    #[cold]
    #[inline(never)]
    fn give_pages_back(&self, block: Block) {
        let Some([place, length]) = large_words(block) else { return };
        let pages = place.swap(0, AcqRel);
        let len = length.load(Relaxed).checked_next_multiple_of(mem::PAGE).unwrap_or(0);
        if pages != 0 {
            // SAFETY: mapped by `take_pages` with this length, for this block, which nobody has.
            let _ = unsafe { mem::unmap(pages, len) };
        }
    }

    /// Where a block's bytes are.
    #[inline]
    pub fn data(&self, block: Block) -> u64 {
        match block.large {
            false => block.addr.wrapping_add(HEADER),
            true => large_words(block).map_or(0, |[place, _]| place.load(Acquire)),
        }
    }

    /// How many bytes it has.
    pub fn size(&self, block: Block) -> u64 {
        match block.large {
            false => self.header(block).map_or(0, |h| Extent(h.extent.load(Relaxed)).size()),
            true => large_words(block).map_or(0, |[_, length]| length.load(Relaxed)),
        }
    }

    /// The header of a block.
    #[inline]
    pub fn header(&self, block: Block) -> Option<&Header> {
        at(block.addr)
    }

    /// A block of another stripe that was used before, and its number in its slab.
    #[cold]
    #[inline(never)]
    fn pop_other(&self, entry: &Id, class: usize, first: usize) -> Option<(u64, u64)> {
        (1..STRIPES).find_map(|n| {
            let stripe = entry.stripes.get(first.wrapping_add(n) % STRIPES)?;
            self.pop(stripe.free.get(class)?, class)
        })
    }

    #[inline]
    fn pop(&self, stack: &AtomicU64, class: usize) -> Option<(u64, u64)> {
        let mut now = stack.load(Acquire);
        loop {
            let number = (now as u32).checked_sub(1)?;
            let slab = self.slab(number / TABLE)?;
            let index = u64::from(number % TABLE);
            let offset = index.wrapping_mul(stride_of(class)).wrapping_add(FIRST_BLOCK);
            let addr = (&raw const *slab).expose_provenance() as u64;
            let addr = addr.wrapping_add(offset);
            // Of another life if somebody was faster; then the swap fails.
            let below = at::<Header>(addr)?.obj.load(Relaxed);
            let next = (now >> 32).wrapping_add(1) << 32 | below & u64::from(u32::MAX);
            match stack.compare_exchange_weak(now, next, AcqRel, Acquire) {
                Ok(_) => return Some((addr, index)),
                Err(other) => now = other,
            }
        }
    }

    #[inline]
    fn push(&self, block: Block) {
        let Some(header) = self.header(block) else { return };
        let Some((stack, number)) = stack_of(block.addr, header) else { return };
        let mut now = stack.load(Relaxed);
        loop {
            header.obj.store(now & u64::from(u32::MAX), Relaxed);
            let next = (now >> 32).wrapping_add(1) << 32 | number;
            // Release: the link, and all that was done with the block, is seen by whoever takes it.
            match stack.compare_exchange_weak(now, next, AcqRel, Relaxed) {
                Ok(_) => return,
                Err(other) => now = other,
            }
        }
    }

    /// Calls `each` with every block of an id that was ever used, newest slabs first.
    pub fn each(&self, id: u64, mut each: impl FnMut(Block, &Header)) {
        let Some(entry) = self.known(id) else { return };
        for stripe in &entry.stripes {
            for (class, newest) in stripe.newest.iter().enumerate() {
                let mut addr = newest.load(Acquire);
                while let Some(slab) = at::<Slab>(addr) {
                    for n in 0..slab.used.load(Relaxed).min(slab.capacity.load(Relaxed)) {
                        let offset = u64::from(n).wrapping_mul(stride_of(class));
                        let addr = addr.wrapping_add(FIRST_BLOCK).wrapping_add(offset);
                        if let Some(header) = at::<Header>(addr) {
                            each(Block { addr, large: class == LARGE_CLASS }, header);
                        }
                    }
                    addr = slab.before.load(Relaxed);
                }
            }
        }
    }
}

/// A block of a slab that was never used, and its number in it.
fn unused(addr: u64, class: usize) -> Option<(u64, u64)> {
    let slab = at::<Slab>(addr)?;
    let capacity = slab.capacity.load(Relaxed);
    if slab.used.load(Relaxed) >= capacity {
        return None;
    }
    let n = slab.used.fetch_add(1, Relaxed);
    let offset = u64::from(n).wrapping_mul(stride_of(class)).wrapping_add(FIRST_BLOCK);
    (n < capacity).then_some((addr.wrapping_add(offset), u64::from(n)))
}

/// The stack a block is given back to, and its number in it.
fn stack_of<'s>(addr: u64, header: &Header) -> Option<(&'s AtomicU64, u64)> {
    let slab = at::<Slab>(addr & !SLAB_LEN.wrapping_sub(1))?;
    let entry = at::<Id>(slab.owner.load(Relaxed))?;
    let stripe = entry.stripes.get(slab.stripe.load(Relaxed) as usize)?;
    let stack = stripe.free.get(slab.class.load(Relaxed) as usize)?;
    let first = slab.number.load(Relaxed).wrapping_mul(TABLE);
    let index = Extent(header.extent.load(Relaxed)).index() as u32;
    Some((stack, u64::from(first.wrapping_add(index).wrapping_add(1))))
}

/// Of a large block: where its bytes are, and how many.
fn large_words<'w>(block: Block) -> Option<&'w [AtomicU64; 2]> {
    at(block.addr.wrapping_add(HEADER))
}

/// A fresh run.
fn map_run() -> Result<u64, NoMemory> {
    let len = RUN_LEN.wrapping_mul(2);
    let start = mem::map_anywhere(len).map_err(|_| NoMemory)?;
    let addr = start.checked_next_multiple_of(RUN_LEN).ok_or(NoMemory)?;
    let (before, after) = (addr.wrapping_sub(start), RUN_LEN.wrapping_sub(addr.wrapping_sub(start)));
    let end = addr.wrapping_add(RUN_LEN);
    for (rest, len) in [(start, before), (end, after)] {
        if len != 0 {
            // SAFETY: part of what was just mapped, and nobody knows it.
            let _ = unsafe { mem::unmap(rest, len) };
        }
    }
    Ok(addr)
}
