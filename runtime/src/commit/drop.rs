//! ABORT, RETIRE and the roll-back for a client that died.
//!
//! # Safety
//!
//! A page is unmapped only after the books stopped naming it and only if no thread can be in it: image
//! pages of a batch that was never enabled, arenas of a batch for which nothing was ever written.
#![allow(unsafe_code)]

use super::bytes::{self, Live};
use super::moving::prepared;
use super::{barrier, books, show};
use crate::books::{Batch, BooksError, Dropped, Fate};
use crate::events::{self, About};
use crate::late;
use crate::list::{self, NoMemory};
use crate::publish;
use crate::reply::Reply;
use crate::sys::{EFAULT, mem};
use alloc_crate::vec::Vec;
use suture_abi::batch::ROLE_IMAGE;
use suture_abi::block::{MappingRow, SITE_UNARMED, SiteRow};
use suture_abi::channel::error;
use suture_abi::event::word;
use suture_abi::late::RECIPE_WORDS;

/// Drops the prepared batch; `results[0]` = sites that are still armed.
pub fn abort(id: u32) -> Result<Reply, Reply> {
    let batch = prepared(books(), id)?;
    let sites = sites_of(batch)?;
    // A site the command restored was reported by RETIRE and is not "unarmed" in the books any more.
    let untouched = |s: &SiteRow| s.state == SITE_UNARMED && bytes::is_untouched(&s.plan);
    let mut made = sites.iter().filter(|s| books().made(batch, s));
    let never_armed = batch.0 != 0 && made.all(untouched);
    let fate = |site: &SiteRow| match bytes::look(&site.plan) {
        _ if never_armed && books().made(batch, site) => Fate::Dropped,
        Ok(Live::Original) => Fate::Retired,
        Ok(Live::Armed) => Fate::Armed,
        _ => Fate::Kept,
    };
    let armed = sites.iter().filter(|s| fate(s) == Fate::Armed).count();
    discard(batch, never_armed, fate)?;
    Ok(Reply::done(armed as u64, 0))
}

/// Takes back what a client left prepared. Nothing is known of what it did last, so stubs and copies
/// stay; a site whose bytes cannot be restored from in here stays armed, its slot on the copy.
pub fn roll_back() {
    let Some(batch) = books().prepared() else { return };
    let Ok(sites) = sites_of(batch) else { return };
    let is_armed = |site: &SiteRow| bytes::look(&site.plan) == Ok(Live::Armed);
    for site in sites.iter().filter(|s| is_armed(s)) {
        // A refusal (MDWE, SELinux) shows below: the site is still armed.
        let _ = bytes::restore(&site.plan);
    }
    let _ = barrier();
    let armed = sites.iter().filter(|s| is_armed(s)).count() as u64;
    let name = books().patch(batch.0).map_or([0; 56], |p| p.name);
    events::write(word::ROLLED_BACK, About { patch: batch.0, name: &name, subject: 0, value: armed });
    // Out of memory the batch stays prepared: slots on the copies, the next worker tries again.
    let _ = discard(batch, false, |site| match bytes::look(&site.plan) {
        Ok(Live::Original) => Fate::Retired,
        Ok(Live::Armed) => Fate::Armed,
        _ => Fate::Kept,
    });
}

/// The sites of a batch that nothing else is on.
fn sites_of(batch: Batch) -> Result<Vec<SiteRow>, NoMemory> {
    let books = books();
    let mut sites = Vec::new();
    for func in books.funcs.iter().filter(|f| books.is_of(batch, f)) {
        if let Some(site) = books.site(func.site).filter(|s| s.depth == 0) {
            list::push(&mut sites, *site)?;
        }
    }
    Ok(sites)
}

/// Takes the batch out of the books and unmaps what goes with it.
fn discard(batch: Batch, drop_arenas: bool, fate: impl Fn(&SiteRow) -> Fate) -> Result<(), BooksError> {
    let old = books();
    // A thread in the middle of loading an object may be about to fill words of the image. Whether there is one can
    // be told only when no table names them any more, so the image is left at first.
    let has_words = old.recipes.iter().any(|r| r.patch == batch.0 && r.plan.kind == RECIPE_WORDS);
    let what = Dropped { arenas: drop_arenas, image: !has_words };
    let mut going: Vec<MappingRow> = Vec::new();
    for m in old.mappings.iter().filter(|m| old.goes_with(batch, what, m)) {
        list::push(&mut going, *m)?;
    }
    let row = old.patch(batch.0).copied();
    let ready = publish::ready(old.without_prepared(batch, what, fate)?)?;
    show(ready);
    for m in going {
        // SAFETY: the batch was never enabled, so no slot ever led into its image; arenas go only if no
        // byte was ever written that leads into them. The books do not name the pages any more.
        let _ = unsafe { mem::unmap(m.addr, m.len) };
    }
    if has_words && late::table::is_settled() {
        // Without memory it stays in the books, as where it may be written to: a command looks at it later.
        let _ = discard_image(batch);
    }
    if let Some(row) = row {
        let about = About { patch: row.id, name: &row.name, ..About::default() };
        events::write(word::FAIL, about);
        events::write(word::GONE, about);
        // SAFETY: kept when the patch was prepared; its row is gone.
        unsafe { list::free_bytes(row.description, row.description_len) };
    }
    Ok(())
}

/// Unmaps the image of a batch that was dropped before, when no loading thread can know of its words.
fn discard_image(batch: Batch) -> Result<(), BooksError> {
    let mut found = Vec::new();
    for image in books().images.iter().filter(|i| i.patch == batch.0) {
        list::push(&mut found, (image.id, 0))?;
    }
    let mut going: Vec<MappingRow> = Vec::new();
    for m in books().mappings.iter().filter(|m| m.patch == batch.0 && m.role == ROLE_IMAGE) {
        list::push(&mut going, *m)?;
    }
    show(publish::ready(books().with_drained(&found)?)?);
    for m in going {
        // SAFETY: the batch was never enabled, so no slot ever led into its image, and nobody writes its words any
        // more (the caller). The books do not name the pages any more.
        let _ = unsafe { mem::unmap(m.addr, m.len) };
    }
    Ok(())
}

/// Marks sites whose bytes the command restored; `results[0]` = how many are not restored.
pub fn retire(payload: &[u8]) -> Result<Reply, Reply> {
    let (ids, rest) = payload.as_chunks::<4>();
    if !rest.is_empty() {
        return Err(Reply::refused(error::MALFORMED).with(payload.len() as u64, 0, 0));
    }
    let mut retired = Vec::new();
    let mut left = 0u64;
    for id in ids.iter().map(|id| u32::from_le_bytes(*id)) {
        let site = books().site(id).ok_or(BooksError::NoEntry(id))?;
        // Where nothing is mapped the object was unloaded.
        if site.depth == 0 && matches!(bytes::look(&site.plan), Ok(Live::Original) | Err(EFAULT)) {
            list::push(&mut retired, id)?;
        } else {
            left = left.saturating_add(1);
        }
    }
    if !retired.is_empty() {
        show(publish::ready(books().with_retired(&retired)?)?);
    }
    Ok(Reply::done(left, 0))
}
