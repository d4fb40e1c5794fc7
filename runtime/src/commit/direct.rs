//! DIRECT and STUBS: entries that lead straight to a new function, and back to their stubs.
//!
//! # What changes, and who may be executing it
//!
//! The four bytes of the displacement of a `jmp rel32` that is there already, all in one aligned word, by one
//! store of that word. Boundaries of instructions stay where they are, so it does not matter where threads stand:
//! who fetched the old jump goes through the stub, who fetched the new one does not, and both arrive at the same
//! function, because *while a site is marked its slot holds that function and does not change*. So the store on the
//! way up needs no fence, nobody to have been looked at, and nobody to be told. It is of the kind that arms class A.
//! AMD's manual (volume 2, 7.6.1) admits it inside an aligned quadword without synchronisation; Intel's (volume 3,
//! 8.1.3) promises nothing without. HotSpot (`NativeCall::set_destination_mt_safe`) and DynamoRIO (`pad_jmps`)
//! have relied on it on both vendors' processors inside a cache line, of which an aligned word is a part.
//!
//! # Before a slot is to decide again
//!
//! A dispatcher, and every other change of a slot, has to be met by all threads. So before the slot of a marked site
//! changes:
//!
//! 1. the command writes the stub's displacement back (one store of the word);
//! 2. STUBS: the worker reads the word (so the store is visible to everybody), then makes the barrier: no processor
//!    executes a jump that it had fetched before;    pairs with: every thread's fetch of the entry
//! 3. it takes the mark away;
//! 4. ENABLE or DISABLE, which refuse while a function of theirs is at a marked site, begin the transition.
//!
//! A thread that had taken the direct jump by then is at the first instruction of the new function or behind it: it
//! is where it would be had it gone through the stub before the slot changed, and looks see it there.
//! Sites in a transition are those of its patch's functions (a replace has a function at every site of the patches it
//! replaces), and a mark is never set while there is a transition or a batch that is prepared. Therefore neither
//! start, reverse, force, completion nor the return to the file's bytes meets a marked site. Hooks, whose handlers
//! change, and sites in objects that may go are never marked.
//!
//! # Who dies, who forks
//!
//! The mark is set (DIRECT) before the first store up and goes after the last store down, so it says "may": bytes
//! of a marked site are the stub's jump or the straight one, of any other the stub's. A command that dies in between
//! leaves nothing that has to be done; the next one makes the stores of its own purpose, whatever is there. A
//! process forked in between has marks that are at least as old as its text: a store up is made after the mark was
//! shown, a store down before it went, and text is not stored to while a fork copies the pages.

use super::bytes::{self, Live};
use super::{barrier, books, show, slots};
use crate::books::direct::{Jump, is_plain_stub};
use crate::books::{Books, Stacks};
use crate::list;
use crate::publish;
use crate::reply::Reply;
use crate::sys::{EBUSY, mem};
use alloc_crate::vec::Vec;
use suture_abi::block::SiteRow;
use suture_abi::channel::error;

/// Marks the sites whose jumps may lead past their stubs; `results[0]` = how many were not marked before.
pub fn mark() -> Result<Reply, Reply> {
    let books = books();
    if !books.transition.is_empty() || books.prepared().is_some() {
        return Err(Reply::refused(error::STATE).because(EBUSY));
    }
    let stacks = Stacks::of(books)?;
    let mut marks = Vec::new();
    for (index, site) in books.sites.iter().enumerate().filter(|(_, s)| s.direct == 0) {
        if let Some(to) = books.direct_target(index, &stacks).filter(|to| leads_there(site, *to)) {
            list::push(&mut marks, (site.id, to))?;
        }
    }
    if !marks.is_empty() {
        show(publish::ready(books.with_direct(&marks)?)?);
    }
    Ok(Reply::done(marks.len() as u64, 0))
}

/// True if calls reach `to` through the site as it stands: jump, stub and slot are what the books say.
#[allow(unsafe_code)]
fn leads_there(site: &SiteRow, to: u64) -> bool {
    let plain = mem::peek(site.plan.stub).is_ok_and(|word| is_plain_stub(&site.plan, word));
    // SAFETY: the slot of a site of the books.
    let slot = unsafe { slots::word(site.plan.slot) }.load(core::sync::atomic::Ordering::Relaxed);
    plain && slot == to && bytes::look(&site.plan) == Ok(Live::Armed)
}

/// Takes the marks of sites away whose jumps lead to their stubs again; `results[0]` = of how many that is not so.
pub fn unmark(payload: &[u8]) -> Result<Reply, Reply> {
    let (ids, rest) = payload.as_chunks::<4>();
    if !rest.is_empty() {
        return Err(Reply::refused(error::MALFORMED).with(payload.len() as u64, 0, 0));
    }
    let (mut marks, mut left) = (Vec::new(), 0u64);
    for id in ids.iter().map(|id| u32::from_le_bytes(*id)) {
        let site = books().site(id).ok_or(Reply::refused(error::NO_ENTRY).with(u64::from(id), 0, 0))?;
        match is_on_stub(site) {
            true => list::push(&mut marks, (id, 0))?,
            false => left = left.saturating_add(1),
        }
    }
    if !marks.is_empty() {
        barrier()?;
        show(publish::ready(books().with_direct(&marks)?)?);
    }
    Ok(Reply::done(left, 0))
}

/// True if nothing at the site leads past the stub.
fn is_on_stub(site: &SiteRow) -> bool {
    let Some(jump) = Jump::of(&site.plan) else { return site.direct == 0 };
    // Where nothing is mapped the object was unloaded.
    mem::peek(jump.word).map_or(true, |word| jump.is_to_stub(word) || jump.is_undone(word))
}

/// Refuses while a slot of the patch's functions would not be asked.
pub fn demand_stubs(books: &Books, patch: u32) -> Result<(), Reply> {
    match books.direct_site_of(patch) {
        Some(site) => Err(Reply::refused(error::DIRECT).with(u64::from(site.id), 0, 0)),
        None => Ok(()),
    }
}
