//! DRAINED: images that nothing can reach any more are unmapped.
//!
//! # Why nobody comes back
//!
//! The command looks at every thread after the transition that took the patch away has ended. From then on no
//! slot leads into the image, no entry leads there past its slot (marks of that went before the transition began),
//! and no dispatcher is on a path. So into it leads only what a thread has already:
//!
//! * a return address, or a program counter in it: a look sees both;
//! * a decision that is made and not followed yet, in a stub, a dispatcher or the runtime's own code: a look
//!   counts their addresses as the image's;
//! * an address that was stored in data: the command searches the memory of the program for those.
//!
//! A thread that was seen outside once stays outside, whatever it does then, so threads may be looked at one after
//! the other, each for itself; the children of such a thread are outside, too. Changes of the books in between
//! are noticed by their generation.
//!
//! Order: the answers for unwinders forget the image, then the debugger, then the books; then the pages go. A
//! process forked in between has at worst pages that its books do not name.
//!
//! # Safety
//!
//! Pages are unmapped only if no thread can reach them, which the command vouches for; pages of images that
//! are in use or were forced are refused whatever it says.
#![allow(unsafe_code)]

use super::{books, show};
use crate::block::BLOCK;
use crate::host;
use crate::jit;
use crate::list;
use crate::publish;
use crate::reply::Reply;
use crate::sys::{EBUSY, mem};
use crate::unwind::ranges;
use alloc_crate::vec::Vec;
use core::sync::atomic::Ordering;
use suture_abi::batch::ROLE_IMAGE;
use suture_abi::block::{IMAGE_LEFT, MappingRow};
use suture_abi::channel::error;

/// Unmaps images, and notes why others stay; `results[0]` = images that are left.
pub fn drained(generation: u64, payload: &[u8]) -> Result<Reply, Reply> {
    let current = BLOCK.generation().load(Ordering::Relaxed);
    if generation != current {
        return Err(Reply::refused(error::STALE).with(current, 0, 0));
    }
    if !books().transition.is_empty() || host::is_there() {
        return Err(Reply::refused(error::STATE).because(EBUSY));
    }
    let found = parse(payload)?;
    let next = books().with_drained(&found)?;
    let (mut starts, mut debug, mut pages) = (Vec::new(), Vec::new(), Vec::<MappingRow>::new());
    for image in books().images.iter().filter(|i| found.contains(&(i.id, 0))) {
        list::push(&mut starts, image.plan.start)?;
        list::push(&mut debug, image.plan.debug_elf)?;
        for m in books().mappings.iter().filter(|m| m.role == ROLE_IMAGE && m.patch == image.patch) {
            list::push(&mut pages, *m)?;
        }
    }
    let left = next.images.iter().filter(|i| i.flags & IMAGE_LEFT != 0).count() as u64;
    let table = if starts.is_empty() { None } else { ranges::ready_without(&starts)? };
    let ready = publish::ready(next)?;
    if let Some(table) = table {
        // SAFETY: this is the worker. An image that goes was looked at with the runtime's code searched, too, by a
        // look that began after the last table was shown (the generation is the same).
        unsafe { ranges::free_old() };
        table.show();
    }
    debug.into_iter().filter(|addr| *addr != 0).for_each(jit::forget);
    show(ready);
    for m in pages {
        // SAFETY: pages of an image whose patch is gone; no thread is in it or can come there (module).
        let _ = unsafe { mem::unmap(m.addr, m.len) };
    }
    Ok(Reply::done(left, 0))
}

/// Images, and what was found of each.
fn parse(payload: &[u8]) -> Result<Vec<(u32, u32)>, Reply> {
    let malformed = Reply::refused(error::MALFORMED).with(payload.len() as u64, 0, 0);
    let (pairs, rest) = payload.as_chunks::<8>();
    if !rest.is_empty() {
        return Err(malformed);
    }
    let mut found = Vec::new();
    for pair in pairs {
        let both = u64::from_le_bytes(*pair);
        list::push(&mut found, (both as u32, (both >> 32) as u32))?;
    }
    Ok(found)
}
