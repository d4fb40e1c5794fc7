//! Programs that may have stacks nobody knows.
//!
//! Objects that bring coroutines are recognised by what they import and contain. That is a sign and no proof:
//! half of all servers load OpenSSL, which imports `makecontext` and hardly ever calls it. Where `makecontext`
//! is the only sign, memory is searched for its stacks before a patch is applied: each has the address to
//! return to at its top. Other signs are believed.
//!
//! In a program with such stacks only the command finds threads clear, and only while no memory outside of
//! known stacks holds a word that may return into searched code ([`suture_stack::hidden`]). Threads' records are
//! read before that search: whoever entered a searched function since then has passed a dispatcher, and is
//! not moved.

use crate::error::Error;
use crate::target::Target;
use crate::target::books::Books;
use serde::Serialize;
use std::fs::File;
use std::ops::Range;
use suture_elf::{Addr, MapsSnapshot, Memory};
use suture_link::ProcessView;
use suture_scan::Interval;
use suture_stack::hidden::{Hidden, Search, search};
use suture_stack::hints::{self, Hint};
use suture_stack::registered;
use suture_unwind::Module;

/// Most memory that is searched at one time.
pub const MOST: u64 = 4 << 30;

/// Signs of stacks of its own in a program, and what was found of them.
#[derive(Clone, Debug, Default, Serialize)]
pub struct OwnStacks {
    /// Objects and signs.
    pub signs: Vec<String>,
    /// Bytes of memory that were searched for stacks made by `makecontext`.
    pub searched: u64,
    /// Such stacks that are not registered.
    pub contexts: u64,
    /// More memory was there than is searched.
    pub capped: bool,
    /// Threads are found clear by the command only.
    pub guarded: bool,
}

/// Signs among the objects of a process.
pub fn signs<'v>(view: &'v ProcessView<'_>) -> impl Iterator<Item = (&'v str, Hint)> {
    view.objects.iter().flat_map(|o| hints::of(&o.file).into_iter().map(|hint| (o.path.as_str(), hint)))
}

/// Looks for stacks of coroutines before a patch is applied.
///
/// # Errors
/// When the process is gone.
pub fn find(target: &Target, view: &ProcessView<'_>, books: &Books) -> Result<OwnStacks, Error> {
    let mut found = OwnStacks::default();
    let mut certain = false;
    for (object, hint) in signs(view) {
        certain |= hint != Hint::UserContexts;
        found.signs.push(format!("{} {hint}", object.rsplit('/').next().unwrap_or(object)));
    }
    if !certain && !found.signs.is_empty() {
        let library =
            crate::threads::library(view).map(|o| Module::new(o.path.clone(), o.base, o.file.clone()));
        let context = library.and_then(|m| m.context_return());
        let table: Vec<_> = context.map(|c| Interval { first: c.start, last: c.start }).into_iter().collect();
        let known =
            registered::read(&target.memory, books.stacks).map_err(|e| Error::from_memory(target, e))?;
        // The books of the runtime name the place that is looked for, too.
        let known: Vec<_> =
            known.iter().map(registered::Stack::range).chain(books.own.iter().cloned()).collect();
        // Put there by hand: no call stands in front.
        let hidden = look_for(target, &view.maps, &table, &known, MOST, &|_| true)?;
        found.searched = hidden.searched;
        found.contexts = hidden.found;
        found.capped = hidden.capped;
    }
    found.guarded = certain || found.contexts > 0;
    Ok(found)
}

/// Searches private memory for words inside of ranges.
///
/// # Errors
/// When the process is gone.
pub fn look_for(
    target: &Target,
    maps: &MapsSnapshot,
    table: &[Interval],
    known: &[Range<u64>],
    most: u64,
    follows_call: &dyn Fn(u64) -> bool,
) -> Result<Hidden, Error> {
    let gone = |e: std::io::Error| Error::from_proc(target.pid(), &e);
    let pages = File::open(format!("/proc/{}/pagemap", target.via)).map_err(gone)?;
    let memory: &dyn Memory = &target.memory;
    search(&Search { maps, memory, pages: &pages, table, known, follows_call, most })
        .map_err(|_| target.ended_or(Error::Unreadable { pid: target.pid(), what: "its page map".into() }))
}

/// The address range of a stack whose end is known: down to where its mapping begins.
#[must_use]
pub fn whole(maps: &MapsSnapshot, sp: u64, end: u64) -> Option<Range<u64>> {
    maps.region_at(sp).map(|region| region.start..end)
}

/// Where a word lies, for people.
#[must_use]
pub fn place(maps: &MapsSnapshot, at: u64) -> String {
    let path = maps.region_at(at).and_then(|region| region.path.clone());
    format!("{:#x} ({})", Addr(at).0, path.unwrap_or_else(|| "private memory".into()))
}
