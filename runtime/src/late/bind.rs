//! Carrying a recipe out on an object that was just mapped, and taking it back.
//!
//! Runs on the thread that loads, under the loader's lock: one at a time, and nobody runs code of the object yet.
//! So its pages may be made writable for the moment of a store. They stay executable meanwhile, because where a
//! policy forbids that, it is refused before anything was changed.
//!
//! # Safety
//!
//! Pages are mapped only where nothing is. Code is written only in the object whose build-id was just compared,
//! after its bytes were.
#![allow(unsafe_code)]

use super::blob::Blob;
use super::table::{blob, place};
use super::walk::Mapped;
use crate::commit::bytes::{self, Live};
use crate::commit::slots;
use crate::sys::mem::{self, PAGE, PROT_EXEC, PROT_READ, PROT_WRITE};
use crate::sys::{EEXIST, EFAULT, EINVAL, Errno};
use core::sync::atomic::Ordering;
use suture_abi::late::{LateSite, NO_SITE, Piece, RecipeRow, moved};

/// Why a recipe cannot be carried out: errno, and the position of the site.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Why.
    pub errno: Errno,
    /// Because of which site, or [`NO_SITE`].
    pub site: u32,
}

impl From<Errno> for Refusal {
    fn from(errno: Errno) -> Self {
        Refusal { errno, site: NO_SITE }
    }
}

/// First distance from the object at which room is looked for; doubled until it is out of reach.
const NEAREST: u64 = 0x1_0000;
/// How often.
const DOUBLINGS: u32 = 15;

/// Whether the object is the build that the row is about: by its dynamic section first, which costs nothing.
pub fn is_build(row: &RecipeRow, object: &Mapped) -> bool {
    let plan = &row.plan;
    if plan.build_id_len == 0 || object.base.wrapping_add(plan.dynamic) != object.dynamic {
        return false;
    }
    let Some(wanted) = plan.build_id.get(..plan.build_id_len as usize) else { return false };
    let at = object.base.wrapping_add(plan.build_id_at);
    let byte = |at: u64| {
        let shift = (at & 7).wrapping_mul(8) as u32;
        mem::peek(at & !7).map(|word| word.wrapping_shr(shift) as u8)
    };
    wanted.iter().zip(at..).all(|(b, at)| byte(at) == Ok(*b))
}

/// Patches the object; gives how far what lies near it was moved. All or nothing.
pub fn bind(row: &RecipeRow, object: &Mapped) -> Result<u64, Refusal> {
    let blob = Blob::new(blob(row)).ok_or(EINVAL)?;
    let base = object.base;
    let delta = map_near(&blob, base)?;
    let done = fill(&blob, base, delta).map_err(Refusal::from).and_then(|()| arm(&blob, base, delta));
    if let Err(refusal) = done {
        unmap(&blob, base, delta, usize::MAX);
        return Err(refusal);
    }
    Ok(delta)
}

/// Takes back what [`bind`] did to an object that is still mapped.
pub fn unbind(row: &RecipeRow, base: u64, delta: u64) {
    let Some(blob) = Blob::new(blob(row)) else { return };
    disarm(&blob, base, delta, usize::MAX);
    close(&blob);
    unmap(&blob, base, delta, usize::MAX);
}

/// Gives back what lay near an object that was unmapped. No thread can be in it: from there it would have gone on
/// in code that is not there any more.
pub fn forget(row: &RecipeRow) {
    let place = place(row);
    if let Some(blob) = Blob::new(blob(row)) {
        let (base, delta) = (place.base.load(Ordering::Relaxed), place.delta.load(Ordering::Relaxed));
        close(&blob);
        unmap(&blob, base, delta, usize::MAX);
    }
}

/// Pointers to old functions lead through the copy words: to nowhere instead of into what lies there next.
fn close(blob: &Blob<'_>) {
    for late in blob.sites() {
        // SAFETY: a word of the recipe's own arena, aligned, writable for ever.
        unsafe { slots::word(late.copy_word) }.store(0, Ordering::Release);
    }
}

/// Where a piece lies.
pub fn address(piece: &Piece, base: u64, delta: u64) -> u64 {
    let moved = if piece.moves != 0 { delta } else { 0 };
    base.wrapping_add(piece.at).wrapping_add(moved)
}

/// Maps all pieces, those that may be moved wherever there is room in reach.
fn map_near(blob: &Blob<'_>, base: u64) -> Result<u64, Errno> {
    let first = blob.pieces().filter(|p| p.moves != 0).map(|p| p.at.cast_signed()).min().unwrap_or(0);
    let end = |p: Piece| p.at.wrapping_add(p.len).cast_signed();
    let last = blob.pieces().filter(|p| p.moves != 0).map(end).max().unwrap_or(0);
    let try_at = |delta: u64| -> Option<Result<u64, Errno>> {
        if !in_reach(blob, base, delta) {
            return None;
        }
        match map_all(blob, base, delta, |p| p.moves != 0) {
            Ok(()) => Some(Ok(delta)),
            Err(EEXIST) => None,
            Err(errno) => Some(Err(errno)),
        }
    };
    let below = |distance: u64| blob.head.start.wrapping_sub(distance).wrapping_sub(last.cast_unsigned());
    let above = |distance: u64| blob.head.end.wrapping_add(distance).wrapping_sub(first.cast_unsigned());
    let far = |n: u32| NEAREST.wrapping_shl(n);
    let near = (0..DOUBLINGS).flat_map(|n| [below(far(n)), above(far(n))]);
    let delta = core::iter::once(0).chain(near).find_map(try_at).unwrap_or(Err(crate::sys::ENOMEM))?;
    if let Err(errno) = map_all(blob, base, delta, |p| p.moves == 0) {
        unmap_those(blob, base, delta, usize::MAX, |p| p.moves != 0);
        return Err(errno);
    }
    Ok(delta)
}

/// Whether every displacement still fits.
fn in_reach(blob: &Blob<'_>, base: u64, delta: u64) -> bool {
    let relocated = |reloc: suture_abi::late::Reloc| {
        let piece = blob.pieces().nth(reloc.piece as usize)?;
        displacement(blob, &piece, reloc.at, delta)
    };
    blob.relocs().all(|r| relocated(r).is_some())
        && blob.sites().all(|s| s.site.placed(base, delta).is_some())
}

/// What stands at a place of a piece once everything was moved.
fn displacement(blob: &Blob<'_>, piece: &Piece, at: u32, delta: u64) -> Option<[u8; 4]> {
    let at = at as usize;
    let old = <[u8; 4]>::try_from(blob.bytes_of(piece)?.get(at..at.checked_add(4)?)?).ok()?;
    // From a place that moves the rest of the world moves the other way.
    moved(old, if piece.moves != 0 { delta.wrapping_neg() } else { delta })
}

fn map_all(
    blob: &Blob<'_>,
    base: u64,
    delta: u64,
    which: impl Fn(&Piece) -> bool + Copy,
) -> Result<(), Errno> {
    for (done, piece) in blob.pieces().filter(which).enumerate() {
        let mapped = mem::map_fixed(address(&piece, base, delta), piece.len, PROT_READ | PROT_WRITE, None);
        if let Err(errno) = mapped {
            unmap_those(blob, base, delta, done, which);
            return Err(errno);
        }
    }
    Ok(())
}

fn unmap(blob: &Blob<'_>, base: u64, delta: u64, count: usize) {
    unmap_those(blob, base, delta, count, |_| true);
}

fn unmap_those(blob: &Blob<'_>, base: u64, delta: u64, count: usize, which: impl Fn(&Piece) -> bool) {
    for piece in blob.pieces().filter(which).take(count) {
        // SAFETY: mapped by `map_all`; nothing leads there (any more).
        let _ = unsafe { mem::unmap(address(&piece, base, delta), piece.len) };
    }
}

/// Fills the pieces and gives them their rights, then says where the copies are.
fn fill(blob: &Blob<'_>, base: u64, delta: u64) -> Result<(), Errno> {
    for (index, piece) in blob.pieces().enumerate() {
        let start = address(&piece, base, delta);
        let bytes = blob.bytes_of(&piece).ok_or(EINVAL)?;
        let to = core::ptr::with_exposed_provenance_mut::<u8>(start as usize);
        // SAFETY: fresh pages of this length, mapped by `map_near`; the blob lies elsewhere.
        unsafe { core::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
        for reloc in blob.relocs().filter(|r| r.piece as usize == index) {
            let value = displacement(blob, &piece, reloc.at, delta).ok_or(EINVAL)?;
            // SAFETY: the blob's check found the four bytes inside the piece.
            unsafe { to.wrapping_add(reloc.at as usize).cast::<[u8; 4]>().write_unaligned(value) };
        }
        let right = if piece.exec != 0 { PROT_EXEC } else { 0 };
        // SAFETY: writing to these pages is over.
        unsafe { mem::protect(start, piece.len, PROT_READ | right) }?;
    }
    for LateSite { copy, copy_word, .. } in blob.sites() {
        // SAFETY: a word of the recipe's own arena, aligned, writable for ever.
        unsafe { slots::word(copy_word) }
            .store(base.wrapping_add(copy).wrapping_add(delta), Ordering::Release);
    }
    Ok(())
}

/// Makes the stores. Takes back those that were made if one cannot be.
fn arm(blob: &Blob<'_>, base: u64, delta: u64) -> Result<(), Refusal> {
    for (index, late) in blob.sites().enumerate() {
        let armed =
            late.site.placed(base, delta).ok_or(EFAULT).and_then(|site| match bytes::look_at(&site)? {
                Live::Original => bytes::arm(&site),
                _ => Err(EEXIST),
            });
        if let Err(errno) = armed {
            disarm(blob, base, delta, index.saturating_add(1));
            return Err(Refusal { errno, site: u32::try_from(index).unwrap_or(NO_SITE) });
        }
    }
    Ok(())
}

/// Gives the first sites their bytes back where ours stand there.
fn disarm(blob: &Blob<'_>, base: u64, delta: u64, count: usize) {
    for late in blob.sites().take(count) {
        let Some(site) = late.site.placed(base, delta) else { continue };
        if bytes::look_at(&site) == Ok(Live::Armed) {
            // Its page could be written a moment ago.
            let _ = bytes::restore_at(&site);
        }
    }
}

/// Bytes per page, for the reader's sake.
const _: () = assert!(NEAREST.is_multiple_of(PAGE));
