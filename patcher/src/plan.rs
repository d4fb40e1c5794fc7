//! From a patch and a process to one batch. Writes nothing.

use crate::batch::{Batch, padded};
use crate::debug_files::DebugFiles;
use crate::description::{Description, FunctionDescription, ObjectDescription, SCHEMA};
use crate::error::Error;
use crate::folded;
use crate::hooks::{self, Hook};
use crate::late::{self, Loaded};
use crate::patch::{Patch, descriptor_errno};
use crate::replace;
use crate::target::books::Books;
use crate::target::{Target, runtime};
use crate::threads::{self, ThreadLayout};
use crate::transition::own_stacks::{self, OwnStacks};
use crate::view::{self, Cache};
use serde::Serialize;
use std::collections::HashMap;
use suture_abi::batch::{
    Func, HOOK_DL_DEBUG_STATE, HOOK_NONE, MAPPING_FILE, Mapping, NamedObject, RANGE_CONTEXT, RANGE_NEW,
    RANGE_OLD, Range,
};
use suture_abi::block::{PATCH_PREPARED, SiteRow};
use suture_abi::dispatch::Constants;
use suture_elf::{Addr, MapsSnapshot, ObjectFile, Pages, Region, Vaddr};
use suture_link::{
    DebugFile, FuncDescriptor, FunctionError, LinkError, LinkOptions, LinkPlan, ObjectDescriptor,
    ProcessView, ResolvedFunc,
};
use suture_redirect::{
    Classes, ExistingSite, LoadedObject, Options, PlanError, PlannedSite, RedirectPlan, Refusal, Replacement,
    Request, code_ranges, plan_sites,
};
use suture_unwind::Module;

/// A finished plan.
#[derive(Debug)]
pub struct Plan {
    /// What is shipped.
    pub batch: Batch,
    /// What it would do, for people.
    pub functions: Vec<PlannedFunction>,
    /// The process has something of what the patch is about.
    pub concerned: bool,
    /// What is odd about the patch beside those that are there.
    pub warnings: Vec<String>,
    /// Objects the patch names that are not loaded, and of which no file is known.
    pub absent: Vec<String>,
    /// Objects it names that will be patched when they are loaded.
    pub awaited: Vec<String>,
    /// What was loaded besides what never goes.
    pub loaded: Loaded,
    /// Imports because of which the image is never unmapped.
    pub pinned: Vec<String>,
    /// Stacks that the program makes itself.
    pub own_stacks: OwnStacks,
}

/// One function of a plan.
#[derive(Clone, Debug, Serialize)]
pub struct PlannedFunction {
    /// Name, demangled.
    pub name: String,
    /// Object it is in.
    pub object: String,
    /// Redirect class letter.
    pub class: char,
    /// Bytes from the entry to the site.
    pub offset: u64,
    /// Prologue steps the stub undoes.
    pub undo: usize,
    /// Entry of the old function.
    pub old: u64,
    /// Entry of the new function.
    pub new: u64,
    /// Each round of a loop is a call of the new function.
    pub loop_head: bool,
}

/// Plans a patch for a process.
///
/// # Errors
/// Everything that speaks against it: the patch is already there or does not fit, a function cannot
/// be found or redirected.
pub fn plan(
    target: &Target,
    patch: &Patch,
    books: &Books,
    classes: Classes,
    given: &[ObjectFile],
    cache: &Cache,
) -> Result<Plan, Error> {
    let pid = target.pid();
    let name = &patch.descriptor.name;
    if books.hooking_off {
        return Err(Error::HookingOff { pid });
    }
    // One that is only prepared is what a fork in the middle of an apply left in the child: the next worker
    // takes it back.
    if let Some(there) = books.patch(name).filter(|patch| patch.row.state != PATCH_PREPARED) {
        let moves = books.transition.is_some_and(|t| t.patch == there.row.id);
        let name = name.clone();
        return Err(if moves {
            Error::InTransition { pid, name }
        } else {
            Error::AlreadyEnabled { pid, name }
        });
    }
    replace::check(pid, &patch.descriptor, books)?;
    let maps = view::maps(target)?;
    let mut view = view::process(target, maps.clone(), cache)?;
    view.exports = runtime::exports(target, &maps)?;
    let debug_files = DebugFiles::of(target.via);
    let late_objects = late::find_objects(target, &view, patch, given, cache)?;
    let find = |object: &suture_link::LoadedObject| debug_files.find(object);
    let debug_file = DebugFile(&find);
    let link_options = LinkOptions { debug_file, late: &late_objects, ..LinkOptions::default() };
    let linked = link(&view, patch, &link_options, &debug_files)?;
    not_the_runtimes_own(&view, &linked)?;
    let layout = threads::layout(target, &view)?;
    let is_late = late::concerned(patch, &view);
    let mut hooks = hooks::missing(&view, &books.sites, linked.image.eh_frame_hdr != 0, is_late);
    let redirect = loop {
        match redirect(target, patch, &view, &linked, &hooks, maps.clone(), books, layout, classes, cache) {
            Err(PlanError::Refused(refused)) if give_up_optional(&mut hooks, &refused) => {}
            other => break other.map_err(refusal)?,
        }
    };
    let own_stacks = own_stacks::find(target, &view, books)?;
    let mut warnings: Vec<String> = Vec::new();
    warnings.extend(linked.funcs.iter().filter_map(|func| {
        let object = &view.objects[linked.objects[func.object as usize].index];
        folded::warning(object.file.symbols(), &func.name, func.old_entry)
    }));
    let mut maps = view.maps.clone();
    maps.regions.extend(linked.mappings.iter().chain(&redirect.mappings).map(region));
    maps.regions.sort_by_key(|r| r.start);
    let subject = late::Subject {
        target,
        view: &view,
        patch,
        linked: &linked,
        books,
        objects: &late_objects,
        debug_file,
        cache,
        dispatch: dispatch(books, layout),
        options: options(classes),
    };
    // Without the hook nobody would carry a recipe out.
    let is_hooked = hooks.iter().any(|h| h.kind == HOOK_DL_DEBUG_STATE)
        || books.sites.iter().any(|s| s.hook == HOOK_DL_DEBUG_STATE);
    let late = if is_late && is_hooked { late::plan(&subject, &maps)? } else { late::LatePlan::default() };
    let mut plan = assemble(patch, &view, linked, &hooks, redirect, late, books, layout, own_stacks, cache);
    plan.warnings.extend(warnings);
    plan.warnings.extend(debug_files.notes());
    if is_late && !is_hooked {
        plan.warnings
            .push("libraries that are loaded later stay unpatched: the loader cannot be hooked".into());
    }
    Ok(plan)
}

/// Refuses functions that the runtime redirects for itself. A patch on top of a hook would keep the runtime
/// from seeing births and forks, and a forked child would mix old and new code in the next transition.
fn not_the_runtimes_own(view: &ProcessView<'_>, linked: &LinkPlan) -> Result<(), Error> {
    let own = hooks::missing(view, &[], true, true);
    let is_own = |entry, object: u32| {
        let index = linked.objects[object as usize].index;
        own.iter().any(|hook| (hook.object, hook.entry) == (index, entry))
    };
    match linked.funcs.iter().find(|f| is_own(f.old_entry, f.object)) {
        None => Ok(()),
        Some(func) => Err(Error::Patch {
            what: format!("cannot replace {}: the runtime redirects it for itself", func.name),
            errno: "EBUSY",
            hint: Some("replace the functions that call it".into()),
        }),
    }
}

/// Takes hooks off the list that were refused and can be done without; false when there is none.
fn give_up_optional(hooks: &mut Vec<Hook>, refused: &[(String, Refusal)]) -> bool {
    let before = hooks.len();
    hooks.retain(|h| !(h.is_optional() && refused.iter().any(|(name, _)| name == h.name)));
    hooks.len() < before
}

pub(crate) fn refusal(error: PlanError) -> Error {
    match error {
        PlanError::Refused(refused) => {
            let foreign = refused.iter().any(|(_, why)| matches!(why, Refusal::Bytes { .. }));
            let hint = refused.first().map(|(_, why)| why.hint());
            Error::Redirect { what: refusals(&refused), foreign, hint }
        }
        PlanError::NoRoom { .. } => Error::Patch {
            what: error.to_string(),
            errno: "ENOMEM",
            hint: Some("restart the program, which then may lie elsewhere".into()),
        },
    }
}

fn link(
    view: &ProcessView<'_>,
    patch: &Patch,
    options: &LinkOptions<'_>,
    debug_files: &DebugFiles,
) -> Result<LinkPlan, Error> {
    suture_link::link(view, patch.file.file(), options).map_err(|e| {
        let errno = match &e {
            LinkError::Accept(_) | LinkError::NeedsLoader => "ENOEXEC",
            LinkError::NoRoom { .. } => "ENOMEM",
            LinkError::Function(FunctionError::Same { .. }) => "EEXIST",
            LinkError::Descriptor(e) => descriptor_errno(e),
            _ => "EINVAL",
        };
        let hint = e.hint().map(Into::into);
        // What was not used may be why a name was not found.
        let notes: String = debug_files.notes().iter().map(|note| format!("\nnote: {note}")).collect();
        Error::Patch { what: format!("{}: {e}{notes}", patch.path.display()), errno, hint }
    })
}

/// Plans the sites of the patch's functions and of the hooks, in this order.
#[allow(clippy::too_many_arguments, reason = "one caller; a struct would only rename them")]
fn redirect(
    target: &Target,
    patch: &Patch,
    view: &ProcessView<'_>,
    linked: &LinkPlan,
    hooks: &[Hook],
    mut maps: MapsSnapshot,
    books: &Books,
    layout: ThreadLayout,
    classes: Classes,
    cache: &Cache,
) -> Result<RedirectPlan, PlanError> {
    // The image takes its place first; punned pages must not.
    maps.regions.extend(linked.mappings.iter().map(region));
    maps.regions.sort_by_key(|r| r.start);
    let mut used: Vec<usize> = linked.funcs.iter().map(|f| linked.objects[f.object as usize].index).collect();
    used.extend(hooks.iter().map(|h| h.object));
    used.sort_unstable();
    used.dedup();
    let objects: Vec<LoadedObject> = used
        .iter()
        .map(|&i| LoadedObject {
            analysis: cache.analysis(&view.objects[i].file),
            base: view.objects[i].base,
        })
        .collect();
    let position = |index: usize| used.binary_search(&index).unwrap_or(0);
    let new_code = cache.analysis(patch.file.file());
    let mut requests: Vec<Request> = linked
        .funcs
        .iter()
        .map(|f| Request {
            object: position(linked.objects[f.object as usize].index),
            entry: f.old_entry,
            name: f.name.clone(),
            replacement: Some(Replacement::Code {
                analysis: new_code.clone(),
                entry: Vaddr(f.new_addr.0.wrapping_sub(linked.base.0)),
            }),
        })
        .collect();
    requests.extend(hooks.iter().map(|h| Request {
        object: position(h.object),
        entry: h.entry,
        name: h.name.to_owned(),
        replacement: h.is_transparent().then_some(Replacement::Transparent),
    }));
    let existing: Vec<ExistingSite> =
        books.sites.iter().filter(|s| !books.is_nowhere(&s.plan)).map(existing_site).collect();
    let dispatch = dispatch(books, layout);
    // Functions lie close to each other.
    let memory = Pages::new(&target.memory);
    let process = suture_redirect::ProcessView {
        maps: Some(&maps),
        existing: &existing,
        memory: Some(&memory),
        dispatch,
    };
    plan_sites(&objects, &requests, &process, &options(classes))
}

fn existing_site(row: &SiteRow) -> ExistingSite {
    ExistingSite { id: row.id, site: row.plan }
}

fn region(m: &Mapping) -> Region {
    Region { start: m.addr, end: m.addr + m.len, ..Region::default() }
}

fn options(classes: Classes) -> Options {
    Options { classes, max_map_count: crate::sys::proc::max_map_count(), ..Options::default() }
}

fn dispatch(books: &Books, layout: ThreadLayout) -> Constants {
    Constants {
        directory: books.records,
        slow_path: books.slow_path,
        self_look: books.self_look,
        thread_id: layout.thread_id,
    }
}

/// Refusals, one to a line, the first few of many.
fn refusals(refused: &[(String, Refusal)]) -> String {
    const SHOWN: usize = 20;
    let shown = refused.iter().take(SHOWN).map(|(name, why)| format!("cannot redirect {name}: {why}"));
    let more = refused.len().saturating_sub(SHOWN);
    let rest = (more > 0).then(|| format!("and {more} more functions that cannot be redirected"));
    shown.chain(rest).collect::<Vec<_>>().join("\n")
}

#[allow(clippy::too_many_arguments, reason = "one caller; a struct would only rename them")]
fn assemble(
    patch: &Patch,
    view: &ProcessView<'_>,
    linked: LinkPlan,
    hooks: &[Hook],
    redirect: RedirectPlan,
    late: late::LatePlan,
    books: &Books,
    layout: ThreadLayout,
    own_stacks: OwnStacks,
    cache: &Cache,
) -> Plan {
    let description = describe(patch, view, &linked, &late);
    let mut batch = Batch {
        generation: books.generation,
        name: linked.name.clone(),
        names: description.name_parts(),
        description: description.to_bytes(),
        objects: linked.object_rows(),
        image: Some(linked.image),
        ranges: ranges(patch, view, &linked, cache),
        states: linked.states.iter().map(|s| s.row(linked.descriptor)).collect(),
        replace: linked.replace,
        thread_id: layout.thread_id,
        main_stack_end: layout.main_stack_end,
        linked_threads: layout.linked,
        own_stacks: own_stacks.guarded,
        named: named(patch, view, &late),
        ..Batch::default()
    };
    for (mappings, blob) in [(&redirect.mappings, &redirect.blob), (&linked.mappings, &linked.blob)] {
        let offset = batch.append_code(blob);
        batch.mappings.extend(mappings.iter().map(|m| {
            let shift = if m.kind == MAPPING_FILE { offset } else { 0 };
            suture_abi::batch::Mapping { offset: m.offset + shift, ..*m }
        }));
    }
    let watched = |index: usize| late.watched.iter().find(|(at, _)| *at == index).map_or(0, |(_, row)| *row);
    let mut functions = Vec::new();
    let mut placed = HashMap::new();
    let (own, hooked) = redirect.sites.split_at(linked.funcs.len().min(redirect.sites.len()));
    for (func, planned) in linked.funcs.iter().zip(own) {
        let site = site_index(&mut batch, &mut placed, planned);
        batch.sites[site as usize].recipe = watched(linked.objects[func.object as usize].index);
        batch.funcs.push(Func {
            site,
            hook: HOOK_NONE,
            new_func: func.new_addr.0,
            new_size: func.new_size,
            old_size: planned.size,
            ..Func::default()
        });
        functions.push(PlannedFunction {
            name: func.name.clone(),
            object: linked.objects[func.object as usize].name.clone(),
            class: char::from(planned.class.letter()),
            offset: planned.offset,
            undo: planned.undo,
            old: func.old_addr.0,
            new: func.new_addr.0,
            loop_head: planned.loop_head,
        });
    }
    for (hook, planned) in hooks.iter().zip(hooked) {
        let site = site_index(&mut batch, &mut placed, planned);
        let func = Func { site, hook: hook.kind, old_size: planned.size, ..Func::default() };
        batch.funcs.push(func);
    }
    relative_ranges(&mut batch, books);
    add_late(&mut batch, &late, view);
    if linked.replace {
        replace::add_nops(&mut batch, books);
    }
    batch.fixups = linked.fixups;
    batch.fixups.extend(linked.old_refs.iter().map(|r| r.fixup(Addr(own[r.func].site.copy))));
    batch.fixups.extend_from_slice(&late.fixups);
    let mut warnings = replace::disagreements(&patch.descriptor, books);
    warnings.extend(late.warnings.iter().cloned());
    let concerned =
        linked.absent.len() < patch.descriptor.objects.len() || patch.descriptor.objects.is_empty();
    let awaited: Vec<String> = late.awaited.iter().map(|a| a.name.clone()).collect();
    let mut absent = linked.absent;
    absent.retain(|name| !awaited.contains(name));
    let loaded = Loaded::of(view, books);
    Plan { batch, functions, concerned, warnings, absent, awaited, loaded, pinned: linked.pinned, own_stacks }
}

/// The books have code at a relative site as offsets, wherever its object is now.
fn relative_ranges(batch: &mut Batch, books: &Books) {
    let Batch { ranges, funcs, sites, .. } = batch;
    for range in ranges.iter_mut().filter(|r| r.kind == RANGE_OLD) {
        let site = funcs.get(range.func as usize).and_then(|f| sites.get(f.site as usize));
        let known = site.and_then(|s| books.relative_site(s.id));
        if let Some(row) = known.and_then(|s| books.recipe(s)) {
            (range.start, range.end) = (range.start.wrapping_sub(row.base), range.end.wrapping_sub(row.base));
        }
    }
}

/// Adds what is planned for objects that may come.
fn add_late(batch: &mut Batch, late: &late::LatePlan, view: &ProcessView<'_>) {
    let offset = batch.append_code(&late.code);
    batch.mappings.extend(late.mappings.iter().map(|m| {
        let shift = if m.kind == MAPPING_FILE { offset } else { 0 };
        Mapping { offset: m.offset + shift, ..*m }
    }));
    let number = |len: usize| u32::try_from(len).unwrap_or(u32::MAX);
    for (index, func) in (0..).zip(&late.funcs) {
        let site = late.sites[func.site as usize];
        // Of an object that came late and is there now the function was planned where it is.
        if batch.sites.iter().any(|s| site.id != 0 && s.id == site.id) {
            continue;
        }
        let at = number(batch.funcs.len());
        batch.funcs.push(Func { site: number(batch.sites.len()), ..*func });
        batch.sites.push(site);
        let own = late.ranges.iter().filter(|r| r.func == index);
        batch.ranges.extend(own.map(|r| Range { func: at, ..*r }));
    }
    batch.recipes.clone_from(&late.recipes);
    if !batch.recipes.is_empty() {
        batch.r_debug = view.r_debug.0;
    }
}

/// Code of the patch's functions, old and new, with the parts that compilers move away; and where
/// coroutines return to.
fn ranges(patch: &Patch, view: &ProcessView<'_>, linked: &LinkPlan, cache: &Cache) -> Vec<Range> {
    let new_code = cache.analysis(patch.file.file());
    let mut ranges = Vec::new();
    for (func, resolved) in (0..).zip(&linked.funcs) {
        let object = &view.objects[linked.objects[resolved.object as usize].index];
        let old = code_ranges(&cache.analysis(&object.file), resolved.old_entry, resolved.old_size);
        let entry = Vaddr(resolved.new_addr.0.wrapping_sub(linked.base.0));
        let new = code_ranges(&new_code, entry, resolved.new_size);
        for (kind, base, found) in [(RANGE_OLD, object.base, old), (RANGE_NEW, linked.base, new)] {
            let row = |r: std::ops::Range<Vaddr>| Range {
                func,
                kind,
                start: (base + r.start).0,
                end: (base + r.end).0,
            };
            ranges.extend(found.into_iter().map(row));
        }
    }
    let library = crate::threads::library(view).map(|o| Module::new(o.path.clone(), o.base, o.file.clone()));
    if let Some(context) = library.and_then(|m| m.context_return()).filter(|_| !ranges.is_empty()) {
        // From one byte in front: the bounds go through registers of threads that look at themselves and stay on
        // their stacks, and the address itself would be taken for a coroutine's afterwards.
        ranges.push(Range { func: 0, kind: RANGE_CONTEXT, start: context.start - 1, end: context.end });
    }
    ranges
}

/// The site's place in the batch; functions at one entry share it. `placed` are those so far, by entry.
fn site_index(batch: &mut Batch, placed: &mut HashMap<u64, u32>, planned: &PlannedSite) -> u32 {
    *placed.entry(planned.site.entry).or_insert_with(|| {
        batch.sites.push(planned.site);
        u32::try_from(batch.sites.len() - 1).unwrap_or(u32::MAX)
    })
}

fn describe(patch: &Patch, view: &ProcessView<'_>, linked: &LinkPlan, late: &late::LatePlan) -> Description {
    let objects = patch.descriptor.objects.iter().map(|wanted| {
        let found = view.objects_named(wanted.name.as_deref()).first().map(|&i| &view.objects[i]);
        let holders = view.objects_named(wanted.name.as_deref());
        let is_in = |f: &&ResolvedFunc| holders.contains(&linked.objects[f.object as usize].index);
        let funcs = linked.funcs.iter().filter(is_in);
        let waits = late.awaited.iter().find(|a| Some(a.name.as_str()) == wanted.name.as_deref());
        let id = found.and_then(|o| o.file.build_id()).or_else(|| waits?.build_id.as_ref());
        ObjectDescription {
            name: wanted.name.clone(),
            path: found.map(|o| o.path.clone()),
            awaited: waits.map(|a| a.path.clone()),
            build_id: id.map(ToString::to_string),
            functions: match (found, waits) {
                (Some(_), _) => {
                    // The first of each name counts.
                    let named = wanted.funcs.iter().rev().map(|w| (w.old_name.as_str(), w.sympos));
                    let positions = named.collect();
                    funcs.map(|f| described(&positions, f)).collect()
                }
                (None, Some(a)) => {
                    wanted.funcs.iter().zip(&a.functions).map(|(w, f)| awaited(w, f)).collect()
                }
                // What it would be.
                (None, None) => wanted.funcs.iter().map(not_there).collect(),
            },
        }
    });
    Description {
        schema: SCHEMA,
        file: patch.path.display().to_string(),
        build_id: patch.file.file().build_id().map(ToString::to_string),
        command: env!("CARGO_PKG_VERSION").to_owned(),
        objects: objects.collect(),
    }
}

/// The patch's objects for whoever asks from inside the process.
fn named(patch: &Patch, view: &ProcessView<'_>, late: &late::LatePlan) -> Vec<NamedObject> {
    let row = |wanted: &ObjectDescriptor| {
        let found = view.objects_named(wanted.name.as_deref());
        let goes = found.iter().any(|index| late.watched.iter().any(|(watched, _)| watched == index));
        NamedObject {
            name: padded(wanted.name.as_deref().unwrap_or(crate::status::MAIN)),
            stays: u32::from(!found.is_empty() && !goes),
            ..NamedObject::default()
        }
    };
    patch.descriptor.objects.iter().map(row).collect()
}

/// `positions` are those the descriptor asks for, by name.
fn described(positions: &HashMap<&str, u64>, func: &ResolvedFunc) -> FunctionDescription {
    FunctionDescription {
        name: func.symbol.clone(),
        sympos: positions.get(func.symbol.as_str()).map_or(1, |position| *position.max(&1)),
        old: func.old_addr.0,
        offset: func.old_entry.0,
        new: func.new_addr.0,
    }
}

fn not_there(func: &FuncDescriptor) -> FunctionDescription {
    let sympos = func.sympos.max(1);
    FunctionDescription { name: func.old_name.clone(), sympos, ..FunctionDescription::default() }
}

fn awaited(func: &FuncDescriptor, found: &(String, Vaddr, Addr)) -> FunctionDescription {
    let (name, offset, new) = found;
    FunctionDescription {
        name: name.clone(),
        sympos: func.sympos.max(1),
        old: 0,
        offset: offset.0,
        new: new.0,
    }
}

/// Reads the books of a process, empty ones where there is no runtime yet.
///
/// # Errors
/// As [`runtime::block`] and [`crate::target::books::read`], except for a missing runtime.
pub fn books_or_none(target: &Target) -> Result<Books, Error> {
    match runtime::block(target) {
        Ok(block) => crate::target::books::read(target, block),
        Err(Error::NotPrepared { .. }) => Ok(Books::default()),
        Err(other) => Err(other),
    }
}
