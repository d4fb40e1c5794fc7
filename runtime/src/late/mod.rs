//! Objects that come and go after a patch was enabled.
//!
//! The loader calls its debug-state function, which does nothing, whenever it has changed its list of objects:
//! for what comes after everything is mapped and before it is relocated or any constructor runs, for what goes
//! before and after it is unmapped. The function is redirected by the runtime's own engine to
//! [`loader_changed`]. So the thread that loads an object patches it by its recipe ([`suture_abi::late`]) before
//! anybody can run its code.
//!
//! # Protocol
//!
//! | who | writes | reads |
//! |---|---|---|
//! | worker | the table ([`table`]), slots and choices | places, to know where a site is |
//! | loading thread | places, memory near the object, code of the object, copy words, words of patches ([`words`]) | the table |
//! | command | code of sites that are placed already | rows, places |
//!
//! * *Loading threads among each other*: the loader's lock is held around every call of the function, in all
//!   namespaces.
//! * *Loading thread and worker*: a loading thread waits for nobody and reads one table that nobody changes. Slots,
//!   choices and dispatchers of a recipe's sites exist from the preparation on and are the worker's alone; the
//!   thread only leads the object's entries there. Whatever the worker does meanwhile, an entry leads to where the
//!   books of that instant say: in a transition to the dispatcher.
//! * *Loading thread and looks at stacks*: a transition that runs searches what was there when it began or was told
//!   of more. Each object that is patched is counted before its code runs, and whoever has looked at a stack compares
//!   the count *afterwards* with that of the table he searched by: if it is the same, no thread can have been in an
//!   object that the table lacks.
//! * *Loading thread and command*: see [`table`]. A place is written before its state (release), and read after
//!   it (acquire), and the state is read again.
//!
//! All or nothing for all: a patch that names the object and has no recipe that fits, or whose recipe cannot be
//! carried out, has the work of every patch on this object undone.

pub mod bind;
pub mod blob;
pub mod table;
pub mod walk;
pub mod words;

use crate::block::BLOCK;
use crate::books::Books;
use crate::events::{self, About};
use crate::list::{self, NoMemory};
use crate::sys::EINVAL;
use alloc_crate::vec::Vec;
use bind::Refusal;
use blob::Blob;
use core::sync::atomic::Ordering;
use suture_abi::batch::Site;
use suture_abi::event::word;
use suture_abi::late::{
    LANES, NO_SITE, PLACE_BOUND, PLACE_FREE, PLACE_REFUSED, RECIPE_NAME, RECIPE_SITES, RECIPE_WORDS,
    RecipeRow,
};
use suture_scan::Interval;
use table::{Table, place};
use walk::Mapped;

/// No room for one more mapping of a file.
const ENOSPC: crate::sys::Errno = crate::sys::Errno(28);

/// What the debug-state function leads to.
pub extern "C" fn loader_changed() {
    table::with_current(|table| {
        // A list that is being changed is looked at when it is whole again.
        if walk::is_consistent() {
            forget_gone(table);
            for object in walk::objects().filter(|o| o.base != 0) {
                if !table.rows.iter().any(|row| is_at(row, &object)) {
                    arrive(table, &object);
                }
            }
        }
    });
}

fn state(row: &RecipeRow) -> u32 {
    // pairs with: `settle`
    place(row).state.load(Ordering::Acquire)
}

/// Whether the row is about this mapping already.
fn is_at(row: &RecipeRow, object: &Mapped) -> bool {
    let place = place(row);
    state(row) != PLACE_FREE
        && place.link_map.load(Ordering::Relaxed) == object.link_map
        && place.base.load(Ordering::Relaxed) == object.base
}

/// Whether an object is there of which patches replace functions by this row: it came by the row, or was there when
/// the row was made. Words alone replace none.
pub fn is_patched(row: &RecipeRow) -> bool {
    state(row) == PLACE_BOUND && !row.plan.is_of_patch()
}

/// Where a relative site is now. `None`: nowhere.
pub fn placed(site: &Site, row: &RecipeRow) -> Option<Site> {
    let place = place(row);
    let found = (state(row) == PLACE_BOUND)
        .then(|| site.placed(place.base.load(Ordering::Relaxed), place.delta.load(Ordering::Relaxed)))?;
    // It may have gone while it was read.
    core::sync::atomic::fence(Ordering::Acquire);
    found.filter(|_| place.state.load(Ordering::Relaxed) == PLACE_BOUND)
}

/// Finishes the books of objects that are not there any more.
fn forget_gone(table: &Table) {
    let is_gone = |row: &&RecipeRow| state(row) != PLACE_FREE && !walk::objects().any(|o| is_at(row, &o));
    // Each round ends at least one row.
    for _ in 0..table.rows.len() {
        let Some(gone) = table.rows.iter().find(is_gone) else { break };
        let of = |row: &RecipeRow| {
            let place = place(row);
            (place.link_map.load(Ordering::Relaxed), place.base.load(Ordering::Relaxed))
        };
        let who = of(gone);
        let is_its = |row: &&RecipeRow| state(row) != PLACE_FREE && of(row) == who;
        for (index, patch) in table.patches.iter().enumerate().filter(|(_, p)| p.enabled) {
            let mut its = table.needed(index).filter(is_its);
            if let Some(row) = its.find(|row| is_patched(row)) {
                say(word::REVERT_OBJECT, patch, row.id, 0);
            }
        }
        // For commands that plan: something that went and came again lies where it was.
        BLOCK.late_epoch().fetch_add(1, Ordering::SeqCst);
        for row in table.rows.iter().filter(is_its) {
            let was = place(row).state.swap(PLACE_FREE, Ordering::AcqRel);
            if was == PLACE_BOUND {
                match row.plan.kind {
                    RECIPE_SITES => bind::forget(row),
                    RECIPE_WORDS => words::clear(row),
                    _ => {}
                }
            }
        }
    }
}

/// Patches an object that nobody knows yet, if a patch is about it.
fn arrive(table: &Table, object: &Mapped) {
    let brings = |row: &RecipeRow| matches!(row.plan.kind, RECIPE_SITES | RECIPE_WORDS);
    let fits = |row: &&RecipeRow| brings(row) && bind::is_build(row, object);
    let lane = (0..LANES as u32).find(|lane| {
        let taken = |row: &RecipeRow| {
            row.plan.lane == *lane
                && row.plan.build_id_len != 0
                && state(row) != PLACE_FREE
                && bind::is_build(row, object)
        };
        !table.rows.iter().any(taken)
    });
    let chosen = |row: &&RecipeRow| Some(row.plan.lane) == lane && fits(row);
    for (index, patch) in table.patches.iter().enumerate() {
        let own = || table.needed(index);
        let (any, calls) =
            (own().any(|r| fits(&r)), own().any(|r| object.is_called(r.plan.name.as_flattened())));
        if !any && !calls {
            continue;
        }
        let refusal = if own().any(|r| chosen(&r)) {
            // The words first: redirected entries lead to code that reads them.
            let words = own().filter(|row| row.plan.kind == RECIPE_WORDS);
            let sites = own().filter(|row| row.plan.kind == RECIPE_SITES);
            let unbound = words.chain(sites).filter(chosen).filter(|row| state(row) == PLACE_FREE);
            unbound.map(|row| bind_one(row, object)).find_map(Result::err)
        } else {
            Some(Refusal::from(if any { ENOSPC } else { EINVAL }))
        };
        match refusal {
            None => {
                let patched = own().filter(chosen).find(|row| is_patched(row));
                if let Some(row) = patched.filter(|_| patch.enabled) {
                    say(word::APPLY_OBJECT, patch, row.id, 0);
                }
            }
            Some(refusal) => {
                let rows = || table.rows.iter().filter(|row| chosen(row) || is_at(row, object));
                undo(table, index, object, refusal, &rows);
                return;
            }
        }
    }
}

fn bind_one(row: &RecipeRow, object: &Mapped) -> Result<(), Refusal> {
    let delta = match row.plan.kind {
        RECIPE_WORDS => words::fill(row, object).map(|()| 0)?,
        _ => bind::bind(row, object)?,
    };
    settle(row, object, delta, PLACE_BOUND);
    // pairs with: `own::is_complete`, and the worker's look at it before it moves threads for the command
    BLOCK.late_epoch().fetch_add(1, Ordering::SeqCst);
    Ok(())
}

/// Objects that came after their patches.
#[derive(Debug, Default)]
pub struct Known {
    /// Their rows and load bases.
    pub bases: Vec<(u32, u64)>,
    /// Stubs and copies near them.
    pub code: Vec<Interval>,
}

/// Where the objects are that came after their patches. Worker only.
pub fn known(books: &Books) -> Result<Known, NoMemory> {
    let Known { mut bases, mut code } = Known::default();
    let sites = books.recipes.iter().filter(|r| r.plan.kind == RECIPE_SITES);
    for row in sites.filter(|row| state(row) == PLACE_BOUND) {
        let place = place(row);
        let (base, delta) = (place.base.load(Ordering::Relaxed), place.delta.load(Ordering::Relaxed));
        list::push(&mut bases, (row.id, base))?;
        for piece in near(table::blob(row), base, delta) {
            list::push(&mut code, piece)?;
        }
    }
    Ok(Known { bases, code })
}

/// The code that lies near an object, by the recipe it was patched by.
pub fn near(blob: &[u8], base: u64, delta: u64) -> impl Iterator<Item = Interval> + '_ {
    let pieces = Blob::new(blob).into_iter().flat_map(|blob| blob.pieces());
    pieces.filter(|p| p.exec != 0).map(move |p| {
        let first = bind::address(&p, base, delta);
        Interval { first, last: first.saturating_add(p.len) }
    })
}

/// Writes a place.
fn settle(row: &RecipeRow, object: &Mapped, delta: u64, state: u32) {
    let place = place(row);
    place.base.store(object.base, Ordering::Relaxed);
    place.link_map.store(object.link_map, Ordering::Relaxed);
    place.delta.store(delta, Ordering::Relaxed);
    // pairs with: `state`, and the command's first look
    place.state.store(state, Ordering::Release);
}

/// Undoes the work of the patches before the one at `index`, which cannot have the object.
fn undo<'t, R: Iterator<Item = &'t RecipeRow>>(
    table: &'t Table,
    index: usize,
    object: &Mapped,
    refusal: Refusal,
    rows: &impl Fn() -> R,
) {
    for (before, patch) in table.patches.iter().enumerate().take(index).filter(|(_, p)| p.enabled) {
        if let Some(row) = table.needed(before).find(|row| is_patched(row) && is_at(row, object)) {
            say(word::REVERT_OBJECT, patch, row.id, 0);
        }
    }
    let Some(culprit) = table.patches.get(index) else { return };
    let refuse = |row: &RecipeRow| {
        let place = place(row);
        let was = place.state.swap(PLACE_FREE, Ordering::AcqRel);
        if was == PLACE_BOUND && row.plan.kind == RECIPE_WORDS {
            words::clear(row);
        } else if was == PLACE_BOUND {
            bind::unbind(row, place.base.load(Ordering::Relaxed), place.delta.load(Ordering::Relaxed));
        }
        place.errno.store(refusal.errno.0, Ordering::Relaxed);
        place.patch.store(culprit.id, Ordering::Relaxed);
        place.site.store(refusal.site, Ordering::Relaxed);
        settle(row, object, 0, PLACE_REFUSED);
    };
    rows().for_each(refuse);
    let named = table.needed(index).filter(|row| row.plan.kind == RECIPE_NAME && state(row) == PLACE_FREE);
    named.for_each(refuse);
    let about = table.needed(index).next().map_or(NO_SITE, |row| row.id);
    say(word::OBJECT_REFUSED, culprit, about, refusal.errno.0);
}

fn say(word: u32, patch: &table::PatchEntry, row: u32, value: u32) {
    let about =
        About { patch: patch.id, name: &patch.name, subject: u64::from(row), value: u64::from(value) };
    events::write(word, about);
}
