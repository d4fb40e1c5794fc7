//! The operations on transitions, and the pace of a transition that nobody pushes.
//!
//! # Safety
//!
//! Memory that goes with a patch is freed only when the books and every thread have left it.
#![allow(unsafe_code)]

use super::bytes::{self, Live};
use super::world::has_own_stacks;
use super::{Engine, barrier, books, direct, reserve, slots};
use crate::block::BLOCK;
use crate::books::{Batch, Books, BooksError};
use crate::host;
use crate::jit;
use crate::reply::Reply;
use crate::sys::{Errno, thread};
use crate::transition::look::Lookout;
use crate::transition::machine::{self, Waits, World};
use crate::transition::own;
use crate::transition::settle::Settling;
use crate::unwind::ranges;
use core::sync::atomic::Ordering;
use suture_abi::block::{PHASE_RUNNING, TransitionRow, WAITS_CALLBACK, WAITS_HOST};
use suture_abi::channel::{ALL_MAY_LOOK, MAY_LOOK, Move, error};
use suture_abi::event::word;
use suture_scan::Ranges;

/// What a worker keeps of the transition that is going on.
#[derive(Debug, Default)]
pub struct Moving {
    pub(super) settling: Option<Settling>,
    lookout: Option<Lookout>,
    /// The command said that no filter forbids the worker to look.
    pub(super) may_look: bool,
    /// Readings from outside have closed it.
    pub(super) settled: bool,
    pub(super) pace: Pace,
}

/// When the next attempt is due.
#[derive(Debug, Default)]
pub struct Pace {
    /// Next tick, in the monotonic clock's nanoseconds.
    pub(super) tick: u64,
    /// Next look between ticks.
    look: u64,
    /// Pause before it.
    pause: u64,
    /// Looks so far.
    looks: u32,
}

impl Pace {
    /// At the start of a transition.
    pub fn from(tick: u64) -> Self {
        Pace { tick, ..Pace::default() }
    }
}

/// First pause between two looks, in nanoseconds; it doubles.
const FIRST_PAUSE: u64 = 200_000;
/// Looks after which a pause is at least [`IDLE_SHARE`] times the processor time of the look before it, so
/// that a transition that is held up costs next to nothing.
const FAST_LOOKS: u32 = 8;
/// See [`FAST_LOOKS`].
const IDLE_SHARE: u64 = 100;
/// Failed attempts before the one that is reported.
const STALL: u32 = 15;

impl Engine {
    /// Enables the prepared batch.
    pub(super) fn enable(&mut self, id: u32, may: u64) -> Result<Reply, Reply> {
        let old = books();
        let batch = prepared(old, id)?;
        barrier()?;
        for func in old.funcs.iter().filter(|f| old.is_of(batch, f)) {
            let site = old.site(func.site).ok_or(BooksError::NoEntry(func.site))?;
            bytes::demand(site, Live::Armed)?;
        }
        if batch.0 == 0 {
            let ready = slots::ready(old.with_hooks()?)?;
            self.commit(ready);
            return Ok(Reply::default());
        }
        let next = old.with_patching(batch, thread::realtime())?;
        let image = next.images.iter().find(|i| i.patch == id).copied();
        let name = next.patch(id).map_or([0; 56], |p| p.name);
        let debug = image.map(|i| (i.plan.debug_elf, i.plan.debug_elf_len)).filter(|(addr, _)| *addr != 0);
        let debug = debug.map(|(addr, len)| jit::ready(addr, len)).transpose()?;
        let ranges = image.map(|i| ranges::ready(&i, name)).transpose()?;
        self.moving = Moving::default();
        self.allow(may);
        machine::begin(self, next)?;
        if let Some(ranges) = ranges {
            ranges.show();
        }
        if let Some(debug) = debug {
            debug.show();
        }
        Ok(self.advance())
    }

    /// Begins to take an enabled patch away.
    pub(super) fn disable(&mut self, id: u32, may: u64) -> Result<Reply, Reply> {
        let next = books().with_unpatching(id, thread::realtime())?;
        direct::demand_stubs(books(), id)?;
        reserve(next.bytes())?;
        barrier()?;
        self.moving = Moving::default();
        self.allow(may);
        machine::begin(self, next)?;
        Ok(self.advance())
    }

    /// Goes on with a transition.
    pub(super) fn go_on(&mut self, transition: u64, may: u64) -> Result<Reply, Reply> {
        self.allow(may);
        match books().transition.first() {
            Some(t) if u64::from(t.id) == transition => Ok(self.advance()),
            _ => Ok(self.state()),
        }
    }

    /// Moves threads that the command has found clear. A transition that has ended meanwhile has none left.
    pub(super) fn move_threads(
        &mut self,
        transition: u64,
        epoch: u64,
        payload: &[u8],
    ) -> Result<Reply, Reply> {
        // After the looks: an object that came before one of them has been counted.
        let complete = BLOCK.late_epoch().load(Ordering::SeqCst) == epoch;
        let running = complete && self.running(transition).is_ok();
        let Some(settling) = self.moving.settling.as_ref().filter(|_| running) else {
            return Ok(Reply::done(0, 0));
        };
        let (moves, rest) = payload.as_chunks::<{ size_of::<Move>() }>();
        if !rest.is_empty() {
            return Err(Reply::refused(error::MALFORMED).with(payload.len() as u64, 0, 0));
        }
        let mut moved = 0u64;
        for bytes in moves {
            // SAFETY: a `Move` is integers, and the chunk is one long.
            let found = unsafe { bytes.as_ptr().cast::<Move>().read_unaligned() };
            moved = moved.saturating_add(u64::from(settling.move_one(found)));
        }
        BLOCK.moved().by_command.fetch_add(moved, Ordering::Relaxed);
        Ok(Reply::done(moved, 0))
    }

    /// Takes a reading of the task directory from outside. The transition may have ended meanwhile.
    pub(super) fn take_reading(&mut self, transition: u64, payload: &[u8]) -> Result<Reply, Reply> {
        if self.running(transition).is_err() {
            return Ok(self.state());
        }
        let (ids, rest) = payload.as_chunks::<4>();
        if !rest.is_empty() {
            return Err(Reply::refused(error::MALFORMED).with(payload.len() as u64, 0, 0));
        }
        let tids = ids.iter().map(|id| u32::from_le_bytes(*id));
        if let Some(settling) = &mut self.moving.settling {
            let failed = |errno: Errno| Reply::refused(error::NO_MEMORY).because(errno);
            self.moving.settled = settling.reading(tids).map_err(failed)?;
        }
        Ok(self.advance())
    }

    /// Turns the transition of a patch round. One that has not started yet, because there was nobody to run its
    /// callbacks, is cancelled.
    pub(super) fn reverse(&mut self, id: u32) -> Result<Reply, Reply> {
        machine::reverse(self, id)?;
        match books().transition.first() {
            Some(t) if t.phase == PHASE_RUNNING => Ok(self.state()),
            _ => Ok(self.advance()),
        }
    }

    /// Moves every thread without a look. The transition completes at the next attempt.
    pub(super) fn force(&mut self, id: u32) -> Result<Reply, Reply> {
        let t = self.transition_of(id)?;
        let ready = slots::ready(books().with_forced()?)?;
        self.commit(ready);
        // So that threads are known.
        self.settle();
        let moved = self.moving.settling.as_mut().map_or(0, Settling::force);
        self.log(word::FORCED, t.patch, 0, moved as u64);
        Ok(self.state())
    }

    /// True while the worker has something to do without a client.
    pub fn is_busy(&self) -> bool {
        !books().transition.is_empty() || host::is_there()
    }

    /// What is due by now: looks at threads, ticks. Gives the nanoseconds until it is to be called again.
    pub fn tick(&mut self) -> u64 {
        const LONG: u64 = 1_000_000_000;
        const SOON: u64 = 1_000_000;
        if !self.is_busy() {
            return LONG;
        }
        if books().transition.is_empty() {
            // It came for a transition that is over.
            host::dismiss(true);
            return SOON;
        }
        let now = thread::monotonic();
        let Pace { tick, look, .. } = self.moving.pace;
        let waits = BLOCK.waits_for().load(Ordering::Relaxed);
        // A host that a command has brought gets its first work when the command is ready to be with it.
        if waits == WAITS_HOST && self.attended {
            return LONG;
        }
        let awaited = matches!(waits, WAITS_HOST | WAITS_CALLBACK) && host::has_news();
        if awaited || now >= tick.min(look) {
            let waits = self.advance_to();
            if waits == Waits::Threads && now >= tick {
                self.failed_attempt(tick);
            }
        }
        let Pace { tick, look, .. } = self.moving.pace;
        tick.min(look).saturating_sub(thread::monotonic()).clamp(10_000, LONG)
    }

    /// Counts a tick at which the transition did not complete.
    fn failed_attempt(&mut self, tick: u64) {
        let before = BLOCK.attempts().fetch_add(1, Ordering::Relaxed);
        let length = u64::from(BLOCK.tick_ms().load(Ordering::Relaxed).max(1)).saturating_mul(1_000_000);
        self.moving.pace.tick = tick.saturating_add(length).max(thread::monotonic());
        if before == STALL
            && let Some(t) = books().transition.first()
        {
            let pending = self.pending() as u64;
            self.log(word::STALLED, t.patch, 0, pending);
        }
    }

    fn allow(&mut self, may: u64) {
        self.moving.may_look = may & MAY_LOOK != 0;
        own::let_all_look(may & ALL_MAY_LOOK != 0);
    }

    fn advance(&mut self) -> Reply {
        self.advance_to();
        self.state()
    }

    fn advance_to(&mut self) -> Waits {
        let started = thread::cpu_time();
        let waits = machine::advance(self);
        BLOCK.waits_for().store(waits.word(), Ordering::Relaxed);
        let busy = thread::cpu_time().saturating_sub(started).saturating_mul(IDLE_SHARE);
        let pace = &mut self.moving.pace;
        pace.looks = pace.looks.saturating_add(1);
        pace.pause = pace.pause.saturating_mul(2).max(FIRST_PAUSE);
        if pace.looks > FAST_LOOKS {
            pace.pause = pace.pause.max(busy);
        }
        pace.look = thread::monotonic().saturating_add(pace.pause);
        waits
    }

    fn pending(&self) -> usize {
        self.moving.settling.as_ref().map_or(0, |s| s.pending().count())
    }

    /// How things stand, as an answer.
    fn state(&self) -> Reply {
        match books().transition.first() {
            Some(t) => {
                let waits = u64::from(BLOCK.waits_for().load(Ordering::Relaxed));
                let results = [u64::from(t.id), waits, self.pending() as u64, u64::from(t.phase)];
                Reply { results, ..Reply::default() }
            }
            None => {
                let (ended, how) = BLOCK.ended();
                Reply { results: [0, u64::from(ended), u64::from(how), 0], ..Reply::default() }
            }
        }
    }

    /// The transition of that number, if threads are moving in it.
    fn running(&self, transition: u64) -> Result<(), Reply> {
        match books().transition.first() {
            Some(t) if u64::from(t.id) == transition && t.phase == PHASE_RUNNING => Ok(()),
            Some(t) => Err(Reply::refused(error::STATE).with(u64::from(t.phase), 0, 0)),
            None => Err(Reply::refused(error::NO_ENTRY).with(transition, 0, 0)),
        }
    }

    /// The transition of a patch, if threads are moving in it.
    fn transition_of(&self, patch: u32) -> Result<TransitionRow, Reply> {
        let found = books().transition.first().copied().filter(|t| t.patch == patch);
        let t = found.ok_or(Reply::refused(error::NO_ENTRY).with(u64::from(patch), 0, 0))?;
        self.running(u64::from(t.id))?;
        Ok(t)
    }

    /// Looks at the threads from in here; true when all are at the goal for good.
    pub(super) fn pass(&mut self, t: &TransitionRow) -> Result<bool, Errno> {
        if !own::is_complete() {
            // An object came: there is more to be searched. Without memory nobody is moved until there is some.
            let again = books().try_clone().map_err(BooksError::from).and_then(slots::ready_to_turn);
            let Ok(ready) = again else { return Ok(false) };
            self.commit(ready);
        }
        let moving = &mut self.moving;
        if moving.settling.as_ref().is_none_or(|s| !s.is_of(t)) {
            moving.settling = Some(Settling::new(t));
        }
        if core::mem::take(&mut moving.settled) {
            return Ok(true);
        }
        if !moving.may_look || has_own_stacks(books(), t) {
            if let Some(settling) = &moving.settling {
                settling.leave_to_command();
            }
            return Ok(false);
        }
        let lookout = match moving.lookout.take() {
            Some(lookout) => lookout,
            None => Lookout::open()?,
        };
        // Also what was begun before a worker that a fork took away.
        let Some(searched) = own::shown(t) else { return Ok(false) };
        let ranges = Ranges::new(searched).map_err(|_| crate::sys::EINVAL)?;
        let Some(settling) = &mut moving.settling else { return Ok(false) };
        let passed = settling.pass(&lookout, &ranges);
        moving.lookout = Some(lookout);
        passed
    }
}

/// The batch of that number, if it is prepared and not begun.
pub fn prepared(books: &Books, id: u32) -> Result<Batch, BooksError> {
    match books.prepared() {
        Some(batch) if batch == Batch(id) => Ok(batch),
        _ => Err(books.patch(id).map_or(BooksError::NoEntry(id), |p| BooksError::State(p.state))),
    }
}
