//! Making a variable: `alloc` and `get_or_alloc`.
//!
//! 1. Look. What is there already decides most calls.
//! 2. Prepare a block: memory, zeros, key, first state. Nobody can find it.
//! 3. Place it in a free slot of the bucket. It does not count yet, and nobody waits for it.
//! 4. Look again, and commit ([`crate::bucket`]). From here on the key is taken.
//! 5. With a constructor the state still says *building*: readers see nothing, other callers for the
//!    key sleep on the state. The constructor runs, with nothing locked; then the state becomes *live*,
//!    or the variable is removed and the sleepers try for themselves.
//!
//! A thread that vanishes in 1–4 (a forked child has only the thread that forked) leaves a slot that
//! does not count and a block that nobody uses; in 5 a state whose generation is not the child's, and
//! whoever needs the key there removes the variable. Its block is then left alone for ever, because the
//! constructor may be running after all: it may be the constructor that forked. The same is done for a
//! thread that ended in a constructor or destructor.

use crate::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use crate::bucket::{self, Bucket, Found, Scan};
use crate::control::{Part, is_left_out};
use crate::get::{Glance, glance};
use crate::hash::Key;
use crate::levels::{find, writable};
use crate::marks::{self, Marks};
use crate::memory::{Memory, NoMemory, Place};
use crate::remove;
use crate::word::{Block, Extent, HOME, Me, Phase, Slot, State};

/// A constructor: gets the address of the zeroed bytes; a number other than 0 is its error.
pub type Ctor<'c> = &'c mut dyn FnMut(u64) -> i32;

/// How an insertion ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inserted {
    /// A new variable, visible, with its bytes at this address.
    New(u64),
    /// There was one, with its bytes at this address.
    Exists(u64),
    /// The calling thread itself is in the middle of the key's constructor or destructor.
    InProgress,
    /// The constructor failed with this error; nothing is left.
    Failed(i32),
    /// There is no memory; nothing is left.
    NoMemory,
}

/// A slot of this number is taken: the table should be larger.
const CROWDED: usize = if cfg!(loom) { usize::MAX } else { HOME + 5 };

/// The operation was cancelled.
const ECANCELED: i32 = 125;

/// Inserts a variable of `size` bytes if the key has none.
#[inline(always)]
pub fn insert<M: Memory>(mem: &M, key: Key, size: usize, ctor: Option<Ctor<'_>>) -> Inserted {
    match glance(mem, key) {
        // Most calls for a key that has a variable end here.
        Glance::Found(found, _) => Inserted::Exists(found.data),
        Glance::Absent(bucket, hash) if !bucket.meta.is_frozen() => {
            insert_at_once(mem, key, hash, &bucket, size, ctor)
        }
        Glance::Absent(..) | Glance::Unmarked | Glance::Unsure => insert_unsure(mem, key, size, ctor),
    }
}

/// Nearly all insertions: nothing else happens in the bucket, for which the glance was the scan.
#[inline(never)]
fn insert_at_once<M: Memory>(
    mem: &M,
    key: Key,
    hash: u64,
    bucket: &Bucket<'_>,
    size: usize,
    ctor: Option<Ctor<'_>>,
) -> Inserted {
    let Ok(me) = name(mem, &ctor) else { return Inserted::NoMemory };
    let Ok(mut draft) = Draft::new(mem, key, hash, size, me) else { return Inserted::NoMemory };
    match draft.place_in(bucket) {
        Some(k) if bucket.commit(k) => draft.complete(bucket.place, k, me, ctor),
        _ => insert_again(mem, key, draft, size, me, ctor),
    }
}

/// After a first attempt, with the block it left.
#[cold]
#[inline(never)]
fn insert_again<M: Memory>(
    mem: &M,
    key: Key,
    draft: Draft<'_, M>,
    size: usize,
    me: Option<Me>,
    ctor: Option<Ctor<'_>>,
) -> Inserted {
    let hash = draft.hash;
    insert_slowly(mem, key, hash, Some(draft), size, me, ctor).unwrap_or(Inserted::NoMemory)
}

/// After a glance that decided nothing.
#[cold]
#[inline(never)]
fn insert_unsure<M: Memory>(mem: &M, key: Key, size: usize, ctor: Option<Ctor<'_>>) -> Inserted {
    if let Some(found) = find(mem, key) {
        return Inserted::Exists(found.data);
    }
    let first = || {
        if mem.current().load(Acquire) == 0 {
            // The seeds of the hash are there once a level is.
            mem.begin()?;
        }
        insert_slowly(mem, key, mem.hash(key), None, size, name(mem, &ctor)?, ctor)
    };
    first().unwrap_or(Inserted::NoMemory)
}

/// Who runs the constructor, if there is one.
#[inline]
fn name<M: Memory>(mem: &M, ctor: &Option<Ctor<'_>>) -> Result<Option<Me>, NoMemory> {
    if ctor.is_some() { mem.me().map(Some) } else { Ok(None) }
}

/// All steps, until one of the callers for the key is through.
fn insert_slowly<'m, M: Memory>(
    mem: &'m M,
    key: Key,
    hash: u64,
    mut draft: Option<Draft<'m, M>>,
    size: usize,
    me: Option<Me>,
    ctor: Option<Ctor<'_>>,
) -> Result<Inserted, NoMemory> {
    loop {
        let bucket = writable(mem, hash)?;
        match bucket.scan(mem, key, hash) {
            Scan::Absent => {}
            Scan::Changed => continue,
            Scan::Found(found) => {
                // Nobody waits with a block in hand.
                drop(draft.take());
                if let Some(answer) = resolve(mem, &bucket, &found, hash)? {
                    return Ok(answer);
                }
                continue;
            }
        }
        let mut prepared = match draft.take() {
            Some(prepared) => prepared,
            None => Draft::new(mem, key, hash, size, me)?,
        };
        let place = prepared.place(&bucket)?;
        if let Some(k) = place.filter(|k| bucket.commit(*k)) {
            return Ok(prepared.complete(bucket.place, k, me, ctor));
        }
        draft = Some(prepared);
    }
}

/// The key is taken. `Some`: that is the answer; `None`: it may be free now.
fn resolve<M: Memory>(
    mem: &M,
    bucket: &Bucket<'_>,
    found: &Found,
    hash: u64,
) -> Result<Option<Inserted>, NoMemory> {
    match found.state.phase() {
        Phase::Live => return Ok(Some(Inserted::Exists(found.data))),
        // Nothing of it can be waited for.
        Phase::Leaving => {
            let _ = bucket.withdraw(found.k);
        }
        Phase::Building | Phase::Dying => {
            let (who, me) = (found.state.who(), mem.me()?);
            if !who.is_process(me) || mem.is_gone(who) {
                remove::bury(mem, found, hash);
            } else if who.is_thread(me) {
                return Ok(Some(Inserted::InProgress));
            } else {
                sleep(mem, found);
            }
        }
        Phase::Free => {}
    }
    Ok(None)
}

/// Sleeps until the variable's constructor or destructor is through.
fn sleep<M: Memory>(mem: &M, found: &Found) {
    let word = &mem.header(found.block()).state;
    let (now, waited) = (found.state, found.state.waited_for());
    // pairs with: `finish`, which changes the state and then looks whether somebody waited.
    if now == waited || word.compare_exchange(now.0, waited.0, AcqRel, Relaxed).is_ok() {
        mem.wait(word, waited.0);
    }
}

/// Runs the constructor of a committed variable.
#[inline(never)]
fn construct<M: Memory>(mem: &M, found: &Found, hash: u64, me: Me, ctor: Ctor<'_>) -> Inserted {
    let life = Extent(mem.header(found.block()).extent.load(Relaxed)).life();
    let error = ctor(found.data);
    if error == 0 {
        // What the constructor wrote is seen by whoever sees the variable.
        if finish(mem, found, State::building(me), State::live(life)) {
            return Inserted::New(found.data);
        }
        // The constructor forked, and another thread of the child took the key.
        return Inserted::Failed(ECANCELED);
    }
    if is_left_out(Part::FailureLeaves) {
        return Inserted::Failed(error);
    }
    if finish(mem, found, State::building(me), State::leaving(life)) && remove::withdraw(mem, found, hash) {
        mem.header(found.block()).state.store(State::FREE.0, Release);
        mem.give_back(found.block());
    }
    Inserted::Failed(error)
}

/// Changes a state that the caller set, and wakes who waited for that. `false` if somebody took it.
pub fn finish<M: Memory>(mem: &M, found: &Found, from: State, to: State) -> bool {
    let word = &mem.header(found.block()).state;
    if word.compare_exchange(from.0, to.0, AcqRel, Relaxed).is_ok() {
        return true;
    }
    // Somebody waits, or it is another's.
    let waited = word.compare_exchange(from.waited_for().0, to.0, AcqRel, Relaxed).is_ok();
    if waited {
        mem.wake(word);
    }
    waited
}

/// A block that is not committed yet. Dropped, it leaves no trace.
struct Draft<'m, M: Memory> {
    mem: &'m M,
    hash: u64,
    block: Block,
    state: State,
    /// The bucket and slot it lies in.
    at: Option<(Place, usize)>,
}

impl<'m, M: Memory> Draft<'m, M> {
    #[inline(always)]
    fn new(mem: &'m M, key: Key, hash: u64, size: usize, me: Option<Me>) -> Result<Self, NoMemory> {
        let block = mem.take(key.id, size)?;
        let header = mem.header(block);
        let life = Extent(header.extent.load(Relaxed)).life();
        let state = me.filter(|_| !is_left_out(Part::Building)).map_or(State::live(life), State::building);
        bucket::begin(header, key, state);
        Ok(Draft { mem, hash, block, state, at: None })
    }

    /// Puts it into a free slot of the bucket, once per bucket. `Ok(None)`: the bucket was full, and the
    /// table has grown.
    fn place(&mut self, bucket: &Bucket<'m>) -> Result<Option<usize>, NoMemory> {
        let k = self.place_in(bucket);
        if k.is_none() {
            self.mem.grow(bucket.place.level)?;
        }
        Ok(k)
    }

    /// The same without the growth.
    ///
    /// In a bucket that was left because it moved the word stays behind. It does not count there and
    /// never will, since the bucket is frozen.
    #[inline]
    fn place_in(&mut self, bucket: &Bucket<'_>) -> Option<usize> {
        if let Some((place, k)) = self.at
            && place == bucket.place
        {
            return Some(k);
        }
        let k = bucket.place_in(self.mem, Slot::of(self.block, self.hash))?;
        self.at = Some((bucket.place, k));
        if bucket.place.level.is_marked() {
            marks::add(self.mem.cell(bucket.place), Marks::of(self.hash), k >= HOME);
        }
        if k >= CROWDED {
            // Long before it is full: what lies outside the line makes lookups slow. Not for want of memory.
            let _ = self.mem.grow(bucket.place.level);
        }
        Some(k)
    }

    /// It counts, and is no draft any more: the constructor's turn.
    #[inline(always)]
    fn complete(self, place: Place, k: usize, me: Option<Me>, ctor: Option<Ctor<'_>>) -> Inserted {
        let (mem, hash, slot) = (self.mem, self.hash, Slot::of(self.block, self.hash));
        let found = Found { place, k, slot, state: self.state, data: mem.data(self.block) };
        core::mem::forget(self);
        mem.help();
        match (ctor, me) {
            (Some(ctor), Some(me)) => construct(mem, &found, hash, me, ctor),
            _ => Inserted::New(found.data),
        }
    }
}

impl<M: Memory> Drop for Draft<'_, M> {
    fn drop(&mut self) {
        if let Some((place, k)) = self.at
            && let Some(slot) = Bucket::at(self.mem, place).slot(self.mem, k)
        {
            // Before the block can have another life.
            slot.store(Slot::EMPTY.0, Release);
        }
        self.mem.header(self.block).state.store(State::FREE.0, Release);
        self.mem.give_back(self.block);
    }
}
