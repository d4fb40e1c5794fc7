//! The books: which patches, sites, functions, images and mappings there are.
//!
//! Pure: values in, values out, no system call, nothing of the target is touched. Each change makes a
//! new [`Books`] beside the old one; [`publish`](crate::publish) then shows it. So a reader outside, or
//! a child forked at any instant, always finds a complete state, old or new.
//!
//! Allocates, so it runs on the worker only.

pub mod direct;
mod moves;
mod stacks;
mod states;

pub use stacks::{Stacks, choice, slot_value};
pub use states::{Job, JobKind, jobs};

use crate::batch::View;
use crate::list::{self, NoMemory};
use alloc_crate::vec::Vec;
use suture_abi::batch::{
    BATCH_OWN_STACKS, BATCH_REPLACE, BATCH_STUBS_ONLY, HOOK_NONE, NamePart, NamedObject, ROLE_ARENA,
    ROLE_IMAGE, Site,
};
use suture_abi::block::{
    FuncRow, IMAGE_LEFT, ImageRow, MappingRow, PATCH_ENABLED, PATCH_OWN_STACKS, PATCH_PREPARED,
    PATCH_REPLACE, PATCH_STUBS_ONLY, PatchRow, RangeRow, SITE_ARMED, SITE_RETIRED, SITE_UNARMED, SiteRow,
    StateRow, TransitionRow,
};
use suture_abi::late::{Recipe, RecipeRow};

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
    /// Another transition is going on: its patch.
    InTransition(u32),
    /// A patch's state forbids it: patch and state.
    Blocked(u32, u64),
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
    /// The transition that is going on, if any.
    pub transition: Vec<TransitionRow>,
    /// States of listed patches, by patch, in descriptor order.
    pub states: Vec<StateRow>,
    /// Code of the functions of listed patches, by site.
    pub ranges: Vec<RangeRow>,
    /// Objects that may come and go.
    pub recipes: Vec<RecipeRow>,
    /// Objects of listed patches, by patch, in descriptor order. Not shown outside.
    pub named: Vec<NamedRow>,
    /// Names of their functions, by patch, in descriptor order. Not shown outside.
    pub names: Vec<NameRow>,
    /// What dispatchers have read, or still read. Not shown outside.
    pub kept: Vec<Kept>,
    /// Highest number given to a transition.
    pub last_transition: u32,
    /// Highest number given to a patch.
    pub last_patch: u32,
    /// Highest number given to a site.
    pub last_site: u32,
    /// Highest number given to an image.
    pub last_image: u32,
    /// Highest number given to a recipe.
    pub last_recipe: u32,
}

/// What dispatchers read in one transition (choices, searched ranges): words in the runtime's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kept {
    /// Number of the transition.
    pub transition: u32,
    /// Address of the first word.
    pub addr: u64,
    /// Length in bytes.
    pub len: u64,
}

/// An object of a listed patch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NamedRow {
    /// Its patch.
    pub patch: u32,
    /// What the plan said.
    pub row: NamedObject,
}

/// A piece of the name of a function of a listed patch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NameRow {
    /// Its patch.
    pub patch: u32,
    /// What the plan said: `object` counts the rows in [`Books::named`] of this patch.
    pub part: NamePart,
}

/// What was kept in memory for a new recipe.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KeptRecipe {
    /// Address of its blob, or 0.
    pub blob: u64,
    /// Length of the blob.
    pub blob_len: u64,
    /// Address of its place.
    pub place: u64,
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
        transition: Vec::new(),
        states: Vec::new(),
        ranges: Vec::new(),
        recipes: Vec::new(),
        named: Vec::new(),
        names: Vec::new(),
        kept: Vec::new(),
        last_transition: 0,
        last_patch: 0,
        last_site: 0,
        last_image: 0,
        last_recipe: 0,
    };

    /// A copy to be changed.
    pub fn try_clone(&self) -> Result<Books, NoMemory> {
        Ok(Books {
            patches: list::copy(&self.patches, 1)?,
            sites: list::copy(&self.sites, 0)?,
            funcs: list::copy(&self.funcs, 0)?,
            images: list::copy(&self.images, 1)?,
            mappings: list::copy(&self.mappings, 0)?,
            transition: list::copy(&self.transition, 1)?,
            states: list::copy(&self.states, 0)?,
            ranges: list::copy(&self.ranges, 0)?,
            recipes: list::copy(&self.recipes, 0)?,
            named: list::copy(&self.named, 0)?,
            names: list::copy(&self.names, 0)?,
            kept: list::copy(&self.kept, 2)?,
            last_transition: self.last_transition,
            last_patch: self.last_patch,
            last_site: self.last_site,
            last_image: self.last_image,
            last_recipe: self.last_recipe,
        })
    }

    /// Bytes of all rows.
    pub fn bytes(&self) -> usize {
        let tables = [
            size_of_val(&*self.patches),
            size_of_val(&*self.sites),
            size_of_val(&*self.funcs),
            size_of_val(&*self.images),
            size_of_val(&*self.mappings),
            size_of_val(&*self.states),
            size_of_val(&*self.ranges),
            size_of_val(&*self.recipes),
            size_of_val(&*self.named),
            size_of_val(&*self.names),
        ];
        tables.iter().fold(0, |sum: usize, len| sum.saturating_add(*len))
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

    /// The one batch that is prepared and whose transition has not begun, if any.
    pub fn prepared(&self) -> Option<Batch> {
        let moving = self.transition.first().map_or(0, |t| t.patch);
        let waiting = |p: &&PatchRow| p.state == PATCH_PREPARED && p.id != moving;
        let patch = self.patches.iter().find(waiting).map(|p| p.id);
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
    /// `description` is the address of the kept description, `kept` what was kept for each of its new recipes.
    pub fn with_batch(
        &self,
        view: &View<'_>,
        description: u64,
        kept: &[KeptRecipe],
        now: u64,
    ) -> Result<Books, BooksError> {
        if let Some(Batch(id)) = self.prepared() {
            return Err(BooksError::State(self.patch(id).map_or(PATCH_PREPARED, |p| p.state)));
        }
        let mut next = self.try_clone()?;
        let patch = match view.has_patch() {
            true => next.last_patch.checked_add(1).ok_or(BooksError::NoMemory)?,
            false => 0,
        };
        let recipes = next.add_recipes(view, patch, kept)?;
        let ids = next.add_sites(view, &recipes)?;
        let func_count = next.add_funcs(view, patch, &ids)?;
        for m in view.mappings.iter() {
            let (role, addr, len, prot) = (m.role, m.addr, m.len, m.final_prot);
            list::push(&mut next.mappings, MappingRow { patch, role, addr, len, prot, reserved: 0 })?;
        }
        next.add_ranges(view, patch, &ids)?;
        for plan in view.states.iter() {
            list::push(&mut next.states, StateRow { patch, marks: 0, plan })?;
        }
        for row in view.named.iter() {
            list::push(&mut next.named, NamedRow { patch, row })?;
        }
        for part in view.names.iter() {
            list::push(&mut next.names, NameRow { patch, part })?;
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
                flags: patch_flags(view.header.flags),
                reserved: 0,
            };
            list::push(&mut next.patches, row)?;
        }
        Ok(next)
    }

    /// The recipe of that number.
    pub fn recipe(&self, id: u32) -> Option<&RecipeRow> {
        self.recipes.iter().find(|r| r.id == id)
    }

    /// Adds the new recipes of a batch; gives the id of each of its recipes.
    fn add_recipes(
        &mut self,
        view: &View<'_>,
        patch: u32,
        kept: &[KeptRecipe],
    ) -> Result<Vec<u32>, BooksError> {
        let mut ids = Vec::new();
        let mut kept = kept.iter();
        for plan in view.recipes.iter() {
            if plan.id != 0 {
                self.recipe(plan.id).ok_or(BooksError::NoEntry(plan.id))?;
                list::push(&mut ids, plan.id)?;
                continue;
            }
            let KeptRecipe { blob, blob_len, place } = *kept.next().ok_or(BooksError::NoMemory)?;
            self.last_recipe = self.last_recipe.checked_add(1).ok_or(BooksError::NoMemory)?;
            let id = self.last_recipe;
            let patch = if plan.is_of_patch() { patch } else { 0 };
            let plan = Recipe { id, ..plan };
            list::push(&mut self.recipes, RecipeRow { id, patch, plan, blob, blob_len, place })?;
            list::push(&mut ids, id)?;
        }
        Ok(ids)
    }

    /// Adds the new sites of a batch; gives the id of each of its sites.
    fn add_sites(&mut self, view: &View<'_>, recipes: &[u32]) -> Result<Vec<u32>, BooksError> {
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
            let recipe = match (plan.recipe as usize).checked_sub(1) {
                Some(at) => *recipes.get(at).ok_or(BooksError::BadSite(plan.recipe))?,
                None => 0,
            };
            let plan = Site { id, recipe, ..plan };
            let row = SiteRow { id, state: SITE_UNARMED, depth: 0, hook: HOOK_NONE, plan, direct: 0 };
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

    /// Adds the code ranges of a batch, each at its site.
    fn add_ranges(&mut self, view: &View<'_>, patch: u32, ids: &[u32]) -> Result<(), BooksError> {
        for range in view.ranges.iter() {
            let Some(func) = view.funcs.get(range.func as usize) else { continue };
            let site = *ids.get(func.site as usize).ok_or(BooksError::BadSite(func.site))?;
            let row =
                RangeRow { patch, site, kind: range.kind, reserved: 0, start: range.start, end: range.end };
            list::push(&mut self.ranges, row)?;
        }
        list::sort(&mut self.ranges, |r| (r.site, r.patch, r.kind, r.start));
        Ok(())
    }

    /// The ranges at a site.
    pub fn ranges_of(&self, site: u32) -> &[RangeRow] {
        let start = self.ranges.partition_point(|r| r.site < site);
        let end = self.ranges.partition_point(|r| r.site <= site);
        self.ranges.get(start..end).unwrap_or_default()
    }

    /// The books with a batch of hooks only on its sites.
    pub fn with_hooks(&self) -> Result<Books, BooksError> {
        let mut next = self.try_clone()?;
        next.put_hooks(self)?;
        next.count_depths()?;
        Ok(next)
    }

    /// Puts the waiting hooks of `from` on their sites.
    fn put_hooks(&mut self, from: &Books) -> Result<(), BooksError> {
        for func in from.funcs.iter().filter(|f| from.is_waiting_hook(f)) {
            let index = self.site_index(func.site).ok_or(BooksError::NoEntry(func.site))?;
            if let Some(site) = self.sites.get_mut(index) {
                site.state = SITE_ARMED;
                site.hook = func.plan.hook;
            }
        }
        Ok(())
    }

    /// Writes the depths of the stacks into the site rows.
    fn count_depths(&mut self) -> Result<(), NoMemory> {
        let stacks = Stacks::of(self)?;
        for (index, site) in self.sites.iter_mut().enumerate() {
            site.depth = stacks.depth(index);
        }
        Ok(())
    }

    /// True if dropping the prepared batch takes this mapping away. Mappings of a batch of hooks only
    /// carry no number of their own, so they stay.
    pub fn goes_with(&self, batch: Batch, what: Dropped, m: &MappingRow) -> bool {
        let goes = if m.role == ROLE_IMAGE { what.image } else { what.arenas };
        batch.0 != 0 && m.patch == batch.0 && goes
    }

    /// True if the site was made by this batch: its slot lies in one of the batch's arenas.
    pub fn made(&self, batch: Batch, site: &SiteRow) -> bool {
        let holds = |m: &MappingRow| {
            site.plan.slot.checked_sub(m.addr).is_some_and(|offset| offset < m.len) && m.role == ROLE_ARENA
        };
        self.mappings.iter().any(|m| m.patch == batch.0 && holds(m))
    }

    /// The books without the prepared batch. `fate` says what becomes of each of its sites that has no
    /// function left. An image that stays is one that was left.
    pub fn without_prepared(
        &self,
        batch: Batch,
        what: Dropped,
        fate: impl Fn(&SiteRow) -> Fate,
    ) -> Result<Books, BooksError> {
        let mut next = self.try_clone()?;
        next.patches.retain(|p| p.id != batch.0);
        next.images.retain(|i| i.patch != batch.0 || batch.0 == 0 || !what.image);
        next.images.iter_mut().filter(|i| i.patch == batch.0).for_each(|i| i.flags |= IMAGE_LEFT);
        next.funcs.retain(|f| !self.is_of(batch, f));
        next.states.retain(|s| s.patch != batch.0 || batch.0 == 0);
        next.ranges.retain(|r| r.patch != batch.0 || batch.0 == 0);
        next.recipes.retain(|r| r.patch != batch.0 || r.patch == 0);
        next.named.retain(|o| o.patch != batch.0);
        next.names.retain(|n| n.patch != batch.0);
        next.mappings.retain(|m| !self.goes_with(batch, what, m));
        let mut dropped: Vec<u32> = Vec::new();
        for func in self.funcs.iter().filter(|f| self.is_of(batch, f)) {
            let Some(index) = next.site_index(func.site) else { continue };
            let decided = next.sites.get(index).filter(|s| s.depth == 0).map(&fate);
            match (decided, next.sites.get_mut(index)) {
                (Some(Fate::Dropped), _) => list::push(&mut dropped, func.site)?,
                (Some(Fate::Retired), Some(site)) => site.state = SITE_RETIRED,
                (Some(Fate::Armed), Some(site)) => site.state = SITE_ARMED,
                _ => {}
            }
        }
        list::sort(&mut dropped, |site| *site);
        next.sites.retain(|s| dropped.binary_search(&s.id).is_err());
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

/// Which mappings go with a batch that is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dropped {
    /// Its arenas: nothing was ever written that leads into them.
    pub arenas: bool,
    /// Its image: nobody can have an address in it.
    pub image: bool,
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

/// What a patch's row keeps of its batch's flags.
fn patch_flags(batch: u32) -> u32 {
    let pairs = [
        (BATCH_REPLACE, PATCH_REPLACE),
        (BATCH_OWN_STACKS, PATCH_OWN_STACKS),
        (BATCH_STUBS_ONLY, PATCH_STUBS_ONLY),
    ];
    pairs
        .iter()
        .filter(|(of_batch, _)| batch & of_batch != 0)
        .fold(0, |flags, (_, of_patch)| flags | of_patch)
}

#[cfg(test)]
mod tests;
