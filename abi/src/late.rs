//! Objects that come after the patch: recipes, and what became of them.
//!
//! A recipe is a redirect plan for a file instead of a place: every address in it is an offset from the load base
//! (a *relative* site), and the piece of memory that has to lie near the object may be moved, with a list of the
//! words that change when it is. When the object is mapped, the thread that loads it carries the recipe out,
//! before any code of the object runs. Slots, choices and dispatchers do not wait for that: they are made with
//! the batch, and stubs near the object reach them through one more word ([`Piece`] data). So transitions know
//! nothing of loading, and loading knows nothing of transitions.
//!
//! One file may be mapped several times (another name, another namespace): a recipe has [`LANES`] rows, each
//! with sites of its own.

use crate::batch::{Site, Table};
use core::sync::atomic::{AtomicU32, AtomicU64};

/// Mappings of one file that can be patched at a time.
pub const LANES: usize = 3;

/// Longest build-id.
pub const BUILD_ID_MAX: usize = 32;

/// Sites to be redirected when an object of that build-id comes.
pub const RECIPE_SITES: u32 = 1;
/// An object that is loaded already: noticed when it goes.
pub const RECIPE_WATCH: u32 = 2;
/// Nothing is known but a name: an object of that name that no other row of the patch fits cannot be patched for it.
pub const RECIPE_NAME: u32 = 3;
/// [`Word`]s of the patch's image that hold addresses in an object of that build-id.
pub const RECIPE_WORDS: u32 = 4;

/// One row of a batch.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Recipe {
    /// 0 = new; else [`RecipeRow::id`] of the row to use.
    pub id: u32,
    /// `RECIPE_*`.
    pub kind: u32,
    /// Which of the [`LANES`].
    pub lane: u32,
    /// Bytes of the build-id in use.
    pub build_id_len: u32,
    /// Build-id of the file.
    pub build_id: [u8; BUILD_ID_MAX],
    /// File name as the patch has it, NUL padded.
    pub name: [[u8; 32]; 2],
    /// Where the build-id lies, as an offset from the load base.
    pub build_id_at: u64,
    /// Offset of the dynamic section.
    pub dynamic: u64,
    /// [`RECIPE_WATCH`], and [`RECIPE_WORDS`] of an object that is there: load base.
    pub base: u64,
    /// As `base`: address of its link map, 0 = not there.
    pub link_map: u64,
    /// In the payload. [`RECIPE_SITES`]: a [`Head`] and its tables; [`RECIPE_WORDS`]: [`Word`]s.
    pub blob: Table,
}

impl Recipe {
    /// Whether its row goes with its patch: what it says is said for that patch alone. Sites and watches outlive it.
    #[must_use]
    pub const fn is_of_patch(&self) -> bool {
        matches!(self.kind, RECIPE_NAME | RECIPE_WORDS)
    }
}

/// A row of the books.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct RecipeRow {
    /// Number of the row in this process, from 1, never reused.
    pub id: u32,
    /// [`crate::block::PatchRow::id`] the row belongs to, 0 if it outlives its patch ([`Recipe::is_of_patch`]).
    pub patch: u32,
    /// What the plan said (`blob` in it is meaningless here).
    pub plan: Recipe,
    /// Address of the blob.
    pub blob: u64,
    /// Its length.
    pub blob_len: u64,
    /// Address of its [`Place`].
    pub place: u64,
}

/// Nobody is there.
pub const PLACE_FREE: u32 = 0;
/// An object is there and patched (for a watch: is there; for words: they are filled).
pub const PLACE_BOUND: u32 = 1;
/// An object is there and was left as it was, for every patch.
pub const PLACE_REFUSED: u32 = 2;

/// No site is to blame.
pub const NO_SITE: u32 = u32::MAX;

/// What became of a row. Written by threads that load or unload, one at a time (they hold the loader's lock);
/// `state` last, and first when it becomes [`PLACE_FREE`].
#[repr(C)]
#[derive(Debug)]
pub struct Place {
    /// `PLACE_*`.
    pub state: AtomicU32,
    /// [`PLACE_REFUSED`]: positive errno.
    pub errno: AtomicU32,
    /// [`PLACE_REFUSED`]: the patch because of which.
    pub patch: AtomicU32,
    /// [`PLACE_REFUSED`]: the site because of which, by position in the blob, or [`NO_SITE`].
    pub site: AtomicU32,
    /// Load base of the object.
    pub base: AtomicU64,
    /// Address of its link map.
    pub link_map: AtomicU64,
    /// How far what may be moved was moved.
    pub delta: AtomicU64,
}

/// Start of a blob. Offsets of tables count from here.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Head {
    /// Offset of the first page of the object from its load base.
    pub start: u64,
    /// Offset behind its last page.
    pub end: u64,
    /// [`Piece`]s.
    pub pieces: Table,
    /// [`Reloc`]s.
    pub relocs: Table,
    /// [`LateSite`]s.
    pub sites: Table,
    /// Bytes of the pieces.
    pub data: Table,
}

/// Pages near the object.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Piece {
    /// Offset from the load base.
    pub at: u64,
    /// Length, whole pages.
    pub len: u64,
    /// First byte in the data; as many as `len`.
    pub data: u32,
    /// 1 = executable, else data that is never written again.
    pub exec: u32,
    /// 1 = may be moved (all such pieces by the same distance).
    pub moves: u32,
    /// Must be 0.
    pub reserved: u32,
}

/// Four bytes that hold a distance between something that may be moved and something that may not.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Reloc {
    /// Index of the piece they lie in.
    pub piece: u32,
    /// Offset in the piece.
    pub at: u32,
}

/// A site of a recipe.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct LateSite {
    /// The site, relative.
    pub site: Site,
    /// Offset of the copy from the load base, before it is moved.
    pub copy: u64,
    /// Address of the word through which the copy is reached.
    pub copy_word: u64,
}

/// The word receives the load base plus [`Word::value`].
pub const WORD_ADDRESS: u32 = 0;
/// The word receives [`Word::value`].
pub const WORD_VALUE: u32 = 1;
/// The word receives the 8 bytes at [`Word::value`] of the object's link map: its number for thread-local data.
pub const WORD_MODULE: u32 = 2;

/// A word of a patch that depends on an object which may come and go. Written by whoever loads or unloads the
/// object, under the loader's lock, while the patch is listed; the worker fills it before that.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Word {
    /// Address of the word, 8-byte aligned, in the patch's image.
    pub place: u64,
    /// See the `WORD_*` kinds.
    pub value: u64,
    /// What it holds while the object is not there.
    pub absent: u64,
    /// `WORD_*`.
    pub kind: u32,
    /// Must be 0.
    pub reserved: u32,
}

impl Site {
    /// Where the site is when its object is loaded at `base` and what is near it was moved by `delta`. `None`:
    /// the stub is out of reach.
    #[must_use]
    pub fn placed(&self, base: u64, delta: u64) -> Option<Site> {
        let mut site = *self;
        site.entry = base.wrapping_add(site.entry);
        site.site = base.wrapping_add(site.site);
        site.store_addr = base.wrapping_add(site.store_addr);
        if site.pad_addr != 0 {
            site.pad_addr = base.wrapping_add(site.pad_addr);
        }
        site.late = 0;
        match site.jump {
            JUMP_NONE => {}
            at if site.pad_len != 0 => moved_in(&mut site.pad_new, usize::from(at), delta)?,
            at => {
                let mut word = site.new_word.to_le_bytes();
                moved_in(&mut word, usize::from(at), delta)?;
                site.new_word = u64::from_le_bytes(word);
            }
        }
        Some(site)
    }
}

/// [`Site::jump`]: what the store leads to does not move.
pub const JUMP_NONE: u8 = 0xff;

/// Adds `delta` to the displacement at `at`.
#[must_use]
pub fn moved(displacement: [u8; 4], delta: u64) -> Option<[u8; 4]> {
    let old = i64::from(i32::from_le_bytes(displacement));
    let new = old.checked_add(delta.cast_signed())?;
    i32::try_from(new).ok().map(i32::to_le_bytes)
}

fn moved_in(bytes: &mut [u8; 8], at: usize, delta: u64) -> Option<()> {
    let field = bytes.get_mut(at..at.checked_add(4)?)?;
    let new = moved(<[u8; 4]>::try_from(&*field).ok()?, delta)?;
    field.copy_from_slice(&new);
    Some(())
}

const _: () = {
    assert!(size_of::<Recipe>() == 152);
    assert!(size_of::<RecipeRow>() == 184);
    assert!(size_of::<Place>() == 40);
    assert!(size_of::<Head>() == 48);
    assert!(size_of::<Piece>() == 32);
    assert!(size_of::<Reloc>() == 8);
    assert!(size_of::<LateSite>() == 144);
    assert!(size_of::<Word>() == 32);
};
