//! ENABLE and DISABLE: the slots flip.
//!
//! # Safety
//!
//! Slots are words of the runtime's own arenas, aligned, writable for the life of the process once
//! their site was registered.
#![allow(unsafe_code)]

use super::bytes::{self, Live};
use super::prepare::slot;
use super::{barrier, books, show};
use crate::books::{Batch, Books, BooksError, Stacks, slot_value};
use crate::events::{self, About};
use crate::list::{self, NoMemory};
use crate::publish;
use crate::reply::Reply;
use crate::sys::thread;
use crate::unwind::{self, ranges};
use crate::{jit, unwind::handler};
use alloc_crate::vec::Vec;
use core::sync::atomic::Ordering;
use suture_abi::batch::HOOK_NONE;
use suture_abi::block::{FuncRow, PATCH_ENABLED};
use suture_abi::event::word;

/// One store to come.
#[derive(Clone, Copy, Debug)]
struct Flip {
    slot: u64,
    value: u64,
}

/// The stores that bring the slots of some functions' sites to what the books say, hooks first.
fn plan_flips(books: &Books, wanted: impl Fn(&FuncRow) -> bool, of: &Books) -> Result<Vec<Flip>, NoMemory> {
    let mut stacks = Stacks::new(&books.sites)?;
    stacks.count(books);
    let mut flips = Vec::new();
    // Hooks come first in the rows.
    for func in of.funcs.iter().filter(|f| wanted(f)) {
        let Some(index) = books.site_index(func.site) else { continue };
        let Some(site) = books.sites.get(index) else { continue };
        let value = slot_value(site, stacks.top(index, books), handler);
        list::push(&mut flips, Flip { slot: site.plan.slot, value })?;
    }
    Ok(flips)
}

fn flip_all(flips: &[Flip]) {
    for flip in flips {
        // SAFETY: the slot of a site of the books.
        // pairs with: the stub's load (an indirect jump, ordered by x86)
        unsafe { slot(flip.slot) }.store(flip.value, Ordering::Release);
    }
}

/// Enables the prepared batch: verifies that every site is armed, then flips the slots.
pub fn enable(id: u32) -> Result<Reply, Reply> {
    let old = books();
    let batch = prepared(old, id)?;
    barrier()?;
    for func in old.funcs.iter().filter(|f| old.is_of(batch, f)) {
        let site = old.site(func.site).ok_or(BooksError::NoEntry(func.site))?;
        bytes::demand(site, Live::Armed)?;
    }
    let next = old.with_enabled(batch, thread::realtime())?;
    let flips = plan_flips(&next, |f| old.is_of(batch, f), old)?;
    let row = next.patch(id).copied();
    let (id, name) = row.map_or((0, [0; 56]), |row| (row.id, row.name));
    let image = next.images.iter().find(|i| i.patch == id && id != 0).copied();
    let debug = image.map(|i| (i.plan.debug_elf, i.plan.debug_elf_len)).filter(|(addr, _)| *addr != 0);
    let debug = debug.map(|(addr, len)| jit::ready(addr, len)).transpose()?;
    let ranges = image.map(|i| ranges::ready(&i, name)).transpose()?;
    let ready = publish::ready(next)?;

    // Nothing below can fail.
    let about = About { patch: id, name: &name, ..About::default() };
    let log = |words: &[u32]| words.iter().filter(|_| id != 0).for_each(|w| events::write(*w, about));
    log(&[word::ENABLE, word::INIT_PATCH]);
    if let Some(ranges) = ranges {
        ranges.show();
    }
    for func in old.funcs.iter().filter(|f| f.plan.hook != HOOK_NONE && old.is_of(batch, f)) {
        unwind::set_original(func.plan.hook, old.site(func.site).map_or(0, |s| s.plan.copy));
    }
    log(&[word::START_PATCH]);
    flip_all(&flips);
    show(ready);
    // The first barrier has proved that this one works.
    let _ = barrier();
    log(&[word::COMPLETING_PATCH, word::DONE_PATCH]);
    if let Some(debug) = debug {
        debug.show();
    }
    Ok(Reply::default())
}

/// Takes an enabled patch off the stacks and off the list.
pub fn disable(id: u32) -> Result<Reply, Reply> {
    let old = books();
    let row = *old.patch(id).ok_or(BooksError::NoEntry(id))?;
    if row.state != PATCH_ENABLED {
        return Err(BooksError::State(row.state).into());
    }
    barrier()?;
    let next = old.without_enabled(id)?;
    let flips = plan_flips(&next, |f| f.patch == id && f.plan.hook == HOOK_NONE, old)?;
    let ready = publish::ready(next)?;

    // Nothing below can fail.
    let about = About { patch: id, name: &row.name, ..About::default() };
    let log = |words: &[u32]| words.iter().for_each(|w| events::write(*w, about));
    log(&[word::INIT_UNPATCH, word::START_UNPATCH]);
    flip_all(&flips);
    show(ready);
    // The first barrier has proved that this one works.
    let _ = barrier();
    log(&[word::COMPLETING_UNPATCH, word::DONE_UNPATCH, word::GONE]);
    // SAFETY: kept when the patch was prepared; its row is gone.
    unsafe { list::free_bytes(row.description, row.description_len) };
    Ok(Reply::default())
}

/// The batch of that number, if it is prepared and not enabled.
pub fn prepared(books: &Books, id: u32) -> Result<Batch, BooksError> {
    match books.prepared() {
        Some(batch) if batch == Batch(id) => Ok(batch),
        _ => Err(books.patch(id).map_or(BooksError::NoEntry(id), |p| BooksError::State(p.state))),
    }
}

/// Brings every slot to what the books say.
pub fn rederive_slots() -> Result<(), NoMemory> {
    let books = books();
    let mut stacks = Stacks::new(&books.sites)?;
    stacks.count(books);
    for (index, site) in books.sites.iter().enumerate() {
        let value = slot_value(site, stacks.top(index, books), handler);
        // SAFETY: the slot of a site of the books.
        unsafe { slot(site.plan.slot) }.store(value, Ordering::Release);
    }
    Ok(())
}
