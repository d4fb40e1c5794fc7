//! What loading threads need to know of the books: one immutable table behind one pointer.
//!
//! # Protocol
//!
//! The worker publishes a table with each change of the books. A loading thread counts itself in, takes the
//! pointer, and counts itself out when it is done; the worker frees the table it replaced only if it finds
//! nobody counted in *afterwards*. A full fence stands between the two on both sides: a thread that is not seen in the count
//! came later than the exchange of the pointer, and so takes the new table. A table that could not be freed stays
//! for ever, as does one whose reader was left behind by a fork.
//!
//! The same two operations decide about objects that are loaded while a patch is being prepared: the loader puts
//! the object in its list, then counts in and takes the table; the worker exchanges the table, then the command
//! reads the list. Either the thread sees the new table or the command sees the object, and plans again.
//!
//! # Safety
//!
//! A published table is complete and never changes. Addresses of blobs and places in it are those of memory that
//! is kept for the life of the process, or, for rows that go with their patch, until a table without the row was shown
//! and nobody reads an older one.
#![allow(unsafe_code)]

use crate::books::Books;
use crate::list::{self, NoMemory};
use crate::word::Word;
use alloc_crate::vec::Vec;
use core::ptr::null_mut;
use core::sync::atomic::{AtomicPtr, AtomicU32, Ordering};
use suture_abi::batch::HOOK_NONE;
use suture_abi::block::PATCH_ENABLED;
use suture_abi::late::{Place, RecipeRow};

/// A listed patch.
#[derive(Clone, Copy, Debug)]
pub struct PatchEntry {
    /// Its number.
    pub id: u32,
    /// Its name.
    pub name: [u8; 56],
    /// Its functions are on their stacks: others do not hear of it yet.
    pub enabled: bool,
}

/// What a loading thread reads.
#[derive(Debug, Default)]
pub struct Table {
    /// Rows of the books.
    pub rows: Vec<RecipeRow>,
    /// Listed patches, oldest first.
    pub patches: Vec<PatchEntry>,
    /// Which patch needs which row, by position, sorted.
    needs: Vec<(u32, u32)>,
}

impl Table {
    fn of(books: &Books) -> Result<Self, NoMemory> {
        let mut table = Table { rows: list::copy(&books.recipes, 0)?, ..Table::default() };
        for (patch, row) in (0u32..).zip(&books.patches) {
            let enabled = row.state == PATCH_ENABLED;
            list::push(&mut table.patches, PatchEntry { id: row.id, name: row.name, enabled })?;
            for (at, recipe) in (0u32..).zip(&books.recipes) {
                let own = |f: &suture_abi::block::FuncRow| {
                    f.patch == row.id
                        && f.plan.hook == HOOK_NONE
                        && books.site(f.site).is_some_and(|s| s.plan.recipe == recipe.id)
                };
                if recipe.patch == row.id || books.funcs.iter().any(own) {
                    list::push(&mut table.needs, (patch, at))?;
                }
            }
        }
        Ok(table)
    }

    /// The rows that a patch needs.
    pub fn needed(&self, patch: usize) -> impl Iterator<Item = &RecipeRow> + Clone {
        let own = move |(of, _): &&(u32, u32)| *of as usize == patch;
        self.needs.iter().filter(own).filter_map(|(_, row)| self.rows.get(*row as usize))
    }
}

/// What became of a row. Rows are looked at in books and tables that are being read.
pub fn place(row: &RecipeRow) -> &Place {
    // SAFETY: made when the row was; freed when neither the books nor a table that is read names the row, so not while
    // it is borrowed from one of them (see above). All its fields are atomics.
    unsafe { &*core::ptr::with_exposed_provenance::<Place>(row.place as usize) }
}

/// The bytes of a row's recipe.
pub fn blob(row: &RecipeRow) -> &[u8] {
    if row.blob == 0 {
        return &[];
    }
    let start = core::ptr::with_exposed_provenance(row.blob as usize);
    // SAFETY: kept with this length when the row was made, and never changed; freed as its place is.
    unsafe { core::slice::from_raw_parts(start, row.blob_len as usize) }
}

/// The published table, null while no object is awaited. Written by the worker, read by loading threads.
static TABLE: AtomicPtr<Table> = AtomicPtr::new(null_mut());
/// Threads that may be reading a table.
static READERS: AtomicU32 = AtomicU32::new(0);

/// Counts the calling thread in and shows it the table.
pub fn with_current(read: impl FnOnce(&Table)) {
    enter(&READERS);
    // SAFETY: what is published is complete; it is freed only when no reader is counted (see above).
    if let Some(table) = unsafe { TABLE.load(Ordering::SeqCst).as_ref() } {
        read(table);
    }
    leave(&READERS);
}

/// Counts a reader in: before it takes the pointer.
pub fn enter<W: Word<u32>>(readers: &W) {
    readers.fetch_add(1, Ordering::SeqCst);
    // pairs with: `is_unread`
    W::fence(Ordering::SeqCst);
}

/// Counts a reader out: after its last look at the table.
pub fn leave(readers: &impl Word<u32>) {
    readers.fetch_add(u32::MAX, Ordering::SeqCst);
}

/// Whether nobody reads the table that was exchanged before the call.
pub fn is_unread<W: Word<u32>>(readers: &W) -> bool {
    // pairs with: `enter`; the load with `leave`
    W::fence(Ordering::SeqCst);
    readers.load(Ordering::SeqCst) == 0
}

/// A table that has its place in memory; null: there are no rows.
#[derive(Debug)]
pub struct Ready(*mut Table);

/// Makes the table of these books.
pub fn ready(books: &Books) -> Result<Ready, NoMemory> {
    if books.recipes.is_empty() {
        return Ok(Ready(null_mut()));
    }
    list::keep(Table::of(books)?).map(Ready)
}

impl Ready {
    /// Shows it to loading threads. Only the worker may call it.
    pub fn show(self) {
        let old = TABLE.swap(self.0, Ordering::SeqCst);
        if is_unread(&READERS) {
            // SAFETY: complete, and nobody frees it meanwhile: this is the worker.
            if let Some(was) = unsafe { old.as_ref() } {
                // SAFETY: as above.
                free_rows(was, unsafe { self.0.as_ref() });
            }
            free(old);
        }
    }

    /// Frees it unseen.
    pub fn discard(self) {
        free(self.0);
    }
}

/// True if no loading thread can have a table that was exchanged before the call.
pub fn is_settled() -> bool {
    is_unread(&READERS)
}

/// Frees what was kept for rows that went with their patches. Nobody has read older tables since.
fn free_rows(old: &Table, new: Option<&Table>) {
    let stays = |row: &RecipeRow| new.is_some_and(|new| new.rows.iter().any(|r| r.id == row.id));
    for row in old.rows.iter().filter(|row| row.patch != 0 && !stays(row)) {
        let place = core::ptr::with_exposed_provenance_mut::<Place>(row.place as usize);
        // SAFETY: made by `list::keep` and `list::keep_bytes` for this row, which neither the books nor any table
        // that is read names any more.
        unsafe {
            drop(Vec::from_raw_parts(place, 1, 1));
            list::free_bytes(row.blob, row.blob_len);
        }
    }
}

/// Forgets the published table, which lies in memory that is not to be freed any more.
pub fn abandon() {
    TABLE.store(null_mut(), Ordering::SeqCst);
}

fn free(table: *mut Table) {
    if !table.is_null() {
        // SAFETY: made by `list::keep` with capacity 1; nobody reads it (the callers).
        drop(unsafe { Vec::from_raw_parts(table, 1, 1) });
    }
}
