//! The steps of a transition, as changes of the books.
//!
//! ```text
//! initialised → started → (reversed)* → completing → done
//!      └────────────── cancelled ──────────┘
//! ```
//!
//! Pure. What each step does to the process, and the callbacks in between, is the machine's business.

use super::{Batch, Books, BooksError, Kept};
use crate::list;
use alloc_crate::vec::Vec;
use suture_abi::batch::{FUNC_NOP, HOOK_NONE, ROLE_IMAGE};
use suture_abi::block::{
    FuncRow, IMAGE_LEFT, IMAGE_PINNED, IMAGE_STAYS, PATCH_ENABLED, PATCH_FORCED, PATCH_LEAVING,
    PATCH_REPLACE, PATCH_STUBS_ONLY, PATCHING, PHASE_COMPLETING, PHASE_INIT, PHASE_RUNNING, PatchRow,
    SITE_ARMED, TRANSITION_CANCELLED, TRANSITION_FORCED, TransitionRow, UNPATCHING,
};
use suture_abi::descriptor::STATE_BLOCK_DISABLE;

/// True if a patch goes when the transition's takes the place of all others. One that is prepared is not listed
/// yet.
fn is_replaced(patch: &PatchRow, t: &TransitionRow) -> bool {
    patch.id != t.patch && patch.state == PATCH_ENABLED
}

impl Books {
    /// True if a function belongs to the patch whose threads are moving.
    pub fn is_moving(&self, func: &FuncRow) -> bool {
        let patch = self.transition.first().filter(|t| t.phase == PHASE_RUNNING).map(|t| t.patch);
        func.plan.hook == HOOK_NONE && Some(func.patch) == patch
    }

    /// True if the patch of the transition takes the place of all others.
    pub fn replaces(&self, t: &TransitionRow) -> bool {
        t.begun == PATCHING && self.patch(t.patch).is_some_and(|p| p.flags & PATCH_REPLACE != 0)
    }

    /// What a patch's `enabled` attribute says: on the stacks and not on its way off them.
    pub fn is_enabled(&self, patch: &PatchRow) -> bool {
        match self.transition.first().filter(|t| t.patch == patch.id) {
            Some(t) => {
                t.phase != PHASE_INIT && t.target == PATCHING
                    || t.phase == PHASE_INIT && t.begun == UNPATCHING
            }
            None => patch.state == PATCH_ENABLED,
        }
    }

    /// The state that forbids a patch to go: `block_disable`.
    pub fn blocker(&self, patch: u32) -> Option<u64> {
        let blocks = |flags: u32| flags & STATE_BLOCK_DISABLE != 0;
        self.states.iter().find(|s| s.patch == patch && blocks(s.plan.flags)).map(|s| s.plan.id)
    }

    /// A state with `block_disable` of a listed patch that a patch which replaces all lacks.
    fn incompatible(&self, patch: &PatchRow) -> Option<(u32, u64)> {
        if patch.flags & PATCH_REPLACE == 0 {
            return None;
        }
        let has = |id: u64| self.states.iter().any(|s| s.patch == patch.id && s.plan.id == id);
        let lacks = |s: &&suture_abi::block::StateRow| {
            s.patch != patch.id && s.plan.flags & STATE_BLOCK_DISABLE != 0 && !has(s.plan.id)
        };
        self.states.iter().find(lacks).map(|s| (s.patch, s.plan.id))
    }

    /// The books with the transition of the prepared batch begun: its hooks are on their sites, its own
    /// functions on no stack yet.
    pub fn with_patching(&self, batch: Batch, now: u64) -> Result<Books, BooksError> {
        let patch = self.patch(batch.0).ok_or(BooksError::NoEntry(batch.0))?;
        if let Some((holder, state)) = self.incompatible(patch) {
            return Err(BooksError::Blocked(holder, state));
        }
        let mut next = self.begun(batch.0, PATCHING, now)?;
        next.put_hooks(self)?;
        for func in self.funcs.iter().filter(|f| self.is_of(batch, f)) {
            let index = next.site_index(func.site).ok_or(BooksError::NoEntry(func.site))?;
            if let Some(site) = next.sites.get_mut(index) {
                site.state = SITE_ARMED;
            }
        }
        next.count_depths()?;
        Ok(next)
    }

    /// The books with the transition begun that takes an enabled patch away.
    pub fn with_unpatching(&self, id: u32, now: u64) -> Result<Books, BooksError> {
        let patch = self.patch(id).ok_or(BooksError::NoEntry(id))?;
        if let Some(state) = self.blocker(id) {
            return Err(BooksError::Blocked(id, state));
        }
        if patch.state != PATCH_ENABLED {
            return Err(BooksError::State(patch.state));
        }
        self.begun(id, UNPATCHING, now)
    }

    fn begun(&self, patch: u32, begun: u32, now: u64) -> Result<Books, BooksError> {
        if let Some(other) = self.transition.first() {
            return Err(BooksError::InTransition(other.patch));
        }
        let mut next = self.try_clone()?;
        next.last_transition = next.last_transition.checked_add(1).ok_or(BooksError::NoMemory)?;
        let row = TransitionRow {
            id: next.last_transition,
            patch,
            begun,
            target: begun,
            phase: PHASE_INIT,
            since_ns: now,
            ..TransitionRow::default()
        };
        list::push(&mut next.transition, row)?;
        Ok(next)
    }

    /// The transition that is going on, to be changed.
    fn changed(&self, edit: impl FnOnce(&mut TransitionRow)) -> Result<(Books, TransitionRow), BooksError> {
        let mut next = self.try_clone()?;
        let row = next.transition.first_mut().ok_or(BooksError::NoEntry(0))?;
        edit(row);
        let row = *row;
        Ok((next, row))
    }

    /// The books with the patch's functions on the stacks and threads about to move.
    pub fn with_started(&self, now: u64) -> Result<Books, BooksError> {
        let (mut next, t) = self.changed(|t| {
            t.phase = PHASE_RUNNING;
            t.callbacks_done = 0;
        })?;
        if let Some(patch) = next.patches.iter_mut().find(|p| p.id == t.patch) {
            patch.state = PATCH_ENABLED;
            patch.time_ns = now;
        }
        next.count_depths()?;
        Ok(next)
    }

    /// The books with words that dispatchers read from now on.
    pub fn with_kept(mut self, kept: Kept) -> Result<Books, BooksError> {
        list::push(&mut self.kept, kept)?;
        Ok(self)
    }

    /// The books with the transition turned round.
    pub fn with_reversed(&self, now: u64) -> Result<Books, BooksError> {
        let (mut next, t) =
            self.changed(|t| t.target = if t.target == PATCHING { UNPATCHING } else { PATCHING })?;
        if t.target == UNPATCHING
            && let Some(state) = self.blocker(t.patch)
        {
            return Err(BooksError::Blocked(t.patch, state));
        }
        if t.phase != PHASE_RUNNING {
            return Err(BooksError::State(t.phase));
        }
        if let Some(patch) = next.patches.iter_mut().find(|p| p.id == t.patch) {
            patch.time_ns = now;
        }
        Ok(next)
    }

    /// The books with the transition marked as forced, and every patch that threads may be in for ever.
    pub fn with_forced(&self) -> Result<Books, BooksError> {
        let (mut next, t) = self.changed(|t| t.flags |= TRANSITION_FORCED)?;
        if t.phase != PHASE_RUNNING {
            return Err(BooksError::InTransition(t.patch));
        }
        let replaces = self.replaces(&t);
        for patch in &mut next.patches {
            // Nobody knows where threads are from now on.
            patch.flags |= PATCH_STUBS_ONLY;
            let own = patch.id == t.patch;
            if t.target == UNPATCHING && own || t.target == PATCHING && replaces && is_replaced(patch, &t) {
                patch.flags |= PATCH_FORCED;
            }
        }
        Ok(next)
    }

    /// The books of a transition that failed before any thread moved, on its way back.
    pub fn with_cancelled(&self, error: u32) -> Result<Books, BooksError> {
        let (next, _) = self.changed(|t| {
            t.flags |= TRANSITION_CANCELLED;
            t.error = error;
            t.target = if t.begun == PATCHING { UNPATCHING } else { PATCHING };
        })?;
        next.with_completing()
    }

    /// The books with every thread where it is to be: what leaves is off the stacks, still listed.
    pub fn with_completing(&self) -> Result<Books, BooksError> {
        let (mut next, t) = self.changed(|t| {
            t.phase = PHASE_COMPLETING;
            t.callbacks_done = 0;
        })?;
        let replaces = self.replaces(&t);
        for patch in &mut next.patches {
            let leaves = match t.target {
                PATCHING => replaces && is_replaced(patch, &t),
                _ => patch.id == t.patch,
            };
            if leaves {
                patch.state = PATCH_LEAVING;
            }
        }
        if t.target == PATCHING {
            next.funcs.retain(|f| f.patch != t.patch || f.plan.flags & FUNC_NOP == 0);
            let mut kept: Vec<u32> = Vec::new();
            for func in next.funcs.iter().filter(|f| f.patch == t.patch) {
                list::push(&mut kept, func.site)?;
            }
            list::sort(&mut kept, |site| *site);
            next.ranges.retain(|r| r.patch != t.patch || kept.binary_search(&r.site).is_ok());
        }
        next.count_depths()?;
        Ok(next)
    }

    /// The books after one more callback, with the marks it left on its state.
    pub fn with_callback(&self, state: usize, set: u32) -> Result<Books, BooksError> {
        let (mut next, _) = self.changed(|t| t.callbacks_done = t.callbacks_done.saturating_add(1))?;
        if let Some(row) = next.states.get_mut(state) {
            row.marks |= set;
        }
        Ok(next)
    }

    /// The books after a look at what is left: each image's id, and 0 if it goes, or why it stays (`IMAGE_*`).
    pub fn with_drained(&self, found: &[(u32, u32)]) -> Result<Books, BooksError> {
        let mut next = self.try_clone()?;
        for (id, why) in found {
            let image = next.images.iter_mut().find(|i| i.id == *id).ok_or(BooksError::NoEntry(*id))?;
            if image.flags & IMAGE_LEFT == 0 || image.flags & IMAGE_PINNED != 0 {
                return Err(BooksError::State(image.flags));
            }
            let inside = image.plan.start..image.plan.end;
            if next.sites.iter().any(|s| inside.contains(&s.direct)) {
                return Err(BooksError::State(image.flags));
            }
            image.flags = image.flags & !IMAGE_STAYS | why & IMAGE_STAYS;
        }
        let goes = |id: u32| found.contains(&(id, 0));
        let gone = |patch: u32| self.images.iter().any(|i| i.patch == patch && goes(i.id));
        next.images.retain(|i| !goes(i.id));
        next.mappings.retain(|m| m.role != ROLE_IMAGE || !gone(m.patch));
        Ok(next)
    }

    /// The books after the transition: what left is off the list, its images are left.
    pub fn with_done(&self, now: u64) -> Result<Books, BooksError> {
        let mut next = self.try_clone()?;
        let leaving = |id: u32| self.patch(id).is_some_and(|p| p.state == PATCH_LEAVING);
        for image in next.images.iter_mut().filter(|i| leaving(i.patch)) {
            image.flags |= IMAGE_LEFT;
            if self.patch(image.patch).is_some_and(|p| p.flags & PATCH_FORCED != 0) {
                image.flags |= IMAGE_PINNED;
            }
        }
        next.patches.retain(|p| p.state != PATCH_LEAVING);
        next.funcs.retain(|f| f.plan.hook != HOOK_NONE || !leaving(f.patch));
        next.states.retain(|s| !leaving(s.patch));
        next.ranges.retain(|r| !leaving(r.patch));
        next.recipes.retain(|r| !leaving(r.patch));
        next.named.retain(|o| !leaving(o.patch));
        next.names.retain(|n| !leaving(n.patch));
        for state in &mut next.states {
            state.marks = 0;
        }
        if let Some(t) = self.transition.first() {
            if let Some(patch) = next.patches.iter_mut().find(|p| p.id == t.patch) {
                patch.time_ns = now;
            }
            // Every thread was seen outside of all dispatchers since this transition started: none can
            // still be reading what was kept for an earlier one.
            if t.flags & TRANSITION_FORCED == 0 {
                next.kept.retain(|k| k.transition >= t.id);
            }
        }
        next.transition = Vec::new();
        next.count_depths()?;
        Ok(next)
    }
}
