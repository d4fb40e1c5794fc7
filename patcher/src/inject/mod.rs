//! Putting the runtime into a process that was started without it.
//!
//! One thread is stopped once, as for the doorbell, and goes through [`boot`] code in a [`cave`]:
//! it makes a raw [`clone`] and goes on. The clone places the relocated [`image`]. Everything that can
//! be chosen, checked and computed is, before; nothing in it needs the program's loader, allocator,
//! locks or a thread at a particular point.
//!
//! A command can die between any two steps, and a process can fork between any two. What is left then is
//! one of these, and the next command goes on from it:
//!
//! | left behind | what happens with it |
//! |---|---|
//! | code in the cave | used again, if its addresses are still free |
//! | a clone that waits for its contents | taken over: it gets them, and nobody is stopped |
//! | a clone at work | waited for |
//! | an image without a living clone (a forked child's) | ignored; another is placed |

pub mod boot;
pub mod cave;
pub mod clone;
pub mod image;

use crate::doorbell::{self, Errand, Ring};
use crate::error::Error;
use crate::sys::proc;
use crate::sys::time::Deadline;
use crate::target::watch::Watch;
use crate::target::{Target, condition, runtime};
use clone::{BootClone, State};
use image::Image;
use std::path::PathBuf;
use std::time::Duration;
use suture_abi::RUNTIME_SONAME;
use suture_elf::{Addr, MapsSnapshot, ObjectFile};

/// How long getting in may take in all.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a clone that failed may take to leave.
const GOING: Duration = Duration::from_secs(2);
/// Distance kept from every other mapping.
const GUARD: u64 = 1 << 20;
/// How often another place is looked for when the program takes the one that was chosen.
const PLACES: u32 = 3;

/// Makes sure that the runtime is in the process. `None`: it was there. The caller is alone with the
/// process (`target::lock`).
///
/// # Errors
/// Whatever stands in the way; the process is then as before.
pub fn ensure(target: &Target) -> Result<Option<Ring>, Error> {
    if is_there(target)? {
        return Ok(None);
    }
    let deadline = Deadline::after(PATIENCE);
    target.check_enterable()?;
    condition::check_room(target)?;
    doorbell::check_filters(target, deadline)?;
    let file = runtime_file()?;
    for place in 1.. {
        match inject(target, &file, deadline) {
            // Somebody mapped something there meanwhile.
            Err(Error::NotPlaced { errno: libc::EEXIST, .. }) if place < PLACES => {}
            Ok(ring) => return Ok(Some(ring)),
            Err(error) => return Err(error),
        }
    }
    unreachable!("the last place is not tried again")
}

/// Whether there is a place for the runtime and for the code that puts it there. Touches nothing.
///
/// # Errors
/// What is missing.
pub fn check(target: &Target) -> Result<(), Error> {
    let (file, maps) = (runtime_file()?, target.maps()?);
    let image = image::build(&file, base(target, &file, &maps)?)?;
    let caves = cave::look(target, &maps, &boot::code(&image.table))?;
    match (caves.room, caves.copies.is_empty()) {
        (None, true) => Err(no_cave(target)),
        _ => Ok(()),
    }
}

/// Whether a runtime is there, or will be without our help.
fn is_there(target: &Target) -> Result<bool, Error> {
    match runtime::block(target) {
        Ok(_) => Ok(true),
        Err(Error::NotPrepared { .. }) => Ok(false),
        Err(other) => Err(other),
    }
}

fn inject(target: &Target, file: &ObjectFile, deadline: Deadline) -> Result<Ring, Error> {
    let maps = target.maps()?;
    let image = image::build(file, base(target, file, &maps)?)?;
    let code = boot::code(&image.table);
    let caves = cave::look(target, &maps, &code)?;
    if !caves.copies.is_empty()
        && let Some(taken_over) = take_over(target, file, &caves.copies, deadline)?
    {
        return Ok(taken_over);
    }
    // A copy for addresses that are still free serves as well as one for those just chosen.
    for copy in &caves.copies {
        let again = image::build(file, copy.image().start)?;
        if copy.is_for(&boot::code(&again.table)) && maps.is_free(&copy.image()) {
            return send(target, copy.at, &again, deadline);
        }
    }
    let at = caves.room.ok_or_else(|| no_cave(target))?;
    target
        .memory
        .write_forced(at, &code)
        .map_err(|source| target.ended_or(Error::Store { pid: target.pid(), addr: at.0, source }))?;
    send(target, at, &image, deadline)
}

/// An address for the image, near the program's other code.
fn base(target: &Target, file: &ObjectFile, maps: &MapsSnapshot) -> Result<u64, Error> {
    let near = maps.regions.iter().rev().find(|r| r.exec && r.inode != 0).map_or(0..0, |r| r.start..r.end);
    let base = maps.free_hole_near(&near, image::span(file), GUARD, 1 << 46);
    base.ok_or_else(|| unreadable(target, "its address space is full"))
}

/// Goes on where a command stopped that died: gives a clone that waits what it waits for, waits for one that
/// has got it. `None`: there is no clone, or it led to nothing.
fn take_over(
    target: &Target,
    file: &ObjectFile,
    copies: &[cave::Copy],
    deadline: Deadline,
) -> Result<Option<Ring>, Error> {
    let mut watch = Watch::new(target, deadline);
    loop {
        let living = BootClone::living(target.pid())?;
        if living.is_empty() {
            return Ok(is_there(target)?.then(Ring::default));
        }
        for clone in living {
            let Some(copy) = clone.runs(copies) else { continue };
            if clone.state(target, copy.at) != State::Waits || clone.is_filled() {
                continue;
            }
            let image = image::build(file, copy.image().start)?;
            if copy.is_for(&boot::code(&image.table)) {
                // It may give up in this very moment; then it is gone at the next look.
                let _ = clone.fill(&image.content);
            } else {
                // Of another version of the command.
                clone.dismiss();
            }
        }
        if !watch.pause()? {
            return Err(Error::NoAnswer { pid: target.pid(), what: "the injection of another command" });
        }
    }
}

/// Sends a thread through the code and the image to the clone that it makes.
fn send(target: &Target, at: Addr, image: &Image, deadline: Deadline) -> Result<Ring, Error> {
    let pid = target.pid();
    doorbell::with_a_thread(|lift| {
        let before = proc::threads(pid).map_err(|e| Error::from_proc(pid, &e))?;
        let ring = doorbell::borrow(target, Errand { entry: at.0, lift }, deadline)?;
        let clone = await_clone(target, at, &ring, &before, deadline)?;
        if let Err(source) = clone.fill(&image.content) {
            clone.dismiss();
            let what = format!("cannot send the runtime to process {pid}");
            return Err(target.ended_or(Error::Io { what, source }));
        }
        await_runtime(target, &clone, at, deadline)?;
        Ok(ring)
    })
}

/// The runtime that belongs to this command: beside it, in `../lib/suture`, or `SUTURE_RUNTIME`.
///
/// # Errors
/// When there is none.
pub fn runtime_file() -> Result<ObjectFile, Error> {
    let own = std::env::current_exe().unwrap_or_default();
    let dir = own.parent().map(PathBuf::from).unwrap_or_default();
    let named = std::env::var_os("SUTURE_RUNTIME").map(PathBuf::from);
    let places =
        [named, Some(dir.join(RUNTIME_SONAME)), Some(dir.join("../lib/suture").join(RUNTIME_SONAME))];
    let found = places.into_iter().flatten().find(|p| p.exists());
    let path = found.unwrap_or_else(|| dir.join(RUNTIME_SONAME));
    Ok(ObjectFile::open(&path)?)
}

/// The clone, once it waits for its contents. A borrowed thread that could not make it left a note in its
/// frame.
fn await_clone(
    target: &Target,
    at: Addr,
    ring: &Ring,
    before: &[i32],
    deadline: Deadline,
) -> Result<BootClone, Error> {
    let pid = target.pid();
    let mut watch = Watch::new(target, deadline);
    loop {
        let tids = proc::threads(pid).map_err(|e| Error::from_proc(pid, &e))?;
        for tid in tids.into_iter().filter(|tid| !before.contains(tid)) {
            let clone = BootClone::new(pid, tid);
            match clone.state(target, at) {
                State::Waits => return Ok(clone),
                State::Failed { step, errno } => return failed(target, &clone, at, step, errno),
                State::Works | State::Gone => {}
            }
        }
        if let Some(errno) = doorbell::note(target, ring, boot::NO_CLONE) {
            return Err(Error::NoThread { pid, errno });
        }
        if let Some(errno) = doorbell::note(target, ring, boot::NO_STACK) {
            return Err(Error::NotPlaced { pid, step: "mmap", errno });
        }
        if !watch.pause()? {
            return Err(Error::NoAnswer { pid, what: "the injection" });
        }
    }
}

/// Waits until the runtime is there and the clone has gone.
fn await_runtime(target: &Target, clone: &BootClone, at: Addr, deadline: Deadline) -> Result<(), Error> {
    let pid = target.pid();
    let mut watch = Watch::new(target, deadline);
    loop {
        match clone.state(target, at) {
            State::Failed { step, errno } => return failed(target, clone, at, step, errno),
            State::Gone if is_there(target)? => return Ok(()),
            State::Gone => {
                target.still_there()?;
                return Err(Error::NoAnswer { pid, what: "the injection (its thread is gone)" });
            }
            State::Waits | State::Works => {}
        }
        if !watch.pause()? {
            return Err(Error::NoAnswer { pid, what: "the injection" });
        }
    }
}

/// The error of a clone that failed, when it has left.
fn failed<T>(
    target: &Target,
    clone: &BootClone,
    at: Addr,
    step: &'static str,
    errno: i32,
) -> Result<T, Error> {
    let mut watch = Watch::new(target, Deadline::after(GOING));
    while clone.state(target, at) != State::Gone && watch.pause()? {}
    Err(Error::NotPlaced { pid: target.pid(), step, errno })
}

fn no_cave(target: &Target) -> Error {
    unreadable(target, "no executable mapping has room at its end")
}

fn unreadable(target: &Target, what: &str) -> Error {
    Error::Unreadable { pid: target.pid(), what: what.into() }
}
