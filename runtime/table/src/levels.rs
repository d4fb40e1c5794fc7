//! Levels: how the table grows while everybody uses it.
//!
//! A level has twice the buckets of the one below; bucket `i` below becomes buckets `2i` and `2i + 1`.
//! When a level has become current, buckets move one by one, each in four steps that any thread may do,
//! or finish for another that stopped in the middle:
//!
//! 1. **Freeze** the old bucket's word: from here on no commit and no withdrawal succeeds there, so the
//!    word's mask, the slots that count and the keys of their blocks stay what they are.
//! 2. **Fill** the two new buckets. Every helper computes the same content from the frozen one and
//!    writes each slot by compare-and-swap from *unset*, [`Slot::EMPTY`] into those that stay free. So
//!    when one helper is through, no slot is unset, and whatever a slower one still writes fails.
//! 3. **Moved** is set in the old word: at this instant the new buckets take over.
//! 4. **Ready** is set in the new words, so that nobody has to look at the old one again.
//!
//! A reader whose bucket is not ready looks below, and believes what it finds there unless the old
//! word says "moved" afterwards. A reader that arrives with an old level believes what it finds in a
//! bucket under the same condition. Both then look again, one level further, so that a lookup ends
//! after as many rounds as the table has ever had levels.
//!
//! When every bucket has moved the old level is done with, and its memory stays as it is: all old levels
//! together are as large as the current one, and a word that says "moved" for ever is what stops a helper
//! that was asleep for a whole growth. (Given back to the system it would read as unset, and he could fill
//! and open a bucket that nobody looks at any more.)

use crate::atomic::AtomicU64;
use crate::atomic::Ordering::{AcqRel, Acquire, Release};
use crate::bucket::{Bucket, Found};
use crate::control::{Part, is_left_out};
use crate::hash::Key;
use crate::memory::{Level, Line, Memory, NoMemory, Place};
use crate::word::{HOME, Meta, SPILL, Slot};

/// More rounds than a lookup can need: two per level.
const MOST_ROUNDS: usize = 256;

/// The key's variable, if it is visible. No lock, no wait, no allocation, no system call.
#[inline]
pub fn find<M: Memory>(mem: &M, key: Key) -> Option<Found> {
    let mut last = mem.current().load(Acquire);
    let mut hash = 0;
    for round in 0..MOST_ROUNDS {
        let level = Level(last);
        if level.is_none() {
            return None;
        }
        if round == 0 {
            // Only now: the seeds are there once a level is.
            hash = mem.hash(key);
        }
        let bucket = Bucket::at(mem, level.place(hash));
        let place = if bucket.meta.is_ready() || is_left_out(Part::LookBelow) {
            Some(bucket)
        } else {
            below(mem, &bucket, hash)
        };
        if let Some(found) = place.and_then(|b| b.find(mem, key, hash).ok()) {
            return found;
        }
        last = mem.current().load(Acquire);
    }
    None
}

/// Where the content of a bucket that is not ready is: in the bucket below, or already in itself.
fn below<'m, M: Memory>(mem: &'m M, bucket: &Bucket<'m>, hash: u64) -> Option<Bucket<'m>> {
    let old = Bucket::at(mem, mem.below(bucket.place.level)?.place(hash));
    if !old.meta.is_unset() && !old.meta.is_moved() {
        return Some(old);
    }
    // pairs with: the release of MOVED; or the level is an old one, whose word stays unset.
    let again = Bucket::at(mem, bucket.place);
    (!again.meta.is_unset()).then_some(again)
}

/// The bucket in which a key can be inserted or removed now, moved if need be.
pub fn writable<M: Memory>(mem: &M, hash: u64) -> Result<Bucket<'_>, NoMemory> {
    loop {
        let level = Level(mem.current().load(Acquire));
        if level.is_none() {
            mem.begin()?;
            continue;
        }
        let bucket = Bucket::at(mem, level.place(hash));
        if bucket.meta.is_ready() {
            if !bucket.meta.is_frozen() {
                return Ok(bucket);
            }
            // Frozen for a level that was made current before; the next round sees it.
            continue;
        }
        if let Some(below) = mem.below(level) {
            move_bucket(mem, below.place(hash), level)?;
        }
    }
}

/// Moves a bucket to the level above, or helps to.
pub fn move_bucket<M: Memory>(mem: &M, old: Place, level: Level) -> Result<(), NoMemory> {
    let twice = old.index.wrapping_mul(2);
    let new = [Place { level, index: twice }, Place { level, index: twice.wrapping_add(1) }];
    let line = mem.line(old);
    let Some(frozen) = freeze(line) else { return Ok(()) };
    if !frozen.is_moved() {
        fill(mem, &Bucket { place: old, line, meta: frozen }, new)?;
        // Release: the new buckets are complete for whoever sees this. Fails if somebody was faster.
        let _ = line.meta.compare_exchange(frozen.0, frozen.moved().0, AcqRel, Acquire);
    }
    for place in new {
        let line = mem.line(place);
        let mut meta = Meta(line.meta.load(Acquire));
        // Not by a blind `or`: the level may be an old one whose memory was given back, and there the
        // word must stay unset.
        while !meta.is_unset() && !meta.is_ready() {
            match line.meta.compare_exchange(meta.0, meta.ready().0, AcqRel, Acquire) {
                Ok(_) => break,
                Err(now) => meta = Meta(now),
            }
        }
    }
    Ok(())
}

/// Step 1. `None` if there is nothing to move any more.
fn freeze(line: &Line) -> Option<Meta> {
    let mut meta = Meta(line.meta.load(Acquire));
    if is_left_out(Part::Freeze) {
        return (!meta.is_unset()).then_some(meta);
    }
    while !meta.is_unset() && !meta.is_frozen() {
        // Acquire: what was committed before is seen by the fill.
        match line.meta.compare_exchange(meta.0, meta.frozen().0, AcqRel, Acquire) {
            Ok(_) => return Some(meta.frozen()),
            Err(now) => meta = Meta(now),
        }
    }
    (!meta.is_unset()).then_some(meta)
}

/// Step 2.
fn fill<M: Memory>(mem: &M, old: &Bucket<'_>, new: [Place; 2]) -> Result<(), NoMemory> {
    let mut counts = [0usize; 2];
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
        let (Some(place), Some(count)) = (new.get(which as usize), counts.get_mut(which as usize)) else {
            continue;
        };
        let bucket = Bucket::unread(mem, *place);
        if *count == HOME {
            mem.make_spill(*place)?;
        }
        set(bucket.slot(mem, *count), slot);
        *count = count.wrapping_add(1);
    }
    for (place, count) in new.iter().zip(counts) {
        let bucket = Bucket::unread(mem, *place);
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
pub fn open(line: &Line) {
    line.slots.iter().for_each(|slot| slot.store(Slot::EMPTY.0, Release));
    line.meta.store(Meta::filled(0).ready().0, Release);
}
