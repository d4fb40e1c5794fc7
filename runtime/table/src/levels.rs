//! Levels: how the table grows while everybody uses it.
//!
//! A level has twice the buckets of the one below; bucket `i` below becomes buckets `2i` and `2i + 1`.
//! When a level has become current, buckets move one by one, each in four steps that any thread may do,
//! or finish for another that stopped in the middle:
//!
//! 1. **Freeze** the old bucket's word: from here on no commit and no withdrawal succeeds there, so the
//!    word's mask, the slots that count and the keys of their blocks stay what they are. Its cell is closed
//!    ([`crate::marks::close`]): nobody learns from it any more that something is not there.
//! 2. **Fill** the two new buckets. Every helper computes the same content from the frozen one and
//!    writes each slot by compare-and-swap from *unset*, [`Slot::EMPTY`] into those that stay free. So
//!    when one helper is through, no slot is unset, and whatever a slower one still writes fails.
//! 3. **Moved** is set in the old word: at this instant the new buckets take over.
//! 4. **Ready** is set in the new words: who comes to them from here may use them.
//!
//! When all have moved the level is *settled*, and every bucket of it may be used, ready or not. Until then lookups
//! begin in the one below, which is settled, and so do insertions and removals: a bucket that is not frozen is as good
//! as any. A reader believes what it finds in a bucket unless the word says "moved" afterwards. Then it goes to the
//! level below the current one, for the table may have grown more than once meanwhile, and to the current one if the
//! bucket has moved on from there, too: each time to a higher level. So a lookup ends after as many rounds as the table
//! has ever had levels, and nobody reads a page of a new level before somebody has written it. (The system would
//! map its page of zeros for the reader, and take it away from all processors at the first write, which takes ten
//! microseconds and more.)
//!
//! When a level is settled the one below is done with, and its memory stays as it is: all old levels
//! together are as large as the current one, and a word that says "moved" for ever is what stops a helper
//! that was asleep for a whole growth. (Given back to the system it would read as unset, and he could fill
//! and open a bucket that nobody looks at any more.)

use crate::atomic::AtomicU64;
use crate::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use crate::bucket::{Bucket, Found, Moved};
use crate::control::{Part, is_left_out};
use crate::hash::Key;
use crate::marks::{self, Marks};
use crate::memory::{Level, Line, Memory, NoMemory, Place};
use crate::word::{HOME, Meta, SPILL, Slot};

/// More rounds than a lookup can need: one per level.
const MOST_ROUNDS: usize = 64;

/// The level in which lookups begin.
#[inline]
pub fn first<M: Memory>(mem: &M) -> Level {
    // Acquire: the seeds, and whatever moved into the level, are seen.
    Level(mem.settled().load(Acquire))
}

/// The key's variable, if it is visible. No lock, no wait, no allocation, no system call.
#[inline]
pub fn find<M: Memory>(mem: &M, key: Key) -> Option<Found> {
    let level = first(mem);
    if level.is_none() {
        return None;
    }
    // Only now: the seeds are there once a level is.
    let hash = mem.hash(key);
    let mut bucket = Bucket::at(mem, level.place(hash));
    for _ in 0..MOST_ROUNDS {
        match bucket.find(mem, key, hash) {
            Ok(found) => return found,
            Err(Moved) => bucket = above(mem, hash),
        }
    }
    None
}

/// Where the content of a bucket that has moved is, or was a moment ago.
fn above<M: Memory>(mem: &M, hash: u64) -> Bucket<'_> {
    let level = Level(mem.current().load(Acquire));
    if let Some(old) = mem.below(level).filter(|_| !is_left_out(Part::LookBelow)) {
        // First the old one: see the module.
        let old = Bucket::at(mem, old.place(hash));
        if !old.meta.is_moved() {
            return old;
        }
    }
    // pairs with: the release of MOVED.
    Bucket::at(mem, level.place(hash))
}

/// The bucket in which a key can be inserted or removed now, moved if need be.
pub fn writable<M: Memory>(mem: &M, hash: u64) -> Result<Bucket<'_>, NoMemory> {
    loop {
        let level = Level(mem.current().load(Acquire));
        if level.is_none() {
            mem.begin()?;
            continue;
        }
        if mem.settled().load(Acquire) != level.0
            && let Some(below) = mem.below(level)
        {
            let old = below.place(hash);
            if !Bucket::at(mem, old).meta.is_moved() {
                move_bucket(mem, old, level)?;
            }
        }
        let bucket = Bucket::at(mem, level.place(hash));
        if bucket.meta.is_ready() {
            if !bucket.meta.is_frozen() {
                return Ok(bucket);
            }
            // Frozen for a level that was made current before; the next round sees it.
        } else if let Some(below) = mem.below(level) {
            // Whoever moved it is not through, or the level is an old one by now.
            move_bucket(mem, below.place(hash), level)?;
        }
    }
}

/// Moves some buckets to the level above, or helps to.
pub fn move_buckets<M: Memory>(
    mem: &M,
    old: Level,
    buckets: core::ops::Range<u64>,
    level: Level,
) -> Result<(), NoMemory> {
    // The hash of each key is needed, and the blocks lie anywhere: all of them at once, not one after the other.
    for index in buckets.clone() {
        let line = mem.line(Place { level: old, index });
        let slots = line.slots.iter().map(|slot| Slot(slot.load(Relaxed)));
        slots.filter(|slot| !slot.is_free()).for_each(|slot| mem.fetch(slot.block()));
    }
    buckets.into_iter().try_for_each(|index| move_bucket(mem, Place { level: old, index }, level))
}

/// Moves a bucket to the level above, or helps to.
pub fn move_bucket<M: Memory>(mem: &M, old: Place, level: Level) -> Result<(), NoMemory> {
    for place in hand_over(mem, old, level)? {
        let word = &mem.line(place).meta;
        let mut meta = Meta(word.load(Acquire));
        while !meta.is_ready() {
            match word.compare_exchange(meta.0, meta.ready().0, AcqRel, Acquire) {
                Ok(_) => break,
                Err(now) => meta = Meta(now),
            }
        }
    }
    Ok(())
}

/// Steps 1 to 3. Gives the new buckets.
pub(crate) fn hand_over<M: Memory>(mem: &M, old: Place, level: Level) -> Result<[Place; 2], NoMemory> {
    let twice = old.index.wrapping_mul(2);
    let new = [Place { level, index: twice }, Place { level, index: twice.wrapping_add(1) }];
    let line = mem.line(old);
    let frozen = freeze(line);
    if !frozen.is_moved() {
        if old.level.is_marked() {
            marks::close(mem.cell(old));
        }
        fill(mem, &Bucket { place: old, line, meta: frozen }, new)?;
        // Release: the new buckets are complete for whoever sees this. Fails if somebody was faster.
        let _ = line.meta.compare_exchange(frozen.0, frozen.moved().0, AcqRel, Acquire);
    }
    Ok(new)
}

/// Step 1.
fn freeze(line: &Line) -> Meta {
    let mut meta = Meta(line.meta.load(Acquire));
    while !meta.is_frozen() && !is_left_out(Part::Freeze) {
        // Acquire: what was committed before is seen by the fill.
        match line.meta.compare_exchange(meta.0, meta.frozen().0, AcqRel, Acquire) {
            Ok(_) => return meta.frozen(),
            Err(now) => meta = Meta(now),
        }
    }
    meta
}

/// Step 2.
fn fill<M: Memory>(mem: &M, old: &Bucket<'_>, new: [Place; 2]) -> Result<(), NoMemory> {
    let mut counts = [(0usize, Marks::NONE); 2];
    for k in (0..HOME.wrapping_add(SPILL)).filter(|&k| old.meta.has(k)) {
        let Some(slot) = old.slot(mem, k).map(|s| Slot(s.load(Acquire))) else { continue };
        let header = mem.header(slot.block());
        let key = Key { obj: header.obj.load(Acquire), id: header.id.load(Acquire) };
        // The keys of blocks that count are constant until the bucket has moved. Looked at after the
        // keys, so that a helper who comes later does nothing with what it read.
        if Meta(old.line.meta.load(Acquire)).is_moved() {
            return Ok(());
        }
        let which = new[0].level.place(mem.hash(key)).index & 1;
        let (Some(place), Some((count, marks))) = (new.get(which as usize), counts.get_mut(which as usize))
        else {
            continue;
        };
        let bucket = Bucket::unread(mem, *place);
        if *count == HOME {
            mem.make_spill(*place)?;
        }
        set(bucket.slot(mem, *count), slot);
        *count = count.wrapping_add(1);
        *marks = marks.and(slot.marks());
    }
    for (place, (count, marks)) in new.iter().zip(counts) {
        let bucket = Bucket::unread(mem, *place);
        if place.level.is_marked() {
            marks::set_up(mem.cell(*place), marks, count > HOME);
        }
        let slots = if count > HOME { HOME.wrapping_add(SPILL) } else { HOME };
        (count..slots).for_each(|k| set(bucket.slot(mem, k), Slot::EMPTY));
        // Release: the slots are complete for whoever sees that the bucket is filled.
        let filled = Meta::filled(count).0;
        let _ = bucket.line.meta.compare_exchange(0, filled, AcqRel, Acquire);
    }
    Ok(())
}

/// Writes a slot that nobody has written yet.
fn set(place: Option<&AtomicU64>, slot: Slot) {
    if let Some(place) = place {
        let _ = place.compare_exchange(Slot::UNSET.0, slot.0, Release, Acquire);
    }
}

/// The same for a closed bucket of the first level: nothing has to arrive.
pub fn open<M: Memory>(mem: &M, place: Place) {
    let line = mem.line(place);
    if place.level.is_marked() {
        marks::set_up(mem.cell(place), Marks::NONE, false);
    }
    line.slots.iter().for_each(|slot| slot.store(Slot::EMPTY.0, Release));
    line.meta.store(Meta::filled(0).ready().0, Release);
}
