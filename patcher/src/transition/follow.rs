//! From a transition that has begun to its end, or to the end of patience.
//!
//! Between two looks the process is left alone, so that other commands (`reverse`, `force`, `status`) have
//! their turn. Only the looks themselves are made with the process to oneself.

use super::hands::Hands;
use super::late::Late;
use super::look::{Blocker, Looker, Seen, Why};
use super::looks::Looks;
use super::threads::{self, Thread};
use crate::context::Context;
use crate::direct;
use crate::error::Error;
use crate::host;
use crate::session::Session;
use crate::sys::time::Deadline;
use crate::target::{Target, books};
use crate::view::Cache;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use suture_abi::block::{
    ENDED_REVERSED, PATCHING, PHASE_INIT, TransitionRow, WAITS_CALLBACK, WAITS_HOST, WAITS_THREADS,
};
use suture_abi::channel::{Move, op};
use suture_elf::Addr;

/// How long a transition is followed.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// Until then; `None` = for ever.
    pub until: Option<Deadline>,
}

/// How a transition ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// At its goal.
    Done,
    /// It was turned round by somebody and ended where it began.
    Reversed,
    /// It failed with this errno before any thread moved.
    Failed(u32),
}

/// What following a transition came to.
#[derive(Clone, Debug, Default)]
pub struct Followed {
    /// How it ended; `None` = it goes on.
    pub ended: Option<Ended>,
    /// Who holds it up, when it goes on.
    pub blockers: Vec<Blocker>,
    /// Threads that were stopped for a look.
    pub stops: u32,
    /// For how long in all.
    pub held: Duration,
    /// What the looks came to.
    pub looks: Looks,
    /// What it waits for that is not a thread: a host, or a callback.
    pub waiting: Option<String>,
}

/// State of a transition as the worker answers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State([u64; 4]);

impl State {
    /// Takes an answer.
    #[must_use]
    pub fn new(results: [u64; 4]) -> Self {
        Self(results)
    }

    /// Number of the transition that is going on, or of the one that has just ended.
    #[must_use]
    pub fn transition(&self) -> u32 {
        let [now, ended, ..] = self.0;
        u32::try_from(if now != 0 { now } else { ended }).unwrap_or(0)
    }

    /// How the transition of that number ended, if it did.
    #[must_use]
    pub fn ended(&self, transition: u32) -> Option<Ended> {
        match self.0 {
            [0, number, how, _] if number == u64::from(transition) => Some(ended(how as u32)),
            // Another transition ended since: this one is over, too, and nobody knows how.
            [0, ..] => Some(Ended::Done),
            [now, ..] if now != u64::from(transition) => Some(Ended::Done),
            _ => None,
        }
    }

    /// What it waits for (`WAITS_*`).
    #[must_use]
    pub fn waits_for(&self) -> u32 {
        self.0[1] as u32
    }
}

fn ended(how: u32) -> Ended {
    match how {
        0 => Ended::Done,
        ENDED_REVERSED => Ended::Reversed,
        errno => Ended::Failed(errno),
    }
}

/// Times one help goes from callbacks to threads and back, at most.
const TURNS: u32 = 8;

/// Helps a transition along with the process to oneself: runs its callbacks, looks at everybody the worker has left,
/// once. `Ok(None)`: it goes on. With `stop` threads that run are stopped for a look.
///
/// # Errors
/// When the process or its worker is gone, or there is nobody to run the callbacks with which it would begin.
pub fn help<'t>(
    session: &mut Session<'t>,
    transition: u32,
    context: &Context<'_>,
    until: Option<Deadline>,
    stop: bool,
    hands: &mut Hands<'t>,
    found: &mut Followed,
) -> Result<Option<Ended>, Error> {
    hands.guard(session.target, session.block)?;
    let mut state = advance(session, transition)?;
    for _ in 0..TURNS {
        // Lets a borrowed host go that has left: it is to be looked at like everybody.
        hands.guard(session.target, session.block)?;
        if let Some(ended) = state.ended(transition) {
            return Ok(Some(ended));
        }
        match state.waits_for() {
            WAITS_HOST | WAITS_CALLBACK => {
                state = run_callbacks(session, transition, state, context, until, hands, found)?;
                if matches!(state.waits_for(), WAITS_HOST | WAITS_CALLBACK)
                    && state.ended(transition).is_none()
                {
                    return Ok(None);
                }
            }
            WAITS_THREADS if session.let_all_look()? => state = advance(session, transition)?,
            WAITS_THREADS => match help_threads(session, transition, context.cache, stop, hands, found)? {
                Some(next) => state = next,
                None => return Ok(None),
            },
            _ => return Ok(None),
        }
    }
    Ok(None)
}

fn advance(session: &mut Session<'_>, transition: u32) -> Result<State, Error> {
    let go_on = [u64::from(transition), session.may, 0, 0];
    Ok(State::new(session.expect("the transition", op::ADVANCE, go_on, &[])?))
}

/// Brings a host where one is needed, and is with it until no callback is left, or one does not come to its end in
/// time.
fn run_callbacks<'t>(
    session: &mut Session<'t>,
    transition: u32,
    mut state: State,
    context: &Context<'_>,
    until: Option<Deadline>,
    hands: &mut Hands<'t>,
    found: &mut Followed,
) -> Result<State, Error> {
    let (target, block) = (session.target, session.block);
    while state.ended(transition).is_none() {
        match state.waits_for() {
            WAITS_HOST => {
                if let Err(error) = provide(session, context.cache, hands) {
                    let Error::NoHost { why, .. } = &error else { return Err(error) };
                    give_up_start(session, transition, why)?;
                    found.waiting = Some(error.to_string());
                    return Ok(state);
                }
                hands.guard(target, block)?;
            }
            WAITS_CALLBACK => {
                let until = until.unwrap_or(Deadline::after(A_TURN));
                let soon = until.at_most(A_TURN);
                if !hands.guard(target, block)?.await_callback(soon, context.interrupted)? {
                    found.waiting = host::at_work(target, block)?.map(|c| c.to_string());
                    return Ok(state);
                }
            }
            _ => break,
        }
        found.waiting = None;
        state = advance(session, transition)?;
    }
    Ok(state)
}

/// Brings a host; the only thread of a program may have been it before.
fn provide(session: &mut Session<'_>, cache: &Cache, hands: &mut Hands<'_>) -> Result<(), Error> {
    hands.leave_host();
    host::provide(session, cache)
}

/// How long a callback is waited for at a time; between two times other commands have their turn.
const A_TURN: Duration = Duration::from_secs(1);

/// An enable whose callbacks nobody can run is taken back before it begins.
fn give_up_start(session: &mut Session<'_>, transition: u32, why: &str) -> Result<(), Error> {
    let now = books::read(session.target, session.block)?.transition;
    let begins = |t: &TransitionRow| t.id == transition && t.phase == PHASE_INIT && t.begun == PATCHING;
    let Some(t) = now.filter(begins) else { return Ok(()) };
    session.expect("taking the patch back", op::REVERSE, [u64::from(t.patch), 0, 0, 0], &[])?;
    Err(Error::NoHost { pid: session.target.pid(), why: why.to_owned() })
}

/// Looks at everybody the worker has left; how things stand when nobody is left.
fn help_threads(
    session: &mut Session<'_>,
    transition: u32,
    cache: &Cache,
    stop: bool,
    hands: &mut Hands<'_>,
    found: &mut Followed,
) -> Result<Option<State>, Error> {
    let target = session.target;
    let books = books::read(target, session.block)?;
    let Some(mut looker) = Looker::new(target, &books, cache)? else { return Ok(None) };
    let worker = books.worker;
    // A process that cannot read its own directory is told; the worker closes when nothing new comes up.
    for _ in 0..6 {
        let seen = threads::read(target, worker)?;
        let state = tell(session, transition, &seen)?;
        if state.ended(transition).is_some() || state.waits_for() != WAITS_THREADS {
            return Ok(Some(state));
        }
        found.blockers.clear();
        look_at(&mut looker, session, transition, &seen, stop.then_some(&mut hands.late), found)?;
        found.stops += std::mem::take(&mut looker.stops);
        found.held += std::mem::take(&mut looker.held);
        found.looks.add(looker.looks.take());
        if !found.blockers.is_empty() {
            return Ok(None);
        }
    }
    Ok(None)
}

fn tell(session: &mut Session<'_>, transition: u32, threads: &[Thread]) -> Result<State, Error> {
    let payload: Vec<u8> = threads.iter().flat_map(|t| t.own.to_le_bytes()).collect();
    let args = [u64::from(transition), 0, 0, 0];
    Ok(State::new(session.expect("telling threads", op::TASKS, args, &payload)?))
}

fn bytes(found: &Move) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&found.tid.to_le_bytes());
    bytes[8..].copy_from_slice(&found.seen.to_le_bytes());
    bytes
}

/// Looks at every thread that is not at the goal and moves those that are clear.
fn look_at(
    looker: &mut Looker<'_>,
    session: &mut Session<'_>,
    transition: u32,
    seen: &[Thread],
    stop: Option<&mut Late>,
    found: &mut Followed,
) -> Result<(), Error> {
    let mut moves = Vec::new();
    let mut running = Vec::new();
    for &thread in seen {
        match looker.look(thread) {
            Seen::Clear(clear) => moves.push(clear),
            Seen::Held(Why::Running | Why::Unreliable(_)) if stop.is_some() => running.push(thread),
            Seen::Held(why) => found.blockers.push(Blocker::new(looker.pid(), thread, &why)),
            Seen::There | Seen::Gone => {}
        }
    }
    let epoch = looker.epoch;
    move_all(session, transition, epoch, &moves)?;
    let Some(late) = stop else { return Ok(()) };
    late.let_go();
    for thread in running {
        let mut verdict = Seen::Gone;
        // A thread that is hardly ever outside of what is searched may be caught there at another instant.
        for _ in 0..STOPS {
            let deadline = Deadline::after(Duration::from_millis(200));
            let mut move_it = |clear: Move| Ok(move_all(session, transition, epoch, &[clear])? == 1);
            verdict = looker.stop_and_move(thread, deadline, late, &mut move_it)?;
            if !matches!(verdict, Seen::Held(Why::OnStack { .. } | Why::Running)) {
                break;
            }
        }
        if let Seen::Held(why) = verdict {
            found.blockers.push(Blocker::new(looker.pid(), thread, &why));
        }
    }
    Ok(())
}

/// Times a running thread is stopped in one round of looks, at most.
const STOPS: u32 = 5;

/// Has the worker move threads; how many it did move.
fn move_all(session: &mut Session<'_>, transition: u32, epoch: u64, moves: &[Move]) -> Result<u64, Error> {
    if moves.is_empty() {
        return Ok(0);
    }
    let payload: Vec<u8> = moves.iter().flat_map(bytes).collect();
    Ok(session.expect("moving threads", op::MOVE, [u64::from(transition), epoch, 0, 0], &payload)?[0])
}

/// Looks that are at most [`BRISK`] apart.
const FAST_LOOKS: u32 = 30;
/// See [`FAST_LOOKS`].
const BRISK: Duration = Duration::from_millis(100);

/// Follows a transition to its end.
///
/// # Errors
/// When the process is gone, or cannot be entered any more.
pub fn follow<'t>(
    target: &'t Target,
    block: Addr,
    transition: u32,
    patience: Patience,
    context: &Context<'_>,
    hands: &mut Hands<'t>,
) -> Result<Followed, Error> {
    let interrupted = context.interrupted;
    let mut found = Followed::default();
    let mut pause = Duration::from_millis(1);
    let mut looks = 0u32;
    loop {
        let books = books::read(target, block)?;
        (context.progress)(&books);
        if books.transition.is_none_or(|t| t.id != transition) {
            let (number, how) = books.ended;
            found.ended = Some(if number == transition { ended(how) } else { Ended::Done });
            found.blockers.clear();
            return Ok(found);
        }
        let over = patience.until.is_some_and(Deadline::passed) || interrupted.load(Ordering::Relaxed);
        if over && looks > 0 {
            return Ok(found);
        }
        let alone = crate::target::lock::Exclusive::take(target)?;
        let mut session = Session::open(target)?;
        let ended = help(&mut session, transition, context, patience.until, true, hands, &mut found)?;
        if ended.is_some() {
            // Now that a worker is there; without one a thread would have to be stopped for it.
            let _ = direct::make_direct(&mut session);
        }
        session.close()?;
        drop(alone);
        looks += 1;
        if let Some(ended) = ended {
            found.ended = Some(ended);
            found.blockers.clear();
            return Ok(found);
        }
        if found.waiting.is_none() && !context.wait.for_threads {
            return Ok(found);
        }
        // Fast at first; a transition that is held up is looked at once a second.
        pause = (pause * 2).min(if looks < FAST_LOOKS { BRISK } else { Duration::from_secs(1) });
        await_end(target, block, transition, pause, interrupted, hands)?;
    }
}

/// Waits until the transition ends by itself, or for `pause`.
fn await_end(
    target: &Target,
    block: Addr,
    transition: u32,
    pause: Duration,
    interrupted: &AtomicBool,
    hands: &mut Hands<'_>,
) -> Result<(), Error> {
    let deadline = Deadline::after(pause);
    let ended = std::mem::offset_of!(suture_abi::block::RuntimeBlock, ended);
    let mut nap = Duration::from_micros(100);
    while !deadline.passed() && !interrupted.load(Ordering::Relaxed) {
        if books::word(target, block, ended)? == transition {
            return Ok(());
        }
        hands.attend()?;
        // Nothing in the target says when it ends; a look at one word costs a microsecond.
        std::thread::sleep(nap.min(deadline.left()));
        nap = (nap * 2).min(Duration::from_millis(5));
    }
    Ok(())
}
