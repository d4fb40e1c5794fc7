//! Slots and choice words: where redirected functions lead.
//!
//! Slots are derived from the books: committing books is storing what changed and showing them. Stores may
//! come in any order: while a transition runs, dispatchers decide for each thread; outside of one, what is
//! stored leads every thread where it was led before.
//!
//! # Safety
//!
//! Slots and choice words are words of the runtime's own arenas, aligned, writable for the life of the
//! process once their site was registered.
#![allow(unsafe_code)]

use super::{books, show};
use crate::arch;
use crate::birth;
use crate::books::{Books, BooksError, Kept, Stacks, choice, slot_value};
use crate::list::{self, NoMemory};
use crate::publish;
use crate::transition::own;
use crate::unwind;
use alloc_crate::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};
use suture_abi::batch::HOOK_NONE;
use suture_abi::dispatch::Choice;

/// A word of an arena.
///
/// # Safety
///
/// The address must be that of a slot or choice word of the books, or of a batch that was mapped.
pub unsafe fn word<'a>(addr: u64) -> &'a AtomicU64 {
    // SAFETY: aligned, writable and never unmapped once threads can come there (the caller's promise).
    unsafe { AtomicU64::from_ptr(core::ptr::with_exposed_provenance_mut(addr as usize)) }
}

/// Address of the runtime's handler for a hook.
fn handler(hook: u32) -> u64 {
    match unwind::handler(hook) {
        0 => match birth::handler(hook) {
            0 => arch::late::handler(hook),
            handler => handler,
        },
        handler => handler,
    }
}

/// One store to come.
#[derive(Clone, Copy, Debug)]
struct Flip {
    place: u64,
    value: u64,
}

/// Books that have their place, with the stores that go with them.
#[derive(Debug)]
pub struct Ready {
    books: publish::Ready,
    choices: Vec<Flip>,
    flips: Vec<Flip>,
    /// A table of searched ranges to be shown before the flips.
    table: Option<u64>,
}

/// Makes books ready.
pub fn ready(next: Books) -> Result<Ready, NoMemory> {
    let stacks = Stacks::of(&next)?;
    let mut flips = Vec::new();
    // Hooks first: a function's replacement may need them.
    for hooks in [true, false] {
        for (index, site) in next.sites.iter().enumerate().filter(|(_, s)| (s.hook != HOOK_NONE) == hooks) {
            let Some(value) = slot_value(index, &next, &stacks, handler) else { continue };
            // SAFETY: the slot of a site of the books.
            if unsafe { word(site.plan.slot) }.load(Ordering::Relaxed) != value {
                list::push(&mut flips, Flip { place: site.plan.slot, value })?;
            }
        }
    }
    Ok(Ready { books: publish::ready(next)?, choices: Vec::new(), flips, table: None })
}

/// Words that dispatchers will read, in their place; given back on drop until they are let go.
struct Words {
    kept: Kept,
}

impl Words {
    fn keep(transition: u32, words: Vec<u64>) -> Result<Self, NoMemory> {
        let (addr, len) = list::keep_all(words)?;
        Ok(Words { kept: Kept { transition, addr, len } })
    }

    fn leave(mut self) -> u64 {
        let addr = self.kept.addr;
        self.kept.addr = 0;
        addr
    }
}

impl Drop for Words {
    fn drop(&mut self) {
        // SAFETY: kept by `keep`; 0, when they were let go, is ignored.
        unsafe { list::free_all::<u64>(self.kept.addr, self.kept.len) };
    }
}

/// Makes books ready with which threads move in another direction: they get a table of what is searched.
pub fn ready_to_turn(next: Books) -> Result<Ready, BooksError> {
    let Some(t) = next.transition.first().copied() else { return Ok(ready(next)?) };
    let table = Words::keep(t.id, own::table(&next, &t)?)?;
    let ready = ready(next.with_kept(table.kept)?)?;
    Ok(Ready { table: Some(table.leave()), ..ready })
}

/// Makes books ready with which threads begin to move: each site in the transition gets its choice, too.
pub fn ready_to_start(next: Books) -> Result<Ready, BooksError> {
    let Some(t) = next.transition.first().copied() else { return Ok(ready(next)?) };
    let stacks = Stacks::of(&next)?;
    let (mut words, mut places) = (Vec::new(), Vec::new());
    for (index, site) in next.sites.iter().enumerate() {
        if let Some(Choice { id, switched, unswitched, .. }) = choice(index, &next, &stacks, handler) {
            for word in [u64::from(id), switched, unswitched] {
                list::push(&mut words, word)?;
            }
            list::push(&mut places, site.plan.choice)?;
        }
    }
    let choices = Words::keep(t.id, words)?;
    let mut stores = Vec::new();
    for (place, value) in places.iter().zip((choices.kept.addr..).step_by(size_of::<Choice>())) {
        list::push(&mut stores, Flip { place: *place, value })?;
    }
    let ready = ready_to_turn(next.with_kept(choices.kept)?)?;
    choices.leave();
    Ok(Ready { choices: stores, ..ready })
}

impl Ready {
    /// The books that will be shown.
    pub fn books(&self) -> &Books {
        self.books.books()
    }

    /// Stores and shows; true if anything was stored that threads read. `may_look`: looks from in here prove
    /// something.
    pub fn commit(self, may_look: bool) -> bool {
        let next = self.books.books();
        for func in next.funcs.iter().filter(|f| f.plan.hook != HOOK_NONE) {
            let copy = next.site(func.site).map_or(0, |s| s.plan.copy);
            unwind::set_original(func.plan.hook, copy);
            birth::set_original(func.plan.hook, copy);
            arch::late::set_original(func.plan.hook, copy);
        }
        if let Some(table) = self.table {
            own::show(if may_look { table } else { 0 });
        }
        for Flip { place, value } in self.choices.iter().chain(&self.flips) {
            // SAFETY: a slot or a choice word of a site of the books.
            // pairs with: the loads in stub and dispatcher (ordered by x86)
            unsafe { word(*place) }.store(*value, Ordering::Release);
        }
        show(self.books);
        !self.flips.is_empty()
    }
}

/// Frees what `old` kept and `new` does not know any more.
///
/// # Safety
///
/// No thread may be inside a dispatcher that reads it.
pub unsafe fn free_spent(old: &[Kept], new: &[Kept]) {
    for spent in old.iter().filter(|k| !new.contains(k)) {
        // SAFETY: kept by `Words`; the caller's promise.
        unsafe { list::free_all::<u64>(spent.addr, spent.len) };
    }
}

/// Brings every slot to what the books say.
pub fn rederive() -> Result<(), NoMemory> {
    let books = books();
    let stacks = Stacks::of(books)?;
    for (index, site) in books.sites.iter().enumerate() {
        if let Some(value) = slot_value(index, books, &stacks, handler) {
            // SAFETY: the slot of a site of the books.
            unsafe { word(site.plan.slot) }.store(value, Ordering::Release);
        }
    }
    Ok(())
}
