//! Jumps that lead straight to the new function, and back to their stubs: the stores between a transition and the
//! next, and the order in which slot and jump change.
//!
//! Whatever the writer has announced ([`Expected`]) every call must follow that begins afterwards and ends
//! before the next announcement: new code while the jump is straight, old code as soon as the slot says so again.

use std::hint::spin_loop;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use suture_abi::batch::Site;
use suture_runtime::books::direct::Jump;

use crate::call::{Rng, Verdict};
use crate::engine::{PATIENCE, Shared, set_route};
use crate::error::Result;
use crate::memory::displacement;
use crate::op::Op;
use crate::shape::{Case, Class, cases};
use crate::store::{Means, Protocol, serialize_cores};
use crate::victim::emit;
use crate::world::{TEXT, Target};

/// Where the displacement of a site's jump stands, and the two it takes.
#[derive(Clone, Copy, Debug)]
pub struct Straight {
    /// Its address.
    pub place: u64,
    /// Leads to the stub.
    pub stub: u32,
    /// Leads to the new function.
    pub new: u32,
}

impl Straight {
    /// Of a site of class P, S or A, whether its displacement lies in one word or not.
    pub fn of(site: &Site, new: u64) -> Result<Self> {
        let jump = if site.pad_len > 0 { site.pad_addr } else { site.site };
        let leads = |to: u64| Ok(displacement(jump + 5, to)?.cast_unsigned());
        Ok(Self { place: jump + 1, stub: leads(site.stub)?, new: leads(new)? })
    }
}

/// Cases without a prologue whose displacement lies in one word.
pub fn straight_cases() -> Vec<Case> {
    let fits = |case: &Case| {
        let victim = emit(case, TEXT);
        let jump = if victim.pad > 0 { victim.pad } else { victim.site };
        (jump + 1) % 8 <= 4
    };
    let plain = |case: &Case| case.shape.before.iter().all(|op| *op == Op::Endbr);
    let classes = [Class::P, Class::S, Class::A];
    classes.into_iter().flat_map(cases).filter(plain).filter(fits).collect()
}

/// Which side calls must take, with a number that changes with every announcement.
#[derive(Debug, Default)]
pub struct Expected(AtomicU64);

impl Expected {
    const ANY: u64 = 0;
    const OLD: u64 = 1;
    const NEW: u64 = 2;

    /// Written by the one writer, after (or, for [`Self::ANY`], before) what makes it true.
    fn announce(&self, side: u64) {
        let number = self.0.load(Ordering::Relaxed) >> 2;
        // pairs with: the loads of `during`. The first of them sees slot and jump as they were before this store.
        self.0.store((number + 1) << 2 | side, Ordering::SeqCst);
    }

    /// Nothing is announced any more: a forked child does as it likes.
    pub fn forget(&self) {
        self.announce(Self::ANY);
    }

    /// Makes a call and judges whether it took the side that was announced all the time.
    pub fn during(&self, call: impl FnOnce() -> Verdict) -> Verdict {
        let before = self.0.load(Ordering::SeqCst);
        let verdict = call();
        let same = self.0.load(Ordering::SeqCst) == before;
        match (before & 3, verdict) {
            (Self::OLD, Verdict::New) | (Self::NEW, Verdict::Old) if same => {
                Verdict::Wrong { got: before, old: Self::OLD, new: Self::NEW, registers: 0 }
            }
            _ => verdict,
        }
    }
}

/// One turn of a case: transitions between old and new code, each of which goes to the straight jump and back.
pub(crate) fn turn(shared: &Shared, case: usize, turn: Duration, rng: &mut Rng) -> Result<()> {
    let target = &shared.world.targets[case];
    let score = &shared.board.scores[case];
    let begin = (score.old.load(Ordering::Relaxed), score.new.load(Ordering::Relaxed));
    let start = Instant::now();
    loop {
        for _ in 0..8 {
            cycle(shared, case, rng)?;
        }
        let wrong = shared.options.stop_on_wrong && shared.board.wrong_total.load(Ordering::Relaxed) != 0;
        let seen_old = score.old.load(Ordering::Relaxed) > begin.0;
        let seen_new = score.new.load(Ordering::Relaxed) > begin.1;
        let enough = start.elapsed() >= turn && seen_old && seen_new;
        if wrong || enough || start.elapsed() > turn + PATIENCE {
            return target_to_old(shared, target);
        }
    }
}

/// Unarmed, with the slot on the copy: as a case is found by the next turn.
fn target_to_old(shared: &Shared, target: &Target) -> Result<()> {
    target.set_word(target.planned.slot.addr, target.site().copy);
    // SAFETY: as in `Shared::store`.
    unsafe { shared.writer.set(target.site(), false, Means::Pwrite) }
}

fn cycle(shared: &Shared, case: usize, rng: &mut Rng) -> Result<()> {
    let target = &shared.world.targets[case];
    let Some(straight) = target.straight else { return Ok(()) };
    let (expected, slot, site) = (&shared.expected[case], target.planned.slot.addr, target.site());
    let pick = |rng: &mut Rng| match shared.world.writable && rng.draw() & 1 == 0 {
        true => Means::Direct,
        false => Means::Pwrite,
    };
    let means = pick(rng);
    shared.store(case, true, means)?;
    for _ in 0..rng.draw() & 7 {
        set_route(target, rng);
        shared.board.scores[case].flips.fetch_add(1, Ordering::Relaxed);
        linger(rng);
    }
    let new = target.new;
    target.set_word(slot, new);
    for _ in 0..=rng.draw() & 3 {
        // Up, while callers run: no fence, and nobody is looked at.
        shared.aim(case, straight, straight.new, pick(rng))?;
        expected.announce(Expected::NEW);
        linger(rng);
        expected.announce(Expected::ANY);
        let early = shared.options.protocol == Protocol::SlotFirst;
        if early {
            target.set_word(slot, site.copy);
            expected.announce(Expected::OLD);
            linger(rng);
        }
        shared.aim(case, straight, straight.stub, pick(rng))?;
        serialize_cores()?;
        target.set_word(slot, site.copy);
        if !early {
            expected.announce(Expected::OLD);
        }
        linger(rng);
        expected.announce(Expected::ANY);
        set_route(target, rng);
        linger(rng);
        target.set_word(slot, new);
    }
    let means = pick(rng);
    shared.store(case, false, means)
}

fn linger(rng: &mut Rng) {
    for _ in 0..rng.draw() & 255 {
        spin_loop();
    }
}

/// What the product makes of the same jump: where its word is, and the word with the jump straight.
pub fn as_planned(target: &Target, word: u64) -> Option<(u64, u64)> {
    let jump = Jump::of(target.site())?;
    Some((jump.word, jump.straight_to(word, target.new)))
}
