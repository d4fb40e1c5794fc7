//! The table in this process: levels in mapped pages, threads by their ids, sleep by futex.
//!
//! # Safety
//!
//! The address of a level is in a [`Level`] only after its pages are mapped, and they are never unmapped.
//! All of it is read and written by atomics; zeroed pages are cells, lines and spills that are not set up.
#![allow(unsafe_code)]

use super::blocks::Blocks;
use crate::arch;
use crate::sys::{mem, thread};
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicU32, AtomicU64};
use suture_table::guard::{self, Guards};
use suture_table::hash::{MIX, Seeds, fold};
use suture_table::levels::{move_bucket, move_buckets, open};
use suture_table::memory::{Header, Level, Line, Memory, NoMemory, Place, Spill};
use suture_table::word::{Block, Me, Meta};

/// Bits of the first level: with its spills it is a little less than a page.
const FIRST_BITS: u32 = 4;
/// Bits of the first level whose buckets have cells. The lines of a smaller one, half a megabyte, are in the
/// processor's cache anyway; insertion and removal would take half as long again, and twice as long beside another
/// thread that inserts, whose cells lie in the same lines. Unit tests come to it sooner.
const FIRST_MARKED_BITS: u32 = if cfg!(test) { FIRST_BITS + 1 } else { 14 };
/// Bits of the last one.
const LAST_BITS: u32 = 36;
const LEVELS: usize = (LAST_BITS + 1) as usize;
/// Buckets that an insertion moves while the table grows: an eighth of a page of the new level. Few enough for a pause
/// that is shorter than the system's for a fresh page, and many enough that a growth is over after a tenth of the
/// insertions until the next.
const SHARE: u64 = 4;
/// Buckets of which an insertion then sees whether they have moved.
const SEEN_SHARE: u64 = 64;
/// Longest sleep until a sleeper looks again whether who he waits for still lives, in nanoseconds.
const NAP: u32 = 100_000_000;

/// How far the move into a level is.
#[derive(Debug)]
struct Progress {
    /// Buckets of the level below that were given to somebody to move. A fork may take him away.
    given: AtomicU64,
    /// Buckets of which, from the first on, somebody has seen that they have moved.
    seen: AtomicU64,
}

/// A table.
#[repr(C, align(64))]
#[derive(Debug)]
pub struct Map {
    /// The settled level, 0 before the first variable.
    settled: AtomicU64,
    /// Set before there is a level, never changed.
    seeds: [AtomicU64; 2],
    /// The current level.
    current: AtomicU64,
    /// Address of the word of this process ([`Map::generation`]), or 0.
    own_word: AtomicU64,
    /// Generations given so far.
    generations: AtomicU64,
    /// Addresses of the levels' lines by bits; spills lie behind them, and cells before them, the first one last.
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
        const NONE: Progress = Progress { given: ZERO, seen: ZERO };
        Map {
            settled: ZERO,
            seeds: [ZERO; 2],
            current: ZERO,
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
            return Ok(level_at(known, bits));
        }
        let (cells, len) = level_len(bits).ok_or(NoMemory)?;
        let start = mem::map_sparse(len).map_err(|_| NoMemory)?;
        let base = start.wrapping_add(cells);
        if bits == FIRST_BITS {
            let level = level_at(base, bits);
            (0..1u64 << FIRST_BITS).for_each(|index| open(self, Place { level, index }));
        }
        // Release: the open lines of the first level are seen with its address.
        match place.compare_exchange(0, base, AcqRel, Acquire) {
            Ok(_) => Ok(level_at(base, bits)),
            Err(known) => {
                // SAFETY: just mapped, and nobody knows it.
                let _ = unsafe { mem::unmap(start, len) };
                Ok(level_at(known, bits))
            }
        }
    }

    /// How far the move into a level is, the level below, and how many buckets that has.
    fn progress(&self, level: Level) -> Option<(&Progress, Level, u64)> {
        let below = self.below(level)?;
        Some((self.progress.get(level.bits() as usize)?, below, 1u64.checked_shl(below.bits())?))
    }

    /// Does a part of the move into a level, of `share` buckets if they have to be moved.
    #[cold]
    #[inline(never)]
    fn move_some(&self, level: Level, share: u64) -> Result<(), NoMemory> {
        let Some((progress, below, count)) = self.progress(level) else { return Ok(()) };
        if progress.given.load(Relaxed) < count {
            let first = progress.given.fetch_add(share, Relaxed);
            let last = first.saturating_add(share).min(count);
            return if first < last { move_buckets(self, below, first..last, level) } else { Ok(()) };
        }
        // Acquire, and the release below: whoever sees that all are seen sees all buckets moved.
        let first = progress.seen.load(Acquire);
        let last = first.saturating_add(SEEN_SHARE).min(count);
        for index in first..last {
            let place = Place { level: below, index };
            if !Meta(self.line(place).meta.load(Acquire)).is_moved() {
                move_bucket(self, place, level)?;
            }
        }
        // In order, so that nobody's part can be missing. Fails if somebody was faster.
        let _ = progress.seen.compare_exchange(first, last, AcqRel, Relaxed);
        if progress.seen.load(Acquire) >= count {
            self.settle(level);
        }
        Ok(())
    }

    /// Everything has moved into this level.
    fn settle(&self, level: Level) {
        let mut known = Level(self.settled.load(Relaxed));
        // Not back to a smaller one, by somebody who was asleep.
        while known.is_none() || known.bits() < level.bits() {
            // Release: the level's buckets are seen with it, and the seeds.
            match self.settled.compare_exchange(known.0, level.0, Release, Relaxed) {
                Ok(_) => return,
                Err(now) => known = Level(now),
            }
        }
    }
}

impl Default for Map {
    fn default() -> Self {
        Self::new()
    }
}

fn level_at(base: u64, bits: u32) -> Level {
    Level::new(base, bits, bits >= FIRST_MARKED_BITS)
}

/// Bytes of a cell.
const CELL: u64 = size_of::<AtomicU32>() as u64;

/// Bytes of a level before its first line, and in all.
fn level_len(bits: u32) -> Option<(u64, u64)> {
    let count = 1u64.checked_shl(bits)?;
    let each = size_of::<Line>().checked_add(size_of::<Spill>())? as u64;
    let cells = if bits < FIRST_MARKED_BITS { 0 } else { count.checked_mul(CELL)? };
    let cells = cells.checked_next_multiple_of(Level::ALIGN)?;
    Some((cells, count.checked_mul(each)?.checked_add(cells)?.checked_next_multiple_of(mem::PAGE)?))
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
    fn settled(&self) -> &AtomicU64 {
        &self.settled
    }

    #[inline]
    fn seeds(&self) -> Seeds {
        let [first, second] = &self.seeds;
        Seeds(first.load(Relaxed), second.load(Relaxed))
    }

    #[inline]
    fn cell(&self, place: Place) -> &AtomicU32 {
        // `!i` is `-i - 1`.
        let addr = place.level.base().wrapping_add((!place.index).wrapping_mul(CELL));
        let cell = core::ptr::with_exposed_provenance::<AtomicU32>(addr as usize);
        // SAFETY: `map_level` mapped `1 << bits` cells before the lines of a marked level for ever, the index has
        // `bits` bits (`Level::place`), and the lines begin at a multiple of `Level::ALIGN`.
        unsafe { &*cell }
    }

    #[inline]
    fn line(&self, place: Place) -> &Line {
        let addr = place.level.base().wrapping_add(place.index.wrapping_mul(size_of::<Line>() as u64));
        let line = core::ptr::with_exposed_provenance::<Line>(addr as usize);
        // SAFETY: `map_level` mapped `1 << bits` lines there for ever, the index has `bits` bits
        // (`Level::place`), and the base is a multiple of `Level::ALIGN`.
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
        Some(level_at(self.levels.get(bits as usize)?.load(Acquire), bits))
    }

    fn begin(&self) -> Result<(), NoMemory> {
        self.prepare_generations()?;
        self.prepare_seeds();
        let first = self.map_level(FIRST_BITS)?;
        // First, so that whoever is past this finds in it what he inserts.
        self.settle(first);
        // Release: seeds and lines are seen with the level.
        let _ = self.current.compare_exchange(0, first.0, AcqRel, Acquire);
        Ok(())
    }

    fn grow(&self, level: Level) -> Result<(), NoMemory> {
        if self.current.load(Acquire) != level.0 {
            return Ok(());
        }
        while self.settled.load(Acquire) != level.0 {
            self.move_some(level, SEEN_SHARE)?;
            if self.current.load(Acquire) != level.0 {
                return Ok(());
            }
        }
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
    fn fetch(&self, block: Block) {
        arch::prefetch(block.addr);
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
        if self.settled.load(Relaxed) != level.0 && !level.is_none() {
            // What it has begun and cannot finish, for want of memory, somebody else will.
            let _ = self.move_some(level, SHARE);
        }
    }
}
