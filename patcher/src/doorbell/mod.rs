//! Ringing the doorbell: one thread makes the worker, and goes on as if nothing had happened.
//!
//! The stop is as short as it can be: everything is chosen and computed before, the thread gets a
//! frame below its red zone (`suture_abi::doorbell`) and is let go into the runtime's entry, which
//! does one raw clone and leaves. Nobody waits for it.
//!
//! Order matters for the case that this process dies between two steps ([`hold`]):
//! 1. a result of −EINTR becomes −ERESTARTNOHAND, so that a plain detach restarts the call;
//! 2. the frame is written (memory below the red zone: nobody reads it);
//! 3. registers are set — from here the entry finishes the job by itself;
//! 4. signals are blocked, for the few microseconds the entry needs; it puts the mask back;
//! 5. a limit on threads is lifted, if it has to be; the entry puts it back too;
//! 6. detach.

pub mod choose;
mod filters;
mod frame;
mod hold;
mod timeout;

use crate::error::Error;
use crate::sys::limits::ThreadLimit;
use crate::sys::proc::{self, ThreadFacts};
use crate::sys::ptrace::{Registers, StopError, StoppedThread};
use crate::sys::time::{Backoff, Deadline};
use crate::target::watch::Watch;
use crate::target::{Target, books, condition};
use choose::Candidates;
use filters::Filters;
use hold::Held;
pub use hold::hide;
use std::collections::HashMap;
use std::mem::offset_of;
use std::time::{Duration, Instant};
use suture_abi::block::RuntimeBlock;
use suture_elf::{Addr, Memory};

/// How long one thread is waited for before another one is asked as well.
const ONE_THREAD: Duration = Duration::from_millis(500);
/// How long a process may have no thread that could be asked at all: its only one waits for a child made by
/// vfork, say.
const NO_THREAD: Duration = Duration::from_secs(2);

/// What ringing cost the program.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ring {
    /// Thread that was stopped.
    pub tid: i32,
    /// From the request to stop until it was let go.
    pub held: Duration,
    /// From the request to stop until it was seen asleep in its call again, if it was.
    pub away: Option<Duration>,
    /// Threads that were stopped and let go again unused.
    pub tries: u32,
    /// Where its frame was written.
    pub frame: u64,
}

impl Ring {
    /// Threads that were stopped in all: 0 when what was to be done had been left by a command that
    /// died.
    #[must_use]
    pub fn stops(&self) -> u32 {
        if self.tid == 0 { 0 } else { self.tries + 1 }
    }
}

/// What a borrowed thread is sent to do.
#[derive(Clone, Copy, Debug)]
pub struct Errand {
    /// Code that begins with `suture_abi::doorbell_head` and ends with `doorbell_return`.
    pub entry: u64,
    /// A limit on threads to be lifted meanwhile.
    pub lift: Option<ThreadLimit>,
}

/// Does what makes a thread in the process; where a limit on threads is in the way, once more with the
/// limit lifted for the moment.
///
/// # Errors
/// Those of `work`.
pub fn with_a_thread<T>(work: impl Fn(Option<ThreadLimit>) -> Result<T, Error>) -> Result<T, Error> {
    match work(None) {
        Err(Error::NoThread { pid, errno }) if errno == libc::EAGAIN => match ThreadLimit::of(pid) {
            Some(limit) => work(Some(limit)),
            None => Err(Error::NoThread { pid, errno }),
        },
        other => other,
    }
}

/// Makes the worker. On return the clone was made or an error says why not.
///
/// # Errors
/// As [`borrow`], or no thread can be made in the process.
pub fn ring(target: &Target, block: Addr, errand: Errand, deadline: Deadline) -> Result<Ring, Error> {
    let ring = borrow(target, errand, deadline)?;
    await_worker(target, block, deadline)?;
    Ok(ring)
}

/// Sends one thread on an errand.
///
/// The calling thread should end soon after: threads of the program that were asked to stop and have not yet
/// are forgotten with it, else they would stop later with nobody there to let them go (`run::on_each`).
///
/// # Errors
/// No thread could be stopped, the process is stopped or gone.
pub fn borrow(target: &Target, errand: Errand, deadline: Deadline) -> Result<Ring, Error> {
    condition::check_now(target)?;
    Attempt::new(target, Some(errand), &Anywhere).run(deadline)
}

/// Sends one thread on an errand, from a place of a certain kind.
///
/// # Errors
/// As [`borrow`]; [`Error::Unreachable`] says what the threads were doing instead.
pub fn borrow_at(
    target: &Target,
    errand: Errand,
    place: &dyn Place,
    deadline: Deadline,
) -> Result<Ring, Error> {
    condition::check_now(target)?;
    Attempt::new(target, Some(errand), place).run(deadline)
}

/// What an errand asks of the place a thread is sent from, beyond what every errand does.
pub trait Place {
    /// Why a thread is not at such a place, as far as that is known without a stop.
    fn unfit(&self, thread: &ThreadFacts) -> Option<&'static str>;
    /// Why a stopped thread is not at such a place.
    fn refusal(&self, regs: &Registers) -> Option<&'static str>;
}

/// The runtime's own entries can be reached from everywhere.
struct Anywhere;

impl Place for Anywhere {
    fn unfit(&self, _: &ThreadFacts) -> Option<&'static str> {
        None
    }

    fn refusal(&self, _: &Registers) -> Option<&'static str> {
        None
    }
}

/// Whether some thread's filters would let an errand through, to be asked before anything is written. A
/// thread that has filters is stopped for a moment to read them. Gives whether it has any.
///
/// # Errors
/// As [`borrow`].
pub fn check_filters(target: &Target, deadline: Deadline) -> Result<bool, Error> {
    let fit = choose::candidates(target.pid(), &Anywhere)?.fit;
    if fit.first().is_none_or(|(_, thread)| proc::seccomp_mode(thread.tid) == Some(0)) {
        return Ok(false);
    }
    Attempt::new(target, None, &Anywhere).run(deadline).map(|_| true)
}

/// The search for a thread.
struct Attempt<'t> {
    target: &'t Target,
    /// Nothing: only filters are looked at.
    errand: Option<Errand>,
    place: &'t dyn Place,
    filters: Filters,
    /// Threads that were asked to stop and have not yet.
    asked: HashMap<i32, StoppedThread>,
    tries: u32,
    /// Why threads could not be used, in the newest round.
    unfit: Vec<&'static str>,
    /// The last thing that the kernel refused, in the newest round.
    refused: Option<std::io::Error>,
    /// When there was a thread that could be asked.
    seen: Instant,
}

impl<'t> Attempt<'t> {
    fn new(target: &'t Target, errand: Option<Errand>, place: &'t dyn Place) -> Self {
        let filters = Filters::new(errand.is_some_and(|errand| errand.lift.is_some()));
        Self {
            target,
            errand,
            place,
            filters,
            asked: HashMap::new(),
            tries: 0,
            unfit: Vec::new(),
            refused: None,
            seen: Instant::now(),
        }
    }

    fn run(&mut self, deadline: Deadline) -> Result<Ring, Error> {
        let mut backoff = Backoff::default();
        let found = loop {
            match self.round(deadline) {
                Ok(Some(ring)) => break Ok(ring),
                Ok(None) if deadline.passed() || self.seen.elapsed() > NO_THREAD => {
                    break Err(self.unreachable());
                }
                Ok(None) => backoff.pause(),
                Err(error) => break Err(error),
            }
        };
        self.forget();
        found
    }

    /// Asks every thread once.
    fn round(&mut self, deadline: Deadline) -> Result<Option<Ring>, Error> {
        let Candidates { fit, unfit } = choose::candidates(self.target.pid(), self.place)?;
        (self.unfit, self.refused) = (unfit, None);
        let mut all_filtered = !fit.is_empty();
        if !fit.is_empty() {
            self.seen = Instant::now();
        }
        for (rank, thread) in fit {
            if self.filters.refusal(thread.tid).is_some() {
                continue;
            }
            all_filtered = false;
            let errand = Held { target: self.target, errand: self.errand, place: self.place, rank, thread };
            match errand.send(&mut self.filters, &mut self.asked, deadline) {
                Ok(hold::Done::Sent { held, away, frame }) => {
                    let tries = self.tries;
                    return Ok(Some(Ring { tid: thread.tid, held, away, tries, frame }));
                }
                Ok(hold::Done::Unfit(why)) => {
                    self.tries += 1;
                    self.unfit.push(why);
                }
                Err(StopError::Gone) => self.tries += 1,
                Err(StopError::Stopped) => condition::check_runs(self.target)?,
                Err(StopError::Os(e)) => self.refused = Some(e),
            }
            if deadline.passed() {
                break;
            }
        }
        self.target.still_there()?;
        match (all_filtered, self.filters.any_refusal()) {
            (true, Some(refusal)) => Err(refusal.error(self.target)),
            _ => Ok(None),
        }
    }

    /// Why no thread could be had.
    fn unreachable(&mut self) -> Error {
        // Else it would seem to be traced: by us.
        self.forget();
        if let Err(error) = condition::check(self.target) {
            return error;
        }
        match self.refused.take() {
            Some(refused) => self.refusal_of_kernel(&refused),
            None => {
                Error::Unreachable { pid: self.target.pid(), tries: self.tries, why: counted(&self.unfit) }
            }
        }
    }

    /// A tracer may sit on some of the threads only.
    fn refusal_of_kernel(&self, refused: &std::io::Error) -> Error {
        let pid = self.target.pid();
        let threads = proc::threads(pid).unwrap_or_default();
        let tracer = threads.into_iter().filter_map(|tid| proc::facts(tid).ok());
        match tracer.map(|f| f.tracer).find(|tracer| *tracer != 0) {
            Some(tracer) => condition::traced(pid, tracer),
            None => Error::from_proc(pid, refused),
        }
    }

    /// Lets go of threads that stop soon after they were asked: most were asked just before the time was over.
    fn forget(&mut self) {
        let deadline = Deadline::after(Duration::from_millis(50));
        for (_, mut thread) in self.asked.drain() {
            if thread.await_stop(deadline).is_ok_and(|stopped| stopped) {
                // When it cannot be hidden the thread is dead.
                let _ = hold::hide(&thread);
            }
        }
    }
}

/// Reasons with how often each occurred.
fn counted(reasons: &[&'static str]) -> String {
    let mut counts: Vec<(&str, usize)> = Vec::new();
    for reason in reasons {
        match counts.iter_mut().find(|(r, _)| r == reason) {
            Some((_, n)) => *n += 1,
            None => counts.push((reason, 1)),
        }
    }
    let words: Vec<String> = counts.iter().map(|(reason, n)| format!("{n} {reason}")).collect();
    if words.is_empty() { "none was seen twice".into() } else { words.join(", ") }
}

/// The errno an entry left in its frame under the given mark. Only to be asked soon after: the
/// memory is below the thread's stack, and its own again.
#[must_use]
pub fn note(target: &Target, ring: &Ring, mark: u64) -> Option<i32> {
    let note = target.memory.read_u64(Addr(ring.frame)).ok()?;
    (note >> 32 == mark).then_some((note & 0xffff_ffff) as i32)
}

/// Waits until the entry's clone has happened, or failed.
fn await_worker(target: &Target, block: Addr, deadline: Deadline) -> Result<(), Error> {
    let pid = target.pid();
    let mut watch = Watch::new(target, deadline);
    loop {
        let errno = books::word(target, block, offset_of!(RuntimeBlock, clone_errno))?;
        if errno != 0 {
            return Err(Error::NoThread { pid, errno: errno.cast_signed() });
        }
        let worker = books::word(target, block, offset_of!(RuntimeBlock, worker))?;
        // A worker that could not make its channel may have come and gone already.
        let gone = books::word(target, block, offset_of!(RuntimeBlock, worker_errno))? != 0;
        if gone || !matches!(worker, 0 | u32::MAX) {
            return Ok(());
        }
        if !watch.pause()? {
            return Err(Error::NoAnswer { pid, what: "the doorbell" });
        }
    }
}
