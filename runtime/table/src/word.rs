//! The three kinds of words the protocol consists of. Pure.
//!
//! * [`Meta`]: one per bucket. Says which slots count, and how far the bucket's move is.
//! * [`Slot`]: several per bucket. Names a block, with some bits of the key's hash.
//! * [`State`]: one per block. Says what its variable is going through, and who does it.

use crate::marks::Marks;

/// Slots in the line of a bucket: with its [`Meta`] a line of the processor's cache.
pub const HOME: usize = if cfg!(loom) { 2 } else { 7 };
/// Slots a bucket gets besides when its line is full.
pub const SPILL: usize = if cfg!(loom) { 2 } else { 16 };

/// What a bucket is.
///
/// `version | MOVED | FROZEN | READY | FILLED | mask of committed slots`. All zero: not set up yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Meta(pub u64);

impl Meta {
    const HOME_MASK: u64 = (1 << HOME) - 1;
    const MASK: u64 = (1 << (HOME + SPILL)) - 1;
    const SPILL_MASK: u64 = Self::MASK & !Self::HOME_MASK;
    const FILLED: u64 = 1 << 23;
    const READY: u64 = 1 << 24;
    const FROZEN: u64 = 1 << 25;
    const MOVED: u64 = 1 << 26;
    const _APART: () = assert!(Self::MASK < Self::FILLED);
    /// One commit. 37 bits count them: a thread would have to stop between two of its instructions
    /// for exactly 2³⁷ commits to one bucket, which at 20 ns each is 46 minutes.
    const COMMIT: u64 = 1 << 27;

    /// A bucket that is set up with `count` committed slots from the first on.
    pub const fn filled(count: usize) -> Self {
        let mask = (1u64 << count).wrapping_sub(1);
        Meta(Self::FILLED | mask)
    }

    /// In use: whatever was in it before the level existed has arrived.
    pub const fn is_ready(self) -> bool {
        self.0 & Self::READY != 0
    }

    /// No slot may be committed or withdrawn any more.
    pub const fn is_frozen(self) -> bool {
        self.0 & Self::FROZEN != 0
    }

    /// In use, if its level is settled, and neither moved nor with more than its line.
    pub const fn is_at_rest(self) -> bool {
        self.0 & (Self::FILLED | Self::MOVED | Self::SPILL_MASK) == Self::FILLED
    }

    /// Its content is in the next level.
    pub const fn is_moved(self) -> bool {
        self.0 & Self::MOVED != 0
    }

    /// The same, in use.
    pub const fn ready(self) -> Self {
        Meta(self.0 | Self::READY)
    }

    /// The same, frozen, and in use: only buckets of a settled level are ever frozen. So from here on the word changes
    /// once, to [`Meta::moved`], and who cannot change it knows that somebody else has. (A helper of the move into
    /// this level, who slept since, would else add READY, and the new buckets would open before this one has moved.)
    pub const fn frozen(self) -> Self {
        Meta(self.0 | Self::FROZEN | Self::READY)
    }

    /// The same, moved.
    pub const fn moved(self) -> Self {
        Meta(self.0 | Self::MOVED)
    }

    /// Committed slots, one bit each, the line's first.
    pub const fn mask(self) -> u32 {
        (self.0 & Self::MASK) as u32
    }

    /// The same of the line alone.
    #[inline]
    pub const fn home_mask(self) -> u32 {
        (self.0 & Self::HOME_MASK) as u32
    }

    /// Whether a slot outside the line is committed.
    pub const fn has_spill(self) -> bool {
        self.0 & Self::SPILL_MASK != 0
    }

    /// Whether slot `k` is committed.
    pub const fn has(self, k: usize) -> bool {
        self.mask() & (1 << k) != 0
    }

    const fn bit(k: usize) -> u64 {
        1u64.wrapping_shl(k as u32)
    }

    /// Slot `k` committed: one commit more.
    pub const fn with(self, k: usize) -> Self {
        Meta((self.0 | Self::bit(k)).wrapping_add(Self::COMMIT))
    }

    /// Slot `k` withdrawn.
    pub const fn without(self, k: usize) -> Self {
        Meta(self.0 & !Self::bit(k))
    }
}

/// What a slot holds: `tag | address | LARGE`, or no block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot(pub u64);

impl Slot {
    /// Never written.
    pub const UNSET: Slot = Slot(0);
    /// Free again.
    pub const EMPTY: Slot = Slot(1);
    /// Blocks lie at multiples of 32, so the low bits of an address are free.
    const LARGE: u64 = 1 << 4;
    const TAG_SHIFT: u32 = 48;
    const ADDRESS: u64 = (1 << Self::TAG_SHIFT) - 32;

    /// Names a block.
    pub const fn of(block: Block, hash: u64) -> Self {
        let large = if block.large { Self::LARGE } else { 0 };
        Slot(hash << Self::TAG_SHIFT | block.addr & Self::ADDRESS | large)
    }

    /// The marks of what it holds: none of no block.
    #[inline]
    pub fn marks(self) -> Marks {
        if self.is_free() { Marks::NONE } else { Marks::of(self.0 >> Self::TAG_SHIFT) }
    }

    /// Whether the bits of the hash are those of `hash`. True of an empty slot for one hash in 65 536.
    pub const fn is_tagged(self, hash: u64) -> bool {
        (self.0 ^ hash << Self::TAG_SHIFT) >> Self::TAG_SHIFT == 0
    }

    /// No block.
    pub const fn is_free(self) -> bool {
        self.0 <= 1
    }

    /// The block.
    pub const fn block(self) -> Block {
        Block { addr: self.0 & Self::ADDRESS, large: self.0 & Self::LARGE != 0 }
    }
}

/// A block of memory for one variable, by the address of its header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// Where its header is; a multiple of 32 below 2⁴⁸.
    pub addr: u64,
    /// The variable's bytes are in pages of their own.
    pub large: bool,
}

/// What a block's variable is going through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// None: the block is free, or is being prepared.
    Free,
    /// Visible, once its slot is committed.
    Live,
    /// Its constructor runs.
    Building,
    /// Its destructor runs.
    Dying,
    /// Removed; whoever meets it may withdraw its slot.
    Leaving,
}

/// `who or which incarnation | WAITED | phase`.
///
/// While a constructor or destructor runs, the upper bits say which thread runs it and in which
/// process of a line of forks; otherwise which of the block's lives it is ([`Extent::life`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State(pub u64);

impl State {
    /// No variable.
    pub const FREE: State = State(0);
    const PHASE: u64 = 7;
    /// No other phase is an odd number.
    const LIVE: u64 = 1;
    const WAITED: u64 = 1 << 3;
    const PAYLOAD: u32 = 4;

    const fn new(phase: u64, payload: u64) -> Self {
        State(payload << Self::PAYLOAD | phase)
    }

    /// Visible in this life.
    pub const fn live(life: u64) -> Self {
        Self::new(Self::LIVE, life)
    }

    /// Under construction by `me`.
    pub const fn building(me: Me) -> Self {
        Self::new(2, me.0)
    }

    /// Under destruction by `me`.
    pub const fn dying(me: Me) -> Self {
        Self::new(4, me.0)
    }

    /// Removed in this life.
    pub const fn leaving(life: u64) -> Self {
        Self::new(6, life)
    }

    /// The phase.
    pub const fn phase(self) -> Phase {
        match self.0 & Self::PHASE {
            Self::LIVE => Phase::Live,
            2 => Phase::Building,
            4 => Phase::Dying,
            6 => Phase::Leaving,
            _ => Phase::Free,
        }
    }

    /// Whether [`State::phase`] is [`Phase::Live`].
    pub const fn is_live(self) -> bool {
        self.0 & Self::LIVE != 0
    }

    /// Somebody sleeps until the state changes.
    pub const fn is_waited_for(self) -> bool {
        self.0 & Self::WAITED != 0
    }

    /// The same, with somebody asleep.
    pub const fn waited_for(self) -> Self {
        State(self.0 | Self::WAITED)
    }

    /// Who is at work, of a state that says so.
    pub const fn who(self) -> Me {
        Me(self.0 >> Self::PAYLOAD)
    }
}

/// A thread of a process in a line of forks: `thread id | generation`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Me(u64);

impl Me {
    const THREAD_SHIFT: u32 = 28;
    const GENERATION: u64 = (1 << Self::THREAD_SHIFT) - 1;
    const ALL: u64 = (1 << 60) - 1;

    /// The thread of this id, in this generation.
    pub const fn new(tid: u32, generation: u64) -> Self {
        Me(((tid as u64) << Self::THREAD_SHIFT | generation & Self::GENERATION) & Self::ALL)
    }

    /// Its thread id.
    pub const fn tid(self) -> u32 {
        (self.0 >> Self::THREAD_SHIFT) as u32
    }

    /// The same thread, of threads of one process.
    pub const fn is_thread(self, other: Me) -> bool {
        self.tid() == other.tid()
    }

    /// The same process.
    pub const fn is_process(self, other: Me) -> bool {
        self.0 & Self::GENERATION == other.0 & Self::GENERATION
    }
}

/// What a block is besides its state: `life | index in its slab | size`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent(pub u64);

impl Extent {
    const SIZE_BITS: u32 = 14;
    const INDEX_BITS: u32 = 10;
    const LIFE_SHIFT: u32 = Self::SIZE_BITS + Self::INDEX_BITS;
    const SIZE: u64 = (1 << Self::SIZE_BITS) - 1;
    const INDEX: u64 = (1 << Self::INDEX_BITS) - 1;
    /// Lives are counted modulo 2⁴⁰: nine hours of nothing but reusing one block, at 30 ns each.
    const LIFE: u64 = (1 << (64 - Self::LIFE_SHIFT)) - 1;

    /// Puts one together; the parts are cut to their widths.
    pub const fn new(life: u64, index: u64, size: u64) -> Self {
        let low = (index & Self::INDEX) << Self::SIZE_BITS | size & Self::SIZE;
        Extent((life & Self::LIFE) << Self::LIFE_SHIFT | low)
    }

    /// How often the block was used.
    pub const fn life(self) -> u64 {
        self.0 >> Self::LIFE_SHIFT
    }

    /// Which block of its slab it is.
    pub const fn index(self) -> u64 {
        self.0 >> Self::SIZE_BITS & Self::INDEX
    }

    /// Bytes of the variable, unless it is large.
    pub const fn size(self) -> u64 {
        self.0 & Self::SIZE
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_meta_keeps_its_parts_apart() {
        let mut meta = Meta::filled(3).ready();
        assert_eq!(meta.mask(), 0b111);
        assert!(!meta.has_spill() && meta.is_ready() && !meta.is_frozen());
        for k in 3..HOME + SPILL {
            let before = meta;
            meta = meta.with(k);
            assert!(meta.has(k) && !before.has(k));
            assert_ne!(meta.without(k), before, "a commit that came and went must be seen");
        }
        assert!(meta.has_spill());
        assert_eq!(meta.mask(), (1 << (HOME + SPILL)) - 1);
        for k in 0..HOME + SPILL {
            meta = meta.without(k);
        }
        assert_eq!(meta.mask(), 0);
        assert!(meta.frozen().is_frozen() && !meta.frozen().is_moved() && meta.frozen().moved().is_moved());
        assert_eq!(Meta::filled(3).frozen().ready(), Meta::filled(3).frozen());
        // The count of commits wraps at its top and touches nothing else.
        let full = Meta(!Meta::MASK);
        assert_eq!(full.with(0).0, Meta::filled(1).ready().frozen().moved().0);
    }

    #[test]
    fn a_slot_names_its_block_and_some_of_the_hash() {
        for large in [false, true] {
            let block = Block { addr: 0x7fff_ffff_ffe0, large };
            let slot = Slot::of(block, 0xdead_beef_1234_5678);
            assert_eq!(slot.block(), block);
            assert!(slot.is_tagged(0x5678) && !slot.is_tagged(0x5679) && !slot.is_free());
        }
        assert!(Slot::UNSET.is_free() && Slot::EMPTY.is_free());
    }

    #[test]
    fn a_state_says_who_and_what() {
        let me = Me::new(0x7fff_fff1, 0x1000_0007);
        for (state, phase) in [(State::building(me), Phase::Building), (State::dying(me), Phase::Dying)] {
            assert_eq!(state.phase(), phase);
            assert_eq!(state.waited_for().phase(), phase);
            assert!(state.waited_for().is_waited_for() && !state.is_waited_for());
            assert_eq!(state.waited_for().who(), me);
            assert!(!state.is_live());
        }
        assert!(State::live(9).is_live());
        assert_ne!(State::live(9), State::live(10));
        assert_eq!(State::leaving(9).phase(), Phase::Leaving);
        assert_eq!(State::FREE.phase(), Phase::Free);
        assert_eq!(me.tid(), 0x7fff_fff1);
        let child = Me::new(0x7fff_fff1, 8);
        assert!(me.is_thread(child) && !me.is_process(child));
        let other = Me::new(0x7fff_fff2, 7);
        assert!(!me.is_thread(other) && me.is_process(other));
    }

    #[test]
    fn an_extent_keeps_its_parts_apart() {
        let extent = Extent::new(0x12_3456_789a, 1022, 8160);
        assert_eq!((extent.life(), extent.index(), extent.size()), (0x12_3456_789a, 1022, 8160));
        assert_eq!(Extent::new(u64::MAX, 1, 1).life(), (1 << 40) - 1);
    }
}
