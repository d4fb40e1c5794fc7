//! Putting a batch into bytes.

use suture_abi::ABI_VERSION;
use suture_abi::batch::{
    BATCH_LINKED_THREADS, BATCH_MAGIC, BATCH_OWN_STACKS, BATCH_PATCH, BATCH_REPLACE, BATCH_STUBS_ONLY, Fixup,
    Func, Header, Image, Mapping, NamePart, NamedObject, Object, Range, Site, State, Table,
};
use suture_abi::late::Recipe;

/// Everything of one all-or-nothing change.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// Generation of the books the plan was made against.
    pub generation: u64,
    /// Objects the plan refers to.
    pub objects: Vec<Object>,
    /// Mappings to make; file offsets are those of [`Batch::code`].
    pub mappings: Vec<Mapping>,
    /// Words to fill.
    pub fixups: Vec<Fixup>,
    /// Sites, new and existing.
    pub sites: Vec<Site>,
    /// Functions.
    pub funcs: Vec<Func>,
    /// The image.
    pub image: Option<Image>,
    /// Code of the functions, old and new.
    pub ranges: Vec<Range>,
    /// States.
    pub states: Vec<State>,
    /// Objects that may come and go, with their blobs.
    pub recipes: Vec<(Recipe, Vec<u8>)>,
    /// Objects of the patch, by name.
    pub named: Vec<NamedObject>,
    /// Names of its functions.
    pub names: Vec<NamePart>,
    /// Address of the loader's `r_debug`.
    pub r_debug: u64,
    /// The patch takes the place of all others.
    pub replace: bool,
    /// Offset of the thread id from `fs`.
    pub thread_id: u32,
    /// Where the main thread's stack ends.
    pub main_stack_end: u64,
    /// Threads' headers are in a ring.
    pub linked_threads: bool,
    /// The program shows signs of making stacks of its own.
    pub own_stacks: bool,
    /// Its functions are always reached through their stubs.
    pub stubs_only: bool,
    /// Name of the patch.
    pub name: String,
    /// The command's own description.
    pub description: Vec<u8>,
    /// Contents of the code file, whole pages.
    pub code: Vec<u8>,
}

/// Plain rows of the contract.
///
/// # Safety
/// Only for `repr(C)` types without padding, whose bytes are therefore all initialised.
#[allow(unsafe_code)]
unsafe trait Row {}
#[allow(unsafe_code)]
// SAFETY: four u64.
unsafe impl Row for Object {}
#[allow(unsafe_code)]
// SAFETY: three u64, four u32.
unsafe impl Row for Mapping {}
#[allow(unsafe_code)]
// SAFETY: u64, two u32, u64.
unsafe impl Row for Fixup {}
#[allow(unsafe_code)]
// SAFETY: u32, four u8, then u64 and byte arrays of 8, u32, two u8, u16.
unsafe impl Row for Site {}
#[allow(unsafe_code)]
// SAFETY: four u32, two byte arrays of multiples of 8, four u64, a table of two u32.
unsafe impl Row for Recipe {}
#[allow(unsafe_code)]
// SAFETY: 128 bytes, two u32.
unsafe impl Row for NamedObject {}
#[allow(unsafe_code)]
// SAFETY: two u32, u64, 48 bytes.
unsafe impl Row for NamePart {}
#[allow(unsafe_code)]
// SAFETY: two u32, three u64, two u32.
unsafe impl Row for Func {}
#[allow(unsafe_code)]
// SAFETY: two u32, two u64.
unsafe impl Row for Range {}
#[allow(unsafe_code)]
// SAFETY: u64, two u32, seven u64.
unsafe impl Row for State {}
#[allow(unsafe_code)]
// SAFETY: eight u64, two u32, two u64.
unsafe impl Row for Image {}
#[allow(unsafe_code)]
// SAFETY: u64, two u32, u64, two u32, u64, then tables of two u32 each.
unsafe impl Row for Header {}

#[allow(unsafe_code)]
fn bytes_of<T: Row>(rows: &[T]) -> &[u8] {
    // SAFETY: `Row` says that every byte is initialised; the length is that of the slice.
    unsafe { std::slice::from_raw_parts(rows.as_ptr().cast(), size_of_val(rows)) }
}

impl Batch {
    /// The payload of `PREPARE`.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; size_of::<Header>()];
        let mut append = |rows: &[u8], count: usize| {
            bytes.resize(bytes.len().next_multiple_of(8), 0);
            let offset = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
            bytes.extend_from_slice(rows);
            Table { offset, count: u32::try_from(count).unwrap_or(u32::MAX) }
        };
        let images: &[Image] = self.image.as_slice();
        let mut recipes: Vec<Recipe> = Vec::new();
        for (row, blob) in &self.recipes {
            recipes.push(Recipe { blob: append(blob, blob.len()), ..*row });
        }
        let header = Header {
            magic: BATCH_MAGIC,
            abi: ABI_VERSION,
            flags: BATCH_PATCH
                | if self.replace { BATCH_REPLACE } else { 0 }
                | if self.linked_threads { BATCH_LINKED_THREADS } else { 0 }
                | if self.own_stacks { BATCH_OWN_STACKS } else { 0 }
                | if self.stubs_only { BATCH_STUBS_ONLY } else { 0 },
            generation: self.generation,
            thread_id: self.thread_id,
            reserved: 0,
            main_stack_end: self.main_stack_end,
            objects: append(bytes_of(&self.objects), self.objects.len()),
            mappings: append(bytes_of(&self.mappings), self.mappings.len()),
            fixups: append(bytes_of(&self.fixups), self.fixups.len()),
            sites: append(bytes_of(&self.sites), self.sites.len()),
            funcs: append(bytes_of(&self.funcs), self.funcs.len()),
            images: append(bytes_of(images), images.len()),
            ranges: append(bytes_of(&self.ranges), self.ranges.len()),
            states: append(bytes_of(&self.states), self.states.len()),
            recipes: append(bytes_of(&recipes), recipes.len()),
            r_debug: self.r_debug,
            name: append(self.name.as_bytes(), self.name.len()),
            description: append(&self.description, self.description.len()),
            named: append(bytes_of(&self.named), self.named.len()),
            names: append(bytes_of(&self.names), self.names.len()),
        };
        bytes[..size_of::<Header>()].copy_from_slice(bytes_of(std::slice::from_ref(&header)));
        bytes
    }

    /// Appends pages to the code file and gives the offset they start at.
    pub fn append_code(&mut self, pages: &[u8]) -> u64 {
        let offset = self.code.len();
        self.code.extend_from_slice(pages);
        self.code.resize(self.code.len().next_multiple_of(4096), 0);
        offset as u64
    }
}

/// A text for a field of a row: NUL padded, cut so that its last byte is a NUL.
#[must_use]
pub fn padded<const ROWS: usize>(text: &str) -> [[u8; 32]; ROWS] {
    let mut field = [[0; 32]; ROWS];
    let place = field.as_flattened_mut();
    let len = text.len().min(place.len().saturating_sub(1));
    place[..len].copy_from_slice(&text.as_bytes()[..len]);
    field
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_padded_and_end_with_a_nul() {
        let [first] = padded("libx.so");
        assert_eq!((&first[..8], first[31]), (&b"libx.so\0"[..], 0));
        let long = padded::<2>(&"a".repeat(64));
        assert_eq!(long.as_flattened().iter().position(|b| *b == 0), Some(63));
    }

    #[test]
    fn tables_lie_where_the_header_says() {
        let mut batch = Batch {
            name: "fix".into(),
            objects: vec![Object { base: 1, l_ld: 2, link_map: 3, dynamic: 4 }],
            funcs: vec![Func { site: 7, ..Func::default() }; 3],
            ..Batch::default()
        };
        assert_eq!(batch.append_code(&[1; 5]), 0);
        assert_eq!(batch.append_code(&[2; 4096]), 4096);
        assert_eq!(batch.code.len(), 8192);
        let bytes = batch.to_bytes();
        let table = |at: usize| {
            let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
            (word(at), word(at + 4))
        };
        let (objects, count) = table(40);
        assert_eq!((objects % 8, count), (0, 1));
        assert_eq!(bytes[objects..objects + 8], 1u64.to_le_bytes());
        let (funcs, count) = table(72);
        assert_eq!((count, bytes[funcs + size_of::<Func>()]), (3, 7));
        let (name, length) = table(120);
        assert_eq!(&bytes[name..name + length], b"fix");
    }
}
