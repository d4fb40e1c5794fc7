//! What the table's protocol asks of memory.
//!
//! The runtime implements it over mapped pages, models and plain tests over vectors. All of it
//! is *type-stable*: a line, spill or header that was handed out once can be read for ever, and always
//! is one. What it holds may be from another life, which is why every reader checks what it read.

use crate::atomic::{AtomicU32, AtomicU64};
use crate::hash::{Key, Seeds};
use crate::word::{Block, HOME, Me, SPILL};

/// The line of a bucket.
#[derive(Debug)]
#[repr(C)]
#[cfg_attr(not(loom), repr(align(64)))]
pub struct Line {
    /// [`crate::word::Slot`]s. A free one is claimed by compare-and-swap; one that holds a block is
    /// written only by the thread that placed it (before the commit) or that removed its variable.
    pub slots: [AtomicU64; HOME],
    /// A [`crate::word::Meta`]. Written by compare-and-swap only, by whoever has business with the
    /// bucket.
    pub meta: AtomicU64,
}

/// More slots of a bucket, under the same rules.
#[derive(Debug)]
#[repr(C)]
#[cfg_attr(not(loom), repr(align(128)))]
pub struct Spill(pub [AtomicU64; SPILL]);

/// The start of a block.
#[derive(Debug)]
#[repr(C)]
#[cfg_attr(not(loom), repr(align(32)))]
pub struct Header {
    /// A [`crate::word::State`]. By compare-and-swap between threads; stored by whoever owns a free
    /// block.
    pub state: AtomicU64,
    /// The key's object. Written by the owner of the free block; while it lies in its slab's list of
    /// free blocks, the next one's index.
    pub obj: AtomicU64,
    /// The key's id. Written by the owner of the free block.
    pub id: AtomicU64,
    /// A [`crate::word::Extent`]. Written by the owner of the free block, before anything else of a
    /// new life.
    pub extent: AtomicU64,
}

/// One size of the table: `address of its lines | MARKED | 63 - number of bits of the hash that choose one`. 0 is no
/// level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Level(pub u64);

impl Level {
    const SHIFT: u64 = 63;
    const MARKED: u64 = 1 << 6;
    /// What the address of a level's first line is a multiple of.
    pub const ALIGN: u64 = Self::MARKED * 2;

    /// The level of `1 << bits` lines at `base`, a multiple of [`Level::ALIGN`]. `marked`: its buckets have cells.
    pub const fn new(base: u64, bits: u32, marked: bool) -> Self {
        let marked = if marked { Self::MARKED } else { 0 };
        Level(base | marked | 63u32.wrapping_sub(bits) as u64 & Self::SHIFT)
    }

    /// Whether there is none.
    pub const fn is_none(self) -> bool {
        self.0 == 0
    }

    /// How many bits of the hash choose a bucket.
    pub const fn bits(self) -> u32 {
        63u32.wrapping_sub((self.0 & Self::SHIFT) as u32)
    }

    /// Where its lines are.
    pub const fn base(self) -> u64 {
        self.0 & !(Self::SHIFT | Self::MARKED)
    }

    /// Whether its buckets have cells.
    #[inline]
    pub const fn is_marked(self) -> bool {
        self.0 & Self::MARKED != 0
    }

    /// The bucket of a hash.
    #[inline]
    pub const fn place(self, hash: u64) -> Place {
        // Two shifts, because one by 64 (no bits) is none at all.
        Place { level: self, index: (hash >> 1) >> (self.0 & Self::SHIFT) }
    }
}

/// A bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its level.
    pub level: Level,
    /// Which of its lines.
    pub index: u64,
}

/// There is not enough memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoMemory;

/// Memory, identities and sleep.
pub trait Memory {
    /// The current [`Level`], which everything moves into. Written by compare-and-swap when the table grows.
    fn current(&self) -> &AtomicU64;

    /// The largest [`Level`] that is known to be settled: everything from below has moved into it. There is one before
    /// there is a current one, which is this or the next. Written by compare-and-swap.
    fn settled(&self) -> &AtomicU64;

    /// The secret of the hash. Constant once there is a settled level.
    fn seeds(&self) -> Seeds;

    /// The line of a bucket.
    fn line(&self, place: Place) -> &Line;

    /// The cell of a bucket, a [`crate::marks::Cell`]. Of marked levels only.
    fn cell(&self, place: Place) -> &AtomicU32;

    /// Slots of the line whose tag is that of the hash, as bits, and whatever above those.
    ///
    /// Of slots that nobody writes meanwhile: for others either answer is right.
    #[inline]
    fn tagged(&self, line: &Line, hash: u64) -> u32 {
        crate::bucket::tagged(&line.slots, hash)
    }

    /// The other slots of a bucket, if it has any.
    fn spill(&self, place: Place) -> Option<&Spill>;

    /// The same, made if need be, all [`crate::word::Slot::UNSET`].
    fn make_spill(&self, place: Place) -> Result<&Spill, NoMemory>;

    /// The level the content of this one comes from.
    fn below(&self, level: Level) -> Option<Level>;

    /// Makes the first level.
    fn begin(&self) -> Result<(), NoMemory>;

    /// A bucket is full: makes a larger level current, when the last one is settled (which it helps).
    fn grow(&self, level: Level) -> Result<(), NoMemory>;

    /// The header of a block.
    fn header(&self, block: Block) -> &Header;

    /// Says that the header of a block will be read soon.
    #[inline]
    fn fetch(&self, _: Block) {}

    /// Where the bytes of a block are. A reader checks it with the rest of what it read.
    fn data(&self, block: Block) -> u64;

    /// A free block with `size` zeroed bytes, the caller's own: in a new life, without a key.
    fn take(&self, id: u64, size: usize) -> Result<Block, NoMemory>;

    /// Gives back a block that no slot names and no reader can have found.
    fn give_back(&self, block: Block);

    /// Gives back a block that no slot names, once every reader under a guard that could have found it
    /// is gone.
    fn retire(&self, block: Block);

    /// The calling thread, in this process.
    fn me(&self) -> Result<Me, NoMemory>;

    /// Sleeps until the word no longer holds the value, or for no particular reason.
    fn wait(&self, word: &AtomicU64, value: u64);

    /// Wakes everybody who sleeps for the word.
    fn wake(&self, word: &AtomicU64);

    /// Whether a thread of this process is known to have ended.
    fn is_gone(&self, who: Me) -> bool;

    /// Does a small part of the growth that is going on, if one is.
    fn help(&self);

    /// The hash of a key.
    fn hash(&self, key: Key) -> u64 {
        key.hash(self.seeds())
    }
}
