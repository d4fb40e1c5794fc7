//! What is patched in a process, and whether it still is.
//!
//! Read wholly from outside: books by `process_vm_readv`, then every site's bytes (the verify pass:
//! a probe that was put on a site and taken away again, or `madvise`, undoes a store silently).

use crate::description::{Description, FunctionDescription, ObjectDescription};
use crate::drain;
use crate::error::Error;
use crate::late::{self, status::LateStatus};
use crate::names::{self, Names, Place};
use crate::shadow;
use crate::states::{self, CallbackStatus, Callbacks, StateStatus};
use crate::stores::{self, Live};
use crate::target::{Target, books, runtime, worker};
use crate::transition::progress;
use crate::transition::{ThreadStatus, TransitionStatus};
use crate::view::Cache;
use serde::Serialize;
use suture_abi::batch::{
    FUNC_NOP, HOOK_DL_DEBUG_STATE, HOOK_DL_FIND_OBJECT, HOOK_DL_ITERATE_PHDR, HOOK_PTHREAD_CREATE, ROLE_IMAGE,
};
use suture_abi::block::{
    IMAGE_LEFT, MappingRow, PATCH_ENABLED, PATCH_FORCED, PATCH_REPLACE, SITE_ARMED, SiteRow,
};
use suture_abi::late::{PLACE_FREE, PLACE_REFUSED};

/// What the main executable is called.
pub const MAIN: &str = "main";

/// Status of one process.
#[derive(Clone, Debug, Serialize)]
pub struct ProcessStatus {
    /// Process id.
    pub pid: i32,
    /// Its name.
    pub comm: String,
    /// Threads, as the kernel counts them.
    pub threads: u64,
    /// Version of the runtime in it.
    pub runtime: String,
    /// Changes made to the books so far.
    pub generation: u64,
    /// Patches may be enabled.
    pub hooking: bool,
    /// Length of a tick in milliseconds: the time between two attempts to complete a transition.
    pub tick_ms: u32,
    /// Whether a worker is in the process right now.
    pub worker: bool,
    /// The transition that is going on.
    pub transition: Option<TransitionStatus>,
    /// State of every thread, if asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub thread_states: Option<Vec<ThreadStatus>>,
    /// Patches, oldest first.
    pub patches: Vec<PatchStatus>,
    /// Redirections the runtime needs for itself.
    pub hooks: Vec<FunctionStatus>,
    /// Images of disabled patches that are still mapped.
    pub images_left: usize,
    /// Why they are.
    pub images_kept: Vec<KeptImage>,
    /// Bytes mapped for patches.
    pub mapped_bytes: u64,
    /// Shadow variables by id.
    pub shadow: Vec<shadow::Count>,
    /// Sites whose bytes are no longer ours although a function is on them.
    pub sites_lost: usize,
}

/// An image whose patch has gone.
#[derive(Clone, Debug, Serialize)]
pub struct KeptImage {
    /// Number its patch had in the process.
    pub patch: u32,
    /// Bytes mapped for it.
    pub bytes: u64,
    /// Why it was still there when it was last looked for.
    pub why: &'static str,
}

/// Status of one patch.
#[derive(Clone, Debug, Serialize)]
pub struct PatchStatus {
    /// Name.
    pub name: String,
    /// Number in the process.
    pub id: u32,
    /// Position in the list of patches, from 1.
    pub stack_order: usize,
    /// Its functions are in effect, or coming into effect.
    pub enabled: bool,
    /// Threads are being moved to or from it.
    pub transition: bool,
    /// It took the place of all patches before it.
    pub replace: bool,
    /// Nanoseconds since 1970 of the last change of state.
    pub since_ns: u64,
    /// File it came from.
    pub file: Option<String>,
    /// Build-id of that file.
    pub build_id: Option<String>,
    /// Threads were forced over while they may have been in its code: its image stays for ever.
    pub forced: bool,
    /// Its functions.
    pub functions: Vec<FunctionStatus>,
    /// Its objects, with its functions in them as `NAME,POSITION`.
    pub objects: Vec<ObjectStatus>,
    /// Its states.
    pub states: Vec<StateStatus>,
    /// Its last callback, as far as the event log still knows.
    pub last_callback: Option<CallbackStatus>,
    /// Objects it names that were not loaded when it was applied, and of which no file was known.
    pub objects_absent: Vec<String>,
    /// Objects it names that were not loaded then, and are patched when they are.
    pub objects_awaited: Vec<String>,
    /// Objects that came after it.
    pub late: Vec<LateStatus>,
    /// Command for gdb to read the patch's symbols with line numbers.
    pub gdb: Option<String>,
}

/// One object of a patch.
#[derive(Clone, Debug, Serialize)]
pub struct ObjectStatus {
    /// Name in the patch, `main` for the executable.
    pub name: String,
    /// Its functions in it are in effect, or coming into effect.
    pub patched: bool,
    /// Functions, as `NAME,POSITION`.
    pub functions: Vec<String>,
}

/// Status of one redirected function.
#[derive(Clone, Debug, Serialize)]
pub struct FunctionStatus {
    /// Name, demangled.
    pub name: String,
    /// Object it is in.
    pub object: String,
    /// Redirect class letter.
    pub class: char,
    /// Entry of the old function.
    pub old: u64,
    /// Entry of the new function.
    pub new: u64,
    /// `armed`, `unarmed` (the patch is prepared, no more), `lost` (the bytes are the file's again), `foreign`
    /// (somebody else's) or `gone` (the object was unloaded).
    pub site: &'static str,
    /// The entry jumps straight to the new function, past its stub.
    pub direct: bool,
    /// The patch only takes an older patch's replacement away, for the time of the transition.
    pub nop: bool,
}

/// Reads the status of one process, with the state of each thread if `threads`.
///
/// # Errors
/// No process, no rights, no runtime.
pub fn read(target: &Target, threads: bool, cache: &Cache) -> Result<ProcessStatus, Error> {
    let block = runtime::block(target)?;
    let books = books::read(target, block)?;
    let callbacks = Callbacks::read(target, block)?;
    let descriptions = names::descriptions(&books);
    let names = descriptions.iter().map(Names::of).collect();
    let rules = books.as_runtime();
    let reading = Reading { target, books: &books, rules, callbacks, descriptions: &descriptions, names };
    Ok(ProcessStatus {
        pid: target.pid(),
        comm: target.facts.comm.clone(),
        threads: target.facts.threads,
        runtime: books.version.clone(),
        generation: books.generation,
        hooking: !books.hooking_off,
        tick_ms: books.tick_ms,
        worker: worker::is_there(target.pid(), books.worker),
        transition: progress::transition(target, block, &books, cache)?,
        thread_states: threads.then(|| progress::states(target, &books)).transpose()?,
        images_left: drain::left_of(&books),
        images_kept: kept_images(&books),
        mapped_bytes: books.mappings.iter().map(|m| m.len).sum(),
        shadow: shadow::counts(target, block)?,
        sites_lost: reading.lost()?,
        patches: (0..books.patches.len()).map(|index| reading.patch(index)).collect::<Result<_, _>>()?,
        hooks: reading.hooks()?,
    })
}

/// What the status of one process is made from.
struct Reading<'a> {
    target: &'a Target,
    books: &'a books::Books,
    /// The same rows, for questions that the runtime's own rules answer.
    rules: suture_runtime::books::Books,
    callbacks: Callbacks,
    /// What the patches say of themselves, in the order of the books.
    descriptions: &'a [Description],
    /// The functions in them.
    names: Vec<Names<'a>>,
}

impl Reading<'_> {
    /// Sites with a function on them whose bytes are not ours any more.
    fn lost(&self) -> Result<usize, Error> {
        let mut lost = 0;
        let expected = |s: &&SiteRow| s.depth > 0 && s.state == SITE_ARMED && !self.books.is_nowhere(&s.plan);
        for site in self.books.sites.iter().filter(expected) {
            lost += usize::from(stores::look_at(self.target, site)?.0 != Live::Armed);
        }
        Ok(lost)
    }

    fn patch(&self, index: usize) -> Result<PatchStatus, Error> {
        let books = self.books;
        let (patch, description) = (&books.patches[index], &self.descriptions[index]);
        let (id, row) = (patch.row.id, &patch.row);
        let image = books.images.iter().find(|i| i.id == row.image);
        let gdb = image.map(|i| format!("add-symbol-file {} -o {:#x}", description.file, i.plan.base));
        let functions = self.functions(id, &self.names[index])?;
        let absent = description.objects.iter().filter(|o| o.path.is_none() && o.awaited.is_none());
        let awaited = description.objects.iter().filter(|o| o.awaited.is_some());
        Ok(PatchStatus {
            name: patch.name.clone(),
            id,
            stack_order: index + 1,
            enabled: self.rules.is_enabled(row),
            transition: books.transition.is_some_and(|t| t.patch == id),
            replace: row.flags & PATCH_REPLACE != 0,
            forced: row.flags & PATCH_FORCED != 0,
            objects: objects(description, row.state == PATCH_ENABLED, &functions),
            late: late::status::of_patch(books, id, self.descriptions),
            states: states::of_patch(books, id),
            last_callback: self.callbacks.last(id),
            since_ns: row.time_ns,
            objects_absent: absent.filter_map(|o| o.name.clone()).collect(),
            objects_awaited: awaited.filter_map(|o| o.name.clone()).collect(),
            file: Some(description.file.clone()).filter(|f| !f.is_empty()),
            build_id: description.build_id.clone(),
            functions,
            gdb,
        })
    }

    fn functions(&self, patch: u32, own: &Names<'_>) -> Result<Vec<FunctionStatus>, Error> {
        let books = self.books;
        let mut functions = Vec::new();
        for func in books.funcs_of(patch) {
            let Some(site) = books.site(func.site) else { continue };
            let entry = site.plan.entry;
            let place = Place::of(books, site);
            let is_relative = matches!(place, Place::Offset(..));
            if is_relative && hides(books, patch, site) {
                continue;
            }
            // A nop has its name from the patch it undoes.
            let found = own.at(&place).or_else(|| self.names.iter().find_map(|names| names.at(&place)));
            let (name, object) = found.unwrap_or_else(|| (format!("{entry:#x}"), "?".into()));
            let mut row = function_status(self.target, site, name, object, func.plan.new_func)?;
            if books.is_nowhere(&site.plan) {
                row.site = match is_relative {
                    true if is_refused(books, site) => "refused",
                    true => "waiting",
                    // Whatever lies there now is none of it.
                    false => "gone",
                };
            }
            functions.push(FunctionStatus { nop: func.plan.flags & FUNC_NOP != 0, ..row });
        }
        Ok(functions)
    }

    /// What the runtime has redirected for itself.
    fn hooks(&self) -> Result<Vec<FunctionStatus>, Error> {
        let mut hooks = Vec::new();
        for func in self.books.funcs_of(0) {
            let Some(site) = self.books.site(func.site) else { continue };
            let name = match func.plan.hook {
                HOOK_DL_FIND_OBJECT => "_dl_find_object",
                HOOK_DL_ITERATE_PHDR => "dl_iterate_phdr",
                HOOK_PTHREAD_CREATE => "pthread_create",
                HOOK_DL_DEBUG_STATE => "_dl_debug_state",
                _ => "_Fork",
            };
            let new = func.plan.new_func;
            hooks.push(function_status(self.target, site, name.into(), "C library".into(), new)?);
        }
        Ok(hooks)
    }
}

fn kept_images(books: &books::Books) -> Vec<KeptImage> {
    let mapped = |patch: u32| {
        let of_patch = |m: &&MappingRow| m.role == ROLE_IMAGE && m.patch == patch;
        books.mappings.iter().filter(of_patch).map(|m| m.len).sum()
    };
    let kept = books.images.iter().filter(|i| i.flags & IMAGE_LEFT != 0);
    kept.map(|i| KeptImage { patch: i.patch, bytes: mapped(i.patch), why: drain::reason(i.flags) }).collect()
}

/// Of the mappings of one file that a patch is ready for, those that are there are shown, else the first.
fn hides(books: &books::Books, patch: u32, site: &SiteRow) -> bool {
    let there = |s: &SiteRow| books.recipe(&s.plan).is_some_and(|r| r.state != PLACE_FREE);
    if there(site) {
        return false;
    }
    let key = |s: &SiteRow| Place::of(books, s);
    let sites = books.funcs_of(patch).filter_map(|f| books.site(f.site));
    let twins: Vec<&SiteRow> = sites.filter(|s| key(s) == key(site)).collect();
    twins.iter().any(|s| there(s)) || twins.iter().map(|s| s.id).min() != Some(site.id)
}

fn is_refused(books: &books::Books, site: &SiteRow) -> bool {
    books.recipe(&site.plan).is_some_and(|r| r.state == PLACE_REFUSED)
}

fn objects(description: &Description, applied: bool, shown: &[FunctionStatus]) -> Vec<ObjectStatus> {
    // An object is patched where its functions are, whatever became of their bytes since.
    let absent = |f: &FunctionStatus| matches!(f.site, "gone" | "waiting" | "refused");
    let patched = |o: &ObjectDescription| {
        let name = o.name.as_deref().unwrap_or(MAIN);
        let mut own = shown.iter().filter(|f| f.object == name).peekable();
        if own.peek().is_some() { own.any(|f| !absent(f)) } else { o.path.is_some() }
    };
    let functions =
        |o: &ObjectDescription| o.functions.iter().map(FunctionDescription::directory).collect::<Vec<_>>();
    let show = |o: &ObjectDescription| ObjectStatus {
        name: o.name.clone().unwrap_or_else(|| MAIN.into()),
        patched: applied && patched(o),
        functions: functions(o),
    };
    description.objects.iter().map(show).collect()
}

fn function_status(
    target: &Target,
    site: &SiteRow,
    name: String,
    object: String,
    new: u64,
) -> Result<FunctionStatus, Error> {
    let (live, direct) = stores::look_at(target, site)?;
    let state = match live {
        Live::Armed => "armed",
        // Of a patch that is prepared, or about to be let go.
        Live::Original if site.state != SITE_ARMED => "unarmed",
        Live::Original => "lost",
        Live::Foreign(_) => "foreign",
        Live::Gone => "gone",
    };
    Ok(FunctionStatus {
        name,
        object,
        class: char::from(site.plan.class),
        old: site.plan.entry,
        new,
        site: state,
        // Of the functions on a site the entry leads to one.
        direct: direct && site.direct == new,
        nop: false,
    })
}
