//! The two functions of the loader that must know about patch images.
//!
//! Unwinders ask `_dl_find_object` (libgcc since 12) or `dl_iterate_phdr` which object an address
//! belongs to. A patch image is in none of the loader's lists, so an exception or a cancellation that
//! crosses a patched function would end the process. Both are redirected by the same engine to
//! answers of the runtime; registering with libgcc instead hangs forked children.

use suture_abi::batch::{HOOK_DL_FIND_OBJECT, HOOK_DL_ITERATE_PHDR};
use suture_abi::block::SiteRow;
use suture_elf::Vaddr;
use suture_link::ProcessView;

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

/// The hooks that this process needs and does not have.
#[must_use]
pub fn missing(view: &ProcessView<'_>, sites: &[SiteRow]) -> Vec<Hook> {
    let mut hooks = Vec::new();
    let mut want = |kind: u32, name: &'static str| {
        for (index, object) in view.objects.iter().enumerate().filter(|(_, o)| !o.runtime && !o.vdso) {
            let defined = object.tables.named(name).into_iter().find(|s| s.section != 0 && s.value != 0);
            let Some(symbol) = defined else { continue };
            let entry = Vaddr(symbol.value);
            let there = sites.iter().any(|s| s.hook == kind && s.plan.entry == (object.base + entry).0);
            if !there {
                hooks.push(Hook { kind, object: index, entry, name });
            }
        }
    };
    want(HOOK_DL_FIND_OBJECT, "_dl_find_object");
    if phdr_is_asked_for(view) {
        want(HOOK_DL_ITERATE_PHDR, "dl_iterate_phdr");
    }
    hooks
}

/// Whether anybody but libgcc, which prefers `_dl_find_object`, and libc itself imports
/// `dl_iterate_phdr`: libunwind, sanitizers, collectors, Rust's backtraces. Where there is no
/// `_dl_find_object` (glibc before 2.35, musl) everybody depends on it.
fn phdr_is_asked_for(view: &ProcessView<'_>) -> bool {
    let defines = |name: &str| {
        view.objects.iter().any(|o| o.tables.named(name).iter().any(|s| s.section != 0 && s.value != 0))
    };
    if !defines("_dl_find_object") {
        return true;
    }
    let imports = |o: &&suture_link::LoadedObject| {
        !o.name.starts_with("libgcc_s.so")
            && !o.runtime
            && o.tables.symbols().any(|s| s.section == 0 && s.name == "dl_iterate_phdr")
    };
    view.objects.iter().find(imports).is_some()
}
