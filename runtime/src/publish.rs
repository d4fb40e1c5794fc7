//! Showing the books: one pointer inside, one table for each kind of row outside.
//!
//! Runs on the worker only. Inside the process the current state is one pointer ([`current`]), so that
//! a forked child finds it whole whatever the parent's worker was doing. For readers outside the block
//! names the tables, under the sequence lock of [`suture_abi::block`]. While they change, each count is
//! at no instant larger than the table its address names, for readers of a process that was forked
//! right then.
//!
//! # Safety
//!
//! Published books are never changed. They are freed when the next ones are out and no thread of the process reads
//! any; readers outside copy, then look at the sequence number.
//!
//! # Readers inside
//!
//! Any thread may ask for attributes, in a handler, too ([`with_current`]). It counts itself in before it takes the
//! pointer, and out when it is done with the books. The worker exchanges the pointer, then looks at the count: if it is 0, every
//! reader came after the exchange, or has gone (the two full fences are those of [`table`], with their model). Else the old
//! books wait with those before them until a later exchange finds nobody. Only a thread that does not go on reading (it is
//! stopped, or was forked away) keeps any. So many can wait as there are places; books that are exchanged while all
//! places are taken are never freed.
#![allow(unsafe_code)]

use crate::block::BLOCK;
use crate::books::Books;
use crate::late::table;
use crate::list::{self, NoMemory};
use crate::word::Word;
use alloc_crate::vec::Vec;
use core::ptr::{addr_of_mut, null_mut};
use core::sync::atomic::{AtomicPtr, AtomicU32, Ordering};
use suture_abi::block::{Rows, RuntimeBlock};

/// The published books, null before the first. Written by the worker, read by it and its successors.
static CURRENT: AtomicPtr<Books> = AtomicPtr::new(null_mut());

/// Threads that may be reading books.
static READERS: AtomicU32 = AtomicU32::new(0);

/// Books that were read when the next came. Worker only.
static RETIRED: [AtomicPtr<Books>; 32] = [const { AtomicPtr::new(null_mut()) }; 32];

/// Shows the published books to the calling thread, whichever it is. What it reads must be done with on return.
pub fn with_current<R>(read: impl FnOnce(&Books) -> R) -> R {
    static NONE: Books = Books::EMPTY;
    table::enter(&READERS);
    // SAFETY: what is published is complete, and is freed only when no reader is counted that may have taken it.
    let result = read(unsafe { CURRENT.load(Ordering::SeqCst).as_ref() }.unwrap_or(&NONE));
    table::leave(&READERS);
    result
}

/// Frees books that were just exchanged, and those that had to wait. Worker only.
fn retire(old: *mut Books) {
    let free = |books: *mut Books| {
        if !books.is_null() {
            // SAFETY: made by `list::keep` with capacity 1; exchanged before the count was read, so nobody has it.
            drop(unsafe { Vec::from_raw_parts(books, 1, 1) });
        }
    };
    if table::is_unread(&READERS) {
        RETIRED.iter().for_each(|place| free(place.swap(null_mut(), Ordering::Relaxed)));
        free(old);
    } else if let Some(place) = RETIRED.iter().find(|place| place.load(Ordering::Relaxed).is_null()) {
        place.store(old, Ordering::Relaxed);
    }
}

/// The published books.
///
/// # Safety
///
/// Only the worker may call it, and must not use the reference after [`Ready::show`].
pub unsafe fn current<'b>() -> Option<&'b Books> {
    // SAFETY: what is published is complete and lives until the next is (the caller's promise).
    unsafe { CURRENT.load(Ordering::Acquire).as_ref() }
}

/// Books that have their place in memory: showing them cannot fail any more.
#[derive(Debug)]
pub struct Ready(*mut Books, table::Ready);

/// Gives books their place.
pub fn ready(next: Books) -> Result<Ready, NoMemory> {
    let table = table::ready(&next)?;
    match list::keep(next) {
        Ok(books) => Ok(Ready(books, table)),
        Err(none) => {
            table.discard();
            Err(none)
        }
    }
}

impl Ready {
    /// The books that will be shown.
    pub fn books(&self) -> &Books {
        // SAFETY: made by `ready`, not shown yet, so not freed either.
        unsafe { &*self.0 }
    }

    /// Frees them unseen.
    pub fn discard(self) {
        self.1.discard();
        // SAFETY: made by `list::keep` with capacity 1; never shown.
        drop(unsafe { Vec::from_raw_parts(self.0, 1, 1) });
    }

    /// Makes them the current books and frees the old ones.
    ///
    /// # Safety
    ///
    /// Only the worker may call it; no reference from [`current`] may be used afterwards.
    pub unsafe fn show(self) {
        // pairs with: `current` in a worker of a forked child
        let old = CURRENT.swap(self.0, Ordering::SeqCst);
        let block: *mut RuntimeBlock = BLOCK.as_ptr();
        let books = self.books();
        // SAFETY: the block is a static whose plain fields the worker alone writes.
        unsafe {
            let changing = begin_change(&(*block).rows_seq);
            show(addr_of_mut!((*block).patches), &books.patches);
            show(addr_of_mut!((*block).sites), &books.sites);
            show(addr_of_mut!((*block).funcs), &books.funcs);
            show(addr_of_mut!((*block).images), &books.images);
            show(addr_of_mut!((*block).mappings), &books.mappings);
            show(addr_of_mut!((*block).transition), &books.transition);
            show(addr_of_mut!((*block).states), &books.states);
            show(addr_of_mut!((*block).ranges), &books.ranges);
            show(addr_of_mut!((*block).recipes), &books.recipes);
            (*block).generation.fetch_add(1, Ordering::Relaxed);
            end_change(&(*block).rows_seq, changing);
        }
        self.1.show();
        retire(old);
    }
}

/// Says that the rows change: whoever has seen an earlier number and sees any of what is stored from now on sees
/// another number afterwards. Also for stores that come after the change, into memory that was freed with it.
pub fn begin_change<W: Word<u32>>(seq: &W) -> u32 {
    let odd = seq.load(Ordering::Relaxed) | 1;
    seq.store(odd, Ordering::Relaxed);
    // pairs with: the reader's second look at `rows_seq`
    W::fence(Ordering::Release);
    odd
}

/// Says that they are whole again.
pub fn end_change(seq: &impl Word<u32>, changing: u32) {
    seq.store(changing.wrapping_add(1), Ordering::Release);
}

/// Changes what one of the block's tables names.
///
/// # Safety
///
/// `place` must be valid for writes by this thread alone.
unsafe fn show<T>(place: *mut Rows, rows: &[T]) {
    let addr = if rows.is_empty() { 0 } else { rows.as_ptr().expose_provenance() as u64 };
    let count = u32::try_from(rows.len()).unwrap_or(u32::MAX);
    // SAFETY: the caller's promise. Volatile, so that the order is kept: never a count larger than the
    // table in sight.
    unsafe {
        let before = addr_of_mut!((*place).count).read_volatile();
        addr_of_mut!((*place).count).write_volatile(before.min(count));
        addr_of_mut!((*place).addr).write_volatile(addr);
        addr_of_mut!((*place).count).write_volatile(count);
        addr_of_mut!((*place).row_size).write_volatile(size_of::<T>() as u32);
    }
}

/// After a fork in the middle of something: a deep copy of the published books in fresh memory,
/// descriptions included. The old ones are left alone for ever.
///
/// # Safety
///
/// Only the worker may call it, right after the arena was abandoned.
pub unsafe fn rescue() -> Result<(), NoMemory> {
    // SAFETY: the caller is the worker; the old books are never freed from here on.
    let Some(old) = (unsafe { current() }) else { return Ok(()) };
    let mut copy = old.try_clone()?;
    for patch in &mut copy.patches {
        let start = core::ptr::with_exposed_provenance(patch.description as usize);
        if patch.description != 0 {
            // SAFETY: the description was kept with this length and the arena it lies in was abandoned,
            // not reused.
            let bytes = unsafe { core::slice::from_raw_parts(start, patch.description_len as usize) };
            patch.description = list::keep_bytes(bytes)?;
        }
    }
    // They lie in the abandoned arena: never freed.
    copy.kept = Vec::new();
    let ready = ready(copy)?;
    // Showing must not free books of an arena that is gone.
    CURRENT.store(null_mut(), Ordering::Relaxed);
    RETIRED.iter().for_each(|place| place.store(null_mut(), Ordering::Relaxed));
    // Readers of the parent are not here; one that has forked in a handler reads on in memory that is never freed.
    READERS.store(0, Ordering::Relaxed);
    table::abandon();
    // SAFETY: the caller is the worker.
    unsafe { ready.show() };
    Ok(())
}

#[cfg(test)]
mod tests;
