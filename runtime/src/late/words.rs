//! Words of patches that hold addresses in an object which comes and goes.
//!
//! They are filled before the object's entries are redirected, and hold a value that says "not there" (null, for
//! pointers) while it is not there.
//!
//! # Protocol
//!
//! The worker fills the words of a batch with everything else, before it shows the table that names them. From then on
//! they are written by loading threads only, one at a time, under the loader's lock. They lie in the image of a patch,
//! which is unmapped at two moments: when a prepared batch is taken back, and long after its patch has gone. Both times the
//! table without the patch was shown before. A loading thread that took the older table is counted as its reader in
//! the first case, and the image is left (`commit::drop`), which makes the second of it; in the second the thread is in
//! the code of the runtime, where the command looked for it after the table had changed (`commit::drain`).
//!
//! # Safety
//!
//! The batch's check found each word aligned and in a mapping of its patch that stays writable.
#![allow(unsafe_code)]

use super::blob;
use super::table;
use super::walk::Mapped;
use crate::commit::slots;
use crate::sys::{EINVAL, Errno, mem};
use core::sync::atomic::Ordering;
use suture_abi::late::{RecipeRow, WORD_ADDRESS, WORD_MODULE, Word};

/// Fills the words with what they are in the object. Leaves them as they were if that cannot be known.
pub fn fill(row: &RecipeRow, object: &Mapped) -> Result<(), Errno> {
    for word in words(row) {
        value(&word, object)?;
    }
    for word in words(row) {
        store(&word, value(&word, object)?);
    }
    Ok(())
}

/// Gives the words the value that says that nobody is there.
pub fn clear(row: &RecipeRow) {
    words(row).for_each(|word| store(&word, word.absent));
}

fn words(row: &RecipeRow) -> impl Iterator<Item = Word> {
    blob::words(table::blob(row)).into_iter().flatten()
}

fn value(word: &Word, object: &Mapped) -> Result<u64, Errno> {
    match word.kind {
        WORD_ADDRESS => Ok(object.base.wrapping_add(word.value)),
        // The loader numbers an object when it maps it.
        WORD_MODULE => match mem::peek(object.link_map.wrapping_add(word.value))? {
            0 => Err(EINVAL),
            module => Ok(module),
        },
        _ => Ok(word.value),
    }
}

fn store(word: &Word, value: u64) {
    // SAFETY: aligned and writable (the batch's check); the image is mapped while a table names it (module).
    unsafe { slots::word(word.place) }.store(value, Ordering::Release);
}
