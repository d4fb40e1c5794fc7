//! One bucket: who is in it.
//!
//! A slot *counts* while its bit in the bucket's [`Meta`] is set. Setting that bit is the commit of an
//! insertion, and each commit counts up the version in the same word. So an insertion that compares
//! and swaps the word it read before its scan succeeds only if nobody committed anything since, and
//! what it did not find is still not there. That is the whole argument for "one variable per key".
//!
//! A reader takes no part in this. It finds a slot with the right tag, follows it, and then looks at
//! everything again, in this order: the bit, the slot, the state. The state carries the life of the
//! block, so that the key it read belongs to that life; the slot names the block in that life; and a
//! removal clears the bit and the slot only after the state. If all are as before, then the variable
//! was there, visible and committed, at the moment the bit was read. If anything differs, it was
//! removed meanwhile, and "not there" was true at some moment of the call.
//!
//! Runs anywhere, in handlers too: no loop waits for anybody.

use crate::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use crate::atomic::{AtomicU64, fence};
use crate::control::{Part, is_left_out};
use crate::hash::Key;
use crate::memory::{Header, Line, Memory, Place, Spill};
use crate::word::{Block, Extent, HOME, Meta, Phase, SPILL, Slot, State};

/// A variable that was seen.
#[derive(Clone, Copy, Debug)]
pub struct Found {
    /// Its bucket.
    pub place: Place,
    /// Its slot.
    pub k: usize,
    /// What the slot holds.
    pub slot: Slot,
    /// Its state at that moment.
    pub state: State,
    /// Where its bytes are.
    pub data: u64,
}

impl Found {
    /// Its block.
    pub fn block(&self) -> Block {
        self.slot.block()
    }
}

/// What a look at one slot says.
enum Look {
    /// It is another one's, or does not count.
    Other,
    /// It is the key's.
    Is(Found),
    /// It was the key's, and changed meanwhile.
    Changed,
}

/// What an insertion found.
#[derive(Debug)]
pub enum Scan {
    /// No committed slot of the key.
    Absent,
    /// The key's slot.
    Found(Found),
    /// Something changed; look again.
    Changed,
}

/// A bucket that was looked up.
#[derive(Clone, Copy, Debug)]
pub struct Bucket<'m> {
    /// Which one.
    pub place: Place,
    /// Its line.
    pub line: &'m Line,
    /// What its word said first.
    pub meta: Meta,
}

/// Slots of the list whose tag is that of the hash, as bits.
#[inline]
pub fn tagged(slots: &[AtomicU64], hash: u64) -> u32 {
    let mut found = 0;
    for (k, slot) in slots.iter().enumerate() {
        // Relaxed: whoever is found is loaded again.
        found |= u32::from(Slot(slot.load(Relaxed)).is_tagged(hash)) << k;
    }
    found
}

/// Calls `each` with the numbers of the set bits, until it gives something.
#[inline]
fn first_of<T>(mut bits: u32, mut each: impl FnMut(usize) -> Option<T>) -> Option<T> {
    while bits != 0 {
        if let found @ Some(_) = each(bits.trailing_zeros() as usize) {
            return found;
        }
        bits &= bits.wrapping_sub(1);
    }
    None
}

impl<'m> Bucket<'m> {
    /// Reads the bucket's word. What is read of it afterwards is at least as new.
    #[inline]
    pub fn at<M: Memory>(mem: &'m M, place: Place) -> Self {
        let line = mem.line(place);
        Bucket { place, line, meta: Meta(line.meta.load(Acquire)) }
    }

    /// The bucket, as if it were not set up. A store should be the first that happens to a fresh page: a load
    /// would map the system's page of zeros there, and the first store would fault once more.
    pub fn unread<M: Memory>(mem: &'m M, place: Place) -> Self {
        Bucket { place, line: mem.line(place), meta: Meta(0) }
    }

    /// The key's variable, if it is visible. `Err` if the bucket moved meanwhile: look in the next
    /// level.
    #[inline]
    pub fn find<M: Memory>(&self, mem: &M, key: Key, hash: u64) -> Result<Option<Found>, Moved> {
        let home = mem.tagged(self.line, hash) & self.meta.home_mask();
        let live = |look| if let Look::Is(found) = look { Some(found) } else { None };
        let found =
            first_of(home, |k| live(self.look::<M, true>(mem, self.line.slots.get(k)?, k, key, hash)));
        if found.is_some() {
            return Ok(found);
        }
        if self.meta.has_spill() {
            let spill = mem.spill(self.place);
            let found = spill.and_then(|s| {
                let bits = tagged(&s.0, hash) & self.spill_mask();
                first_of(bits, |k| {
                    live(self.look::<M, true>(mem, s.0.get(k)?, k.wrapping_add(HOME), key, hash))
                })
            });
            if found.is_some() {
                return Ok(found);
            }
        }
        // pairs with: the move's MOVED. Nothing that was read may be older than it.
        fence(Acquire);
        let now = Meta(self.line.meta.load(Acquire));
        if now.is_moved() { Err(Moved) } else { Ok(None) }
    }

    /// The key's slot, whatever its variable is going through. [`Scan::Absent`] holds for as long as
    /// the bucket's word is the one this bucket was made with.
    pub fn scan<M: Memory>(&self, mem: &M, key: Key, hash: u64) -> Scan {
        let decided = |look| match look {
            Look::Is(found) => Some(Scan::Found(found)),
            Look::Changed => Some(Scan::Changed),
            Look::Other => None,
        };
        let home = mem.tagged(self.line, hash) & self.meta.home_mask();
        first_of(home, |k| decided(self.look::<M, false>(mem, self.line.slots.get(k)?, k, key, hash)))
            .or_else(|| {
                let spill = self.meta.has_spill().then(|| mem.spill(self.place)).flatten()?;
                let bits = tagged(&spill.0, hash) & self.spill_mask();
                first_of(bits, |k| {
                    decided(self.look::<M, false>(mem, spill.0.get(k)?, k.wrapping_add(HOME), key, hash))
                })
            })
            .unwrap_or(Scan::Absent)
    }

    /// Looks at a slot that was committed when [`Bucket::meta`] was read.
    ///
    /// `ONLY_LIVE` is a reader's look: whoever is not visible is somebody else. Else the caller is
    /// about to commit, and must not take a change for an absence.
    #[inline]
    fn look<M: Memory, const ONLY_LIVE: bool>(
        &self,
        mem: &M,
        place: &AtomicU64,
        k: usize,
        key: Key,
        hash: u64,
    ) -> Look {
        let slot = Slot(place.load(Acquire));
        if slot.is_free() || !slot.is_tagged(hash) {
            // Removed since `meta` was read; then the insertion's compare-and-swap fails.
            return Look::Other;
        }
        let block = slot.block();
        let header = mem.header(block);
        let state = State(header.state.load(Acquire));
        if ONLY_LIVE && !state.is_live() {
            return Look::Other;
        }
        // A visible state names the life by itself.
        let life = || if ONLY_LIVE { 0 } else { header.extent.load(Acquire) };
        let before = life();
        if header.obj.load(Acquire) != key.obj || header.id.load(Acquire) != key.id {
            return Look::Other;
        }
        let data = mem.data(block);
        if is_left_out(Part::LookAgain) {
            return Look::Is(Found { place: self.place, k, slot, state, data });
        }
        // From here on: all of it again. pairs with: `insert::commit` and `remove::withdraw`
        let meta = Meta(self.line.meta.load(Acquire));
        let same = meta.has(k)
            && !meta.is_moved()
            && Slot(place.load(Acquire)) == slot
            // pairs with: the fence of `begin_life`
            && life() == before
            && State(header.state.load(Acquire)) == state;
        if !same || state.phase() == Phase::Free {
            return Look::Changed;
        }
        Look::Is(Found { place: self.place, k, slot, state, data })
    }

    fn spill_mask(&self) -> u32 {
        self.meta.mask() >> HOME
    }

    /// Commits slot `k`, if nothing was committed, withdrawn or frozen since the bucket's word was
    /// read.
    pub fn commit(&self, k: usize) -> bool {
        // Release: the block and its place in the slot are seen by whoever sees the bit.
        if is_left_out(Part::CommitCompares) {
            let now = Meta(self.line.meta.load(Relaxed));
            return self.line.meta.compare_exchange(now.0, now.with(k).0, Release, Relaxed).is_ok();
        }
        let (now, next) = (self.meta.0, self.meta.with(k).0);
        self.line.meta.compare_exchange(now, next, Release, Relaxed).is_ok()
    }

    /// Withdraws slot `k`, under the same condition.
    pub fn withdraw(&self, k: usize) -> bool {
        let (now, next) = (self.meta.0, self.meta.without(k).0);
        self.line.meta.compare_exchange(now, next, Release, Relaxed).is_ok()
    }

    /// Which slot holds exactly this word: the one that counts, else one that does not.
    pub fn position<M: Memory>(&self, mem: &'m M, slot: Slot) -> Option<usize> {
        let holds = |k: &usize| self.slot(mem, *k).is_some_and(|s| Slot(s.load(Acquire)) == slot);
        let all = 0..HOME.wrapping_add(SPILL);
        let counts = all.clone().filter(|k| self.meta.has(*k)).find(holds);
        counts.or_else(|| all.clone().find(holds))
    }

    /// A slot by its number.
    pub fn slot<M: Memory>(&self, mem: &'m M, k: usize) -> Option<&'m AtomicU64> {
        match k.checked_sub(HOME) {
            None => self.line.slots.get(k),
            Some(k) => mem.spill(self.place).and_then(|s| s.0.get(k)),
        }
    }

    /// Puts `slot` into a free slot. `None`: there is none.
    ///
    /// A slot that does not count and is not free belongs to an insertion under way.
    #[inline]
    pub fn place_in<M: Memory>(&self, mem: &M, slot: Slot) -> Option<usize> {
        claim(&self.line.slots, self.meta.home_mask(), Slot::EMPTY, slot)
            .or_else(|| self.place_outside(mem, slot))
    }

    #[cold]
    #[inline(never)]
    fn place_outside<M: Memory>(&self, mem: &M, slot: Slot) -> Option<usize> {
        let spill: &Spill = mem.make_spill(self.place).ok()?;
        claim(&spill.0, self.spill_mask(), Slot::UNSET, slot).map(|k| k.wrapping_add(HOME))
    }
}

/// The content of a bucket is in the next level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moved;

/// Puts `slot` into one of those that are not taken and hold no block, which will nearly always be `free`. Not read
/// before: a page of spills may be fresh, as in [`Bucket::unread`].
#[inline]
fn claim(slots: &[AtomicU64], taken: u32, free: Slot, slot: Slot) -> Option<usize> {
    let all = 1u32.wrapping_shl(slots.len() as u32).wrapping_sub(1);
    // By the mask, not by a walk over those that count: how many there are is as good as random, and would be
    // guessed wrong by the processor every other time.
    first_of(!taken & all, |k| {
        let place = slots.get(k)?;
        // Acquire: what the last owner of the slot did with it is over.
        let put = |now: Slot| place.compare_exchange(now.0, slot.0, AcqRel, Relaxed).map_err(Slot);
        put(free).or_else(|now| if now.is_free() { put(now) } else { Err(now) }).is_ok().then_some(k)
    })
}

/// Starts a new life of a free block that the caller owns.
#[inline]
pub fn begin_life(header: &Header, extent: Extent) {
    header.extent.store(extent.0, Relaxed);
    // pairs with: a reader's second look. Whoever sees anything of this life sees that the last is over.
    fence(Release);
}

/// Gives a block that the caller owns its key and first state.
#[inline]
pub fn begin(header: &Header, key: Key, state: State) {
    header.obj.store(key.obj, Relaxed);
    header.id.store(key.id, Relaxed);
    // Release: whoever sees the state sees the key.
    header.state.store(state.0, Release);
}
