//! Atomic replace: whether a patch may take the place of the others, and what it takes over from them.
//!
//! A function that only an older patch replaces goes back to its old body with the same transition. For
//! that the new patch gets a *nop*: a function row whose replacement is the old function's copy. It lies on
//! the site's stack, counts in every look, and is dropped when the replaced patches leave. Functions are told
//! apart by the site they lie at, not by the names patches call them.

use crate::batch::Batch;
use crate::error::Error;
use crate::target::books::{Books, PatchEntry};
use suture_abi::batch::{FUNC_NOP, Func, HOOK_NONE, RANGE_OLD, Range};
use suture_abi::block::{PATCH_PREPARED, StateRow};
use suture_abi::descriptor::{STATE_BLOCK_DISABLE, STATE_IS_SHADOW};
use suture_link::{PatchDescriptor, StateDescriptor};

/// Patches that count as installed. One that is only prepared is what a command that died has left; the next
/// worker takes it back.
fn listed(books: &Books) -> impl Iterator<Item = &PatchEntry> {
    books.patches.iter().filter(|p| p.row.state != PATCH_PREPARED)
}

/// States of installed patches, with the patch's name.
fn states(books: &Books) -> impl Iterator<Item = (&str, &StateRow)> {
    listed(books)
        .flat_map(|p| books.states.iter().filter(|s| s.patch == p.row.id).map(|s| (p.name.as_str(), s)))
}

/// Refuses a patch that takes the place of all others and lacks a state that cannot be given up.
///
/// # Errors
/// [`Error::Incompatible`].
pub fn check(pid: i32, patch: &PatchDescriptor, books: &Books) -> Result<(), Error> {
    let has = |id: u64| patch.states.iter().any(|s| s.id == id);
    let lacks = |row: &StateRow| row.plan.flags & STATE_BLOCK_DISABLE != 0 && !has(row.plan.id);
    match states(books).find(|(_, row)| patch.replace && lacks(row)) {
        Some((holder, row)) => Err(Error::Incompatible {
            pid,
            name: patch.name.clone(),
            holder: holder.to_owned(),
            state: row.plan.id,
        }),
        None => Ok(()),
    }
}

/// What the authors of two patches should have agreed on and did not: one line per state and patch.
#[must_use]
pub fn disagreements(patch: &PatchDescriptor, books: &Books) -> Vec<String> {
    let differ = |own: &StateDescriptor, row: &StateRow| {
        [
            ("is_shadow", own.is_shadow, row.plan.flags & STATE_IS_SHADOW != 0),
            ("block_disable", own.block_disable, row.plan.flags & STATE_BLOCK_DISABLE != 0),
        ]
        .into_iter()
        .filter(|(_, own, theirs)| own != theirs)
        .map(|(flag, ..)| flag)
        .collect::<Vec<_>>()
    };
    let mut lines = Vec::new();
    for own in &patch.states {
        for (holder, row) in states(books).filter(|(_, row)| row.plan.id == own.id) {
            for flag in differ(own, row) {
                lines.push(format!(
                    "state {}: {} and {holder} disagree on {flag}; the last holder's word counts",
                    own.id, patch.name
                ));
            }
        }
    }
    lines
}

/// Adds a nop for every function of an installed patch that the batch does not replace itself.
pub fn add_nops(batch: &mut Batch, books: &Books) {
    let index = |len: usize| u32::try_from(len).unwrap_or(u32::MAX);
    for row in listed(books).flat_map(|p| books.funcs_of(p.row.id)) {
        let Some(site) = books.site(row.site).map(|s| s.plan) else { continue };
        // Relative sites of several mappings have one entry.
        let known = match books.is_relative(row.site) {
            true => batch.sites.iter().position(|s| s.id == row.site),
            false => batch.sites.iter().position(|s| s.late == 0 && s.entry == site.entry),
        };
        // A hook of the runtime at the same entry is no replacement.
        let own = |f: &Func| f.hook == HOOK_NONE && Some(f.site as usize) == known;
        if batch.funcs.iter().any(own) {
            continue;
        }
        let func = index(batch.funcs.len());
        batch.funcs.push(Func {
            site: index(known.unwrap_or(batch.sites.len())),
            hook: HOOK_NONE,
            new_func: site.copy,
            new_size: site.copy_len,
            old_size: row.plan.old_size,
            flags: FUNC_NOP,
            reserved: 0,
        });
        if known.is_none() {
            batch.sites.push(site);
        }
        let old = books.relative_ranges.iter().filter(|r| r.site == row.site && r.patch == row.patch);
        let old = old.filter(|r| r.kind == RANGE_OLD);
        batch.ranges.extend(old.map(|r| Range { func, kind: RANGE_OLD, start: r.start, end: r.end }));
    }
}

#[cfg(test)]
mod tests;
