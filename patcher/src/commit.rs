//! Committing a batch: prepare, arm, enable — or nothing at all.
//!
//! Until `ENABLE` every slot leads to the old code, so each step before it can be taken back without
//! anybody having noticed: the command does that on an error or Ctrl-C, the worker when the command
//! dies.

use crate::batch::Batch;
use crate::channel::RequestError;
use crate::direct;
use crate::error::Error;
use crate::session::{Session, explain};
use crate::stores;
use crate::target::books;
use crate::transition::follow::State;
use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use suture_abi::block::SiteRow;
use suture_abi::channel::{error, op};
use suture_elf::Pages;

/// Sites that are compared, written and read back together. They are compared right before they are written: the more
/// there are, the longer somebody else's write may fall in between and be overwritten.
const AT_ONCE: usize = 16;

/// Why a batch was not committed.
#[derive(Debug)]
pub enum CommitError {
    /// The process changed under the plan: make another one.
    Stale,
    /// Final.
    Failed(Error),
}

impl From<Error> for CommitError {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// A patch whose transition was begun.
#[derive(Clone, Copy, Debug)]
pub struct Begun {
    /// Number of the patch.
    pub patch: u32,
    /// Number of the transition.
    pub transition: u32,
    /// How far it is.
    pub state: State,
    /// From the message with the batch until the answer that the transition has begun, the stores in between
    /// included.
    pub took: Duration,
}

/// Commits a batch: afterwards the transition of its patch has begun. `name_of` names the function at an entry
/// address; `missed_none` says, once loading threads know the batch, whether none came before and was overlooked.
///
/// # Errors
/// See [`CommitError`]; the target is as before, but for padding and arenas nobody looks at.
pub fn commit(
    session: &mut Session<'_>,
    batch: &Batch,
    interrupted: &AtomicBool,
    name_of: &dyn Fn(u64) -> String,
    missed_none: &dyn Fn() -> Result<bool, Error>,
) -> Result<Begun, CommitError> {
    session.code_file(&format!("suture:{}", batch.name), &batch.code)?;
    let started = Instant::now();
    let patch = prepare(session, batch)?;
    let mut armed = Vec::new();
    let done = arm_all(session, batch, interrupted, name_of, &mut armed).map_err(CommitError::from);
    let done = done.and_then(|()| if missed_none()? { Ok(()) } else { Err(CommitError::Stale) });
    let failure = match done {
        // Without an answer (frozen, stopped) nobody knows whether the worker has begun, or will: it does both or
        // takes the patch back, and either way the jumps lead where they should. They must not be taken from it.
        Ok(()) => match session.request(op::ENABLE, [u64::from(patch), session.may, 0, 0], &[])? {
            Ok(results) => {
                let state = State::new(results);
                let took = started.elapsed();
                return Ok(Begun { patch, transition: state.transition(), state, took });
            }
            Err(refusal) => explain(session.target, "enabling", RequestError::Refused(refusal)).into(),
        },
        Err(failure) => failure,
    };
    restore_all(session, &armed)?;
    session.expect("taking the patch back", op::ABORT, [u64::from(patch), 0, 0, 0], &[])?;
    Err(failure)
}

fn prepare(session: &mut Session<'_>, batch: &Batch) -> Result<u32, CommitError> {
    match session.request(op::PREPARE, [0; 4], &batch.to_bytes())? {
        Ok([patch, ..]) => Ok(u32::try_from(patch).unwrap_or(0)),
        Err(refusal) if matches!(refusal.code, error::STALE | error::OBJECT) => Err(CommitError::Stale),
        Err(refusal) if refusal.code == error::MAP && refusal.errno == libc::EEXIST => {
            Err(CommitError::Stale)
        }
        Err(refusal) => Err(CommitError::Failed(Error::Worker {
            pid: session.target.pid(),
            step: "preparing",
            what: crate::session::words(refusal),
        })),
    }
}

/// Arms every site of the batch that is not armed yet, and says which in `armed`.
fn arm_all(
    session: &mut Session<'_>,
    batch: &Batch,
    interrupted: &AtomicBool,
    name_of: &dyn Fn(u64) -> String,
    armed: &mut Vec<SiteRow>,
) -> Result<(), Error> {
    let target = session.target;
    let stop_here = || match interrupted.load(Ordering::Relaxed) {
        true => Err(Error::Interrupted { pid: target.pid() }),
        false => Ok(()),
    };
    let ids: HashSet<u32> = batch.sites.iter().map(|s| s.id).collect();
    let entries: HashSet<u64> = batch.sites.iter().map(|s| s.entry).collect();
    let wanted = |row: &SiteRow| ids.contains(&row.id) || entries.contains(&row.plan.entry);
    let books = books::read(target, session.block)?;
    // Who loads an object arms its sites.
    let wanted = |row: &SiteRow| wanted(row) && !books.is_nowhere(&row.plan);
    let rows: Vec<SiteRow> = books.sites.iter().filter(|row| wanted(row)).copied().collect();
    direct::put_back(session, &rows, name_of)?;
    for rows in rows.chunks(AT_ONCE) {
        let before = Pages::new(&target.memory);
        for row in rows {
            stores::write_pad(session, &before, &row.plan, name_of)?;
        }
    }
    // The jumps in the padding, and the stubs, are to be seen by everybody before the first thread
    // is sent there.
    session.sync()?;
    for rows in rows.chunks(AT_ONCE) {
        stop_here()?;
        let before = Pages::new(&target.memory);
        let mut stored = Vec::new();
        for row in rows {
            // A site under another patch stands already, unless a probe took our byte with it.
            if stores::arm(session, &before, &row.plan, name_of)? {
                stored.push(&row.plan);
            }
            if row.depth == 0 {
                armed.push(*row);
            }
        }
        let after = Pages::new(&target.memory);
        for site in stored {
            stores::check_armed(target, &after, site, name_of)?;
        }
    }
    session.sync()?;
    stop_here()
}

/// Gives sites their old bytes back and tells the worker. Returns how many keep somebody else's
/// bytes.
///
/// # Errors
/// When a store fails or the worker is gone.
pub fn restore_all(session: &mut Session<'_>, sites: &[SiteRow]) -> Result<usize, Error> {
    let mut left = 0;
    let mut ids = Vec::new();
    for site in sites {
        if stores::restore(session, &site.plan)? {
            ids.extend_from_slice(&site.id.to_le_bytes());
        } else {
            left += 1;
        }
    }
    session.sync()?;
    session.expect("retiring sites", op::RETIRE, [0; 4], &ids)?;
    Ok(left)
}
