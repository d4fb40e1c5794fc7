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
//! Whatever else is met is left to [`find`], which looks at everything again and needs no word to stand
//! still: a thread that is interrupted here, or meets writers that never rest, waits for nobody.

use crate::atomic::Ordering::{Acquire, Relaxed};
use crate::atomic::fence;
use crate::hash::Key;
use crate::levels::find;
use crate::memory::{Level, Memory};
use crate::word::{Meta, Slot, State};

/// Where the bytes of the key's variable are, if it is visible. No lock, no wait, no allocation, no system
/// call.
#[inline]
pub fn get<M: Memory>(mem: &M, key: Key) -> Option<u64> {
    match at_rest(mem, key) {
        Some(0) => None,
        None => look_closer(mem, key),
        found => found,
    }
}

/// `Some(0)`: it is not there. `None`: something is in the way.
#[inline]
fn at_rest<M: Memory>(mem: &M, key: Key) -> Option<u64> {
    let level = Level(mem.current().load(Acquire));
    if level.is_none() {
        return None;
    }
    let hash = mem.hash(key);
    let line = mem.line(level.place(hash));
    let meta = Meta(line.meta.load(Acquire));
    if !meta.is_at_rest() {
        return None;
    }
    let tagged = mem.tagged(line, hash) & meta.mask();
    let mut data = 0;
    if tagged != 0 {
        // Acquire: the block is seen as it was when it was placed here.
        let slot = Slot(line.slots.get(tagged.trailing_zeros() as usize)?.load(Acquire));
        if slot.is_free() {
            return None;
        }
        let header = mem.header(slot.block());
        // Acquire: what its constructor wrote is seen.
        let is_live = State(header.state.load(Acquire)).is_live();
        if !is_live || header.obj.load(Relaxed) != key.obj || header.id.load(Relaxed) != key.id {
            return None;
        }
        data = mem.data(slot.block());
    }
    // pairs with: the fence of `begin_life`, and the releases of `withdraw` and of the move.
    fence(Acquire);
    (Meta(line.meta.load(Relaxed)) == meta).then_some(data)
}

/// [`find`], out of the way.
#[cold]
#[inline(never)]
fn look_closer<M: Memory>(mem: &M, key: Key) -> Option<u64> {
    find(mem, key).map(|found| found.data)
}
