//! Libraries of a patch that may come, or go and come again, and the words of the image that depend on them.
//!
//! Of a library that is not loaded the file is known. What of it the patch uses is found there, and written down as
//! words that are filled by whoever loads the library. The same words are written down for a library that is loaded
//! and could be unloaded, beside the fixups that fill them now.

use crate::layout::ImageLayout;
use crate::process::LoadedObject;
use suture_abi::late::{WORD_ADDRESS, WORD_MODULE, WORD_VALUE, Word};
use suture_elf::{Base, ElfError, ObjectFile, Vaddr};

/// What an offset of thread-local data is while its library is not there. No address is in the upper half that is not
/// sign-extended: whoever adds it to anything and looks there faults.
const NO_OFFSET: u64 = 1 << 63;

/// A library of the patch that may come, or go and come again.
#[derive(Debug)]
pub struct LateObject {
    /// Name in the patch.
    pub name: String,
    /// Index into the objects of the view, if it is loaded now.
    pub loaded: Option<usize>,
    /// Its file, as if it were loaded where nothing can be.
    pub object: LoadedObject,
}

impl LateObject {
    /// A library by its file.
    ///
    /// # Errors
    /// When the file's tables are damaged.
    pub fn new(name: &str, file: &ObjectFile, loaded: Option<usize>) -> Result<Self, ElfError> {
        Ok(Self { name: name.to_owned(), loaded, object: LoadedObject::nowhere(file)? })
    }
}

/// What a word holds while the library is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LateValue {
    /// An address in it.
    Address(Vaddr),
    /// An offset in its thread-local data.
    TlsOffset(u64),
    /// Its number for thread-local data: the word at this offset of its link map.
    TlsModule(u64),
}

/// A word of the image that depends on a late library.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LateWord {
    /// Index into [`crate::LinkOptions::late`].
    pub late: usize,
    /// The word.
    pub word: Word,
}

/// The words of one link.
#[derive(Debug, Default)]
pub struct LateWords {
    /// In the order in which they were found.
    pub words: Vec<LateWord>,
    /// Names that are bound now in a way that cannot be repeated for a library which comes again.
    pub stale: Vec<String>,
}

impl LateWords {
    /// Notes a word of a late library; gives what it holds while that is not there. Words of an accepted patch are aligned.
    pub(crate) fn add(
        &mut self,
        layout: &mut ImageLayout,
        base: Base,
        place: Vaddr,
        late: usize,
        value: LateValue,
    ) -> u64 {
        let (kind, value, absent) = match value {
            LateValue::Address(vaddr) => (WORD_ADDRESS, vaddr.0, 0),
            LateValue::TlsOffset(offset) => (WORD_VALUE, offset, NO_OFFSET),
            LateValue::TlsModule(field) => (WORD_MODULE, field, 0),
        };
        layout.keep_writable(place);
        let word = Word { place: (base + place).0, value, absent, kind, reserved: 0 };
        self.words.push(LateWord { late, word });
        absent
    }
}
