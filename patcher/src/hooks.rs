//! The functions of the C library that the runtime redirects for itself.
//!
//! Unwinders ask `_dl_find_object` (libgcc since 12) or `dl_iterate_phdr` which object an address
//! belongs to. A patch image is in none of the loader's lists, so an exception or a cancellation that
//! crosses a patched function would end the process. Both are redirected by the same engine to
//! answers of the runtime; registering with libgcc instead hangs forked children.
//!
//! The loader's debug-state function is redirected where a patch is about objects that may come or go
//! (`suture_runtime::late`).
//!
//! Two more hand the side of a thread on while a transition runs: the common body of thread creation
//! (`thrd_create`, timers, asynchronous I/O go through it, too) and `_Fork`, through which every fork of the
//! library goes, whose child continues its parent's stack under another thread id.

use crate::threads;
use suture_abi::batch::{
    HOOK_DL_DEBUG_STATE, HOOK_DL_FIND_OBJECT, HOOK_DL_ITERATE_PHDR, HOOK_FORK, HOOK_PTHREAD_CREATE,
};
use suture_abi::block::SiteRow;
use suture_elf::Vaddr;
use suture_link::ProcessView;

/// What the loader calls whenever its list of objects has changed.
const DEBUG_STATE: &str = "_dl_debug_state";

impl Hook {
    /// Whether patches can do without it: a thread whose birth is not noticed starts unswitched, a library that
    /// comes later stays unpatched.
    #[must_use]
    pub fn is_optional(&self) -> bool {
        matches!(self.kind, HOOK_PTHREAD_CREATE | HOOK_DL_DEBUG_STATE)
    }

    /// Whether the runtime's handler leaves every register as it was.
    #[must_use]
    pub fn is_transparent(&self) -> bool {
        self.kind == HOOK_DL_DEBUG_STATE
    }
}

/// A hook that a process needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hook {
    /// `HOOK_*` of the batch.
    pub kind: u32,
    /// Index into the view's objects.
    pub object: usize,
    /// Entry of the function.
    pub entry: Vaddr,
    /// Its name.
    pub name: &'static str,
}

/// The hooks that this process needs and does not have. `unwind` = the patch brings code that unwinders
/// may have to cross; `late` = it is about objects that may come or go.
#[must_use]
pub fn missing(view: &ProcessView<'_>, sites: &[SiteRow], unwind: bool, late: bool) -> Vec<Hook> {
    let mut hooks = Vec::new();
    let mut want = |kind: u32, name: &'static str| {
        for (index, _) in view.objects.iter().enumerate().filter(|(_, o)| !o.runtime && !o.vdso) {
            want_in(view, sites, index, kind, name, &mut hooks);
        }
    };
    if unwind {
        want(HOOK_DL_FIND_OBJECT, "_dl_find_object");
        if phdr_is_asked_for(view) {
            want(HOOK_DL_ITERATE_PHDR, "dl_iterate_phdr");
        }
    }
    let loader = view.objects.iter().position(|o| !o.runtime && o.defined(DEBUG_STATE).is_some());
    if let Some(loader) = loader.filter(|_| late) {
        want_in(view, sites, loader, HOOK_DL_DEBUG_STATE, DEBUG_STATE, &mut hooks);
    }
    // Of the C library only: an interposed function of the same name ends up there.
    if let Some(libc) =
        view.objects.iter().position(|o| threads::library(view).is_some_and(|l| std::ptr::eq(l, o)))
    {
        // Before glibc 2.34 `fork` itself makes the call.
        let fork = if defined(view, "_Fork") { "_Fork" } else { "fork" };
        for (kind, name) in [(HOOK_PTHREAD_CREATE, "pthread_create"), (HOOK_FORK, fork)] {
            want_in(view, sites, libc, kind, name, &mut hooks);
        }
    }
    hooks
}

fn want_in(
    view: &ProcessView<'_>,
    sites: &[SiteRow],
    index: usize,
    kind: u32,
    name: &'static str,
    hooks: &mut Vec<Hook>,
) {
    let object = &view.objects[index];
    let Some(entry) = object.defined(name) else { return };
    let there = sites.iter().any(|s| s.hook == kind && s.plan.entry == (object.base + entry).0);
    if !there {
        hooks.push(Hook { kind, object: index, entry, name });
    }
}

fn defined(view: &ProcessView<'_>, name: &str) -> bool {
    view.objects.iter().any(|o| o.defined(name).is_some())
}

/// Whether anybody but libgcc, which prefers `_dl_find_object`, and libc itself imports
/// `dl_iterate_phdr`: libunwind, sanitizers, collectors, Rust's backtraces. Where there is no
/// `_dl_find_object` (glibc before 2.35, musl) everybody depends on it.
fn phdr_is_asked_for(view: &ProcessView<'_>) -> bool {
    if !defined(view, "_dl_find_object") {
        return true;
    }
    let imports = |o: &&suture_link::LoadedObject| {
        !o.name.starts_with("libgcc_s.so")
            && !o.runtime
            && o.tables.imports().any(|s| s.name == "dl_iterate_phdr")
    };
    view.objects.iter().find(imports).is_some()
}
