//! From functions to redirect sites: all of them or none.

use crate::analysis::ObjectAnalysis;
use crate::arena::Arena;
use crate::callers;
use crate::check::{check, neighbourhood};
use crate::error::{PlanError, Refusal, TargetFault};
use crate::flow::Flow;
use crate::function::Function;
use crate::options::{Class, Options};
use crate::pages::{PAGE, Pages};
use crate::process::{Claims, ProcessView, Room, check_bytes, claimed};
use crate::refs::References;
use crate::relocate;
use crate::stub::{self, SLOT_JUMP};
use crate::window::{Boundary, Candidate, JUMP, Undo, boundaries, candidates, in_word_of};
use std::borrow::Cow;
use std::ops::Range;
use suture_abi::batch::{MAPPING_ANON, MAPPING_FILE, Mapping, ROLE_ARENA, Site};
use suture_elf::{Addr, Base, Vaddr};

const PROT_READ: u32 = 1;
const PROT_WRITE: u32 = 2;
const PROT_EXEC: u32 = 4;

/// An object of the process.
#[derive(Clone, Debug)]
pub struct LoadedObject {
    /// What is known of its file.
    pub analysis: ObjectAnalysis,
    /// Where it is loaded.
    pub base: Base,
}

/// A function to redirect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Index of its object.
    pub object: usize,
    /// Its entry.
    pub entry: Vaddr,
    /// Its name, for messages.
    pub name: String,
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
        let references: Cow<'_, References> = loaded.analysis.references(ranges);
        let mut flow = Flow::new(&loaded.analysis);
        for (index, places, function) in &functions {
            let subject = Subject { object, loaded, function, places, references: &references };
            match planner.site(&subject, &requests[*index].name, &mut flow) {
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

/// The jump that leads to the stub.
#[derive(Clone, Copy)]
struct Hop {
    /// Where a near jump stands (P, S, A).
    from: Addr,
    /// Where the pun leads (J).
    pun: Option<u64>,
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
    planned: Vec<PlannedSite>,
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
        let existing = process.existing.iter().filter(|s| s.site.class == Class::J.letter()).count();
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
            planned: Vec::new(),
        }
    }

    /// Whether the class may be used.
    pub fn allows(&self, class: Class) -> bool {
        self.options.classes.contains(class)
    }

    fn site(
        &mut self,
        subject: &Subject<'_>,
        name: &str,
        flow: &mut Flow<'_>,
    ) -> Result<PlannedSite, Failure> {
        let entry = (subject.loaded.base + subject.function.entry).0;
        if let Some(twin) = self.planned.iter().find(|p| p.site.entry == entry) {
            return Ok(PlannedSite { name: name.to_owned(), ..twin.clone() });
        }
        if let Some(existing) = self.process.existing.iter().find(|e| e.site.entry == entry) {
            let class = Class::ALL.into_iter().find(|c| c.letter() == existing.site.class);
            let site = Site { id: existing.id, ..existing.site };
            return Ok(self.describe(subject, name, class.unwrap_or(Class::J), site, 0));
        }
        check_registers(subject, flow)?;
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
                    self.planned.push(planned.clone());
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
        let pun = (candidate.class == Class::J).then(|| pun_target(&site));
        let arena = self.arena(subject, pun)?;
        let before = self.arenas[arena].len();
        let hop = Hop { from: base + candidate.pad.unwrap_or(place.at), pun };
        self.fill(arena, base, code, &place.undo, hop, &mut site).inspect_err(|_| {
            self.arenas[arena].truncate(before);
        })?;
        Ok(site)
    }

    /// Everything about a candidate that does not need an arena.
    pub(crate) fn admit(&self, subject: &Subject<'_>, candidate: &Candidate) -> Result<Site, Refusal> {
        let object = &subject.loaded.analysis;
        check(object, subject.function, subject.places, candidate, subject.references)?;
        let site = skeleton(subject, candidate)?;
        if let Some(at) = self.claims.conflict(&claimed(&site)) {
            return Err(Refusal::Overlap(Vaddr(at.wrapping_sub(subject.loaded.base.0))));
        }
        self.check_live(subject, candidate, &site)?;
        if candidate.class == Class::J {
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
        let pad = candidate.pad.map(|pad| pad..pad + JUMP);
        let store = Vaddr(site.store_addr.wrapping_sub(base.0))..word;
        for range in [Some(code), pad, Some(store)].into_iter().flatten() {
            let file = subject.loaded.analysis.file().bytes_at(range.start, range.end.0 - range.start.0);
            check_bytes(memory, base, range.start, file.ok_or(Refusal::NotCode(range.start))?)?;
        }
        Ok(())
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

    /// An arena in reach of the object and of the punned page.
    fn arena(&mut self, subject: &Subject<'_>, pun: Option<u64>) -> Result<usize, Failure> {
        let own = image(subject.loaded);
        let near = match pun {
            Some(target) => own.start.min(target)..own.end.max(target + PAGE),
            None => own.clone(),
        };
        if let Some(index) = self.arenas.iter().position(|a| a.suits(&near)) {
            return Ok(index);
        }
        let nowhere = suture_elf::MapsSnapshot::default();
        let maps = self.process.maps.unwrap_or(&nowhere);
        let mut taken: Vec<Range<u64>> = self.arenas.iter().map(Arena::range).collect();
        taken.extend(self.pages.addresses().map(|p| p..p + PAGE));
        if let Some(target) = pun {
            taken.push(target & !(PAGE - 1)..(target & !(PAGE - 1)) + PAGE);
        }
        if self.process.maps.is_none() {
            taken.extend(self.objects.iter().map(image));
        }
        match Arena::place(maps, &taken, &own, &near, self.requests) {
            Some(arena) => {
                self.room.take(arena.range());
                self.arenas.push(arena);
                Ok(self.arenas.len() - 1)
            }
            None if pun.is_some() => {
                let page = pun.unwrap_or_default() & !(PAGE - 1);
                Err(Refusal::Target { page, why: TargetFault::Reach }.into())
            }
            None => Err(Failure::Plan(PlanError::NoRoom {
                path: subject.loaded.analysis.file().path().to_owned(),
                base: subject.loaded.base.0,
                len: self.requests as u64 * PAGE,
            })),
        }
    }

    /// Writes stub, copy and jumps, and completes the site.
    fn fill(
        &mut self,
        arena: usize,
        base: Base,
        code: &[iced_x86::Instruction],
        undo: &[Undo],
        hop: Hop,
        site: &mut Site,
    ) -> Result<(), Failure> {
        let Hop { from, pun } = hop;
        let arena = &mut self.arenas[arena];
        let unreachable = || {
            let page = pun.unwrap_or(site.site) & !(PAGE - 1);
            Refusal::Target { page, why: TargetFault::Reach }
        };
        let slot = arena.next_slot();
        // Without a prologue to undo the punned page itself holds the jump through the slot.
        let direct = pun.filter(|_| undo.is_empty()).and_then(|at| stub::stub(&[], Addr(at), slot));
        let mut at_page = direct.clone();
        let stub_at = match (pun, &direct) {
            (Some(target), Some(_)) => Addr(target),
            _ => {
                let at = arena.next();
                arena.push(&stub::stub(undo, at, slot).ok_or_else(unreachable)?);
                if let Some(target) = pun {
                    let jump = stub::jump(Addr(target), at).ok_or_else(unreachable)?;
                    at_page = Some(jump.to_vec());
                }
                at
            }
        };
        let copy_at = arena.next();
        let copy = relocate::copy(code, base, copy_at)?;
        arena.push(&copy);
        site.stub = stub_at.0;
        site.slot = slot.0;
        site.copy = copy_at.0;
        site.copy_len = copy.len() as u64;
        if pun.is_none() {
            let jump = stub::jump(from, stub_at).ok_or_else(unreachable)?;
            if site.pad_len > 0 {
                site.pad_new[..jump.len()].copy_from_slice(&jump);
            } else {
                site.new_word = with_bytes(site.new_word, from.0 - site.store_addr, &jump);
            }
        }
        arena.take_slot();
        if let (Some(target), Some(bytes)) = (pun, at_page) {
            self.pages.put(target, bytes);
        }
        Ok(())
    }

    fn finish(self, sites: Vec<PlannedSite>) -> RedirectPlan {
        let mut plan = RedirectPlan { sites, ..RedirectPlan::default() };
        let mapping = |addr, len, offset, kind, prot| Mapping {
            addr,
            len,
            offset,
            kind,
            prot,
            final_prot: prot,
            role: ROLE_ARENA,
        };
        for arena in self.arenas.iter().filter(|a| !a.slot_pages().is_empty()) {
            let (addr, code) = arena.code_pages();
            if !code.is_empty() {
                let offset = plan.blob.len() as u64;
                plan.mappings.push(mapping(
                    addr,
                    code.len() as u64,
                    offset,
                    MAPPING_FILE,
                    PROT_READ | PROT_EXEC,
                ));
                plan.blob.extend(code);
            }
            let slots = arena.slot_pages();
            let len = slots.end - slots.start;
            plan.mappings.push(mapping(slots.start, len, 0, MAPPING_ANON, PROT_READ | PROT_WRITE));
        }
        let (bytes, shown) = self.pages.pack();
        let first = plan.blob.len() as u64;
        for (page, index) in shown {
            let offset = first + index as u64 * PAGE;
            plan.mappings.push(mapping(page, PAGE, offset, MAPPING_FILE, PROT_READ | PROT_EXEC));
        }
        plan.blob.extend(bytes);
        plan
    }
}

/// The address range of a loaded object.
fn image(object: &LoadedObject) -> Range<u64> {
    let hull = object.analysis.image_hull();
    (object.base + Vaddr(hull.start)).0..(object.base + Vaddr(hull.end)).0
}

/// Everything of a site that its file and its place decide.
fn skeleton(subject: &Subject<'_>, candidate: &Candidate) -> Result<Site, Refusal> {
    let file = subject.loaded.analysis.file();
    let base = subject.loaded.base;
    let at = candidate.window.start;
    let bytes = |at: Vaddr, len: u64| file.bytes_at(at, len).ok_or(Refusal::NotCode(at));
    let mut site = Site {
        class: candidate.class.letter(),
        window_len: (candidate.window.end.0 - at.0) as u8,
        entry: (base + subject.function.entry).0,
        site: (base + at).0,
        ..Site::default()
    };
    if candidate.class == Class::J {
        site.store_len = 1;
        site.store_addr = site.site;
        site.old_word = u64::from(bytes(at, 1)?[0]);
        site.new_word = 0xe9;
        site.pad_new[0] = 0xe9;
        site.pad_new[1..5].copy_from_slice(&bytes(at + 1, 4)?[..4]);
        return Ok(site);
    }
    let word = Vaddr(at.0 & !7);
    site.store_len = 8;
    site.store_addr = (base + word).0;
    site.old_word = bytes(word, 8)?.try_into().map_or(0, u64::from_le_bytes);
    site.new_word = site.old_word;
    if let Some(pad) = candidate.pad {
        let distance = pad.0.wrapping_sub(at.0 + 2) as u8;
        site.new_word = with_bytes(site.new_word, at.0 - word.0, &[0xeb, distance]);
    }
    if let Some(pad) = candidate.pad.filter(|pad| !in_word_of(*pad, at)) {
        site.pad_addr = (base + pad).0;
        site.pad_len = JUMP as u8;
        site.pad_old[..5].copy_from_slice(bytes(pad, JUMP)?);
    }
    Ok(site)
}

/// The word with some of its bytes replaced.
fn with_bytes(word: u64, at: u64, bytes: &[u8]) -> u64 {
    let mut all = word.to_le_bytes();
    let at = at as usize;
    all[at..at + bytes.len()].copy_from_slice(bytes);
    u64::from_le_bytes(all)
}

/// Where a pun leads.
fn pun_target(site: &Site) -> u64 {
    let displacement =
        i32::from_le_bytes([site.pad_new[1], site.pad_new[2], site.pad_new[3], site.pad_new[4]]);
    (site.site + JUMP).wrapping_add_signed(i64::from(displacement))
}

/// The code the copy has to hold: from the entry to the end of the displaced instruction, with the
/// second NOP of a compiler pad.
pub(crate) fn displaced<'f>(
    function: &'f Function,
    place: &Boundary,
    candidate: &Candidate,
) -> &'f [iced_x86::Instruction] {
    let end = if candidate.class == Class::P { candidate.window.end } else { place.at + 1 };
    let count = function.code[place.index..].iter().take_while(|i| i.ip() < end.0).count();
    &function.code[..place.index + count]
}

/// Rule 4.
pub(crate) fn check_registers(subject: &Subject<'_>, flow: &mut Flow<'_>) -> Result<(), Refusal> {
    callers::check_entry(flow, subject.function)?;
    callers::check_callers(&subject.loaded.analysis, flow, subject.function, subject.references)
}

/// What came of the candidates of a function, to name one reason in the end.
#[derive(Default)]
pub(crate) struct Tried {
    /// Some class was switched off.
    pub off: bool,
    pun: Option<Refusal>,
    other: Option<Refusal>,
}

impl Tried {
    /// Notes a refusal. A pun is possible nearly everywhere, so why it is not says most.
    pub fn add(&mut self, candidate: &Candidate, why: Refusal) {
        let place = if candidate.class == Class::J { &mut self.pun } else { &mut self.other };
        place.get_or_insert(why);
    }

    /// The reason to give.
    pub fn refusal(self, function: &Function) -> Refusal {
        self.pun.or(self.other).unwrap_or(if self.off {
            Refusal::ClassesOff
        } else if function.size() < JUMP {
            Refusal::TooShort { size: function.size() }
        } else {
            Refusal::NoStore
        })
    }
}
