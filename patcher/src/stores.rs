//! Changing code bytes: one store per site, compared before and read back after.
//!
//! A store of class J is 1 byte; P, S and A write one aligned 8-byte word, since a 2- or 5-byte
//! `pwrite` is two stores on processors without fast short moves. Bytes of the word that are not the
//! site's own are written back as they were read; if a neighbour changed in between, the read-back
//! shows it and the error says so.
//!
//! The bytes are written in the first of three ways that is not forbidden: from here through
//! `/proc/PID/mem`; by the worker, which makes the page writable for a moment; from here through ptrace,
//! with the worker as the thread that is held. Kernels may forbid the first (`proc_mem.force_override`),
//! programs the second (`PR_SET_MDWE`, SELinux). Each is one store.

use crate::direct;
use crate::error::Error;
use crate::session::Session;
use crate::sys::memory::is_forbidden;
use crate::sys::ptrace::{StopError, StoppedThread};
use crate::sys::time::Deadline;
use crate::target::Target;
use std::io;
use std::time::Duration;
use suture_abi::batch::Site;
use suture_abi::block::SiteRow;
use suture_abi::channel::{error, op};
use suture_elf::{Addr, Memory};

/// Who makes a store. The bytes `old` were just read.
pub trait Writer {
    /// The process.
    fn target(&self) -> &Target;

    /// Writes `new` over `old`: 1 byte or 8 aligned ones in one store, others in several.
    ///
    /// # Errors
    /// When nobody can.
    fn store(&mut self, addr: Addr, old: &[u8], new: &[u8]) -> Result<(), Error>;
}

/// How long the worker may take to stop.
const STOP: Duration = Duration::from_secs(5);

impl Writer for Session<'_> {
    fn target(&self) -> &Target {
        self.target
    }

    fn store(&mut self, addr: Addr, old: &[u8], new: &[u8]) -> Result<(), Error> {
        let forbidden = match self.target.memory.write_forced(addr, new) {
            Ok(()) => return Ok(()),
            Err(e) => e,
        };
        let failed = |source| Error::Store { pid: self.target.pid(), addr: addr.0, source };
        if !is_forbidden(&forbidden) {
            return Err(failed(forbidden));
        }
        if self.store_inside(addr, old, new)? {
            return Ok(());
        }
        self.poke(addr, new).map_err(|_| Error::Store {
            pid: self.target.pid(),
            addr: addr.0,
            source: forbidden,
        })
    }
}

impl Session<'_> {
    /// By the worker. `false`: the program may not make its code writable.
    fn store_inside(&mut self, addr: Addr, old: &[u8], new: &[u8]) -> Result<bool, Error> {
        let number = |bytes: &[u8]| bytes.iter().rev().fold(0, |n, &b| n << 8 | u64::from(b));
        let width = if new.len() == 8 && addr.0.is_multiple_of(8) { 8 } else { 1 };
        for ((old, new), at) in old.chunks(width).zip(new.chunks(width)).zip((addr.0..).step_by(width)) {
            let args = [at, number(old), number(new), width as u64];
            match self.request(op::STORE, args, &[])? {
                Ok(_) => {}
                Err(refusal) if refusal.code == error::PROTECT => return Ok(false),
                Err(refusal) => {
                    let what = crate::session::words(refusal);
                    return Err(Error::Worker { pid: self.target.pid(), step: "a store", what });
                }
            }
        }
        Ok(true)
    }

    /// Through ptrace, word by word. No thread of the program is held: the worker is.
    fn poke(&mut self, addr: Addr, new: &[u8]) -> io::Result<()> {
        let gone = || io::Error::from_raw_os_error(libc::ESRCH);
        let worker = self.worker().ok_or_else(gone)?;
        let refused = |e| match e {
            StopError::Os(e) => e,
            StopError::Gone | StopError::Stopped => gone(),
        };
        let mut held = StoppedThread::ask(worker).map_err(refused)?;
        if !held.await_stop(Deadline::after(STOP)).map_err(refused)? {
            return Err(io::Error::from_raw_os_error(libc::ETIMEDOUT));
        }
        let end = addr + new.len() as u64;
        for word in (addr.0 & !7..end.0).step_by(8) {
            let live = self.target.memory.read_u64(Addr(word)).map_err(|_| gone())?;
            let mut bytes = live.to_le_bytes();
            for (byte, at) in bytes.iter_mut().zip(word..) {
                if let Some(new) = at.checked_sub(addr.0).and_then(|i| new.get(usize::try_from(i).ok()?)) {
                    *byte = *new;
                }
            }
            held.poke(word, u64::from_le_bytes(bytes))?;
        }
        held.release()
    }
}

/// What stands at a site.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Live {
    /// The file's bytes.
    Original,
    /// Our jump.
    Armed,
    /// Neither: the bytes found.
    Foreign(u64),
    /// Nothing: the object was unloaded.
    Gone,
}

fn store_len(site: &Site) -> usize {
    if site.store_len == 1 { 1 } else { 8 }
}

/// The bytes of the store that are the site's own: those that differ between old and new.
fn own_mask(site: &Site) -> u64 {
    let differ = site.old_word ^ site.new_word;
    (0..8).filter(|i| differ >> (8 * i) & 0xff != 0).fold(0, |mask, i| mask | 0xff << (8 * i))
}

/// Whether every byte of the site is either the file's or ours. A mixture comes from a probe that was
/// put on the first byte and removed: the kernel writes the file's byte back in front of the rest of
/// our jump.
fn only_old_or_new(site: &Site, live: u64) -> bool {
    let (mask, live) = (own_mask(site), live.to_le_bytes());
    let (old, new) = (site.old_word.to_le_bytes(), site.new_word.to_le_bytes());
    (0..8).filter(|i| mask >> (8 * i) & 0xff != 0).all(|i| live[i] == old[i] || live[i] == new[i])
}

fn read_word(target: &Target, memory: &dyn Memory, site: &Site) -> Result<u64, Error> {
    let mut word = [0; 8];
    let addr = Addr(site.store_addr);
    memory.read(addr, &mut word[..store_len(site)]).map_err(|e| Error::from_memory(target, e))?;
    Ok(u64::from_le_bytes(word))
}

/// The word of a site, or `None` where nothing is mapped any more.
fn mapped_word(target: &Target, site: &Site) -> Result<Option<u64>, Error> {
    unless_gone(target, Addr(site.store_addr), read_word(target, &target.memory, site))
}

/// What was read at an address, or `None` where nothing is mapped any more.
pub(crate) fn unless_gone(
    target: &Target,
    addr: Addr,
    read: Result<u64, Error>,
) -> Result<Option<u64>, Error> {
    let is_gone = || target.maps().is_ok_and(|maps| maps.region_at(addr.0).is_none());
    match read {
        Err(_) if is_gone() => Ok(None),
        read => read.map(Some),
    }
}

/// Looks at a site.
///
/// # Errors
/// When the process is gone or its memory cannot be read.
pub fn look(target: &Target, site: &Site) -> Result<Live, Error> {
    let Some(live) = mapped_word(target, site)? else { return Ok(Live::Gone) };
    judge(target, &target.memory, site, live)
}

/// What a site is whose word was just read.
fn judge(target: &Target, memory: &dyn Memory, site: &Site, live: u64) -> Result<Live, Error> {
    let mask = own_mask(site);
    // Of a punned jump the bytes behind the store are part of the jump: a breakpoint in them sends it into
    // nowhere.
    if live & mask == site.new_word & mask {
        return Ok(if pun_intact(target, memory, site)? { Live::Armed } else { Live::Foreign(live) });
    }
    Ok(if live & mask == site.old_word & mask { Live::Original } else { Live::Foreign(live) })
}

/// Looks at a site of the books: what stands there, and whether its jump leads past the stub.
///
/// # Errors
/// As [`look`].
pub fn look_at(target: &Target, row: &SiteRow) -> Result<(Live, bool), Error> {
    match direct::straight(target, row)? {
        Some(straight) => Ok((look(target, &straight)?, true)),
        None => Ok((look(target, &row.plan)?, false)),
    }
}

fn pun_intact(target: &Target, memory: &dyn Memory, site: &Site) -> Result<bool, Error> {
    if !site.is_pun() {
        return Ok(true);
    }
    let mut jump = [0; 8];
    let len = usize::from(site.window_len).min(jump.len());
    let jump = &mut jump[..len];
    memory.read(Addr(site.site), jump).map_err(|e| Error::from_memory(target, e))?;
    Ok(jump == &site.pad_new[..len])
}

/// Writes the jump into the padding (classes P and S). Nobody runs there before the site is armed. `memory` shows what
/// lay there a moment ago; `name_of` names the function at an entry.
///
/// # Errors
/// When the padding is no longer what the plan saw, or cannot be written.
pub fn write_pad(
    writer: &mut impl Writer,
    memory: &dyn Memory,
    site: &Site,
    name_of: &dyn Fn(u64) -> String,
) -> Result<(), Error> {
    let len = usize::from(site.pad_len).min(8);
    if len == 0 {
        return Ok(());
    }
    let addr = Addr(site.pad_addr);
    let live = memory.read_vec(addr, len).map_err(|e| Error::from_memory(writer.target(), e))?;
    if live == site.pad_new[..len] {
        return Ok(());
    }
    if live != site.pad_old[..len] {
        return Err(foreign(name_of(site.entry), addr, &live, &site.pad_old[..len]));
    }
    writer.store(addr, &live, &site.pad_new[..len])
}

/// Makes the arming store, unless the site is armed; true if it was made and [`check_armed`] is to follow. `memory` shows
/// what stood there a moment ago; `name_of` names the function at an entry.
///
/// # Errors
/// When the live word is not the planned one, or cannot be written.
pub fn arm(
    writer: &mut impl Writer,
    memory: &dyn Memory,
    site: &Site,
    name_of: &dyn Fn(u64) -> String,
) -> Result<bool, Error> {
    let len = store_len(site);
    let addr = Addr(site.store_addr);
    let live = read_word(writer.target(), memory, site)?;
    if judge(writer.target(), memory, site, live)? == Live::Armed {
        return Ok(false);
    }
    let (old, new) = (site.old_word.to_le_bytes(), site.new_word.to_le_bytes());
    let mask = own_mask(site);
    if live & !mask != site.old_word & !mask || !only_old_or_new(site, live) {
        return Err(foreign(name_of(site.entry), addr, &live.to_le_bytes()[..len], &old[..len]));
    }
    writer.store(addr, &live.to_le_bytes()[..len], &new[..len])?;
    Ok(true)
}

/// Reads back what [`arm`] has stored; `memory` shows what stands there since.
///
/// # Errors
/// When the store did not take.
pub fn check_armed(
    target: &Target,
    memory: &dyn Memory,
    site: &Site,
    name_of: &dyn Fn(u64) -> String,
) -> Result<(), Error> {
    let now = read_word(target, memory, site)?;
    if now == site.new_word {
        return Ok(());
    }
    let (len, now, new) = (store_len(site), now.to_le_bytes(), site.new_word.to_le_bytes());
    Err(foreign(name_of(site.entry), Addr(site.store_addr), &now[..len], &new[..len]))
}

/// Gives a site its old bytes back, if they are still ours; where nothing is any more there is nothing to be done.
/// `false`: somebody else's byte stands there and was left alone.
///
/// # Errors
/// When the process is gone or the store did not take.
pub fn restore(writer: &mut impl Writer, site: &Site) -> Result<bool, Error> {
    let Some(live) = mapped_word(writer.target(), site)? else { return Ok(true) };
    let mask = own_mask(site);
    if live & mask == site.old_word & mask {
        return Ok(true);
    }
    if !only_old_or_new(site, live) {
        return Ok(false);
    }
    let word = (live & !mask | site.old_word & mask).to_le_bytes();
    let len = store_len(site);
    if let Err(error) = writer.store(Addr(site.store_addr), &live.to_le_bytes()[..len], &word[..len]) {
        // Its object may have been unloaded since it was looked at.
        return if look(writer.target(), site)? == Live::Gone { Ok(true) } else { Err(error) };
    }
    Ok(matches!(look(writer.target(), site)?, Live::Original | Live::Gone))
}

/// What to say of bytes that are not what they should be.
pub(crate) fn foreign(function: String, addr: Addr, found: &[u8], expected: &[u8]) -> Error {
    let whose = match found.iter().zip(expected).find(|(f, e)| f != e) {
        Some((0xcc, _)) => "a breakpoint or probe",
        Some((0xf1, _)) => "a debug trap",
        Some((0xe9 | 0xeb | 0xff, _)) => "a jump: another hook",
        _ => "unknown",
    };
    Error::Foreign {
        function,
        addr: addr.0,
        found: hex(found),
        expected: hex(expected),
        whose: whose.to_owned(),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes its own memory.
    struct Own(&'static Target);

    impl Writer for Own {
        fn target(&self) -> &Target {
            self.0
        }

        fn store(&mut self, addr: Addr, _: &[u8], new: &[u8]) -> Result<(), Error> {
            self.0.memory.write_forced(addr, new).unwrap();
            Ok(())
        }
    }

    fn own_target() -> Own {
        Own(Box::leak(Box::new(Target::open(std::process::id().cast_signed()).unwrap())))
    }

    fn arm(own: &mut Own, site: &Site) -> Result<(), Error> {
        let (memory, name_of) = (&own.0.memory, |_| "f".to_owned());
        assert!(super::arm(own, memory, site, &name_of)?);
        check_armed(own.0, memory, site, &name_of)
    }

    fn site(word: &u64, old: u64, new: u64, len: u8) -> Site {
        Site {
            class: b'A',
            store_len: len,
            store_addr: std::ptr::from_ref(word).addr() as u64,
            old_word: old,
            new_word: new,
            ..Site::default()
        }
    }

    #[test]
    fn a_site_is_armed_and_restored_and_neighbours_stay() {
        let mut own = own_target();
        let word = 0x1111_2222_3333_4444u64;
        let site = site(&word, word, 0x1111_2222_3333_55eb, 8);
        assert_eq!(look(own.0, &site).unwrap(), Live::Original);
        arm(&mut own, &site).unwrap();
        assert_eq!(look(own.0, &site).unwrap(), Live::Armed);
        // A neighbour changes while the site is armed: restoring must not undo that.
        let at = Addr(site.store_addr);
        own.0.memory.write(at + 7, &[0x99]).unwrap();
        assert!(restore(&mut own, &site).unwrap());
        assert_eq!(own.0.memory.read_u64(at).unwrap(), 0x9911_2222_3333_4444);
        std::hint::black_box(&word);
    }

    #[test]
    fn bytes_torn_by_a_removed_probe_are_mended() {
        let mut own = own_target();
        let word = 0x1111_2222_3333_4455u64;
        let site = site(&word, word, 0x1111_2222_3333_7aeb, 8);
        let at = Addr(site.store_addr);
        arm(&mut own, &site).unwrap();
        own.0.memory.write(at, &[0x55]).unwrap();
        assert_eq!(look(own.0, &site).unwrap(), Live::Foreign(0x1111_2222_3333_7a55));
        arm(&mut own, &site).unwrap();
        assert_eq!(look(own.0, &site).unwrap(), Live::Armed);
        own.0.memory.write(at, &[0x55]).unwrap();
        assert!(restore(&mut own, &site).unwrap());
        assert_eq!(own.0.memory.read_u64(at).unwrap(), 0x1111_2222_3333_4455);
        std::hint::black_box(&word);
    }

    #[test]
    fn foreign_bytes_are_neither_overwritten_nor_removed() {
        let mut own = own_target();
        let word = 0x55u64;
        let site = site(&word, 0x55, 0xe9, 1);
        let at = Addr(site.store_addr);
        own.0.memory.write(at, &[0xcc]).unwrap();
        assert!(arm(&mut own, &site).unwrap_err().to_string().contains("a breakpoint or probe"));
        assert!(!restore(&mut own, &site).unwrap());
        assert_eq!(look(own.0, &site).unwrap(), Live::Foreign(0xcc));
        std::hint::black_box(&word);
    }
}
