//! Guards: memory of removed variables waits for readers that asked for it.
//!
//! A lookup itself needs no guard: what it reads is type-stable and is checked. A guard is for what a
//! caller does with the bytes afterwards. It is two counters, not a registration, so any thread and any
//! signal handler may have one.
//!
//! Time is counted in epochs. A guard counts itself among the readers of the parity of the epoch it saw.
//! The epoch moves from `e` to `e + 1` when nobody is counted at the parity of `e - 1`. A block retired in
//! epoch `s` is used again from epoch `s + 3` on, or when no guard is held at all.
//!
//! *Why 3.* Let a guard count itself at parity `p` while the epoch is `E` (it may have read an older one
//! of whatever parity), and find a block that is removed afterwards, so retired at `s ≥ E`. Whoever moves
//! the epoch from `E` may have looked at the counters before that. Of the next two moves, `E + 1` to
//! `E + 2` and `E + 2` to `E + 3`, one looks at parity `p`, and it began by reading an epoch that was
//! written after the guard counted itself, so it sees the guard and does not move. So the epoch does not
//! reach `s + 3` while the guard is held.
//!
//! A guard held by a thread that a fork did not copy is held for ever in the child: there memory of
//! removed variables is no longer used again. Guards of the thread that forked work on.

use crate::atomic::Ordering::{AcqRel, Relaxed, Release, SeqCst};
use crate::atomic::{AtomicU64, fence_after_rmw};
use crate::control::{Part, is_left_out};
use crate::memory::Header;
use crate::word::Block;

/// Places to be counted at, so that threads seldom meet.
pub const STRIPES: usize = if cfg!(loom) { 1 } else { 4 };

/// Readers of one stripe, by parity.
#[derive(Debug)]
#[repr(C)]
#[cfg_attr(not(loom), repr(align(64)))]
pub struct Readers(pub [AtomicU64; 2]);

/// Epochs, readers, and what waits for them.
#[derive(Debug)]
pub struct Guards {
    /// Moved by compare-and-swap, by whoever retires or leaves.
    pub epoch: AtomicU64,
    /// Top of the stack of retired blocks (`address | LARGE`), 0 for none. Pushed to by compare-and-swap,
    /// taken as a whole, so that no top can come back unnoticed.
    pub waiting: AtomicU64,
    /// Counted up and down by the guards themselves.
    pub readers: [Readers; STRIPES],
}

/// Where a guard is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place(pub u32);

const LARGE: u64 = 1;

#[cfg(not(loom))]
impl Default for Guards {
    fn default() -> Self {
        Self::new()
    }
}

impl Guards {
    /// Nobody.
    #[cfg(loom)]
    pub fn new() -> Self {
        let nobody = |_| Readers([AtomicU64::new(0), AtomicU64::new(0)]);
        Guards { epoch: AtomicU64::new(0), waiting: AtomicU64::new(0), readers: core::array::from_fn(nobody) }
    }

    /// Nobody.
    #[cfg(not(loom))]
    pub const fn new() -> Self {
        #[allow(clippy::declare_interior_mutable_const)] // to repeat it
        const NOBODY: Readers = Readers([AtomicU64::new(0), AtomicU64::new(0)]);
        Guards { epoch: AtomicU64::new(0), waiting: AtomicU64::new(0), readers: [NOBODY; STRIPES] }
    }

    /// Begins a guard.
    #[inline]
    pub fn enter(&self, stripe: usize) -> Place {
        let parity = self.epoch.load(Relaxed) & 1;
        let place = Place((stripe as u64).wrapping_mul(2).wrapping_add(parity) as u32);
        if let Some(count) = self.count(place).filter(|_| !is_left_out(Part::Count)) {
            // pairs with: the look of `is_idle` and `advance`. One sees the other.
            count.fetch_add(1, SeqCst);
            fence_after_rmw();
        }
        place
    }

    /// Ends it.
    #[inline]
    pub fn leave(&self, place: Place) {
        if let Some(count) = self.count(place).filter(|_| !is_left_out(Part::Count)) {
            // Release: everything done with the bytes happens before they are used again.
            count.fetch_sub(1, Release);
        }
    }

    fn count(&self, place: Place) -> Option<&AtomicU64> {
        let (stripe, parity) = (place.0 >> 1, place.0 & 1);
        self.readers.get(stripe as usize)?.0.get(parity as usize)
    }

    fn nobody_at(&self, parity: u64) -> bool {
        let at = |r: &Readers| r.0.get((parity & 1) as usize).is_none_or(|c| c.load(SeqCst) == 0);
        self.readers.iter().all(at)
    }

    /// Whether no guard is held. To be asked after a removal, with a read-modify-write in between.
    #[inline]
    pub fn is_idle(&self) -> bool {
        fence_after_rmw();
        // All of them, without a question in between: nearly always all are 0.
        let counts = self.readers.iter().flat_map(|r| &r.0);
        counts.fold(0, |all, count| all | count.load(SeqCst)) == 0
    }

    /// Moves the epoch if that can be done; gives what it is now.
    fn advance(&self) -> (u64, bool) {
        let now = self.epoch.load(SeqCst);
        if !self.nobody_at(now.wrapping_sub(1)) {
            return (now, false);
        }
        match self.epoch.compare_exchange(now, now.wrapping_add(1), SeqCst, SeqCst) {
            Ok(_) => (now.wrapping_add(1), true),
            Err(now) => (now, false),
        }
    }

    /// Takes in a removed block that no slot names, and gives back what nobody can have any more.
    ///
    /// `header` finds the header of a block, `give_back` makes it free.
    #[inline]
    pub fn retire<'h>(&self, block: Block, header: impl Fn(Block) -> &'h Header, give_back: impl Fn(Block)) {
        if self.is_idle() {
            give_back(block);
        } else {
            self.push(block, self.epoch.load(SeqCst), &header);
        }
        if self.waiting.load(Relaxed) != 0 {
            self.collect(header, give_back);
        }
    }

    #[cold]
    #[inline(never)]
    fn push<'h>(&self, block: Block, stamp: u64, header: &impl Fn(Block) -> &'h Header) {
        let words = header(block);
        words.id.store(stamp, Relaxed);
        let this = block.addr | if block.large { LARGE } else { 0 };
        let mut top = self.waiting.load(Relaxed);
        loop {
            words.obj.store(top, Relaxed);
            // Release: link and stamp are seen by whoever takes the stack.
            match self.waiting.compare_exchange(top, this, AcqRel, Relaxed) {
                Ok(_) => return,
                Err(now) => top = now,
            }
        }
    }

    /// Gives back what waits and can.
    #[cold]
    #[inline(never)]
    pub fn collect<'h>(&self, header: impl Fn(Block) -> &'h Header, give_back: impl Fn(Block)) {
        let (epoch, moved) = self.advance();
        if !moved && !self.is_idle() {
            // Nothing has become free since the last time.
            return;
        }
        let mut next = self.waiting.swap(0, AcqRel);
        // After the swap: whoever is counted now did not find anything of what was taken.
        let idle = self.is_idle();
        while next != 0 {
            let block = Block { addr: next & !LARGE, large: next & LARGE != 0 };
            let words = header(block);
            next = words.obj.load(Relaxed);
            let stamp = words.id.load(Relaxed);
            if idle || epoch.wrapping_sub(stamp) as i64 >= 3 {
                give_back(block);
            } else {
                self.push(block, stamp, &header);
            }
        }
    }
}
