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
const CROWDED: usize = if cfg!(loom) { usize::MAX } else { HOME + 4 };

/// The operation was cancelled.
const ECANCELED: i32 = 125;

/// Inserts a variable of `size` bytes if the key has none.
pub fn insert<M: Memory>(mem: &M, key: Key, size: usize, ctor: Option<Ctor<'_>>) -> Inserted {
    try_insert(mem, key, size, ctor).unwrap_or(Inserted::NoMemory)
}

fn try_insert<M: Memory>(
    mem: &M,
    key: Key,
    size: usize,
    ctor: Option<Ctor<'_>>,
) -> Result<Inserted, NoMemory> {
    // Most calls for a key that has a variable end here.
    let mut known = match glance(mem, key) {
        Glance::Found(found) => return Ok(Inserted::Exists(found.data)),
        Glance::Absent(bucket, _) if !bucket.meta.is_frozen() => Some(bucket),
        Glance::Absent(..) | Glance::Unsure => match find(mem, key) {
            Some(found) => return Ok(Inserted::Exists(found.data)),
            None => None,
        },
    };
    if mem.current().load(Acquire) == 0 {
        // The seeds of the hash are there once a level is.
        mem.begin()?;
    }
    let hash = mem.hash(key);
    let me = if ctor.is_some() { Some(mem.me()?) } else { None };
    let mut draft: Option<Draft<'_, M>> = None;
    loop {
        // The glance was a scan.
        let (bucket, scan) = match known.take() {
            Some(bucket) => (bucket, Scan::Absent),
            None => {
                let bucket = writable(mem, hash)?;
                (bucket, bucket.scan(mem, key, hash))
            }
        };
        match scan {
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
        if draft.is_none() {
            draft = Some(Draft::new(mem, key, hash, size, me)?);
        }
        let Some(prepared) = &mut draft else { return Err(NoMemory) };
        let Some(k) = prepared.place(&bucket)? else { continue };
        if bucket.commit(k) {
            let found = prepared.committed(bucket.place, k);
            core::mem::forget(draft);
            mem.help();
            return Ok(match (ctor, me) {
                (Some(ctor), Some(me)) => construct(mem, &found, hash, me, ctor),
                _ => Inserted::New(found.data),
            });
        }
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
    ///
    /// In a bucket that was left because it moved the word stays behind. It does not count there and
    /// never will, since the bucket is frozen.
    fn place(&mut self, bucket: &Bucket<'m>) -> Result<Option<usize>, NoMemory> {
        if let Some((place, k)) = self.at
            && place == bucket.place
        {
            return Ok(Some(k));
        }
        let Some(k) = bucket.place_in(self.mem, Slot::of(self.block, self.hash)) else {
            self.mem.grow(bucket.place.level)?;
            return Ok(None);
        };
        self.at = Some((bucket.place, k));
        if k >= CROWDED {
            // Long before it is full: what lies outside the line makes lookups slow. Not for want of memory.
            let _ = self.mem.grow(bucket.place.level);
        }
        Ok(Some(k))
    }

    /// What it is once it counts, which is no draft any more.
    fn committed(&self, place: Place, k: usize) -> Found {
        let slot = Slot::of(self.block, self.hash);
        Found { place, k, slot, state: self.state, data: self.mem.data(self.block) }
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
