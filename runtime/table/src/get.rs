//! Looking a variable up: the short way.
//!
//! Nearly always a lookup meets a bucket at rest: in use, not moved, nothing outside its line, and nothing
//! committed, withdrawn or frozen while it is looked at. Then one comparison says so at the end: *the
//! bucket's word is the one that was read first.*
//!
//! *Why that is enough.* A commit counts up the version in the word, a withdrawal clears a bit that only
//! a later commit sets again, and freezing and moving set a flag for good. So an equal word means that
//! none of them happened between the two reads. A slot that counted at the first then named the same
//! block all the time, because a slot is written only after its bit is cleared; the block was in the same
//! life all the time, because a block gets a new life only after no slot that counts names it; so key,
//! state and place of the bytes, read in between, belong together. (Who reads something of a later life sees
//! the cleared bit as well: the release fence of [`crate::bucket::begin_life`] pairs with the fence here.)
//! If the state was *live*, the variable was visible and committed at that moment. If no slot that counts
//! had the key's tag, it was not there at the moment of the first read.
//!
//! Most lookups of what is not there end before all this, with the bucket's cell ([`crate::marks`]): if it lacks the
//! key's mark, the key was not visible at some moment of the call. For take a key that is visible throughout. Its
//! bucket has not moved when the cell is read, and everything from below is in it since the level settled. So the key's
//! variable is committed there, and its mark was added before. If it has moved the cell was closed before, by whoever
//! moved it, and whoever inserted the variable further up has seen that it had moved: the cell lacks nothing.
//!
//! Whatever else is met is left to [`find`], which looks at everything again and needs no word to stand
//! still: a thread that is interrupted here, or meets writers that never rest, waits for nobody.

use crate::atomic::Ordering::{Acquire, Relaxed};
use crate::atomic::fence;
use crate::bucket::{Bucket, Found};
use crate::control::{Part, is_left_out};
use crate::hash::Key;
use crate::levels::{find, first};
use crate::marks::{self, Marks};
use crate::memory::Memory;
use crate::word::{Slot, State};

/// Where the bytes of the key's variable are, if it is visible. No lock, no wait, no allocation, no system
/// call.
#[inline]
pub fn get<M: Memory>(mem: &M, key: Key) -> Option<u64> {
    match glimpse(mem, key) {
        Glance::Found(found, _) => Some(found.data),
        Glance::Absent(..) | Glance::Unmarked => None,
        Glance::Unsure => look_closer(mem, key),
    }
}

/// [`find`], out of the way.
#[cold]
#[inline(never)]
fn look_closer<M: Memory>(mem: &M, key: Key) -> Option<u64> {
    find(mem, key).map(|found| found.data)
}

/// What the short way says.
#[derive(Clone, Copy, Debug)]
pub enum Glance<'m> {
    /// The variable is visible. With the hash.
    Found(Found, u64),
    /// No slot that counts has the key's tag, for as long as the bucket's word is this one. With the hash.
    Absent(Bucket<'m>, u64),
    /// It was not there.
    Unmarked,
    /// Something is in the way.
    Unsure,
}

/// The short way, for who wants to know what is there. Begins with the marks.
#[inline(always)]
pub fn glimpse<M: Memory>(mem: &M, key: Key) -> Glance<'_> {
    look::<M, true>(mem, key).unwrap_or(Glance::Unsure)
}

/// The short way, for who needs the bucket in any case.
#[inline(always)]
pub fn glance<M: Memory>(mem: &M, key: Key) -> Glance<'_> {
    look::<M, false>(mem, key).unwrap_or(Glance::Unsure)
}

#[inline(always)]
fn look<M: Memory, const MARKS: bool>(mem: &M, key: Key) -> Option<Glance<'_>> {
    let level = first(mem);
    if level.is_none() {
        return None;
    }
    let hash = mem.hash(key);
    if MARKS && level.is_marked() && marks::read(mem.cell(level.place(hash))).lacks(Marks::of(hash)) {
        return Some(Glance::Unmarked);
    }
    let bucket = Bucket::at(mem, level.place(hash));
    if !bucket.meta.is_at_rest() {
        return None;
    }
    let tagged = mem.tagged(bucket.line, hash) & bucket.meta.home_mask();
    if tagged == 0 {
        return bucket.is_unchanged().then_some(Glance::Absent(bucket, hash));
    }
    let k = tagged.trailing_zeros() as usize;
    // Acquire: the block is seen as it was when it was placed here.
    let slot = Slot(bucket.line.slots.get(k)?.load(Acquire));
    if slot.block().addr == 0 {
        return None;
    }
    let header = mem.header(slot.block());
    // Acquire: what its constructor wrote is seen.
    let state = State(header.state.load(Acquire));
    if !state.is_live() || header.obj.load(Relaxed) != key.obj || header.id.load(Relaxed) != key.id {
        return None;
    }
    let found = Found { place: bucket.place, k, slot, state, data: mem.data(slot.block()) };
    bucket.is_unchanged().then_some(Glance::Found(found, hash))
}

impl Bucket<'_> {
    /// Whether the bucket's word is the one it was made with. What was read in between is of its time then.
    #[inline(always)]
    fn is_unchanged(&self) -> bool {
        // pairs with: the fence of `begin_life`, and the releases of `withdraw` and of the move.
        fence(Acquire);
        is_left_out(Part::LookAgain) || self.line.meta.load(Relaxed) == self.meta.0
    }
}
