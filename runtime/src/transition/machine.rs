//! The phases of a transition.
//!
//! ```text
//! init ─ callbacks ─ start ─ threads move ─ completing ─ callbacks ─ done
//!            │                  ↑↓ reverse
//!            └─ fails ─ cancel ─────────────↗
//! ```
//!
//! Pure: what the steps do to the process is behind [`World`]. Each step makes the next books first, which
//! may fail for want of memory, and then commits; a step that failed is taken again at the next occasion.

use crate::books::{Books, BooksError, Job, JobKind, jobs};
use suture_abi::block::{
    ENDED_REVERSED, PATCH_LEAVING, PATCHING, PHASE_COMPLETING, PHASE_INIT, PHASE_RUNNING,
    TRANSITION_CANCELLED, TransitionRow, WAITS_CALLBACK, WAITS_HOST, WAITS_THREADS,
};
use suture_abi::event::word;

/// `ENOMEM`.
const ENOMEM: u32 = 12;
/// `ECANCELED`.
const ECANCELED: u32 = 125;

/// What became of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ran {
    /// It returned this (0 = success).
    Done(u32),
    /// It is running.
    Running,
    /// There is no thread of the program to run it on.
    NoHost,
}

/// What a transition waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waits {
    /// Nothing: there is no transition.
    Nothing,
    /// Threads that are not at the goal.
    Threads,
    /// A thread of the program to run a callback on.
    Host,
    /// A callback that is running.
    Callback,
    /// Memory for the next step.
    Memory,
}

impl Waits {
    /// As the block says it.
    pub fn word(self) -> u32 {
        match self {
            Waits::Nothing | Waits::Memory => 0,
            Waits::Threads => WAITS_THREADS,
            Waits::Host => WAITS_HOST,
            Waits::Callback => WAITS_CALLBACK,
        }
    }
}

/// Why a patch could not start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoStart {
    /// A positive errno: the enable fails with it.
    Refused(u32),
    /// No memory now.
    NoMemory,
}

/// The process, as the machine changes it.
pub trait World {
    /// Books that have their place in memory, with all that showing them needs.
    type Ready;
    /// The current books.
    fn books(&self) -> &Books;
    /// Time for the rows, nanoseconds.
    fn now(&self) -> u64;
    /// Makes books ready.
    fn ready(&mut self, next: Books) -> Result<Self::Ready, BooksError>;
    /// Makes the books ready with which threads begin to move: checks the sites, makes the choices.
    fn ready_to_start(&mut self, next: Books) -> Result<Self::Ready, NoStart>;
    /// Brings every slot to what the books say and shows them.
    fn commit(&mut self, ready: Self::Ready);
    /// As [`World::commit`], after a transition: lets go of what went with it.
    fn finish(&mut self, ready: Self::Ready);
    /// Tries to bring every thread to the goal; true when all are there for good.
    fn settle(&mut self) -> bool;
    /// Runs a job's code, or asks how it is getting on. Once done it answers the same until the next job.
    fn run(&mut self, job: Job) -> Ran;
    /// Frees the shadow variables of a state that has no destructor.
    fn free_shadow(&mut self, id: u64);
    /// Writes an event about a patch.
    fn log(&mut self, word: u32, patch: u32, subject: u64, value: u64);
    /// Says how a transition ended.
    fn ended(&mut self, transition: u32, how: u32);
}

enum Step {
    Again,
    Wait(Waits),
}

type Stepped = Result<Step, BooksError>;

/// Goes on as far as can be.
pub fn advance(world: &mut impl World) -> Waits {
    loop {
        let Some(t) = world.books().transition.first().copied() else { return Waits::Nothing };
        let step = match t.phase {
            PHASE_INIT => before(world, &t),
            PHASE_RUNNING => running(world, &t),
            PHASE_COMPLETING => after(world, &t),
            _ => return Waits::Nothing,
        };
        match step {
            Ok(Step::Again) => {}
            Ok(Step::Wait(waits)) => return waits,
            Err(_) => return Waits::Memory,
        }
    }
}

/// Begins: the events that come first.
pub fn begin(world: &mut impl World, next: Books) -> Result<(), BooksError> {
    let Some(t) = next.transition.first().copied() else { return Ok(()) };
    let ready = world.ready(next)?;
    world.commit(ready);
    if t.begun == PATCHING {
        world.log(word::ENABLE, t.patch, 0, 0);
        world.log(word::INIT_PATCH, t.patch, 0, 0);
    } else {
        world.log(word::INIT_UNPATCH, t.patch, 0, 0);
    }
    Ok(())
}

/// Turns the transition of a patch round, or gives up an enable that has not started because there is nobody
/// to run its callbacks.
///
/// # Errors
/// Threads are not moving, the patch's state forbids it, or there is no memory.
pub fn reverse(world: &mut impl World, patch: u32) -> Result<(), BooksError> {
    let of_patch = |world: &_| World::books(world).transition.first().copied().filter(|t| t.patch == patch);
    let mut t = of_patch(world).ok_or(BooksError::NoEntry(patch))?;
    // A callback that has returned counts, whether that was heard of or not.
    while t.phase == PHASE_INIT {
        match before(world, &t)? {
            Step::Again => t = of_patch(world).ok_or(BooksError::NoEntry(patch))?,
            Step::Wait(Waits::Host) if t.begun == PATCHING => return cancel(world, ECANCELED),
            Step::Wait(_) => break,
        }
    }
    let next = world.books().with_reversed(world.now())?;
    let Some(t) = next.transition.first().copied() else { return Ok(()) };
    let ready = world.ready(next)?;
    world.commit(ready);
    let (reversed, start) = match t.target == PATCHING {
        true => (word::REVERSE_TO_PATCH, word::START_PATCH),
        false => (word::REVERSE_TO_UNPATCH, word::START_UNPATCH),
    };
    world.log(reversed, t.patch, 0, 0);
    world.log(start, t.patch, 0, 0);
    Ok(())
}

fn before(world: &mut impl World, t: &TransitionRow) -> Stepped {
    if let Some(job) = next_job(world.books(), t)? {
        return work(world, job);
    }
    let next = world.books().with_started(world.now())?;
    match world.ready_to_start(next) {
        Ok(ready) => {
            world.commit(ready);
            let start = if t.begun == PATCHING { word::START_PATCH } else { word::START_UNPATCH };
            world.log(start, t.patch, 0, 0);
            Ok(Step::Again)
        }
        Err(NoStart::Refused(errno)) if t.begun == PATCHING => {
            cancel(world, errno)?;
            Ok(Step::Again)
        }
        Err(NoStart::NoMemory) if t.begun == PATCHING => {
            cancel(world, ENOMEM)?;
            Ok(Step::Again)
        }
        Err(_) => Ok(Step::Wait(Waits::Memory)),
    }
}

/// Gives an enable up that has not started.
fn cancel(world: &mut impl World, errno: u32) -> Result<(), BooksError> {
    let Some(t) = world.books().transition.first().copied() else { return Ok(()) };
    let next = world.books().with_cancelled(errno)?;
    let ready = world.ready(next)?;
    world.commit(ready);
    log_cancel(world, t.patch, errno);
    Ok(())
}

fn log_cancel(world: &mut impl World, patch: u32, errno: u32) {
    world.log(word::FAIL, patch, 0, u64::from(errno));
    world.log(word::CANCEL, patch, 0, 0);
    world.log(word::COMPLETING_UNPATCH, patch, 0, 0);
}

fn running(world: &mut impl World, t: &TransitionRow) -> Stepped {
    if !world.settle() {
        return Ok(Step::Wait(Waits::Threads));
    }
    let next = world.books().with_completing()?;
    let ready = world.ready(next)?;
    let completing = if t.target == PATCHING { word::COMPLETING_PATCH } else { word::COMPLETING_UNPATCH };
    world.log(completing, t.patch, 0, 0);
    world.commit(ready);
    Ok(Step::Again)
}

fn after(world: &mut impl World, t: &TransitionRow) -> Stepped {
    if let Some(job) = next_job(world.books(), t)? {
        return work(world, job);
    }
    let next = world.books().with_done(world.now())?;
    let ready = world.ready(next)?;
    let done = if t.target == PATCHING { word::DONE_PATCH } else { word::DONE_UNPATCH };
    let how = match t.flags & TRANSITION_CANCELLED != 0 {
        true => t.error,
        false if t.target != t.begun => ENDED_REVERSED,
        false => 0,
    };
    // The rows are gone afterwards, the events still name them.
    world.log(done, t.patch, 0, 0);
    for at in 0.. {
        let Some(patch) = world.books().patches.get(at).copied() else { break };
        if patch.state == PATCH_LEAVING {
            world.log(word::GONE, patch.id, 0, 0);
        }
    }
    world.finish(ready);
    world.ended(t.id, how);
    Ok(Step::Again)
}

fn next_job(books: &Books, t: &TransitionRow) -> Result<Option<Job>, BooksError> {
    Ok(jobs(books)?.get(t.callbacks_done as usize).copied())
}

fn work(world: &mut impl World, job: Job) -> Stepped {
    let Some(state) = world.books().states.get(job.state).copied() else {
        return Err(BooksError::NoEntry(0));
    };
    let code = job.code(world.books());
    let errno = match code {
        0 => 0,
        _ => match world.run(job) {
            Ran::Done(errno) => errno,
            Ran::Running => return Ok(Step::Wait(Waits::Callback)),
            Ran::NoHost => return Ok(Step::Wait(Waits::Host)),
        },
    };
    let failed = job.kind == JobKind::PrePatch && errno != 0;
    let mut next = world.books().with_callback(job.state, job.marks(failed))?;
    if failed {
        // In one step with the mark: a failure that is noted and not acted on would be forgotten.
        next = next.with_cancelled(errno)?;
    }
    let ready = world.ready(next)?;
    if code == 0 && job.kind == JobKind::FreeShadow {
        world.free_shadow(state.plan.id);
    }
    world.commit(ready);
    // The destructor's events are written one by one as it runs.
    if code != 0 && job.kind != JobKind::FreeShadow {
        world.log(job.kind.word(), state.patch, state.plan.id, u64::from(errno));
    }
    if failed {
        log_cancel(world, state.patch, errno);
    }
    Ok(Step::Again)
}

#[cfg(test)]
mod tests;
