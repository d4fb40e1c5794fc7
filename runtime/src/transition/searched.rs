//! What must not be on a thread's stack when it changes sides.
//!
//! Pure. The rules are those of the kernel (`klp_check_stack_func`), with what user space needs besides.
//!
//! | towards the patch | away from it |
//! |---|---|
//! | each old function, its split parts, its copy | the same |
//! | the replacement directly below the patch's | every executable byte of the patch's image |
//! | every stub, dispatcher and copy of the process, and the runtime's slow path | the same |
//!
//! The old functions count in both directions and for every function of the transition: a lower patch's
//! function that leaves by a jump into the old one is on no stack, only the old one is. The whole image
//! counts because helpers reached by a jump are new code too, and because the image will go. Stubs and
//! dispatchers count because a thread that is in one, or that was interrupted there by a signal whose
//! handler blocks, has not decided yet or has just decided.
//!
//! A scan also has to notice where coroutines return to ([`with_contexts`]). The stack of one may be an array
//! in a frame of its thread, above the frames that wait for it: from there a scan reaches the true end of
//! the stack and has passed none of them.

use crate::books::{Books, Stacks};
use crate::list::{self, NoMemory};
use alloc_crate::vec::Vec;
use suture_abi::batch::{HOOK_NONE, PROT_EXEC, RANGE_CONTEXT, RANGE_NEW, RANGE_OLD, ROLE_ARENA};
use suture_abi::block::{PATCHING, TransitionRow};
use suture_scan::Interval;

/// Objects that came after their patches.
#[derive(Clone, Copy, Debug, Default)]
pub struct Late<'a> {
    /// Their rows and load bases, where sites are relative.
    pub bases: &'a [(u32, u64)],
    /// Stubs and copies near them.
    pub code: &'a [Interval],
}

impl Late<'_> {
    fn base(&self, recipe: u32) -> Option<u64> {
        self.bases.iter().find(|(row, _)| *row == recipe).map(|(_, base)| *base)
    }
}

/// The searched addresses of a transition in its present direction, sorted and disjoint.
///
/// `path` is the runtime's own code on the way into a function, `late` the objects that came after their patches.
pub fn searched(
    books: &Books,
    t: &TransitionRow,
    path: (u64, u64),
    late: &Late<'_>,
) -> Result<Vec<Interval>, NoMemory> {
    let mut found = Vec::new();
    let mut add = |start: u64, end: u64| match start < end {
        true => list::push(&mut found, Interval { first: start, last: end }),
        false => Ok(()),
    };
    add(path.0, path.1)?;
    for m in books.mappings.iter().filter(|m| m.role == ROLE_ARENA && m.prot & PROT_EXEC != 0) {
        add(m.addr, m.addr.saturating_add(m.len))?;
    }
    for code in late.code {
        add(code.first, code.last)?;
    }
    let towards = t.target == PATCHING;
    if !towards {
        for image in books.images.iter().filter(|i| i.patch == t.patch) {
            add(image.plan.text_start, image.plan.text_end)?;
        }
    }
    let stacks = Stacks::of(books)?;
    for func in books.funcs.iter().filter(|f| f.patch == t.patch && f.plan.hook == HOOK_NONE) {
        let Some(index) = books.site_index(func.site) else { continue };
        let Some(site) = books.sites.get(index) else { continue };
        let below = stacks.below(index, t.patch, books).map(|f| f.patch);
        for range in books.ranges_of(func.site) {
            let counts = match range.kind {
                RANGE_OLD => range.patch == t.patch,
                RANGE_NEW => match towards {
                    true => below == Some(range.patch),
                    false => range.patch == t.patch,
                },
                _ => false,
            };
            // Code at a relative site is where its object is, if it is anywhere.
            let relative = site.plan.late != 0 && range.kind == RANGE_OLD;
            let base = if relative { late.base(site.plan.recipe) } else { Some(0) };
            if let Some(base) = base.filter(|_| counts) {
                // The entry itself is hooked: a thread that stands there has still to pass, and as a word
                // it is a function pointer.
                let hooked = range.kind == RANGE_OLD && range.start == site.plan.entry;
                let start = base.wrapping_add(range.start);
                add(start.saturating_add(u64::from(hooked)), base.wrapping_add(range.end))?;
            }
        }
        add(site.plan.copy, site.plan.copy.saturating_add(site.plan.copy_len))?;
    }
    merge(&mut found);
    Ok(found)
}

/// The same, and what no scan may pass over.
pub fn with_contexts(
    books: &Books,
    t: &TransitionRow,
    path: (u64, u64),
    late: &Late<'_>,
) -> Result<Vec<Interval>, NoMemory> {
    let mut found = searched(books, t, path, late)?;
    for range in books.ranges.iter().filter(|r| r.kind == RANGE_CONTEXT) {
        list::push(&mut found, Interval { first: range.start, last: range.end })?;
    }
    merge(&mut found);
    Ok(found)
}

/// Sorts intervals and joins those that overlap.
fn merge(found: &mut Vec<Interval>) {
    list::sort(found, |i| *i);
    let mut kept: Option<Interval> = None;
    let mut count = 0usize;
    for at in 0..found.len() {
        let Some(next) = found.get(at).copied() else { break };
        match &mut kept {
            Some(last) if next.first <= last.last => last.last = last.last.max(next.last),
            _ => {
                count = count.saturating_add(1);
                kept = Some(next);
            }
        }
        if let (Some(place), Some(last)) = (found.get_mut(count.saturating_sub(1)), kept) {
            *place = last;
        }
    }
    found.truncate(count);
}

#[cfg(test)]
mod tests;
