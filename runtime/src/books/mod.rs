//! The books: which patches, sites, functions, images and mappings there are.
//!
//! Pure: values in, values out, no system call, nothing of the target is touched. Each change makes a
//! new [`Books`] beside the old one; [`publish`](crate::publish) then shows it. So a reader outside, or
//! a child forked at any instant, always finds a complete state, old or new.
//!
//! Allocates, so it runs on the worker only.

mod stacks;

pub use stacks::{Stacks, slot_value};

use crate::batch::View;
use crate::list::{self, NoMemory};
use alloc_crate::vec::Vec;
use suture_abi::batch::{HOOK_NONE, ROLE_ARENA, ROLE_IMAGE, Site};
use suture_abi::block::{
    FuncRow, IMAGE_LEFT, ImageRow, MappingRow, PATCH_ENABLED, PATCH_PREPARED, PatchRow, SITE_ARMED,
    SITE_RETIRED, SITE_UNARMED, SiteRow,
};

/// Why the books cannot be changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BooksError {
    /// The runtime's arenas are full.
    NoMemory,
    /// No patch or site of that number.
    NoEntry(u32),
    /// Something is prepared already, or the patch is in this state.
    State(u32),
    /// A function of the batch refers to no site.
    BadSite(u32),
}

impl From<NoMemory> for BooksError {
    fn from(_: NoMemory) -> Self {
        BooksError::NoMemory
    }
}

/// One state of everything. Rows are in the order [`suture_abi::block`] promises.
#[derive(Debug, Default)]
pub struct Books {
    /// Listed patches, oldest first.
    pub patches: Vec<PatchRow>,
    /// Sites in order of their ids.
    pub sites: Vec<SiteRow>,
    /// Hooks, then functions by patch.
    pub funcs: Vec<FuncRow>,
    /// Images that are mapped.
    pub images: Vec<ImageRow>,
    /// Mappings that are there.
    pub mappings: Vec<MappingRow>,
    /// Highest number given to a patch.
    pub last_patch: u32,
    /// Highest number given to a site.
    pub last_site: u32,
    /// Highest number given to an image.
    pub last_image: u32,
}

/// Which functions of a batch are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batch(
    /// Number of its patch, 0 for a batch of hooks only.
    pub u32,
);

impl Books {
    /// Before the first patch.
    pub const EMPTY: Books = Books {
        patches: Vec::new(),
        sites: Vec::new(),
        funcs: Vec::new(),
        images: Vec::new(),
        mappings: Vec::new(),
        last_patch: 0,
        last_site: 0,
        last_image: 0,
    };

    /// A copy to be changed.
    pub fn try_clone(&self) -> Result<Books, NoMemory> {
        Ok(Books {
            patches: list::copy(&self.patches, 1)?,
            sites: list::copy(&self.sites, 0)?,
            funcs: list::copy(&self.funcs, 0)?,
            images: list::copy(&self.images, 1)?,
            mappings: list::copy(&self.mappings, 0)?,
            last_patch: self.last_patch,
            last_site: self.last_site,
            last_image: self.last_image,
        })
    }

    /// The patch of that number.
    pub fn patch(&self, id: u32) -> Option<&PatchRow> {
        self.patches.iter().find(|p| p.id == id)
    }

    /// Position of a site in the list.
    pub fn site_index(&self, id: u32) -> Option<usize> {
        self.sites.binary_search_by_key(&id, |s| s.id).ok()
    }

    /// The site of that number.
    pub fn site(&self, id: u32) -> Option<&SiteRow> {
        self.sites.get(self.site_index(id)?)
    }

    /// The one batch that is prepared and not enabled, if any.
    pub fn prepared(&self) -> Option<Batch> {
        let patch = self.patches.iter().find(|p| p.state == PATCH_PREPARED).map(|p| p.id);
        let hook = || self.funcs.iter().any(|f| self.is_waiting_hook(f));
        patch.or_else(|| hook().then_some(0)).map(Batch)
    }

    /// A hook that was prepared and is not on its site's stack yet.
    pub fn is_waiting_hook(&self, func: &FuncRow) -> bool {
        func.plan.hook != HOOK_NONE && self.site(func.site).is_some_and(|s| s.hook != func.plan.hook)
    }

    /// True if a function belongs to the batch that is prepared: the patch's own, or a waiting hook
    /// (there is one prepared batch at a time, so every waiting hook came with it).
    pub fn is_of(&self, batch: Batch, func: &FuncRow) -> bool {
        match func.plan.hook {
            HOOK_NONE => func.patch == batch.0,
            _ => self.is_waiting_hook(func),
        }
    }

    /// The books with a batch added: patch prepared, nothing on a stack yet.
    ///
    /// `description` is the address of the kept description.
    pub fn with_batch(&self, view: &View<'_>, description: u64, now: u64) -> Result<Books, BooksError> {
        if let Some(Batch(id)) = self.prepared() {
            return Err(BooksError::State(self.patch(id).map_or(PATCH_PREPARED, |p| p.state)));
        }
        let mut next = self.try_clone()?;
        let patch = match view.has_patch() {
            true => next.last_patch.checked_add(1).ok_or(BooksError::NoMemory)?,
            false => 0,
        };
        let ids = next.add_sites(view)?;
        let func_count = next.add_funcs(view, patch, &ids)?;
        for m in view.mappings.iter() {
            list::push(&mut next.mappings, MappingRow { patch, role: m.role, addr: m.addr, len: m.len })?;
        }
        let mut image = 0;
        for plan in view.images.iter() {
            next.last_image = next.last_image.checked_add(1).ok_or(BooksError::NoMemory)?;
            image = next.last_image;
            let link_map = view.objects.get(plan.object as usize).map_or(0, |o| o.link_map);
            let row = ImageRow { id: image, patch, flags: 0, reserved: 0, plan, link_map };
            list::push(&mut next.images, row)?;
        }
        if patch != 0 {
            next.last_patch = patch;
            let mut name = [0; 56];
            for (place, byte) in name.iter_mut().zip(view.name) {
                *place = *byte;
            }
            let description_len = view.description.len() as u64;
            let state = PATCH_PREPARED;
            let row = PatchRow {
                id: patch,
                state,
                name,
                time_ns: now,
                description,
                description_len,
                image,
                func_count,
            };
            list::push(&mut next.patches, row)?;
        }
        Ok(next)
    }

    /// Adds the new sites of a batch; gives the id of each of its sites.
    fn add_sites(&mut self, view: &View<'_>) -> Result<Vec<u32>, BooksError> {
        let mut ids = Vec::new();
        ids.try_reserve_exact(view.sites.len()).map_err(|_| BooksError::NoMemory)?;
        for plan in view.sites.iter() {
            if plan.id != 0 {
                self.site_index(plan.id).ok_or(BooksError::NoEntry(plan.id))?;
                list::push(&mut ids, plan.id)?;
                continue;
            }
            self.last_site = self.last_site.checked_add(1).ok_or(BooksError::NoMemory)?;
            let id = self.last_site;
            let row =
                SiteRow { id, state: SITE_UNARMED, depth: 0, hook: HOOK_NONE, plan: Site { id, ..plan } };
            list::push(&mut self.sites, row)?;
            list::push(&mut ids, id)?;
        }
        Ok(ids)
    }

    /// Adds the functions of a batch; gives how many belong to the patch.
    fn add_funcs(&mut self, view: &View<'_>, patch: u32, ids: &[u32]) -> Result<u32, BooksError> {
        let mut count = 0u32;
        for plan in view.funcs.iter() {
            let site = *ids.get(plan.site as usize).ok_or(BooksError::BadSite(plan.site))?;
            if plan.hook == HOOK_NONE {
                list::push(&mut self.funcs, FuncRow { patch, site, plan })?;
                count = count.saturating_add(1);
                continue;
            }
            if self.funcs.iter().any(|f| f.plan.hook == plan.hook) {
                return Err(BooksError::State(PATCH_ENABLED));
            }
            let hooks = self.funcs.iter().take_while(|f| f.plan.hook != HOOK_NONE).count();
            list::insert(&mut self.funcs, hooks, FuncRow { patch: 0, site, plan })?;
        }
        Ok(count)
    }

    /// The books with the prepared batch enabled.
    pub fn with_enabled(&self, batch: Batch, now: u64) -> Result<Books, BooksError> {
        let mut next = self.try_clone()?;
        let mut stacks = Stacks::new(&self.sites)?;
        for func in self.funcs.iter().filter(|f| self.is_of(batch, f)) {
            let index = next.site_index(func.site).ok_or(BooksError::NoEntry(func.site))?;
            if let Some(site) = next.sites.get_mut(index) {
                site.state = SITE_ARMED;
                if func.plan.hook != HOOK_NONE {
                    site.hook = func.plan.hook;
                }
            }
        }
        if let Some(row) = next.patches.iter_mut().find(|p| p.id == batch.0) {
            row.state = PATCH_ENABLED;
            row.time_ns = now;
        }
        stacks.count(&next);
        stacks.write_depths(&mut next.sites);
        Ok(next)
    }

    /// The books without an enabled patch: its functions are off the stacks, its image is left.
    pub fn without_enabled(&self, id: u32) -> Result<Books, BooksError> {
        let mut next = self.try_clone()?;
        next.patches.retain(|p| p.id != id);
        next.funcs.retain(|f| f.patch != id || f.plan.hook != HOOK_NONE);
        for image in next.images.iter_mut().filter(|i| i.patch == id) {
            image.flags |= IMAGE_LEFT;
        }
        let mut stacks = Stacks::new(&next.sites)?;
        stacks.count(&next);
        stacks.write_depths(&mut next.sites);
        Ok(next)
    }

    /// True if dropping the prepared batch takes this mapping away. Mappings of a batch of hooks only
    /// carry no number of their own, so they stay.
    pub fn goes_with(&self, batch: Batch, drop_arenas: bool, m: &MappingRow) -> bool {
        batch.0 != 0 && m.patch == batch.0 && (m.role == ROLE_IMAGE || drop_arenas)
    }

    /// True if the site was made by this batch: its slot lies in one of the batch's arenas.
    pub fn made(&self, batch: Batch, site: &SiteRow) -> bool {
        let holds = |m: &MappingRow| {
            site.plan.slot.checked_sub(m.addr).is_some_and(|offset| offset < m.len) && m.role == ROLE_ARENA
        };
        self.mappings.iter().any(|m| m.patch == batch.0 && holds(m))
    }

    /// The books without the prepared batch. `fate` says what becomes of each of its sites that has no
    /// function left. Image mappings go; arena mappings stay unless `drop_arenas`.
    pub fn without_prepared(
        &self,
        batch: Batch,
        drop_arenas: bool,
        fate: impl Fn(&SiteRow) -> Fate,
    ) -> Result<Books, BooksError> {
        let mut next = self.try_clone()?;
        next.patches.retain(|p| p.id != batch.0);
        next.images.retain(|i| i.patch != batch.0 || batch.0 == 0);
        next.funcs.retain(|f| !self.is_of(batch, f));
        next.mappings.retain(|m| !self.goes_with(batch, drop_arenas, m));
        for func in self.funcs.iter().filter(|f| self.is_of(batch, f)) {
            let Some(index) = next.site_index(func.site) else { continue };
            let decided = next.sites.get(index).filter(|s| s.depth == 0).map(&fate);
            match (decided, next.sites.get_mut(index)) {
                (Some(Fate::Dropped), _) => next.sites.retain(|s| s.id != func.site),
                (Some(Fate::Retired), Some(site)) => site.state = SITE_RETIRED,
                (Some(Fate::Armed), Some(site)) => site.state = SITE_ARMED,
                _ => {}
            }
        }
        Ok(next)
    }

    /// The books with some sites marked retired.
    pub fn with_retired(&self, ids: &[u32]) -> Result<Books, BooksError> {
        let mut next = self.try_clone()?;
        for id in ids {
            let index = next.site_index(*id).ok_or(BooksError::NoEntry(*id))?;
            if let Some(site) = next.sites.get_mut(index) {
                site.state = SITE_RETIRED;
            }
        }
        Ok(next)
    }
}

/// What becomes of a site when the batch that asked for it is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Never armed: forgotten.
    Dropped,
    /// The old bytes stand there (again): stub and copy stay, to be used again.
    Retired,
    /// The jump still stands there: the site stays, its slot on the copy.
    Armed,
    /// Other functions are on it, or nothing is known: as it was.
    Kept,
}

#[cfg(test)]
mod tests;
