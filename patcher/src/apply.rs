//! Enabling a patch in a process.

use crate::commit::{CommitError, commit};
use crate::context::Context;
use crate::direct;
use crate::disable::micros;
use crate::doorbell::Ring;
use crate::error::Error;
use crate::inject;
use crate::names;
use crate::operation::{self, Moved, see_through};
use crate::patch::Patch;
use crate::plan::{self, Plan, PlannedFunction};
use crate::session::Session;
use crate::states::Callbacks;
use crate::target::books::Books;
use crate::target::lock::Exclusive;
use crate::target::{Target, books, runtime};
use crate::transition::own_stacks::OwnStacks;
use crate::view::{self, Cache};
use serde::Serialize;
use std::time::Instant;
use suture_elf::{Addr, ObjectFile};
use suture_redirect::Classes;

/// What an apply did.
#[derive(Clone, Debug, Serialize)]
pub struct Applied {
    /// Patch name.
    pub patch: String,
    /// Its number in the process.
    pub id: u32,
    /// Its functions.
    pub functions: Vec<PlannedFunction>,
    /// Objects it names that will be patched when they are loaded.
    pub objects_awaited: Vec<String>,
    /// Objects it names that are not loaded, and of which no file is known.
    pub objects_absent: Vec<String>,
    /// What is odd about it beside the patches that are there.
    pub warnings: Vec<String>,
    /// The runtime had to be put into the process first.
    pub injected: bool,
    /// Threads that were stopped.
    pub stops: u32,
    /// Microseconds the borrowed threads were held, in all.
    pub held_us: u64,
    /// Stacks that the program makes itself.
    pub own_stacks: OwnStacks,
    /// How far the threads are.
    #[serde(flatten)]
    pub moved: Moved,
    /// Microseconds until the thread that made the worker was seen asleep in its call again, if it was.
    pub away_us: Option<u64>,
    /// Microseconds from the message with the whole plan until the process had it and its transition had begun.
    pub commit_us: u64,
    /// Microseconds from start to end in this process.
    pub wall_us: u64,
}

/// Plans made before a process that changes under each of them is given up.
const TRIES: u32 = 5;

/// Enables a patch. `given` are files of libraries that are not loaded yet. A process that maps none of its objects is refused with
/// [`Error::NotConcerned`] if `skip_unconcerned`, else it gets the patch with nothing patched.
///
/// # Errors
/// Whatever speaks against it; the process is then as before.
pub fn apply(
    target: &Target,
    patch: &Patch,
    classes: Classes,
    given: &[ObjectFile],
    skip_unconcerned: bool,
    context: &Context<'_>,
) -> Result<Applied, Error> {
    let started = Instant::now();
    let (pid, cache) = (target.pid(), context.cache);
    let alone = Exclusive::take(target)?;
    target.check_enterable()?;
    let mut before = plan::books_or_none(target)?;
    if let Some(t) = before.transition {
        before = operation::help_along(target, t.id, context)?;
    }
    // Everything that can be refused is refused before the process is touched.
    let mut next = Some(plan_once_still(target, patch, &before, classes, given, cache)?);
    if let Some(t) = before.transition {
        return Err(Error::InTransition { pid, name: before.name_of(t.patch) });
    }
    if skip_unconcerned && next.as_ref().is_some_and(|plan| !plan.concerned) {
        return Err(Error::NotConcerned { pid });
    }
    let injection = inject::ensure(target)?;
    let mut session = Session::open(target)?;
    for _ in 0..TRIES {
        // What a command that died left behind.
        operation::tidy(&mut session)?;
        let now = books::read(target, session.block)?;
        let mut plan = match next.take() {
            // A plan names places in the runtime. It may have come since without our help: from a command
            // that was in the middle of it when it died.
            Some(plan) if plan.batch.generation == now.generation && before.records == now.records => plan,
            _ => plan_once_still(target, patch, &now, classes, given, cache)?,
        };
        plan.batch.stubs_only = context.stubs_only;
        let name_of = |entry: u64| name_of(&plan, &now, entry);
        let block = session.block;
        let read_books = || books::read(target, block);
        let missed_none = || plan.loaded.missed_none(target, &plan.batch.recipes, &read_books, cache);
        match commit(&mut session, &plan.batch, context.interrupted, &name_of, &missed_none) {
            Ok(begun) => {
                let ring = session.ring;
                let rings: Vec<Ring> = [ring, injection].into_iter().flatten().collect();
                let name = &patch.descriptor.name;
                let moved = see_through(session, alone, begun.transition, begun.state, name, context)
                    .map_err(|error| with_callback(target, block, begun.patch, error))?;
                return Ok(Applied {
                    patch: name.clone(),
                    id: begun.patch,
                    objects_awaited: plan.awaited,
                    objects_absent: plan.absent,
                    warnings: plan.warnings,
                    injected: injection.is_some(),
                    stops: rings.iter().map(Ring::stops).sum(),
                    held_us: rings.iter().map(|r| micros(r.held)).sum(),
                    away_us: ring.and_then(|r| r.away).map(micros),
                    moved,
                    commit_us: micros(begun.took),
                    wall_us: micros(started.elapsed()),
                    functions: plan.functions,
                    own_stacks: plan.own_stacks,
                });
            }
            Err(CommitError::Stale) => {}
            // What it was planned for went away meanwhile.
            Err(CommitError::Failed(_))
                if !plan.batch.recipes.is_empty() && !plan.loaded.is_so(target, &read_books, cache)? => {}
            Err(CommitError::Failed(error)) => {
                let _ = direct::make_direct(&mut session);
                session.close()?;
                return Err(error);
            }
        }
    }
    session.close()?;
    Err(Error::MovingTarget { pid, tries: TRIES })
}

/// Plans, again if objects came or went meanwhile: what speaks against a plan may be that it was half gone.
fn plan_once_still(
    target: &Target,
    patch: &Patch,
    books: &Books,
    classes: Classes,
    given: &[ObjectFile],
    cache: &Cache,
) -> Result<Plan, Error> {
    let mut books = books.clone();
    for _ in 1..TRIES {
        let error = match plan::plan(target, patch, &books, classes, given, cache) {
            Ok(plan) => return Ok(plan),
            Err(error) => error,
        };
        // A loader in the middle of something is waited for: what it does is counted then.
        if !books.recipes.is_empty() {
            view::process(target, view::maps(target)?, cache)?;
        }
        let now = plan::books_or_none(target)?;
        if now.late_epoch == books.late_epoch {
            return Err(error);
        }
        books = now;
    }
    plan::plan(target, patch, &books, classes, given, cache)
}

/// Says which callback made an enable fail, if one did.
fn with_callback(target: &Target, block: Addr, patch: u32, error: Error) -> Error {
    let Error::Failed { pid, name, errno } = error else { return error };
    match Callbacks::read(target, block).ok().and_then(|c| c.last_to_fail(patch)) {
        Some(callback) => Error::CallbackFailed { pid, name, errno, why: callback.explained() },
        None => Error::Failed { pid, name, errno },
    }
}

/// A dry run.
///
/// # Errors
/// As [`apply`], as far as it can be known without touching the process.
pub fn check(
    target: &Target,
    patch: &Patch,
    classes: Classes,
    given: &[ObjectFile],
    cache: &Cache,
) -> Result<Plan, Error> {
    match runtime::block(target) {
        Ok(_) | Err(Error::NotPrepared { .. }) => {}
        Err(other) => return Err(other),
    }
    plan::plan(target, patch, &plan::books_or_none(target)?, classes, given, cache)
}

fn name_of(plan: &Plan, books: &Books, entry: u64) -> String {
    let own = plan.functions.iter().find(|f| f.old == entry).map(|f| f.name.clone());
    let known = || names::known_function(books, entry);
    own.or_else(known).unwrap_or_else(|| "a function of the C library".into())
}
