//! Whether and how a process can be entered and patched, without a patch.
//!
//! Asks everything that an apply would, in the order in which it would fail, and changes nothing. One
//! thread of a process that has system call filters is stopped for a moment to read them; nothing else
//! is even noticed.

use crate::error::Error;
use crate::sys::limits::ThreadLimit;
use crate::sys::time::Deadline;
use crate::target::{Target, books, condition, runtime};
use crate::view::{self, Cache};
use crate::{doorbell, inject, threads};
use serde::Serialize;
use std::time::Duration;

/// How long a thread may take to stop, to read its filters.
const PATIENCE: Duration = Duration::from_secs(2);

/// How the runtime gets, or got, into a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// The loader brought it, with the program.
    Preloaded,
    /// A command put it in.
    Injected,
    /// The next command will put it in.
    Injectable,
}

/// A process that can be entered and patched.
#[derive(Clone, Debug, Serialize)]
pub struct Access {
    /// How.
    pub way: Way,
    /// Version of the runtime that is there.
    pub runtime: Option<String>,
    /// Names of its patches, oldest first.
    pub patches: Vec<String>,
    /// Effective user id.
    pub user: u32,
    /// Threads.
    pub threads: u64,
    /// Objects whose functions can be patched.
    pub objects: usize,
    /// It has system call filters, and they let the runtime do its work.
    pub filtered: bool,
}

/// Looks at a process.
///
/// # Errors
/// Why it cannot be entered, or could not be patched.
pub fn check(target: &Target, cache: &Cache) -> Result<Access, Error> {
    target.check_enterable()?;
    let maps = view::maps(target)?;
    let found = match runtime::of_maps(target, &maps) {
        Ok(found) => Some(found),
        Err(Error::NotPrepared { .. }) => None,
        Err(other) => return Err(other),
    };
    let view = view::process(target, maps, cache)?;
    threads::layout(target, &view)?;
    let objects = view.objects.iter().filter(|o| !o.runtime && !o.vdso).count();
    let books = found.map(|found| books::read(target, found.block)).transpose()?;
    if books.as_ref().is_some_and(|books| books.hooking_off) {
        return Err(Error::HookingOff { pid: target.pid() });
    }
    if found.is_none() {
        inject::check(target)?;
    }
    check_threads(target)?;
    condition::check_room(target)?;
    let filtered = doorbell::check_filters(target, Deadline::after(PATIENCE))?;
    Ok(Access {
        way: match found {
            Some(found) if found.injected => Way::Injected,
            Some(_) => Way::Preloaded,
            None => Way::Injectable,
        },
        runtime: books.as_ref().map(|books| books.version.clone()),
        patches: books.iter().flat_map(|books| &books.patches).map(|p| p.name.clone()).collect(),
        user: target.facts.euid,
        threads: target.facts.threads,
        objects,
        filtered,
    })
}

/// Refuses a process whose limit on threads is known to be in the way.
fn check_threads(target: &Target) -> Result<(), Error> {
    // The limit does not hold for root; who counts as root is for the kernel to say.
    let limit = ThreadLimit::of(target.pid()).filter(|_| target.facts.ruid != 0);
    match limit {
        Some(limit) if !limit.leaves_room(target.facts.threads) => {
            Err(Error::NoThread { pid: target.pid(), errno: libc::EAGAIN })
        }
        _ => Ok(()),
    }
}
