//! PREPARE: maps, fills and registers a batch, or leaves no trace.
//!
//! # Safety
//!
//! Pages are mapped only where nothing is, words are filled only in them (the view checked that), and
//! on failure exactly they go again.
#![allow(unsafe_code)]

use super::bytes::{self, Live};
use super::{books, hooking_off, reserve, show, slots};
use crate::arch;
use crate::batch::{Malformed, View};
use crate::block::BLOCK;
use crate::books::{Books, KeptRecipe};
use crate::late;
use crate::list;
use crate::publish;
use crate::reply::Reply;
use crate::sys::fd::Fd;
use crate::sys::{EFAULT, EINVAL, mem, thread};
use crate::transition::ends::StackEnds;
use alloc_crate::vec::Vec;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use suture_abi::batch::{
    BATCH_LINKED_THREADS, FIXUP_ADDRESS, FIXUP_RESOLVER, FIXUP_TLSDESC, Fixup, MAPPING_FILE, Object,
};
use suture_abi::channel::error;
use suture_abi::late::{NO_SITE, PLACE_BOUND, PLACE_FREE, Place, RECIPE_WATCH};

/// Prepares a batch; `results[0]` = number of its patch.
pub fn prepare(payload: &[u8], file: Option<&Fd>) -> Result<Reply, Reply> {
    let view = View::parse(payload)
        .map_err(|Malformed(offset)| Reply::refused(error::MALFORMED).with(offset as u64, 0, 0))?;
    if view.has_patch() {
        hooking_off()?;
    }
    let generation = BLOCK.generation().load(Ordering::Relaxed);
    if view.header.generation != generation {
        return Err(Reply::refused(error::STALE).with(generation, 0, 0));
    }
    check_objects(&view)?;
    let description = Description::keep(view.description)?;
    let recipes = keep_recipes(&view)?;
    let next = books().with_batch(&view, description.addr, &recipes, thread::realtime())?;
    check_sites(books(), &next)?;
    let patch = if view.has_patch() { next.last_patch } else { 0 };
    let len = next.bytes();
    let ready = publish::ready(next)?;
    // Dropped on the way out of any failure below: books, description and pages go again.
    let ready = Unpublished(Some(ready));
    let mapped = Mapped::all(&view, file)?;
    // After the mappings, so that memory the kernel gives does not lie where they are to go.
    reserve(len)?;
    apply_fixups(&view)?;
    protect(&view)?;
    for site in view.sites.iter().filter(|s| s.id == 0) {
        // SAFETY: the view found the slot aligned and in a writable mapping of this batch, which exists.
        unsafe { slots::word(site.slot) }.store(site.copy, Ordering::Release);
    }
    StackEnds {
        main: view.header.main_stack_end,
        thread_id: view.header.thread_id,
        linked: view.header.flags & BATCH_LINKED_THREADS != 0,
    }
    .keep();
    if view.header.r_debug != 0 {
        late::walk::R_DEBUG.store(view.header.r_debug, Ordering::Release);
    }
    mapped.keep();
    description.leave();
    ready.show();
    Ok(Reply::done(u64::from(patch), 0))
}

/// Keeps the blobs of new recipes, and makes their places. They stay even if the batch is refused later: that
/// is rare, and loading threads may never see memory that is freed.
fn keep_recipes(view: &View<'_>) -> Result<Vec<KeptRecipe>, Reply> {
    let mut kept = Vec::new();
    for recipe in view.recipes.iter().filter(|r| r.id == 0) {
        let bytes = view.blob(&recipe);
        let is_there = recipe.kind == RECIPE_WATCH || recipe.link_map != 0;
        let place = Place {
            state: AtomicU32::new(if is_there { PLACE_BOUND } else { PLACE_FREE }),
            errno: AtomicU32::new(0),
            patch: AtomicU32::new(0),
            site: AtomicU32::new(NO_SITE),
            base: AtomicU64::new(recipe.base),
            link_map: AtomicU64::new(recipe.link_map),
            delta: AtomicU64::new(0),
        };
        let place = list::keep(place)?.expose_provenance() as u64;
        let blob = list::keep_bytes(bytes)?;
        list::push(&mut kept, KeptRecipe { blob, blob_len: bytes.len() as u64, place })?;
    }
    Ok(kept)
}

/// Every object is where the plan found it: its dynamic section begins with the same tag, and the
/// loader's link map (freed and used again after a `dlclose`) still names both addresses.
fn check_objects(view: &View<'_>) -> Result<(), Reply> {
    const L_LD: u64 = 16;
    for (index, object) in view.objects.iter().enumerate() {
        let same = |addr: u64, value: u64| mem::peek(addr) == Ok(value);
        let Object { base, l_ld, link_map, dynamic } = object;
        let there = same(l_ld, dynamic)
            && (link_map == 0 || same(link_map, base) && same(link_map.wrapping_add(L_LD), l_ld));
        if !there {
            return Err(Reply::refused(error::OBJECT).with(index as u64, 0, 0));
        }
    }
    Ok(())
}

/// New sites still have the bytes the plan saw.
fn check_sites(now: &Books, next: &Books) -> Result<(), Reply> {
    let mut new = next.sites.iter().filter(|s| s.id > now.last_site && s.plan.late == 0);
    new.try_for_each(|s| bytes::demand(s, Live::Original))
}

fn apply_fixups(view: &View<'_>) -> Result<(), Reply> {
    for (index, fixup) in view.fixups.iter().enumerate() {
        let Fixup { place, kind, object, addend } = fixup;
        let in_object = || view.objects.get(object as usize).map(|o| o.base.wrapping_add(addend));
        let value = match kind {
            FIXUP_ADDRESS => in_object(),
            FIXUP_RESOLVER => in_object().and_then(resolve),
            FIXUP_TLSDESC => Some(arch::tlsdesc_static()),
            _ => Some(addend),
        };
        let bad =
            Reply::refused(error::MALFORMED).with(u64::from(view.header.fixups.offset), index as u64, 0);
        let value = value.ok_or(bad)?;
        let place = core::ptr::with_exposed_provenance_mut::<u64>(place as usize);
        // SAFETY: eight bytes in a mapping of this batch that is writable now (checked by the view).
        unsafe { place.write_unaligned(value) };
    }
    Ok(())
}

/// Asks an IFUNC resolver. `None` if there is no code where it should be.
fn resolve(resolver: u64) -> Option<u64> {
    mem::peek(resolver).ok()?;
    // SAFETY: the plan found an IFUNC symbol of a loaded object there, and the objects were just found
    // unmoved; resolvers take no argument on x86-64 and need neither libc state nor locks.
    let resolver: extern "C" fn() -> u64 = unsafe { core::mem::transmute(resolver as usize) };
    Some(resolver())
}

fn protect(view: &View<'_>) -> Result<(), Reply> {
    for m in view.mappings.iter().filter(|m| m.final_prot != m.prot) {
        // SAFETY: pages of this batch; writing to them is over.
        unsafe { mem::protect(m.addr, m.len, m.final_prot) }
            .map_err(|errno| Reply::refused(error::PROTECT).with(m.addr, m.len, 0).because(errno))?;
    }
    Ok(())
}

/// The mappings of a batch that is not registered yet: unmapped on drop.
struct Mapped<'v> {
    view: &'v View<'v>,
    count: usize,
}

impl<'v> Mapped<'v> {
    fn all(view: &'v View<'v>, file: Option<&Fd>) -> Result<Self, Reply> {
        let mut mapped = Mapped { view, count: 0 };
        for m in view.mappings.iter() {
            let failed = |errno| Reply::refused(error::MAP).with(m.addr, m.len, 0).because(errno);
            let source = match (m.kind, file) {
                (MAPPING_FILE, None) => return Err(failed(EINVAL)),
                (MAPPING_FILE, Some(file)) => {
                    // A page behind the end of the file would fault when it is touched.
                    let end = m.offset.checked_add(m.len).ok_or(failed(EINVAL))?;
                    if crate::sys::fd::size(file).map_err(failed)? < end {
                        return Err(failed(EFAULT));
                    }
                    Some((file, m.offset))
                }
                _ => None,
            };
            mem::map_fixed(m.addr, m.len, m.prot, source).map_err(failed)?;
            mapped.count = mapped.count.saturating_add(1);
        }
        Ok(mapped)
    }

    fn keep(mut self) {
        self.count = 0;
    }
}

impl Drop for Mapped<'_> {
    fn drop(&mut self) {
        for m in self.view.mappings.iter().take(self.count) {
            // SAFETY: mapped by `all`; no slot, site or thread knows these pages.
            let _ = unsafe { mem::unmap(m.addr, m.len) };
        }
    }
}

/// The kept description of a batch that is not registered yet: freed on drop.
struct Description {
    addr: u64,
    len: u64,
}

impl Description {
    fn keep(bytes: &[u8]) -> Result<Self, Reply> {
        Ok(Description { addr: list::keep_bytes(bytes)?, len: bytes.len() as u64 })
    }

    fn leave(mut self) {
        self.addr = 0;
    }
}

impl Drop for Description {
    fn drop(&mut self) {
        // SAFETY: made by `keep` (0 is ignored) and known to nobody.
        unsafe { list::free_bytes(self.addr, self.len) };
    }
}

/// Books that have their place and are not shown yet: freed on drop.
struct Unpublished(Option<publish::Ready>);

impl Unpublished {
    fn show(mut self) {
        if let Some(ready) = self.0.take() {
            show(ready);
        }
    }
}

impl Drop for Unpublished {
    fn drop(&mut self) {
        if let Some(ready) = self.0.take() {
            ready.discard();
        }
    }
}
