//! What apply, disable, reverse and force have in common: a transition that was begun is seen to its end.

use crate::channel::Refusal;
use crate::commit::restore_all;
use crate::context::Context;
use crate::direct;
use crate::disable::{idle, idle_sites};
use crate::drain::{self, Drained};
use crate::error::Error;
use crate::session::{Session, explain};
use crate::sys::time::Deadline;
use crate::target::lock::Exclusive;
use crate::target::{Target, books};
use crate::transition::follow::{State, help};
use crate::transition::looks::{Looks, MovedBy};
use crate::transition::{Blocker, Ended, Followed, Hands, Patience, follow};
use serde::Serialize;
use std::time::Duration;
use suture_abi::channel::{error, op};
use suture_elf::Addr;

/// How far a transition came while the command watched.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Moved {
    /// Every thread is where it is to be.
    pub finished: bool,
    /// Threads that hold the transition up.
    pub blockers: Vec<Blocker>,
    /// What else it waits for: a callback that runs, a thread to run one on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waiting: Option<String>,
    /// Threads that were stopped for a look.
    pub looks_with_stop: u32,
    /// Microseconds they were held, in all.
    pub look_held_us: u64,
    /// What the command's looks came to.
    pub looks: Looks,
    /// How the threads came to the other side, when it is over.
    pub moved_by: Option<MovedBy>,
    /// Entries that got the file's bytes back.
    pub restored: usize,
    /// Entries that keep somebody else's byte (a probe or breakpoint); ours goes when it goes.
    pub left: usize,
    /// Images of patches that have gone: unmapped by this command.
    pub images_unmapped: usize,
    /// Images of patches that have gone: still mapped.
    pub images_left: usize,
}

/// Rounds of looks in the session that begins a transition; in the last one threads are stopped for it.
const ROUNDS: u32 = 3;
/// Pause between them.
const ROUND: Duration = Duration::from_micros(500);
/// How long a transition that is turned round at the end of patience is waited for.
const WAY_BACK: Duration = Duration::from_secs(30);

/// Sees a transition to its end, tidies up and ends the session. `name` is the patch's.
///
/// # Errors
/// The patch failed or was turned round, or the process is gone.
pub fn see_through(
    mut session: Session<'_>,
    alone: Exclusive,
    transition: u32,
    state: State,
    name: &str,
    context: &Context<'_>,
) -> Result<Moved, Error> {
    let (target, block) = (session.target, session.block);
    let until = context.wait.timeout.map(Deadline::after);
    let mut found = Followed { ended: state.ended(transition), ..Followed::default() };
    let mut hands = Hands::default();
    if !context.wait.no_wait && found.ended.is_none() {
        help_fast(&mut session, transition, context, until, &mut hands, &mut found)?;
    }
    if found.ended.is_some() {
        hands.leave_host();
        let tidied = Tidied::now(&mut session, context)?;
        session.close()?;
        return judge(target, block, name, found, tidied);
    }
    session.close()?;
    drop(alone);
    let at_threads = found.waiting.is_none();
    if context.wait.no_wait || at_threads && !context.wait.for_threads {
        return judge(target, block, name, found, Tidied::default());
    }
    let patience = Patience { until };
    let mut after = follow(target, block, transition, patience, context, &mut hands)?;
    after.stops += found.stops;
    after.held += found.held;
    after.looks.add(found.looks);
    let over = until.is_some_and(Deadline::passed) && after.ended.is_none();
    if over && context.wait.reverse {
        let blockers = std::mem::take(&mut after.blockers);
        turn_round(target, transition)?;
        let patience = Patience { until: Some(Deadline::after(WAY_BACK)) };
        let back = follow(target, block, transition, patience, context, &mut hands)?;
        hands.leave_host();
        if back.ended.is_some() {
            Tidied::later(target, context)?;
            return Err(Error::TimedOut { pid: target.pid(), name: name.to_owned(), blockers });
        }
        after = back;
    }
    hands.leave_host();
    let tidied = if after.ended.is_some() { Tidied::later(target, context)? } else { Tidied::default() };
    judge(target, block, name, after, tidied)
}

/// Most threads are moved at once, some have to be met asleep, the rest runs all the time.
fn help_fast<'t>(
    session: &mut Session<'t>,
    transition: u32,
    context: &Context<'_>,
    until: Option<Deadline>,
    hands: &mut Hands<'t>,
    found: &mut Followed,
) -> Result<(), Error> {
    for round in 0..ROUNDS {
        if round > 0 {
            std::thread::sleep(ROUND);
        }
        let stop = round + 1 == ROUNDS;
        found.ended = help(session, transition, context, until, stop, hands, found)?;
        if found.ended.is_some() || found.waiting.is_some() {
            break;
        }
    }
    Ok(())
}

/// Helps a transition that somebody else has begun, and that may be over at once: a forked child's, which has no
/// worker, or one that nobody looked after. Gives the books as they are then. The caller is alone with the
/// process.
///
/// # Errors
/// When the process is gone, or cannot be entered.
pub fn help_along(target: &Target, transition: u32, context: &Context<'_>) -> Result<books::Books, Error> {
    let mut session = Session::open(target)?;
    let mut hands = Hands::default();
    help_fast(&mut session, transition, context, None, &mut hands, &mut Followed::default())?;
    Tidied::now(&mut session, context)?;
    let now = books::read(target, session.block)?;
    session.close()?;
    Ok(now)
}

fn turn_round(target: &Target, transition: u32) -> Result<(), Error> {
    let _alone = Exclusive::take(target)?;
    let mut session = Session::open(target)?;
    let now = books::read(target, session.block)?.transition.filter(|t| t.id == transition);
    let reversed =
        now.map(|t| session.request(op::REVERSE, [u64::from(t.patch), 0, 0, 0], &[])).transpose()?;
    session.close()?;
    match reversed {
        // It is over, or cannot be turned round while a callback runs.
        None | Some(Ok(_)) | Some(Err(Refusal { code: error::CALLBACK | error::STATE, .. })) => Ok(()),
        Some(Err(refusal)) => {
            Err(explain(target, "reversing", crate::channel::RequestError::Refused(refusal)))
        }
    }
}

/// Gives entries that no function is on their old bytes back: how many did, and how many could not.
///
/// # Errors
/// When a store fails or the worker is gone.
pub fn tidy(session: &mut Session<'_>) -> Result<(usize, usize), Error> {
    let idle = idle_sites(session)?;
    if idle.is_empty() {
        return Ok((0, 0));
    }
    let left = restore_all(session, &idle)?;
    Ok((idle.len() - left, left))
}

/// What was put away after a transition.
#[derive(Clone, Copy, Debug, Default)]
struct Tidied {
    restored: usize,
    left: usize,
    images: Drained,
}

impl Tidied {
    fn now(session: &mut Session<'_>, context: &Context<'_>) -> Result<Self, Error> {
        let (restored, left) = tidy(session)?;
        // The transition is over, whatever this comes to: what stays is tried again by the next command.
        let images = drain::drain(session, context.cache).unwrap_or_default();
        let _ = direct::make_direct(session);
        Ok(Self { restored, left, images })
    }

    /// The same, of a process that was left alone meanwhile.
    fn later(target: &Target, context: &Context<'_>) -> Result<Self, Error> {
        let _alone = Exclusive::take(target)?;
        let block = crate::target::runtime::block(target)?;
        let now = books::read(target, block)?;
        if idle(&now).next().is_none() && !drain::has_open(&now) {
            return Ok(Self::default());
        }
        let mut session = Session::open(target)?;
        let tidied = Self::now(&mut session, context)?;
        session.close()?;
        Ok(tidied)
    }
}

fn judge(target: &Target, block: Addr, name: &str, found: Followed, tidied: Tidied) -> Result<Moved, Error> {
    let Tidied { restored, left, images } = tidied;
    let (pid, name) = (target.pid(), name.to_owned());
    match found.ended {
        Some(Ended::Failed(errno)) => Err(Error::Failed { pid, name, errno: errno.cast_signed() }),
        Some(Ended::Reversed) => Err(Error::Reversed { pid, name, restored, left }),
        ended => Ok(Moved {
            looks: found.looks,
            // Only a figure: not worth an error when the process has ended just now.
            moved_by: ended.and_then(|_| books::moved(target, block).ok()).map(MovedBy::from),
            finished: ended.is_some(),
            blockers: found.blockers,
            waiting: found.waiting,
            looks_with_stop: found.stops,
            look_held_us: crate::disable::micros(found.held),
            restored,
            left,
            images_unmapped: images.unmapped,
            images_left: images.left,
        }),
    }
}
