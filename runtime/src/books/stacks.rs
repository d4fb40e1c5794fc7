//! Function stacks: which replacement a site leads to.
//!
//! A site's stack holds the functions of the enabled patches that replace it, in list order, above the
//! hook it may serve. It is not stored: the order of the function rows is the order of the stacks.

use super::Books;
use crate::list::NoMemory;
use alloc_crate::vec::Vec;
use suture_abi::batch::HOOK_NONE;
use suture_abi::block::{FuncRow, PATCH_ENABLED, SiteRow};

/// What a slot holds: the one place that decides it.
///
/// All threads share the slot, so this is where every thread of the process is sent at once: to the
/// function on top of the site's stack, or back to the copy of the old one. A consistency model that
/// moves threads one by one puts the address of its dispatcher here for as long as a transition runs,
/// and nothing else changes. `hook` gives the address of the runtime's own handler.
pub fn slot_value(site: &SiteRow, top: Option<&FuncRow>, hook: impl Fn(u32) -> u64) -> u64 {
    match top {
        None => site.plan.copy,
        Some(func) if func.plan.hook == HOOK_NONE => func.plan.new_func,
        Some(func) => hook(func.plan.hook),
    }
}

/// Top and depth of every site's stack.
#[derive(Debug)]
pub struct Stacks {
    /// Per site (same order): position of the top function plus 1, or 0, and the depth.
    entries: Vec<(u32, u32)>,
}

impl Stacks {
    /// Empty stacks for these sites.
    pub fn new(sites: &[SiteRow]) -> Result<Self, NoMemory> {
        let mut entries = Vec::new();
        entries.try_reserve_exact(sites.len()).map_err(|_| NoMemory)?;
        entries.resize(sites.len(), (0, 0));
        Ok(Stacks { entries })
    }

    /// Fills the stacks from the books; `books.sites` must be the sites they were made for.
    pub fn count(&mut self, books: &Books) {
        self.entries.fill((0, 0));
        for (position, func) in books.funcs.iter().enumerate() {
            let on = match func.plan.hook {
                HOOK_NONE => books.patch(func.patch).is_some_and(|p| p.state == PATCH_ENABLED),
                hook => books.site(func.site).is_some_and(|s| s.hook == hook),
            };
            let Some(index) = books.site_index(func.site).filter(|_| on) else { continue };
            if let Some((top, depth)) = self.entries.get_mut(index) {
                *top = u32::try_from(position).unwrap_or(u32::MAX).saturating_add(1);
                *depth = depth.saturating_add(1);
            }
        }
    }

    /// The function on top of the site at `index`.
    pub fn top<'b>(&self, index: usize, books: &'b Books) -> Option<&'b FuncRow> {
        let (top, _) = *self.entries.get(index)?;
        books.funcs.get((top as usize).checked_sub(1)?)
    }

    /// Writes the depths into the rows.
    pub fn write_depths(&self, sites: &mut [SiteRow]) {
        for (site, (_, depth)) in sites.iter_mut().zip(&self.entries) {
            site.depth = *depth;
        }
    }
}
