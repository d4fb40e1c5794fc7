//! Putting the runtime into a process that was started without it.
//!
//! One thread is stopped once, as for the doorbell, and goes through [`boot`] code in a [`cave`]:
//! it makes a raw clone and goes on. The clone places the relocated [`image`]. Everything that can
//! be chosen, checked and computed is, before; nothing in it needs the program's loader, allocator,
//! locks or a thread at a particular point.

pub mod boot;
pub mod cave;
pub mod image;

use crate::doorbell::{self, Ring};
use crate::error::Error;
use crate::sys::time::{Backoff, Deadline};
use crate::sys::{proc, seal};
use crate::target::{Target, runtime};
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::Duration;
use suture_abi::RUNTIME_SONAME;
use suture_elf::ObjectFile;

/// How long getting in may take in all.
const PATIENCE: Duration = Duration::from_secs(10);
/// Distance kept from every other mapping.
const GUARD: u64 = 1 << 20;

/// Makes sure that the runtime is in the process. `None`: it was there. The caller is alone with the
/// process (`target::lock`).
///
/// # Errors
/// Whatever stands in the way; the process is then as before.
pub fn ensure(target: &Target) -> Result<Option<Ring>, Error> {
    match runtime::find_block(target, &target.maps()?) {
        Ok(_) => return Ok(None),
        Err(Error::NotPrepared { .. }) => {}
        Err(other) => return Err(other),
    }
    let file = runtime_file()?;
    let maps = target.maps()?;
    let deadline = Deadline::after(PATIENCE);
    let near = maps.regions.iter().rev().find(|r| r.exec && r.inode != 0).map_or(0..0, |r| r.start..r.end);
    let base = maps.free_hole_near(&near, image::span(&file), GUARD, 1 << 46);
    let base = base.ok_or_else(|| unreadable(target, "its address space is full"))?;
    let image = image::build(&file, base)?;
    let code = boot::code(&image.table);
    let at = cave::find(target, &maps, &code)?;
    target.memory.write_forced(at, &code).map_err(|source| Error::Store {
        pid: target.pid(),
        addr: at.0,
        source,
    })?;
    let before = proc::threads(target.pid()).map_err(|e| Error::from_proc(target.pid(), &e))?;
    let ring = doorbell::borrow(target, at.0, deadline)?;
    let file = await_file(target, &ring, &before, deadline)?;
    let fill = |file: &std::fs::File| -> io::Result<()> {
        file.write_all_at(&image.content, 0)?;
        seal::seal_contents(file)
    };
    fill(&file).map_err(|source| Error::Io {
        what: format!("cannot send the runtime to process {}", target.pid()),
        source,
    })?;
    drop(file);
    await_runtime(target, deadline)?;
    Ok(Some(ring))
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

/// The memfd that the clone made, opened through its task directory. A clone that could not be made
/// left a note in the frame.
fn await_file(
    target: &Target,
    ring: &Ring,
    before: &[i32],
    deadline: Deadline,
) -> Result<std::fs::File, Error> {
    let pid = target.pid();
    let mut backoff = Backoff::default();
    loop {
        for tid in proc::threads(pid).map_err(|e| Error::from_proc(pid, &e))? {
            let link = format!("/proc/{pid}/task/{tid}/fd/0");
            let ours = || {
                let to = std::fs::read_link(&link).ok()?;
                to.to_str()?.starts_with("/memfd:libsuture.so").then_some(())
            };
            if !before.contains(&tid) && ours().is_some() {
                let file = OpenOptions::new().read(true).write(true).open(&link);
                return file.map_err(|e| Error::from_proc(pid, &e));
            }
        }
        if let Some(errno) = doorbell::note(target, ring, boot::FAILED) {
            return Err(Error::NoThread { pid, errno });
        }
        target.still_there()?;
        if deadline.passed() {
            return Err(Error::NoAnswer { pid, what: "the injection" });
        }
        backoff.pause();
    }
}

fn await_runtime(target: &Target, deadline: Deadline) -> Result<(), Error> {
    let mut backoff = Backoff::default();
    loop {
        match runtime::find_block(target, &target.maps()?) {
            Ok(_) => return Ok(()),
            Err(Error::NotPrepared { .. } | Error::NotReady { .. }) if !deadline.passed() => backoff.pause(),
            Err(other) => return Err(other),
        }
    }
}

fn unreadable(target: &Target, what: &str) -> Error {
    Error::Unreadable { pid: target.pid(), what: what.into() }
}
