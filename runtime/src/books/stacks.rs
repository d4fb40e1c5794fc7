//! Function stacks: which replacement a site leads to.
//!
//! A site's stack holds the functions of the patches that replace it, in list order, above the hook it may
//! serve. It is not stored: the order of the function rows is the order of the stacks.

use super::Books;
use crate::list::{self, NoMemory};
use alloc_crate::vec::Vec;
use suture_abi::batch::{FUNC_NOP, HOOK_FORK, HOOK_NONE, HOOK_PTHREAD_CREATE};
use suture_abi::block::{FuncRow, PATCH_ENABLED, PHASE_RUNNING, SiteRow};
use suture_abi::dispatch::Choice;

/// The stacks of all sites.
#[derive(Debug)]
pub struct Stacks {
    /// Functions (positions in the books) by site, bottom to top.
    funcs: Vec<u32>,
    /// For each site (position in the books) where its functions begin; one more for the end of the last.
    starts: Vec<u32>,
}

impl Stacks {
    /// The stacks of these books.
    pub fn of(books: &Books) -> Result<Self, NoMemory> {
        let mut entries: Vec<(u32, u32)> = Vec::new();
        for (position, func) in books.funcs.iter().enumerate() {
            let on = match func.plan.hook {
                HOOK_NONE => books.patch(func.patch).is_some_and(|p| p.state == PATCH_ENABLED),
                hook => books.site(func.site).is_some_and(|s| s.hook == hook),
            };
            if let Some(index) = books.site_index(func.site).filter(|_| on) {
                list::push(&mut entries, (narrow(index), narrow(position)))?;
            }
        }
        // Sorted by counting: there may be ten thousand, and each step of a transition does this.
        let mut starts = list::filled(0u32, books.sites.len().saturating_add(1))?;
        for (site, _) in &entries {
            if let Some(count) = starts.get_mut((*site as usize).saturating_add(1)) {
                *count = count.saturating_add(1);
            }
        }
        let mut before = 0u32;
        for start in &mut starts {
            before = before.saturating_add(*start);
            *start = before;
        }
        let mut funcs = list::filled(0u32, entries.len())?;
        let mut next = list::copy(&starts, 0)?;
        // In the order of the books, which is that of each stack.
        for (site, position) in &entries {
            let Some(at) = next.get_mut(*site as usize) else { continue };
            if let Some(place) = funcs.get_mut(*at as usize) {
                *place = *position;
            }
            *at = at.saturating_add(1);
        }
        Ok(Stacks { funcs, starts })
    }

    /// The stack of the site at `index`, bottom to top.
    fn stack(&self, index: usize) -> &[u32] {
        let bound = |index: usize| self.starts.get(index).map_or(0, |start| *start as usize);
        self.funcs.get(bound(index)..bound(index.saturating_add(1))).unwrap_or_default()
    }

    /// How many functions are on the stack of the site at `index`.
    pub fn depth(&self, index: usize) -> u32 {
        narrow(self.stack(index).len())
    }

    /// The function on top of the site at `index`.
    pub fn top<'b>(&self, index: usize, books: &'b Books) -> Option<&'b FuncRow> {
        books.funcs.get(*self.stack(index).last()? as usize)
    }

    /// The function directly below the one of `patch`.
    pub fn below<'b>(&self, index: usize, patch: u32, books: &'b Books) -> Option<&'b FuncRow> {
        let mut below = None;
        for position in self.stack(index) {
            let func = books.funcs.get(*position as usize)?;
            if func.patch == patch && func.plan.hook == HOOK_NONE {
                break;
            }
            below = Some(func);
        }
        below
    }
}

fn narrow(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// Where a function of the books leads: the copy of the old one, a hook's handler, or the replacement.
/// Hooks that serve transitions lead to the old function while none runs.
fn target(site: &SiteRow, func: Option<&FuncRow>, books: &Books, hook: &impl Fn(u32) -> u64) -> u64 {
    let running = || books.transition.first().is_some_and(|t| t.phase == PHASE_RUNNING);
    match func {
        None => site.plan.copy,
        Some(func) if func.plan.flags & FUNC_NOP != 0 => site.plan.copy,
        Some(func) if func.plan.hook == HOOK_NONE => func.plan.new_func,
        Some(func) if matches!(func.plan.hook, HOOK_PTHREAD_CREATE | HOOK_FORK) && !running() => {
            site.plan.copy
        }
        Some(func) => hook(func.plan.hook),
    }
}

/// What a slot holds: the one place that decides it.
///
/// As the kernel's dispatcher: only the *top* of the stack is asked whether it is in transition. If it is,
/// the slot holds the site's dispatcher, which asks for each thread by itself.
pub fn slot_value(index: usize, books: &Books, stacks: &Stacks, hook: impl Fn(u32) -> u64) -> Option<u64> {
    let site = books.sites.get(index)?;
    let top = stacks.top(index, books);
    match top {
        Some(func) if books.is_moving(func) => Some(site.plan.dispatcher),
        _ => Some(target(site, top, books, &hook)),
    }
}

/// What the dispatcher of a site decides between; `None` if the site is not in the transition.
///
/// The patch's own function is on the switched side while the patch comes, on the other while it goes.
pub fn choice(index: usize, books: &Books, stacks: &Stacks, hook: impl Fn(u32) -> u64) -> Option<Choice> {
    let site = books.sites.get(index)?;
    let transition = books.transition.first()?;
    let top = stacks.top(index, books).filter(|func| books.is_moving(func))?;
    let own = target(site, Some(top), books, &hook);
    let below = target(site, stacks.below(index, transition.patch, books), books, &hook);
    let (switched, unswitched) =
        if transition.begun == suture_abi::block::PATCHING { (own, below) } else { (below, own) };
    Some(Choice { id: transition.id, reserved: 0, switched, unswitched })
}
