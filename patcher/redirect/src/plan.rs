//! From functions to redirect sites: all of them or none.

mod emit;
mod site;

use self::emit::Hop;
pub(crate) use self::site::pun_target;
pub(crate) use self::site::{Tried, displaced};
use self::site::{aim, first_target, skeleton};
use crate::analysis::{NewCode, ObjectAnalysis};
use crate::arena::Arena;
use crate::callers;
use crate::check::{check, neighbourhood};
use crate::error::{PlanError, Refusal, TargetFault};
use crate::flow::LazyFlow;
use crate::function::Function;
use crate::kept::Kept;
use crate::options::{Class, Options};
use crate::pages::{PAGE, Pages};
use crate::process::{Claims, ExistingSite, ProcessView, Room, check_bytes, claimed};
use crate::refs::References;
use crate::stub::SLOT_JUMP;
use crate::window::{Boundary, Candidate, JUMP, boundaries, candidates};
use rustc_hash::FxHashMap;
use std::ops::Range;
use suture_abi::batch::{Mapping, Site};
use suture_elf::{Base, Vaddr};

/// An object of the process.
#[derive(Clone, Debug)]
pub struct LoadedObject {
    /// What is known of its file.
    pub analysis: ObjectAnalysis,
    /// Where it is loaded.
    pub base: Base,
}

/// The function that takes the place of another.
#[derive(Clone, Debug)]
pub enum Replacement {
    /// One in a file.
    Code {
        /// What is known of its file.
        analysis: ObjectAnalysis,
        /// Its entry.
        entry: Vaddr,
    },
    /// One that leaves every register as it was.
    Transparent,
}

/// A function to redirect.
#[derive(Clone, Debug)]
pub struct Request {
    /// Index of its object.
    pub object: usize,
    /// Its entry.
    pub entry: Vaddr,
    /// Its name, for messages.
    pub name: String,
    /// What it is redirected to; unknown code destroys every register it may.
    pub replacement: Option<Replacement>,
}

/// A planned site and how it came about.
#[derive(Clone, Debug)]
pub struct PlannedSite {
    /// The site as the batch has it; `id` is 0 unless the process has the site already.
    pub site: Site,
    /// Index of the object.
    pub object: usize,
    /// Name as requested.
    pub name: String,
    /// How it is redirected.
    pub class: Class,
    /// Bytes from the entry to the site.
    pub offset: u64,
    /// Prologue steps that the stub undoes.
    pub undo: usize,
    /// A branch inside the object leads back to the entry: each round of that loop is a call of the
    /// new function.
    pub loop_head: bool,
    /// Size of the function.
    pub size: u64,
}

/// What has to be mapped and stored.
#[derive(Clone, Debug, Default)]
pub struct RedirectPlan {
    /// Mappings; those of kind `MAPPING_FILE` show `blob`, with offsets into it.
    pub mappings: Vec<Mapping>,
    /// Stubs, copies and punned pages, whole pages.
    pub blob: Vec<u8>,
    /// One site for each request, in their order. Requests of the same entry have equal sites.
    pub sites: Vec<PlannedSite>,
}

/// Plans the redirection of functions. Nothing is planned unless all can be.
///
/// # Errors
/// Which functions are refused and why, or that there is no room near an object.
pub fn plan_sites(
    objects: &[LoadedObject],
    requests: &[Request],
    process: &ProcessView<'_>,
    options: &Options,
) -> Result<RedirectPlan, PlanError> {
    let mut planner = Planner::new(objects, requests.len(), process, options);
    let mut sites: Vec<Option<PlannedSite>> = vec![None; requests.len()];
    let mut refused = Vec::new();
    for (object, loaded) in objects.iter().enumerate() {
        let mine: Vec<usize> = (0..requests.len()).filter(|i| requests[*i].object == object).collect();
        let mut functions = Vec::new();
        for index in mine {
            let request = &requests[index];
            match Function::new(&loaded.analysis, request.entry) {
                Ok(function) => functions.push((index, boundaries(&function), function)),
                Err(why) => refused.push((request.name.clone(), why)),
            }
        }
        let ranges = functions.iter().map(|(_, places, f)| neighbourhood(f, places)).collect();
        let references = loaded.analysis.references(ranges);
        let mut flow = LazyFlow::new(&loaded.analysis);
        for (index, places, function) in &functions {
            let subject = Subject { object, loaded, function, places, references: &references };
            match planner.site(&subject, &requests[*index], &mut flow) {
                Ok(site) => sites[*index] = Some(site),
                Err(Failure::Refused(why)) => refused.push((requests[*index].name.clone(), why)),
                Err(Failure::Plan(error)) => return Err(error),
            }
        }
    }
    if !refused.is_empty() {
        return Err(PlanError::Refused(refused));
    }
    Ok(planner.finish(sites.into_iter().flatten().collect()))
}

enum Failure {
    Refused(Refusal),
    Plan(PlanError),
}

impl From<Refusal> for Failure {
    fn from(why: Refusal) -> Self {
        Self::Refused(why)
    }
}

/// A function being planned.
pub(crate) struct Subject<'a> {
    pub object: usize,
    pub loaded: &'a LoadedObject,
    pub function: &'a Function,
    pub places: &'a [Boundary],
    pub references: &'a References,
}

pub(crate) struct Planner<'a> {
    objects: &'a [LoadedObject],
    requests: usize,
    process: &'a ProcessView<'a>,
    options: &'a Options,
    room: Room<'a>,
    claims: Claims,
    arenas: Vec<Arena>,
    pages: Pages,
    page_limit: usize,
    /// What is planned already, by entry.
    planned: FxHashMap<u64, PlannedSite>,
    /// The process's sites, by entry.
    existing: FxHashMap<u64, &'a ExistingSite>,
}

impl<'a> Planner<'a> {
    pub fn new(
        objects: &'a [LoadedObject],
        requests: usize,
        process: &'a ProcessView<'a>,
        options: &'a Options,
    ) -> Self {
        let mut room = Room::new(process.maps);
        for object in objects {
            room.take(image(object));
        }
        let mapped = process.maps.map_or(0, |m| m.regions.len());
        let existing = process.existing.iter().filter(|s| s.site.is_pun()).count();
        let page_limit = options
            .max_pun_pages
            .saturating_sub(existing)
            .min(options.max_map_count.saturating_sub(mapped) / 8);
        Self {
            objects,
            requests,
            process,
            options,
            room,
            claims: Claims::of_existing(process.existing),
            arenas: Vec::new(),
            pages: Pages::default(),
            page_limit,
            planned: FxHashMap::default(),
            // The first of each entry counts.
            existing: process.existing.iter().rev().map(|e| (e.site.entry, e)).collect(),
        }
    }

    /// Whether the class may be used.
    pub fn allows(&self, class: Class) -> bool {
        self.options.classes.contains(class)
    }

    fn site(
        &mut self,
        subject: &Subject<'_>,
        request: &Request,
        flow: &mut LazyFlow<'_>,
    ) -> Result<PlannedSite, Failure> {
        let name = request.name.as_str();
        // Of a site that is there too: another new function may destroy what the first one keeps.
        check_registers(subject, flow, request.replacement.as_ref())?;
        let entry = (subject.loaded.base + subject.function.entry).0;
        if let Some(twin) = self.planned.get(&entry) {
            return Ok(PlannedSite { name: name.to_owned(), ..twin.clone() });
        }
        if let Some(existing) = self.existing.get(&entry) {
            let class = Class::ALL.into_iter().find(|c| c.letter() == existing.site.class);
            let site = Site { id: existing.id, ..existing.site };
            // The copy that is there was made of the bytes that lay there then.
            if !is_of(&site, subject) {
                return Err(Failure::Refused(Refusal::AnotherObject));
            }
            return Ok(self.describe(subject, name, class.unwrap_or(Class::J), site, 0));
        }
        let mut tried = Tried::default();
        for candidate in candidates(&subject.loaded.analysis, subject.function, subject.places) {
            if !self.allows(candidate.class) {
                tried.off = true;
                continue;
            }
            match self.try_candidate(subject, &candidate) {
                Ok(site) => {
                    self.claims.add(&site);
                    let undo = subject.places[candidate.boundary].undo.len();
                    let planned = self.describe(subject, name, candidate.class, site, undo);
                    self.planned.insert(entry, planned.clone());
                    return Ok(planned);
                }
                Err(Failure::Refused(why)) => tried.add(&candidate, why),
                Err(failure) => return Err(failure),
            }
        }
        Err(Failure::Refused(tried.refusal(subject.function)))
    }

    fn describe(
        &self,
        subject: &Subject<'_>,
        name: &str,
        class: Class,
        site: Site,
        undo: usize,
    ) -> PlannedSite {
        let entry = subject.function.entry;
        let own = entry..subject.function.end;
        let back = subject.references.branches(&(entry..entry + 1));
        PlannedSite {
            site,
            object: subject.object,
            name: name.to_owned(),
            class,
            offset: site.site - site.entry,
            undo,
            loop_head: back.iter().any(|b| !b.call && own.contains(&b.source)),
            size: subject.function.size(),
        }
    }

    fn try_candidate(&mut self, subject: &Subject<'_>, candidate: &Candidate) -> Result<Site, Failure> {
        let base = subject.loaded.base;
        let place = &subject.places[candidate.boundary];
        let mut site = self.admit(subject, candidate)?;
        let code = displaced(subject.function, place, candidate);
        let pun = candidate.class.is_pun().then(|| pun_target(&site));
        let arena = self.arena(subject, pun)?;
        let before = self.arenas[arena].len();
        let hop = Hop { from: base + candidate.pad.map_or(place.at, |pad| pad.at), pun };
        self.fill(arena, base, code, &place.undo, hop, &mut site).inspect_err(|_| {
            self.arenas[arena].truncate(before);
        })?;
        Ok(site)
    }

    /// Everything about a candidate that does not need an arena.
    pub(crate) fn admit(&self, subject: &Subject<'_>, candidate: &Candidate) -> Result<Site, Refusal> {
        let object = &subject.loaded.analysis;
        check(object, subject.function, subject.places, candidate, subject.references)?;
        let mut site = skeleton(subject, candidate)?;
        if let Some(at) = self.claims.conflict(&claimed(&site)) {
            return Err(Refusal::Overlap(Vaddr(at.wrapping_sub(subject.loaded.base.0))));
        }
        self.check_live(subject, candidate, &site)?;
        if let Some(wide) = candidate.wide {
            let target = self.target(first_target(&site, wide), 1 << (8 * wide.free))?;
            aim(&mut site, wide, target);
        } else if candidate.class.is_pun() {
            self.check_pun(pun_target(&site))?;
        }
        Ok(site)
    }

    /// Rule 1 against the process, when its memory is at hand.
    fn check_live(&self, subject: &Subject<'_>, candidate: &Candidate, site: &Site) -> Result<(), Refusal> {
        let Some(memory) = self.process.memory else { return Ok(()) };
        let base = subject.loaded.base;
        let place = &subject.places[candidate.boundary];
        let instruction = place.at + subject.function.code[place.index].len() as u64;
        let word = Vaddr((site.store_addr + u64::from(site.store_len)).wrapping_sub(base.0));
        let code = subject.function.entry..candidate.window.end.max(instruction).max(word);
        let pad = candidate.pad.map(|pad| pad.at..pad.at + JUMP);
        let store = Vaddr(site.store_addr.wrapping_sub(base.0))..word;
        for range in [Some(code), pad, Some(store)].into_iter().flatten() {
            let file = subject.loaded.analysis.mapped_bytes(range.start, range.end.0 - range.start.0);
            check_bytes(memory, base, range.start, file.ok_or(Refusal::NotCode(range.start))?)?;
        }
        Ok(())
    }

    /// Rule 7 for a pun that has a choice of `count` addresses: in a page of the plan if one has room, else the
    /// first free one.
    fn target(&self, first: u64, count: u64) -> Result<u64, Refusal> {
        let targets = first..first.saturating_add(count);
        if let Some(shared) = self.pages.spot(&targets, SLOT_JUMP) {
            return Ok(shared);
        }
        let pages = (first & !(PAGE - 1)..targets.end).step_by(PAGE as usize);
        let mut why = None;
        for target in pages.map(|page| page.max(first)) {
            match self.check_pun(target) {
                Ok(()) => return Ok(target),
                Err(refusal) => _ = why.get_or_insert(refusal),
            }
        }
        let page = first & !(PAGE - 1);
        Err(why.unwrap_or(Refusal::Target { page, why: TargetFault::Outside }))
    }

    /// Rule 7: the page a pun leads to.
    fn check_pun(&self, target: u64) -> Result<(), Refusal> {
        let page = target & !(PAGE - 1);
        let fault = |why| Refusal::Target { page, why };
        if target % PAGE + SLOT_JUMP > PAGE {
            return Err(fault(TargetFault::Straddles));
        }
        if !self.pages.contains(page) {
            self.room.check(page).map_err(fault)?;
            if self.pages.len() >= self.page_limit {
                return Err(Refusal::TooManyPages { count: self.pages.len() + 1, limit: self.page_limit });
            }
        } else if !self.pages.fits(target, SLOT_JUMP) {
            return Err(fault(TargetFault::Taken));
        }
        Ok(())
    }
}

/// The address range of a loaded object.
fn image(object: &LoadedObject) -> Range<u64> {
    let hull = object.analysis.image_hull();
    (object.base + Vaddr(hull.start)).0..(object.base + Vaddr(hull.end)).0
}

/// Rule 4.
pub(crate) fn check_registers(
    subject: &Subject<'_>,
    flow: &mut LazyFlow<'_>,
    replacement: Option<&Replacement>,
) -> Result<(), Refusal> {
    let new = match replacement {
        None => NewCode::Unknown,
        Some(Replacement::Transparent) => NewCode::Transparent,
        Some(Replacement::Code { analysis, entry }) => NewCode::At(analysis, *entry),
    };
    let look = || look_at_registers(subject, flow, replacement);
    subject.loaded.analysis.registers(subject.function.entry, new, look)
}

fn look_at_registers(
    subject: &Subject<'_>,
    flow: &mut LazyFlow<'_>,
    replacement: Option<&Replacement>,
) -> Result<(), Refusal> {
    let flow = flow.get();
    callers::check_entry(flow, subject.function)?;
    let mut check = |kept: Kept| {
        let (analysis, function) = (&subject.loaded.analysis, subject.function);
        callers::check_callers(analysis, flow, function, subject.references, kept.0)
    };
    match (check(Kept::default()), replacement) {
        // Only now is it worth looking at the new code.
        (Err(Refusal::LiveAcross { .. }), Some(Replacement::Code { analysis, entry })) => {
            check(analysis.kept_by(*entry))
        }
        (Err(Refusal::LiveAcross { .. }), Some(Replacement::Transparent)) => check(Kept::all()),
        (verdict, _) => verdict,
    }
}

/// Whether a site that is there was planned for these bytes: an object that was unloaded may have lain at the same
/// place. Bytes that the store leaves alone may be a neighbour's.
fn is_of(site: &Site, subject: &Subject<'_>) -> bool {
    let at = Vaddr(site.store_addr.wrapping_sub(subject.loaded.base.0));
    let (old, new) = (site.old_word.to_le_bytes(), site.new_word.to_le_bytes());
    let len = usize::from(site.store_len.min(8));
    let bytes = subject.loaded.analysis.file().bytes_at(at, len as u64);
    let same = |bytes: &[u8]| (0..len).all(|i| old[i] == new[i] || old[i] == bytes[i]);
    bytes.is_some_and(same)
}
