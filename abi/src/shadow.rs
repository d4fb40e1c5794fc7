//! Shadow variables as they lie in the target's memory, for readers outside.
//!
//! [`crate::block::RuntimeBlock::shadow`] is the address of [`HEADS`] addresses of [`IdRow`]s (0 = none),
//! each the head of a list. An id has, per stripe and class, the address of its newest slab; a slab names
//! the one made before it. Blocks of a slab begin [`FIRST_BLOCK`] bytes behind its start and follow each
//! other at the stride of its class; only the first `used` of them were ever anything. None of this is
//! ever unmapped, and the program goes on while it is read: a block counts if its state is
//! [`is_live`] and the rest was copied with it.

/// Functions the runtime exports for patches; [`crate::author`] declares them.
pub const FUNCTIONS: &[&str] = &[
    "suture_shadow_get",
    "suture_shadow_alloc",
    "suture_shadow_get_or_alloc",
    "suture_shadow_free",
    "suture_shadow_free_all",
    "suture_shadow_enter",
    "suture_shadow_leave",
];

/// Lists of ids.
pub const HEADS: usize = 256;
/// Stripes of an id: threads use different ones.
pub const STRIPES: usize = 16;
/// Sizes of blocks.
pub const CLASSES: usize = 14;
/// Bytes of a block, header included, by class. The last class is that of variables whose bytes are in
/// pages of their own.
pub const STRIDES: [u64; CLASSES] = [64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 4096, 8192, 64];
/// Length of a slab, and what its address is a multiple of.
pub const SLAB_LEN: u64 = 64 << 10;
/// Offset of the first block of a slab.
pub const FIRST_BLOCK: u64 = 64;

/// What is kept for an id.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug)]
pub struct IdRow {
    /// The id.
    pub id: u64,
    /// Address of the next row of the list, or 0.
    pub next: u64,
    /// The runtime's own.
    pub reported: u64,
    /// Slabs.
    pub stripes: [StripeRow; STRIPES],
}

/// Slabs of an id that a part of the threads takes blocks from.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug)]
pub struct StripeRow {
    /// Address of the newest slab of each class, or 0.
    pub newest: [u64; CLASSES],
    /// The runtime's own.
    pub free: [u64; CLASSES],
}

/// The start of a slab.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug)]
pub struct SlabRow {
    /// Address of the slab before it, or 0.
    pub before: u64,
    /// The runtime's own.
    pub owner: u64,
    /// The runtime's own.
    pub number: u32,
    /// Its class.
    pub class: u32,
    /// Blocks it has room for.
    pub capacity: u32,
    /// Blocks that were ever taken; more than `capacity` means all.
    pub used: u32,
    /// The runtime's own.
    pub stripe: u32,
}

/// The start of a block. The variable's bytes follow; in the last class, the address of the bytes and
/// their number.
#[repr(C, align(32))]
#[derive(Clone, Copy, Debug)]
pub struct BlockRow {
    /// What its variable is going through.
    pub state: u64,
    /// Object.
    pub obj: u64,
    /// Id.
    pub id: u64,
    /// Number of the block's life, and size of the variable.
    pub extent: u64,
}

impl BlockRow {
    /// Whether it holds a variable that can be found.
    #[must_use]
    pub const fn is_live(&self) -> bool {
        self.state & 7 == 1
    }

    /// Bytes of its variable, of every class but the last.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.extent & 0x3fff
    }
}

const _: () = {
    assert!(size_of::<IdRow>() == 64 + STRIPES * 256);
    assert!(size_of::<SlabRow>() == 64);
    assert!(size_of::<BlockRow>() == 32);
};
