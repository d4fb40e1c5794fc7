//! Unlinking a variable: `free`.
//!
//! The state decides who removes a variable, by one compare-and-swap from *live* in the life that was
//! found. Without a destructor to *leaving*; with one to *dying*, with the remover's name in it, and to
//! *leaving* when the destructor has returned. It is gone for readers from the first of them on. The
//! key stays taken until the slot is withdrawn; who wants it meanwhile sleeps (dying) or withdraws the
//! slot himself (leaving).
//!
//! The order at the end is what lookups rely on: state, bit, slot, and only then a new life of the
//! block. Marks that nobody needs any more are taken away after the slot. (Who withdraws for somebody else, and a draft
//! that is dropped, leave theirs to the next one who cleans.)

use crate::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use crate::bucket::{Bucket, Found};
use crate::get::{Glance, glimpse};
use crate::hash::Key;
use crate::insert::finish;
use crate::levels::{find, writable};
use crate::marks;
use crate::memory::{Memory, NoMemory};
use crate::word::{Block, Extent, Me, Phase, Slot, State};

/// A destructor: gets the address of the bytes.
pub type Dtor<'d> = &'d mut dyn FnMut(u64);

/// What becomes of the block of a variable that was removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Afterwards {
    /// It is used again once no reader under a guard has it.
    Reclaim,
    /// It stays as it is for ever: somebody may have it without a guard.
    Leak,
}

/// Removes the key's variable. `Ok(false)`: there is none that is visible.
///
/// Fails only with a destructor, whose caller needs a name, and then nothing was done.
#[inline(always)]
pub fn remove<M: Memory>(
    mem: &M,
    key: Key,
    mut dtor: Option<Dtor<'_>>,
    afterwards: Afterwards,
) -> Result<bool, NoMemory> {
    match glimpse(mem, key) {
        Glance::Absent(..) | Glance::Unmarked => return Ok(false),
        Glance::Found(found, hash) if remove_found(mem, &found, hash, &mut dtor, afterwards)? => {
            return Ok(true);
        }
        Glance::Found(..) | Glance::Unsure => {}
    }
    remove_slowly(mem, key, dtor, afterwards)
}

/// [`remove`], out of the way.
#[cold]
#[inline(never)]
fn remove_slowly<M: Memory>(
    mem: &M,
    key: Key,
    mut dtor: Option<Dtor<'_>>,
    afterwards: Afterwards,
) -> Result<bool, NoMemory> {
    while let Some(found) = find(mem, key) {
        if remove_found(mem, &found, mem.hash(key), &mut dtor, afterwards)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Removes a variable that was found visible. `Ok(false)`: somebody else did.
#[inline(always)]
fn remove_found<M: Memory>(
    mem: &M,
    found: &Found,
    hash: u64,
    dtor: &mut Option<Dtor<'_>>,
    afterwards: Afterwards,
) -> Result<bool, NoMemory> {
    let header = mem.header(found.block());
    // If it is another life's the claim fails.
    let leaving = State::leaving(Extent(header.extent.load(Relaxed)).life());
    let claim = |to: State| header.state.compare_exchange(found.state.0, to.0, AcqRel, Relaxed).is_ok();
    let claimed = match dtor {
        None => claim(leaving).then_some(true),
        Some(dtor) => destroy(mem, found, leaving, dtor)?,
    };
    if claimed == Some(true) && withdraw(mem, found, hash) && afterwards == Afterwards::Reclaim {
        header.state.store(State::FREE.0, Release);
        mem.retire(found.block());
    }
    Ok(claimed.is_some())
}

/// Claims the variable and runs its destructor. `None`: somebody else claimed it; `Some(false)`: it was this
/// thread's to destroy, and is not its to take out.
#[inline(never)]
fn destroy<M: Memory>(
    mem: &M,
    found: &Found,
    leaving: State,
    dtor: Dtor<'_>,
) -> Result<Option<bool>, NoMemory> {
    let dying = State::dying(mem.me()?);
    let state = &mem.header(found.block()).state;
    if state.compare_exchange(found.state.0, dying.0, AcqRel, Relaxed).is_err() {
        return Ok(None);
    }
    dtor(found.data);
    // The destructor may have forked, and another thread of the child may have taken the key: the block is
    // left alone then.
    Ok(Some(finish(mem, found, dying, leaving)))
}

/// Removes a variable whose constructor or destructor was running in a thread that did not survive a
/// fork, or has ended. Neither is called, and the block is never used again ([`crate::insert`] says why).
pub fn bury<M: Memory>(mem: &M, found: &Found, hash: u64) {
    let header = mem.header(found.block());
    if mem.hash(Key { obj: header.obj.load(Acquire), id: header.id.load(Acquire) }) != hash {
        // It was over after all, and meanwhile the block has gone to another key, and the thread's id perhaps to another
        // thread, so that the state says the same again.
        return;
    }
    let leaving = State::leaving(Extent(header.extent.load(Relaxed)).life());
    if header.state.compare_exchange(found.state.0, leaving.0, AcqRel, Relaxed).is_ok() {
        if found.state.is_waited_for() {
            mem.wake(&header.state);
        }
        // Either way nobody uses the block again.
        let _ = withdraw(mem, found, hash);
    }
}

/// [`bury`] for the variable in this block, if it is in the destructor of one of those threads.
pub fn bury_block<M: Memory>(mem: &M, block: Block, is_over: impl Fn(Me) -> bool) {
    let header = mem.header(block);
    let state = State(header.state.load(Acquire));
    if state.phase() != Phase::Dying || !is_over(state.who()) {
        return;
    }
    let key = Key { obj: header.obj.load(Relaxed), id: header.id.load(Relaxed) };
    let hash = mem.hash(key);
    let slot = Slot::of(block, hash);
    if let Ok(bucket) = writable(mem, hash)
        && let Some(k) = bucket.position(mem, slot)
    {
        let data = mem.data(block);
        bury(mem, &Found { place: bucket.place, k, slot, state, data }, hash);
    }
}

/// Takes a variable that leaves out of the table: clears the bit of its slot, then the slot. Called by
/// the one who made it leave.
///
/// `false`: its bucket has to move and cannot for want of memory. The variable stays as it is, leaving,
/// seen by nobody, and its slot is withdrawn by whoever wants the key.
#[must_use = "a block that a slot still names must not be used again"]
#[inline]
pub fn withdraw<M: Memory>(mem: &M, found: &Found, hash: u64) -> bool {
    let bucket = Bucket::at(mem, found.place);
    if !bucket.meta.is_frozen()
        && bucket.meta.has(found.k)
        && bucket.withdraw(found.k)
        && let Some(slot) = bucket.slot(mem, found.k)
    {
        slot.store(Slot::EMPTY.0, Release);
        clean(mem, &bucket);
        return true;
    }
    withdraw_slowly(mem, found, hash)
}

/// Takes the marks away that nobody in the bucket needs any more.
#[inline]
fn clean<M: Memory>(mem: &M, bucket: &Bucket<'_>) {
    if bucket.place.level.is_marked() {
        marks::clean(mem.cell(bucket.place), &bucket.line.slots);
    }
}

#[cold]
#[inline(never)]
fn withdraw_slowly<M: Memory>(mem: &M, found: &Found, hash: u64) -> bool {
    let (mut place, mut k) = (found.place, found.k);
    loop {
        let mut bucket = Bucket::at(mem, place);
        if bucket.meta.is_frozen() {
            // On the move. If it counted in the old bucket it is in the new one.
            match writable(mem, hash) {
                Ok(now) => bucket = now,
                Err(NoMemory) => return false,
            }
            match bucket.position(mem, found.slot) {
                Some(position) => (place, k) = (bucket.place, position),
                None => return true,
            }
        }
        // Who wanted the key may have cleared the bit.
        if !bucket.meta.has(k) || bucket.withdraw(k) {
            if let Some(slot) = bucket.slot(mem, k) {
                slot.store(Slot::EMPTY.0, Release);
            }
            clean(mem, &bucket);
            return true;
        }
    }
}
