//! Taking a patch back, turning its transition round, forcing it.

use crate::channel::RequestError;
use crate::context::Context;
use crate::description::Description;
use crate::direct;
use crate::error::Error;
use crate::names;
use crate::operation::{Moved, help_along, see_through};
use crate::session::{Session, explain};
use crate::target::books::Books;
use crate::target::lock::Exclusive;
use crate::target::{Target, books, runtime};
use crate::transition::follow::State;
use serde::Serialize;
use std::time::Instant;
use suture_abi::block::{PATCHING, PHASE_COMPLETING, PHASE_INIT, SITE_ARMED, SiteRow, UNPATCHING};
use suture_abi::channel::{error, op};

/// What a disable, reverse or force did.
#[derive(Clone, Debug, Serialize)]
pub struct Disabled {
    /// Patch name.
    pub patch: String,
    /// Its functions.
    pub functions: usize,
    /// Microseconds the borrowed thread was held.
    pub held_us: u64,
    /// Microseconds until it was seen asleep in its call again, if it was.
    pub away_us: Option<u64>,
    /// Threads that were stopped for the doorbell.
    pub stops: u32,
    /// How far the threads are.
    #[serde(flatten)]
    pub moved: Moved,
    /// Microseconds from start to end in this process.
    pub wall_us: u64,
}

/// What is done to a patch that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Take it off; a patch that is still coming is turned round.
    Disable,
    /// Turn its transition round.
    Reverse,
    /// Move every thread without a look.
    Force,
    /// Help its transition to the end, whichever way it goes.
    Wait,
}

/// Acts on the patch of that name.
///
/// # Errors
/// No process, no runtime, no such patch, the patch's state forbids it, or the worker cannot be made.
pub fn act(target: &Target, name: &str, action: Action, context: &Context<'_>) -> Result<Disabled, Error> {
    let started = Instant::now();
    let pid = target.pid();
    let alone = Exclusive::take(target)?;
    let block = runtime::block(target)?;
    // Looked up before anything is touched: a wrong name must not ring the doorbell.
    let mut now = books::read(target, block)?;
    target.check_enterable()?;
    match (check(&now, pid, name, action), now.transition) {
        (Err(Error::InTransition { .. }), Some(t)) => {
            now = help_along(target, t.id, context)?;
            check(&now, pid, name, action)?;
        }
        (checked, _) => _ = checked?,
    }
    let mut session = Session::open(target)?;
    let books = books::read(target, block)?;
    let (patch, op) = match check(&books, pid, name, action) {
        Ok(found) => found,
        Err(error) => {
            session.close()?;
            return Err(error);
        }
    };
    let functions = books.funcs_of(patch).count();
    if op == op::DISABLE {
        let sites: Vec<SiteRow> =
            books.funcs_of(patch).filter_map(|func| books.site(func.site)).copied().collect();
        let name_of = |entry| names::known_function(&books, entry).unwrap_or_else(|| format!("{entry:#x}"));
        direct::put_back(&mut session, &sites, &name_of)?;
    }
    let ring = session.ring;
    // A disable that is under way, perhaps by a command that died, is joined.
    let about = if op == op::ADVANCE { books.transition.map_or(0, |t| t.id) } else { patch };
    let answer = session.request(op, [u64::from(about), session.may, 0, 0], &[])?;
    if answer.is_err() {
        // As it was before.
        let _ = direct::make_direct(&mut session);
    }
    let state = State::new(answer.map_err(|refusal| match refusal.code {
        // Asked for in the instant in which a callback was begun.
        error::STATE => Error::AtCallbacks { pid, name: name.to_owned() },
        _ => explain(target, step(op), RequestError::Refused(refusal)),
    })?);
    let transition = state.transition();
    let moved = see_through(session, alone, transition, state, name, context);
    let moved = match moved {
        // That is what was asked for.
        Err(Error::Reversed { restored, left, .. }) if matches!(op, op::REVERSE | op::ADVANCE) => {
            Moved { finished: true, restored, left, ..Moved::default() }
        }
        other => other?,
    };
    Ok(Disabled {
        patch: name.to_owned(),
        functions,
        held_us: ring.map_or(0, |r| micros(r.held)),
        away_us: ring.and_then(|r| r.away).map(micros),
        stops: ring.map_or(0, |r| r.stops()),
        moved,
        wall_us: micros(started.elapsed()),
    })
}

fn step(op: u32) -> &'static str {
    match op {
        op::DISABLE => "disabling",
        op::REVERSE => "reversing",
        op::ADVANCE => "the transition",
        _ => "forcing",
    }
}

/// Number of the patch and the operation that does what is wanted.
fn check(books: &Books, pid: i32, name: &str, action: Action) -> Result<(u32, u32), Error> {
    let missing = || Error::NotEnabled { pid, name: name.to_owned() };
    let patch = books.patch(name).ok_or_else(missing)?.row.id;
    let moving = books.transition.filter(|t| t.patch == patch);
    let goes = match moving {
        Some(t) => t.target != UNPATCHING && matches!(action, Action::Disable | Action::Reverse),
        None => action == Action::Disable,
    };
    if let Some(state) = books.as_runtime().blocker(patch).filter(|_| goes) {
        return Err(Error::Blocked { pid, name: name.to_owned(), state });
    }
    match (action, moving) {
        (Action::Disable, Some(t)) if t.target == UNPATCHING => Ok((patch, op::ADVANCE)),
        (Action::Wait, Some(_)) => Ok((patch, op::ADVANCE)),
        (_, Some(t)) if t.phase == PHASE_COMPLETING => Err(Error::AtCallbacks { pid, name: name.to_owned() }),
        (Action::Disable | Action::Reverse, Some(_)) => Ok((patch, op::REVERSE)),
        (Action::Force, Some(_)) => Ok((patch, op::FORCE)),
        (Action::Disable, None) => match books.transition {
            Some(other) => Err(Error::InTransition { pid, name: books.name_of(other.patch) }),
            None => Ok((patch, op::DISABLE)),
        },
        (_, None) => Err(Error::NotInTransition { pid, name: name.to_owned() }),
    }
}

/// Armed sites that no function is on: what a finished disable, or a command that died in one,
/// leaves to be restored.
///
/// # Errors
/// When the process is gone.
pub fn idle_sites(session: &Session<'_>) -> Result<Vec<SiteRow>, Error> {
    let books = books::read(session.target, session.block)?;
    Ok(idle(&books).copied().collect())
}

/// The same sites in books. Those of a patch whose callbacks run before it starts are armed, and no function
/// is on them yet.
pub fn idle(books: &Books) -> impl Iterator<Item = &SiteRow> {
    let starting = books.transition.filter(|t| t.begun == PATCHING && t.phase == PHASE_INIT);
    let awaited = move |site: &SiteRow| {
        starting.is_some_and(|t| books.funcs_of(t.patch).any(|func| func.site == site.id))
    };
    let armed = |s: &&SiteRow| s.depth == 0 && s.state == SITE_ARMED && s.hook == 0;
    books.sites.iter().filter(armed).filter(move |site| !awaited(site))
}

/// The patch a user means: a name, or a patch file whose descriptor has the name.
#[must_use]
pub fn matching_name(target: &Target, text: &str) -> Option<String> {
    let block = runtime::block(target).ok()?;
    let books = books::read(target, block).ok()?;
    if books.patch(text).is_some() {
        return Some(text.to_owned());
    }
    let path = std::fs::canonicalize(text).ok()?.display().to_string();
    let from_file = |d: &[u8]| Description::from_bytes(d).is_some_and(|d| d.file == path);
    books.patches.iter().find(|p| from_file(&p.description)).map(|p| p.name.clone())
}

/// Whole microseconds.
#[must_use]
pub fn micros(span: std::time::Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
