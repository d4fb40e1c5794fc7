//! Recipes for the objects of a patch that may come: those that are not loaded, and those that could be unloaded
//! and loaded again.

use super::far::{self, Far};
use super::{blob, find};
use crate::batch::padded;
use crate::error::Error;
use crate::patch::Patch;
use crate::target::Target;
use crate::target::books::{Books, LateRow};
use crate::view::Cache;
use suture_abi::batch::{FIXUP_VALUE, Fixup, Func, HOOK_NONE, Mapping, RANGE_NEW, RANGE_OLD, Range, Site};
use suture_abi::dispatch::Constants;
use suture_abi::late::{
    LANES, LateSite, PLACE_FREE, RECIPE_NAME, RECIPE_SITES, RECIPE_WATCH, RECIPE_WORDS, Recipe, WORD_VALUE,
    Word,
};
use suture_elf::{Addr, BuildId, MapsSnapshot, ObjectFile, Region, Vaddr};
use suture_link::descriptor::{ReferenceDescriptor, ReferenceTarget};
use suture_link::functions::{self, LazyFrames};
use suture_link::{
    DebugFile, FuncDescriptor, FunctionError, LateObject, LinkPlan, LoadedObject, ObjectDescriptor,
    ProcessView,
};
use suture_redirect::{Options, PlanError, RecipePlan, Replacement, Request, code_ranges, plan_recipe};

/// What is planned for objects that may come.
#[derive(Clone, Debug, Default)]
pub struct LatePlan {
    /// Rows, with their blobs.
    pub recipes: Vec<(Recipe, Vec<u8>)>,
    /// Sites of recipes, new ones and existing ones.
    pub sites: Vec<Site>,
    /// Functions; their sites count from the first of the sites above.
    pub funcs: Vec<Func>,
    /// Code of the functions; functions count as above.
    pub ranges: Vec<Range>,
    /// Mappings, with offsets into the code.
    pub mappings: Vec<Mapping>,
    /// Content of the file mappings.
    pub code: Vec<u8>,
    /// Objects of the patch that are not loaded and will be patched when they come: name, file, functions.
    pub awaited: Vec<Awaited>,
    /// Pointers to old functions.
    pub fixups: Vec<Fixup>,
    /// What cannot be done for objects that come.
    pub warnings: Vec<String>,
    /// Objects of the patch that are not loaded and of which no file is known.
    pub unknown: Vec<String>,
    /// For each watched object of the view, by its index: the position from 1 of its row in the recipes.
    pub watched: Vec<(usize, u32)>,
}

/// An object that is awaited.
#[derive(Clone, Debug)]
pub struct Awaited {
    /// Name in the descriptor.
    pub name: String,
    /// Path of the file.
    pub path: String,
    /// Its build-id.
    pub build_id: Option<BuildId>,
    /// Functions: name in the file, offset of the old one, address of the new one.
    pub functions: Vec<(String, Vaddr, Addr)>,
}

/// What recipes are made from.
#[derive(Clone, Copy)]
pub struct Subject<'a, 'm> {
    /// The process.
    pub target: &'a Target,
    /// What it has loaded.
    pub view: &'a ProcessView<'m>,
    /// The patch.
    pub patch: &'a Patch,
    /// Its link.
    pub linked: &'a LinkPlan,
    /// Books.
    pub books: &'a Books,
    /// The libraries that may come or go, in the order of [`find_objects`].
    pub objects: &'a [LateObject],
    /// Where debug files come from.
    pub debug_file: DebugFile<'a>,
    /// Files and analyses.
    pub cache: &'a Cache,
    /// What dispatchers need to know.
    pub dispatch: Constants,
    /// What the planner may do.
    pub options: Options,
}

impl std::fmt::Debug for Subject<'_, '_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Subject").field("pid", &self.target.pid()).finish_non_exhaustive()
    }
}

/// Libraries that a patch is about and that may come or go: not the program, nor what it was started with. By name,
/// with their index in the view if they are loaded. Those it replaces functions of are first.
fn candidates<'p>(patch: &'p Patch, view: &ProcessView<'_>) -> Vec<(&'p str, Option<usize>)> {
    let mut found: Vec<(&str, Option<usize>)> = Vec::new();
    let replaced = patch.descriptor.objects.iter().filter_map(|o| o.name.as_deref());
    for name in replaced.chain(patch.descriptor.references.iter().filter_map(|r| r.object.as_deref())) {
        if found.iter().any(|(known, _)| *known == name) {
            continue;
        }
        match view.objects_named(Some(name))[..] {
            [] => found.push((name, None)),
            [object] if view.objects[object].may_go() => found.push((name, Some(object))),
            _ => {}
        }
    }
    found
}

/// Finds the libraries of a patch that may come or go, by their files. Those of which no file is known are left out.
///
/// # Errors
/// When a file cannot be read.
pub fn find_objects(
    target: &Target,
    view: &ProcessView<'_>,
    patch: &Patch,
    given: &[ObjectFile],
    cache: &Cache,
) -> Result<Vec<LateObject>, Error> {
    let mut found = Vec::new();
    for (name, loaded) in candidates(patch, view) {
        let file = match loaded {
            Some(index) => Some(view.objects[index].file.clone()),
            None => find::find(target, view, name, given, cache),
        };
        // Without a build-id nobody could tell that it is the file when it comes.
        if let Some(file) = file.filter(|f| loaded.is_some() || of_file(f).build_id_len != 0) {
            found.push(LateObject::new(name, &file, loaded)?);
        }
    }
    Ok(found)
}

/// Whether a patch is about objects that may come or go.
#[must_use]
pub fn concerned(patch: &Patch, view: &ProcessView<'_>) -> bool {
    !candidates(patch, view).is_empty()
}

/// Plans. `maps` has the process's mappings and those that the batch makes already.
///
/// # Errors
/// When a function is not in its file, or cannot be redirected.
pub fn plan(subject: &Subject<'_, '_>, maps: &MapsSnapshot) -> Result<LatePlan, Error> {
    let mut late = LatePlan::default();
    let mut maps = maps.clone();
    for (name, loaded) in candidates(subject.patch, subject.view) {
        let wanted = subject.patch.descriptor.objects.iter().find(|o| o.name.as_deref() == Some(name));
        let index = subject.objects.iter().position(|o| o.name == name);
        if let Some((wanted, index)) = wanted.zip(index) {
            check_build(wanted, &subject.objects[index].object.file, name)?;
        }
        late.object(subject, wanted, name, loaded, index, &mut maps)?;
    }
    Ok(late)
}

/// The file must be the build that the patch is for.
fn check_build(wanted: &ObjectDescriptor, file: &ObjectFile, name: &str) -> Result<(), Error> {
    match &wanted.build_id {
        Some(id) if Some(id) != file.build_id() => Err(Error::Patch {
            what: format!(
                "{name} is not loaded, and its file {} has build-id {}; the patch is for {id}",
                file.path(),
                file.build_id().map_or_else(|| "none".into(), ToString::to_string)
            ),
            errno: "EINVAL",
            hint: Some("name the right file with --object-file".into()),
        }),
        _ => Ok(()),
    }
}

/// A function of the patch in a file.
struct LateFunc {
    symbol: String,
    entry: Vaddr,
    size: u64,
    new: Addr,
    new_size: u64,
}

impl LatePlan {
    fn object(
        &mut self,
        subject: &Subject<'_, '_>,
        wanted: Option<&ObjectDescriptor>,
        name: &str,
        loaded: Option<usize>,
        index: Option<usize>,
        maps: &mut MapsSnapshot,
    ) -> Result<(), Error> {
        let file = index.map(|index| &subject.objects[index].object.file);
        let id = file.and_then(ObjectFile::build_id);
        for (index, object) in subject.view.objects.iter().enumerate() {
            let twin = id.is_some() && object.file.build_id() == id;
            if (twin || loaded == Some(index)) && object.may_go() {
                self.watch(subject.books, object, index, name);
            }
        }
        let Some((index, file)) = index.zip(file) else {
            self.unknown.push(name.to_owned());
            self.leave_alone(name);
            return Ok(());
        };
        if !subject.linked.stale.is_empty() {
            self.warnings.push(format!(
                "{name} is left as it is, for every patch, when it is loaded after this: the patch uses {}, which cannot \
                 be found anew then",
                subject.linked.stale.join(", ")
            ));
            self.leave_alone(name);
            self.unknown.extend(loaded.is_none().then(|| name.to_owned()));
            return Ok(());
        }
        let build = of_file(file);
        let mut words: Vec<Word> =
            subject.linked.late_words.iter().filter(|w| w.late == index).map(|w| w.word).collect();
        // Words can be about one mapping only.
        let olds = old_references(subject, name);
        let lanes = if words.is_empty() && olds.is_empty() { LANES as u32 } else { 1 };
        if let Some(wanted) = wanted.filter(|_| build.build_id_len != 0) {
            let funcs = resolve(subject, wanted, file)?;
            if loaded.is_none() {
                self.awaited.push(Awaited {
                    name: name.to_owned(),
                    path: file.path().to_owned(),
                    build_id: file.build_id().cloned(),
                    functions: funcs.iter().map(|f| (f.symbol.clone(), f.entry, f.new)).collect(),
                });
            }
            let first = self.sites_of(subject, file, name, &funcs, lanes, maps)?;
            for (slot, old, sympos) in olds {
                let is = |f: &&FuncDescriptor| f.old_name == old && f.sympos == sympos;
                let at = wanted.funcs.iter().position(|f| is(&f)).and_then(|at| funcs.get(at));
                let site = at.and_then(|f| first.iter().find(|s| s.entry == f.entry.0));
                let site = site.ok_or_else(|| not_replaced(old, name))?;
                let place = (subject.linked.base + slot).0;
                if loaded.is_none() {
                    self.fixups.push(Fixup { place, kind: FIXUP_VALUE, object: 0, addend: site.copy });
                } else {
                    let (value, absent) = (site.copy, site.copy);
                    words.push(Word { place, value, absent, kind: WORD_VALUE, reserved: 0 });
                }
            }
        } else if let Some((_, old, _)) = olds.first().filter(|_| wanted.is_none()) {
            return Err(not_replaced(old, name));
        }
        if build.build_id_len != 0 {
            // It says what became of another build that comes under this name. Behind the sites, which know more.
            self.leave_alone(name);
        }
        if !words.is_empty() {
            let there = loaded.map(|index| &subject.view.objects[index]);
            let row = Recipe {
                kind: RECIPE_WORDS,
                name: name_of(name),
                base: there.map_or(0, |o| o.base.0),
                link_map: there.map_or(0, |o| o.link_map.0),
                ..build
            };
            self.recipes.push((row, blob::words(&words)));
        }
        Ok(())
    }

    /// A library of that name that no other row is about cannot be patched for this patch, and so for none.
    fn leave_alone(&mut self, name: &str) {
        let row = Recipe { kind: RECIPE_NAME, name: name_of(name), ..Recipe::default() };
        self.recipes.push((row, Vec::new()));
    }

    /// A row for an object that is there.
    fn watch(&mut self, books: &Books, object: &LoadedObject, index: usize, name: &str) {
        if self.watched.iter().any(|(known, _)| *known == index) {
            return;
        }
        let at = |row: &&LateRow| {
            row.state != PLACE_FREE && (row.base, row.link_map) == (object.base.0, object.link_map.0)
        };
        let there = books.recipes.iter().filter(at);
        let known = there.clone().find(|r| r.row.plan.kind == RECIPE_WATCH).map(|r| r.row.plan);
        let id = object.file.build_id();
        let lane = there.clone().map(|r| r.row.plan.lane).next();
        let row = known.unwrap_or_else(|| Recipe {
            kind: RECIPE_WATCH,
            lane: lane.unwrap_or_else(|| self.free_lane(books, id)),
            base: object.base.0,
            link_map: object.link_map.0,
            name: name_of(name),
            ..of_file(&object.file)
        });
        self.recipes.push((row, Vec::new()));
        self.watched.push((index, u32::try_from(self.recipes.len()).unwrap_or(u32::MAX)));
    }

    /// A lane that no mapping of the build has. When all are taken, the last: nothing can come then anyway.
    fn free_lane(&self, books: &Books, id: Option<&BuildId>) -> u32 {
        let of_build = |plan: &Recipe| id.is_some_and(|id| is_build(plan, id));
        let planned = |lane: u32| {
            let mut rows = self.recipes.iter().map(|(plan, _)| plan);
            rows.any(|p| p.kind == RECIPE_WATCH && p.lane == lane && of_build(p))
        };
        let taken = |lane: u32| {
            let mut rows = books.recipes.iter();
            rows.any(|r| r.state != PLACE_FREE && r.row.plan.lane == lane && of_build(&r.row.plan))
        };
        let last = LANES as u32 - 1;
        (0..LANES as u32).find(|lane| !planned(*lane) && !taken(*lane)).unwrap_or(last)
    }

    /// Sites on every lane, those that are there already and new ones, and functions on the first lanes. Gives the
    /// sites of the first.
    #[allow(clippy::too_many_arguments, reason = "one caller; a struct would only rename them")]
    fn sites_of(
        &mut self,
        subject: &Subject<'_, '_>,
        file: &ObjectFile,
        name: &str,
        funcs: &[LateFunc],
        lanes: u32,
        maps: &mut MapsSnapshot,
    ) -> Result<Vec<Site>, Error> {
        let Some(id) = file.build_id() else { return Ok(Vec::new()) };
        let mut first = Vec::new();
        let known = |lane: u32, entry: Vaddr| {
            let row = |r: &&LateRow| {
                r.row.plan.kind == RECIPE_SITES && r.row.plan.lane == lane && is_build(&r.row.plan, id)
            };
            let rows: Vec<u32> = subject.books.recipes.iter().filter(row).map(|r| r.row.id).collect();
            let here = |s: &&Site| rows.contains(&s.recipe) && s.entry == entry.0;
            subject.books.relative.iter().find(here).copied()
        };
        // The sites of one lane are those of every lane.
        let new: Vec<&LateFunc> = funcs.iter().filter(|f| known(0, f.entry).is_none()).collect();
        let planned = if new.is_empty() { None } else { Some(recipe(subject, file, id, &new)?) };
        for lane in 0..LANES as u32 {
            let mut sites: Vec<Site> = Vec::new();
            for func in funcs {
                sites.extend(known(lane, func.entry));
            }
            self.refer_to(subject.books, &sites);
            if let Some(plan) = &planned {
                self.lane(subject, file, name, lane, plan, maps, &mut sites)?;
            }
            for func in funcs.iter().filter(|_| lane < lanes) {
                let Some(site) = sites.iter().find(|s| s.entry == func.entry.0) else { continue };
                self.func(subject, file, func, *site);
            }
            if lane == 0 {
                first = sites;
            }
        }
        Ok(first)
    }

    /// Names the rows of sites that are there already: the batch is about their objects, too.
    fn refer_to(&mut self, books: &Books, sites: &[Site]) {
        for site in sites {
            let row = books.recipe(site).map(|r| r.row.plan);
            let known = |id: u32| self.recipes.iter().any(|(r, _)| r.id == id);
            if let Some(row) = row.filter(|r| !known(r.id)) {
                self.recipes.push((row, Vec::new()));
            }
        }
    }

    /// The row of a recipe on one lane, with its sites.
    #[allow(clippy::too_many_arguments, reason = "one caller; a struct would only rename them")]
    fn lane(
        &mut self,
        subject: &Subject<'_, '_>,
        file: &ObjectFile,
        name: &str,
        lane: u32,
        plan: &RecipePlan,
        maps: &mut MapsSnapshot,
        sites: &mut Vec<Site>,
    ) -> Result<(), Error> {
        let image = subject.linked.range();
        let len = far::len(plan.sites.len());
        let at = maps.free_hole_near(&image, len, 0x1_0000, suture_elf::maps::REACH);
        let no_room = || Error::Patch {
            what: format!("there is no room for {len} bytes near the patch"),
            errno: "ENOMEM",
            hint: Some("restart the program, which then may lie elsewhere".into()),
        };
        let at = at.ok_or_else(no_room)?;
        maps.regions.push(Region { start: at, end: at + len, ..Region::default() });
        maps.regions.sort_by_key(|r| r.start);
        let mut far = Far::new(at, plan.sites.len());
        let mut data = plan.data.clone();
        let mut late = Vec::new();
        let number = u32::try_from(self.recipes.len() + 1).unwrap_or(u32::MAX);
        for planned in &plan.sites {
            let mut site = Site { recipe: number, ..planned.planned.site };
            let copy_word = far.place(&mut site, &subject.dispatch).ok_or_else(no_room)?;
            data[planned.slot..planned.slot + 8].copy_from_slice(&site.stub.to_le_bytes());
            late.push(LateSite { site, copy: planned.copy, copy_word });
            sites.push(site);
        }
        let (mappings, code) = far.finish();
        let offset = self.code.len() as u64;
        self.code.extend_from_slice(&code);
        self.mappings.extend(mappings.iter().map(|m| Mapping { offset: m.offset + offset, ..*m }));
        let row = Recipe { kind: RECIPE_SITES, lane, name: name_of(name), ..of_file(file) };
        self.recipes.push((row, blob::to_bytes(plan, &late, &data)));
        Ok(())
    }

    fn func(&mut self, subject: &Subject<'_, '_>, file: &ObjectFile, func: &LateFunc, site: Site) {
        let index = u32::try_from(self.funcs.len()).unwrap_or(u32::MAX);
        let at = u32::try_from(self.sites.len()).unwrap_or(u32::MAX);
        self.sites.push(site);
        self.funcs.push(Func {
            site: at,
            hook: HOOK_NONE,
            new_func: func.new.0,
            new_size: func.new_size,
            old_size: func.size,
            ..Func::default()
        });
        let base = subject.linked.base;
        let new = Vaddr(func.new.0.wrapping_sub(base.0));
        let analysis = subject.cache.analysis(subject.patch.file.file());
        let row = |kind, start: u64, end: u64| Range { func: index, kind, start, end };
        let old = code_ranges(&subject.cache.analysis(file), func.entry, func.size);
        self.ranges.extend(old.into_iter().map(|r| row(RANGE_OLD, r.start.0, r.end.0)));
        let new = code_ranges(&analysis, new, func.new_size);
        self.ranges.extend(new.into_iter().map(|r| row(RANGE_NEW, (base + r.start).0, (base + r.end).0)));
    }
}

/// Pointers of the patch to old functions of a library: pointer, name and position of the function.
fn old_references<'a>(subject: &Subject<'a, '_>, name: &str) -> Vec<(Vaddr, &'a str, u64)> {
    let references = subject.patch.descriptor.references.iter();
    let of_it = references.filter(|r| r.object.as_deref() == Some(name));
    of_it
        .filter_map(|r: &ReferenceDescriptor| match &r.target {
            ReferenceTarget::OldFunc { name, sympos } => Some((r.slot, name.as_str(), *sympos)),
            _ => None,
        })
        .collect()
}

fn not_replaced(old: &str, name: &str) -> Error {
    Error::Patch {
        what: format!("the patch wants to call the old {old} of {name}, which it does not replace"),
        errno: "EINVAL",
        hint: None,
    }
}

/// Plans sites for a file, beside those that its recipes have already.
fn recipe(
    subject: &Subject<'_, '_>,
    file: &ObjectFile,
    id: &BuildId,
    funcs: &[&LateFunc],
) -> Result<RecipePlan, Error> {
    let of_build = |number: u32| {
        let row = subject.books.recipes.iter().find(|r| r.row.id == number);
        row.is_some_and(|r| r.row.plan.lane == 0 && is_build(&r.row.plan, id))
    };
    let existing: Vec<Site> =
        subject.books.relative.iter().filter(|s| s.late != 0 && of_build(s.recipe)).copied().collect();
    let new_code = subject.cache.analysis(subject.patch.file.file());
    let base = subject.linked.base;
    let request = |f: &&LateFunc| Request {
        object: 0,
        entry: f.entry,
        name: suture_elf::demangle(&f.symbol),
        replacement: Some(Replacement::Code {
            analysis: new_code.clone(),
            entry: Vaddr(f.new.0.wrapping_sub(base.0)),
        }),
    };
    let requests: Vec<Request> = funcs.iter().map(request).collect();
    let planned = plan_recipe(&subject.cache.analysis(file), &requests, &existing, &subject.options);
    planned.map_err(|e: PlanError| crate::plan::refusal(e))
}

/// Finds the patch's functions in a file.
fn resolve(
    subject: &Subject<'_, '_>,
    wanted: &ObjectDescriptor,
    file: &ObjectFile,
) -> Result<Vec<LateFunc>, Error> {
    let failed = |what: String, errno| Error::Patch {
        what: format!("{}: {what}", subject.patch.path.display()),
        errno,
        hint: None,
    };
    let alone =
        ProcessView::of_file(subject.view.memory.0, file).map_err(|e| failed(e.to_string(), "EINVAL"))?;
    let frames = LazyFrames::default();
    let mut found: Vec<LateFunc> = Vec::new();
    for func in &wanted.funcs {
        let old = functions::find(&alone, 0, func, subject.debug_file, &frames);
        let old = old.map_err(|e: FunctionError| failed(format!("{e} ({})", file.path()), "EINVAL"))?;
        if found.iter().any(|f| f.entry == old.entry) {
            return Err(failed(format!("two names of one function: {}", func.old_name), "EEXIST"));
        }
        found.push(LateFunc {
            symbol: old.symbol,
            entry: old.entry,
            size: old.size,
            new: subject.linked.base + func.new_func,
            new_size: func.new_size,
        });
    }
    Ok(found)
}

fn is_build(plan: &Recipe, id: &BuildId) -> bool {
    plan.build_id.get(..plan.build_id_len as usize) == Some(id.as_bytes())
}

/// What a file says for its rows.
fn of_file(file: &ObjectFile) -> Recipe {
    const PT_DYNAMIC: u32 = 2;
    const PT_NOTE: u32 = 4;
    let mut row = Recipe::default();
    let Some(id) = file.build_id().filter(|id| id.as_bytes().len() <= row.build_id.len()) else { return row };
    let notes = file.program_headers().iter().filter(|(kind, _)| *kind == PT_NOTE);
    let at = notes.filter_map(|(_, note)| {
        let bytes = file.bytes_at(note.addr, note.filesz)?;
        let offset = bytes.windows(id.as_bytes().len()).position(|w| w == id.as_bytes())?;
        Some(note.addr.0 + offset as u64)
    });
    let Some(at) = at.min() else { return row };
    row.build_id[..id.as_bytes().len()].copy_from_slice(id.as_bytes());
    row.build_id_len = id.as_bytes().len() as u32;
    row.build_id_at = at;
    row.dynamic = file.program_header(PT_DYNAMIC).map_or(0, |s| s.addr.0);
    row
}

/// File name, NUL padded.
fn name_of(name: &str) -> [[u8; 32]; 2] {
    padded(name.rsplit('/').next().unwrap_or(name))
}
