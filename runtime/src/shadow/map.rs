//! The table in this process: levels in mapped pages, threads by their ids, sleep by futex.
//!
//! # Safety
//!
//! The address of a level is in a [`Level`] only after its pages are mapped, and they are never unmapped.
//! All of it is read and written by atomics; zeroed pages are lines and spills that are not set up.
#![allow(unsafe_code)]

use super::blocks::Blocks;
use crate::arch;
use crate::sys::{mem, thread};
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use suture_table::guard::{self, Guards};
use suture_table::hash::{MIX, Seeds, fold};
use suture_table::levels::{move_bucket, open};
use suture_table::memory::{Header, Level, Line, Memory, NoMemory, Place, Spill};
use suture_table::word::{Block, Me, Meta};

/// Bits of the first level: with its spills it is a little less than a page.
const FIRST_BITS: u32 = 4;
/// Bits of the last one.
const LAST_BITS: u32 = 36;
const LEVELS: usize = (LAST_BITS + 1) as usize;
/// Buckets that an insertion moves while the table grows. Half a page of the new level: few enough for a pause of
/// some microseconds, and many enough that a growth is soon over. Lookups take twice as long until then, and for ever
/// if nothing more is inserted.
const SHARE: u64 = 16;
/// Longest sleep until a sleeper looks again whether who he waits for still lives, in nanoseconds.
const NAP: u32 = 100_000_000;

/// How far the move into a level is.
#[derive(Debug)]
struct Progress {
    /// Buckets of the level below that were given to somebody to move.
    given: AtomicU64,
    /// How many of those have moved.
    moved: AtomicU64,
}

/// A table.
#[repr(C, align(64))]
#[derive(Debug)]
pub struct Map {
    /// The current level, 0 before the first variable.
    current: AtomicU64,
    /// Set before there is a level, never changed.
    seeds: [AtomicU64; 2],
    /// Address of the word of this process ([`Map::generation`]), or 0.
    own_word: AtomicU64,
    /// Generations given so far.
    generations: AtomicU64,
    /// Addresses of the levels' lines by bits; spills lie behind them.
    levels: [AtomicU64; LEVELS],
    progress: [Progress; LEVELS],
    /// Memory of the variables.
    pub blocks: Blocks,
    /// Who holds on to removed ones.
    pub guards: Guards,
}

/// The table of this process.
pub static MAP: Map = Map::new();

impl Map {
    /// An empty one. Takes no memory before the first variable.
    pub const fn new() -> Self {
        #[allow(clippy::declare_interior_mutable_const)] // to repeat it
        const ZERO: AtomicU64 = AtomicU64::new(0);
        #[allow(clippy::declare_interior_mutable_const)]
        const NONE: Progress = Progress { given: ZERO, moved: ZERO };
        Map {
            current: ZERO,
            seeds: [ZERO; 2],
            own_word: ZERO,
            generations: ZERO,
            levels: [ZERO; LEVELS],
            progress: [NONE; LEVELS],
            blocks: Blocks::new(),
            guards: Guards::new(),
        }
    }

    /// Address of what readers outside begin with.
    pub fn heads(&self) -> u64 {
        self.blocks.heads()
    }

    /// Ends a guard.
    pub fn leave(&self, guard: guard::Place) {
        self.guards.leave(guard);
        if self.guards.waiting.load(Relaxed) != 0 {
            self.guards.collect(|b| self.header(b), |b| self.blocks.give_back(b));
        }
    }

    /// Which process of a line of forks this is.
    ///
    /// The kernel zeroes the word in a forked child (`MADV_WIPEONFORK`), and not in a child that shares
    /// the memory. Where it cannot, all have the same, and a thread that a fork did not copy is found
    /// missing when somebody waits for it.
    fn generation(&self) -> Result<u64, NoMemory> {
        let place = core::ptr::with_exposed_provenance::<AtomicU64>(self.own_word.load(Acquire) as usize);
        // SAFETY: 0, or the address of a page that `prepare_generations` mapped, never unmapped.
        let word = unsafe { place.as_ref() }.ok_or(NoMemory)?;
        let own = word.load(Relaxed);
        if own != 0 {
            return Ok(own);
        }
        let new = self.generations.fetch_add(1, Relaxed).wrapping_add(1);
        Ok(word.compare_exchange(0, new, Relaxed, Relaxed).err().unwrap_or(new))
    }

    fn prepare_generations(&self) -> Result<(), NoMemory> {
        if self.own_word.load(Acquire) != 0 {
            return Ok(());
        }
        let page = mem::map_anywhere(mem::PAGE).map_err(|_| NoMemory)?;
        mem::wipe_on_fork(page, mem::PAGE);
        if self.own_word.compare_exchange(0, page, AcqRel, Acquire).is_err() {
            // SAFETY: just mapped, and nobody knows it.
            let _ = unsafe { mem::unmap(page, mem::PAGE) };
        }
        Ok(())
    }

    /// Chooses the secret of the hash: where things happened to be put, and when.
    fn prepare_seeds(&self) {
        let here = 0u8;
        let places = [(&raw const here).addr() as u64, (&raw const *self).addr() as u64];
        let mut last = fold(thread::monotonic(), MIX);
        for (seed, place) in self.seeds.iter().zip(places) {
            last = fold(last ^ place, MIX ^ thread::realtime()) | 1;
            let _ = seed.compare_exchange(0, last, AcqRel, Acquire);
        }
    }

    /// Maps a level, all its buckets not set up.
    fn map_level(&self, bits: u32) -> Result<Level, NoMemory> {
        let place = self.levels.get(bits as usize).ok_or(NoMemory)?;
        let known = place.load(Acquire);
        if known != 0 {
            return Ok(Level::new(known, bits));
        }
        let len = level_len(bits).ok_or(NoMemory)?;
        let base = mem::map_sparse(len).map_err(|_| NoMemory)?;
        if bits == FIRST_BITS {
            let level = Level::new(base, bits);
            (0..1u64 << FIRST_BITS).for_each(|index| open(self.line(Place { level, index })));
        }
        // Release: the open lines of the first level are seen with its address.
        match place.compare_exchange(0, base, AcqRel, Acquire) {
            Ok(_) => Ok(Level::new(base, bits)),
            Err(known) => {
                // SAFETY: just mapped, and nobody knows it.
                let _ = unsafe { mem::unmap(base, len) };
                Ok(Level::new(known, bits))
            }
        }
    }

    fn progress(&self, level: Level) -> Option<(&Progress, Level, u64)> {
        let below = self.below(level)?;
        Some((self.progress.get(level.bits() as usize)?, below, 1u64.checked_shl(below.bits())?))
    }

    /// Whether buckets are left to be given out. Asked at every insertion.
    #[inline]
    pub(super) fn is_moving(&self, level: Level) -> bool {
        let bits = level.bits();
        // The level below has half as many. The first one has none below.
        let given = self.progress.get(bits as usize).map_or(u64::MAX, |p| p.given.load(Relaxed));
        bits > FIRST_BITS && given < (1u64 << (bits & 63)) >> 1
    }

    /// Moves up to `share` buckets; false if none is left to be given out.
    #[inline(never)]
    fn move_some(&self, level: Level, share: u64) -> Result<bool, NoMemory> {
        let Some((progress, below, count)) = self.progress(level) else { return Ok(false) };
        if progress.given.load(Relaxed) >= count {
            return Ok(false);
        }
        let first = progress.given.fetch_add(share, Relaxed);
        let last = first.saturating_add(share).min(count);
        for index in first..last {
            move_bucket(self, Place { level: below, index }, level)?;
        }
        // Release: who sees the full count sees the buckets moved.
        progress.moved.fetch_add(last.saturating_sub(first), Release);
        Ok(true)
    }

    /// Moves whatever has not moved yet into a level.
    fn finish_move(&self, level: Level) -> Result<(), NoMemory> {
        let Some((progress, below, count)) = self.progress(level) else { return Ok(()) };
        if progress.moved.load(Acquire) >= count {
            return Ok(());
        }
        while self.move_some(level, 64)? {}
        if progress.moved.load(Acquire) < count {
            // Somebody has some of them in hand, or a fork took him away.
            for index in 0..count {
                let place = Place { level: below, index };
                if !Meta(self.line(place).meta.load(Acquire)).is_moved() {
                    move_bucket(self, place, level)?;
                }
            }
            progress.moved.fetch_max(count, Release);
        }
        Ok(())
    }
}

impl Default for Map {
    fn default() -> Self {
        Self::new()
    }
}

/// Bytes of lines and spills of a level.
fn level_len(bits: u32) -> Option<u64> {
    let each = size_of::<Line>().checked_add(size_of::<Spill>())? as u64;
    1u64.checked_shl(bits)?.checked_mul(each)?.checked_next_multiple_of(mem::PAGE)
}

fn spill_addr(place: Place) -> u64 {
    let lines = (size_of::<Line>() as u64).wrapping_shl(place.level.bits());
    let offset = place.index.wrapping_mul(size_of::<Spill>() as u64);
    place.level.base().wrapping_add(lines).wrapping_add(offset)
}

impl Memory for Map {
    #[inline]
    fn current(&self) -> &AtomicU64 {
        &self.current
    }

    #[inline]
    fn seeds(&self) -> Seeds {
        let [first, second] = &self.seeds;
        Seeds(first.load(Relaxed), second.load(Relaxed))
    }

    #[inline]
    fn line(&self, place: Place) -> &Line {
        let addr = place.level.base().wrapping_add(place.index.wrapping_mul(size_of::<Line>() as u64));
        let line = core::ptr::with_exposed_provenance::<Line>(addr as usize);
        // SAFETY: `map_level` mapped `1 << bits` lines there for ever, the index has `bits` bits
        // (`Level::place`), and the base is a page's.
        unsafe { &*line }
    }

    #[inline]
    fn tagged(&self, line: &Line, hash: u64) -> u32 {
        arch::tagged(line, hash)
    }

    #[inline]
    fn spill(&self, place: Place) -> Option<&Spill> {
        let spill = core::ptr::with_exposed_provenance::<Spill>(spill_addr(place) as usize);
        // SAFETY: as in `line`; the spills follow the lines, a multiple of 1024 bytes behind them.
        unsafe { spill.as_ref() }
    }

    fn make_spill(&self, place: Place) -> Result<&Spill, NoMemory> {
        // Untouched pages cost nothing and are zero, which is `UNSET`.
        self.spill(place).ok_or(NoMemory)
    }

    fn below(&self, level: Level) -> Option<Level> {
        let bits = level.bits().checked_sub(1).filter(|bits| *bits >= FIRST_BITS)?;
        Some(Level::new(self.levels.get(bits as usize)?.load(Acquire), bits))
    }

    fn begin(&self) -> Result<(), NoMemory> {
        self.prepare_generations()?;
        self.prepare_seeds();
        let first = self.map_level(FIRST_BITS)?;
        // Release: seeds and lines are seen with the level.
        let _ = self.current.compare_exchange(0, first.0, AcqRel, Acquire);
        Ok(())
    }

    fn grow(&self, level: Level) -> Result<(), NoMemory> {
        if self.current.load(Acquire) != level.0 {
            return Ok(());
        }
        self.finish_move(level)?;
        let next = self.map_level(level.bits().saturating_add(1))?;
        let _ = self.current.compare_exchange(level.0, next.0, AcqRel, Acquire);
        Ok(())
    }

    #[inline]
    fn header(&self, block: Block) -> &Header {
        let header = core::ptr::with_exposed_provenance::<Header>(block.addr as usize);
        // SAFETY: a slot names only blocks that `Blocks::take` gave, whose slabs are never unmapped.
        unsafe { &*header }
    }

    #[inline]
    fn data(&self, block: Block) -> u64 {
        self.blocks.data(block)
    }

    #[inline]
    fn take(&self, id: u64, size: usize) -> Result<Block, NoMemory> {
        self.blocks.take(id, size)
    }

    #[inline]
    fn give_back(&self, block: Block) {
        self.blocks.give_back(block);
    }

    #[inline]
    fn retire(&self, block: Block) {
        self.guards.retire(block, |b| self.header(b), |b| self.blocks.give_back(b));
    }

    fn me(&self) -> Result<Me, NoMemory> {
        Ok(Me::new(thread::gettid(), self.generation()?))
    }

    fn wait(&self, word: &AtomicU64, value: u64) {
        // Phase and "somebody waits" are in the lower half; every change of the state changes it.
        let _ = thread::futex_wait_at((&raw const *word).addr() as u64, value as u32, NAP);
    }

    fn wake(&self, word: &AtomicU64) {
        thread::futex_wake_at((&raw const *word).addr() as u64);
    }

    fn is_gone(&self, who: Me) -> bool {
        !thread::exists(thread::getpid(), who.tid())
    }

    #[inline]
    fn help(&self) {
        let level = Level(self.current.load(Acquire));
        if self.is_moving(level) {
            // What it has begun is finished by whoever grows the table next.
            let _ = self.move_some(level, SHARE);
        }
    }
}
