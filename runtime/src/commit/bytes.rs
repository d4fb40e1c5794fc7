//! Code bytes: looking at a site, and the store from inside.
//!
//! A word of eight bytes may hold neighbours of the site: only the bytes the arming store *changes* are
//! the site's own, everything else in the word is not looked at. For J and W the bytes behind the store count as
//! well, because they are the rest of the displacement; for P and S the padding that holds the jump.
//!
//! # Safety
//!
//! Text is read through the kernel's check ([`mem::peek`]); it is written only where a site of the
//! books says so.
#![allow(unsafe_code)]

use super::books;
use crate::late;
use crate::reply::Reply;
use crate::sys::mem::{self, PAGE, PROT_EXEC, PROT_READ, PROT_WRITE};
use crate::sys::{EFAULT, EINVAL, Errno};
use core::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use suture_abi::batch::Site;
use suture_abi::block::SiteRow;
use suture_abi::channel::error;

/// What stands at a site.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Live {
    /// The bytes from before.
    Original,
    /// The jump, whole.
    Armed,
    /// Something else: where, and the bytes there.
    Foreign(u64, u64),
}

/// The first `len` (1 to 8) bytes at any address, mapped or not.
fn read(addr: u64, len: u32) -> Result<u64, Errno> {
    let first = addr & !7;
    let skip = (addr & 7) as u32;
    let mut value = mem::peek(first)?.wrapping_shr(skip.wrapping_mul(8));
    if skip.saturating_add(len) > 8 {
        // skip is 1..=7 here
        let up = 64u32.wrapping_sub(skip.wrapping_mul(8));
        value |= mem::peek(first.wrapping_add(8))?.wrapping_shl(up);
    }
    Ok(value & low_bytes(len))
}

fn low_bytes(len: u32) -> u64 {
    u64::MAX.checked_shr(64u32.saturating_sub(len.saturating_mul(8))).unwrap_or(0)
}

/// The bytes of the store that are the site's own.
fn own_mask(plan: &Site) -> u64 {
    let mut mask = 0u64;
    let mut byte = 0xffu64;
    for _ in 0..plan.store_len.min(8) {
        if (plan.old_word ^ plan.new_word) & byte != 0 {
            mask |= byte;
        }
        byte = byte.wrapping_shl(8);
    }
    mask
}

/// The site as it lies in memory. `EFAULT`: its object is not there.
fn in_memory(plan: &Site) -> Result<Site, Errno> {
    match plan.late {
        0 => Ok(*plan),
        _ => books().recipe(plan.recipe).and_then(|row| late::placed(plan, row)).ok_or(EFAULT),
    }
}

/// Looks at a site of the books.
pub fn look(plan: &Site) -> Result<Live, Errno> {
    look_at(&in_memory(plan)?)
}

/// Looks at a site that is not relative. Any thread.
pub fn look_at(plan: &Site) -> Result<Live, Errno> {
    let live = read(plan.store_addr, u32::from(plan.store_len))?;
    let own = own_mask(plan);
    if live & own == plan.old_word & own {
        return Ok(Live::Original);
    }
    if live & own != plan.new_word & own {
        return Ok(Live::Foreign(plan.store_addr, live));
    }
    let pad = u64::from_le_bytes(plan.pad_new);
    if plan.is_pun() {
        let len = u32::from(plan.window_len.min(8));
        let jump = read(plan.site, len)?;
        return Ok(match jump == pad & low_bytes(len) {
            true => Live::Armed,
            false => Live::Foreign(plan.site, jump),
        });
    }
    if plan.pad_len != 0 {
        let found = read(plan.pad_addr, u32::from(plan.pad_len))?;
        if found != pad & low_bytes(u32::from(plan.pad_len)) {
            return Ok(Live::Foreign(plan.pad_addr, found));
        }
    }
    Ok(Live::Armed)
}

/// True if nothing was ever written for this site: old bytes, and the padding as it was.
pub fn is_untouched(plan: &Site) -> bool {
    // What a loading thread did to it meanwhile is not known.
    if plan.late != 0 {
        return false;
    }
    let pad = u64::from_le_bytes(plan.pad_old) & low_bytes(u32::from(plan.pad_len));
    let pad_intact = || plan.pad_len == 0 || read(plan.pad_addr, u32::from(plan.pad_len)) == Ok(pad);
    look(plan) == Ok(Live::Original) && pad_intact()
}

/// Refuses unless the site looks as wanted, and nothing leads past its stub.
pub fn demand(site: &SiteRow, wanted: Live) -> Result<(), Reply> {
    let refused = Reply::refused(error::BYTES);
    let id = u64::from(site.id);
    if site.direct != 0 {
        return Err(Reply::refused(error::DIRECT).with(id, 0, 0));
    }
    match look(&site.plan) {
        Ok(live) if live == wanted => Ok(()),
        // Its object is not loaded, or was not a moment ago; whoever loads it arms it.
        Err(_) if site.plan.late != 0 && wanted == Live::Armed => Ok(()),
        Ok(Live::Foreign(addr, bytes)) => Err(refused.with(id, addr, bytes)),
        Ok(_) => {
            let bytes = read(site.plan.store_addr, u32::from(site.plan.store_len)).unwrap_or(0);
            Err(refused.with(id, site.plan.store_addr, bytes))
        }
        Err(errno) => Err(refused.with(id, site.plan.store_addr, 0).because(errno)),
    }
}

/// Gives an armed site of the books its old bytes back, from inside.
pub fn restore(plan: &Site) -> Result<(), Errno> {
    restore_at(&in_memory(plan)?)
}

/// Makes the stores of a site that nobody runs at yet.
pub fn arm(plan: &Site) -> Result<(), Errno> {
    let pad = plan.pad_new.iter().take(usize::from(plan.pad_len));
    for (byte, at) in pad.zip(plan.pad_addr..) {
        store(at, u64::from(*byte), 1)?;
    }
    let live = read(plan.store_addr, u32::from(plan.store_len))?;
    let own = own_mask(plan);
    store(plan.store_addr, live & !own | plan.new_word & own, plan.store_len)
}

/// Gives a site that is not relative its old bytes back. The neighbours in the word stay as they are.
pub fn restore_at(plan: &Site) -> Result<(), Errno> {
    let live = read(plan.store_addr, u32::from(plan.store_len))?;
    let own = own_mask(plan);
    store(plan.store_addr, live & !own | plan.old_word & own, plan.store_len)
}

/// The request: one store from inside, for kernels that forbid the command's. Compares first.
pub fn store_request(addr: u64, old: u64, new: u64, len: u64) -> Result<Reply, Reply> {
    let (Ok(width), true) = (u8::try_from(len), matches!(len, 1 | 8) && addr.checked_rem(len) == Some(0))
    else {
        return Err(Reply::refused(error::MALFORMED).with(addr, len, 0));
    };
    let refused = Reply::refused(error::BYTES);
    let at = |s: &&SiteRow| in_memory(&s.plan).is_ok_and(|plan| is_of(&plan, addr, len));
    let site = books().sites.iter().find(at);
    let site = site.ok_or(Reply::refused(error::NO_ENTRY).with(addr, 0, 0))?;
    let id = u64::from(site.id);
    let bits = low_bytes(u32::from(width));
    let live = read(addr, u32::from(width)).map_err(|errno| refused.with(id, addr, 0).because(errno))?;
    if live != old & bits {
        return Err(refused.with(id, addr, live));
    }
    let failed = |errno| Reply::refused(error::PROTECT).with(addr & !(PAGE - 1), PAGE, 0).because(errno);
    store(addr, new, width).map(|()| Reply::default()).map_err(failed)
}

/// True if a store of `len` bytes at `addr` touches what the site may change: its word or its padding.
fn is_of(plan: &Site, addr: u64, len: u64) -> bool {
    let end = addr.saturating_add(len);
    let touches = |start: u64, len: u8| addr < start.saturating_add(u64::from(len)) && start < end;
    touches(plan.store_addr, plan.store_len) || plan.pad_len != 0 && touches(plan.pad_addr, plan.pad_len)
}

/// One atomic store into text. The page is writable for that moment *and* executable: taking the right
/// to execute away would fault every thread that runs there.
fn store(addr: u64, value: u64, len: u8) -> Result<(), Errno> {
    if !addr.is_multiple_of(u64::from(len.max(1))) {
        return Err(EINVAL);
    }
    let page = addr & !(PAGE - 1);
    // SAFETY: adds a right; nothing is taken away.
    unsafe { mem::protect(page, PAGE, PROT_READ | PROT_WRITE | PROT_EXEC) }?;
    let place = core::ptr::with_exposed_provenance_mut::<u8>(addr as usize);
    if len == 1 {
        // SAFETY: mapped and writable (the call above succeeded); atomic, so readers see old or new.
        unsafe { AtomicU8::from_ptr(place) }.store(value as u8, Ordering::Release);
    } else {
        // SAFETY: as above; the address is a multiple of 8.
        unsafe { AtomicU64::from_ptr(place.cast()) }.store(value, Ordering::Release);
    }
    // SAFETY: text of a loaded object is mapped like this; nobody else may write to it.
    unsafe { mem::protect(page, PAGE, PROT_READ | PROT_EXEC) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_across_words() {
        let words = [0x1122_3344_5566_7788u64, 0x99aa_bbcc_ddee_ff00];
        let addr = (&raw const words).expose_provenance() as u64;
        assert_eq!(read(addr, 8), Ok(words[0]));
        assert_eq!(read(addr + 5, 3), Ok(0x11_2233));
        assert_eq!(read(addr + 5, 5), Ok(0xff_0011_2233));
        assert_eq!(read(addr + 7, 8), Ok(0xaabb_ccdd_eeff_0011));
        assert_eq!(read(0, 1), Err(crate::sys::EFAULT));
    }

    #[test]
    fn neighbours_in_the_word_do_not_count() {
        let mut word = 0x0102_0304_0506_0708u64;
        let addr = (&raw mut word).expose_provenance() as u64;
        let plan = Site {
            class: b'S',
            store_len: 8,
            store_addr: addr,
            old_word: 0x0102_0304_0506_0708,
            new_word: 0x0102_0304_0506_eeeb,
            ..Site::default()
        };
        let poke = |value: u64| {
            // SAFETY: `word` lives on this stack frame.
            unsafe { (addr as *mut u64).write_volatile(value) };
        };
        assert_eq!(look(&plan), Ok(Live::Original));
        poke(0xcc02_0304_0506_eeeb);
        assert_eq!(look(&plan), Ok(Live::Armed), "a breakpoint in a neighbour");
        poke(0x0102_0304_0506_eecc);
        assert!(matches!(look(&plan), Ok(Live::Foreign(..))), "a breakpoint in the site's own byte");
        let _ = word;
    }

    #[test]
    fn a_punned_jump_needs_its_displacement() {
        let mut code = [0xe9u8, 1, 2, 3, 4, 0, 0, 0, 0, 0, 0, 0];
        let addr = code.as_mut_ptr().expose_provenance() as u64;
        let plan = Site {
            class: b'J',
            store_len: 1,
            window_len: 5,
            site: addr,
            store_addr: addr,
            old_word: 0x55,
            new_word: 0xe9,
            pad_new: [0xe9, 1, 2, 3, 4, 0, 0, 0],
            ..Site::default()
        };
        assert_eq!(look(&plan), Ok(Live::Armed));
        // SAFETY: `code` lives on this stack frame.
        unsafe { ((addr + 3) as *mut u8).write_volatile(0xcc) };
        assert!(matches!(look(&plan), Ok(Live::Foreign(..))));
        let _ = code;
    }
}
