//! Changing code bytes: one store per site, compared before and read back after.
//!
//! A store of class J is 1 byte; P, S and A write one aligned 8-byte word, since a 2- or 5-byte
//! `pwrite` is two stores on processors without fast short moves. Bytes of the word that are not the
//! site's own are written back as they were read; if a neighbour changed in between, the read-back
//! shows it and the error says so.

use crate::error::Error;
use crate::target::Target;
use suture_abi::batch::Site;
use suture_elf::{Addr, Memory};

/// What stands at a site.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Live {
    /// The file's bytes.
    Original,
    /// Our jump.
    Armed,
    /// Neither: the bytes found.
    Foreign(u64),
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

fn read_word(target: &Target, site: &Site) -> Result<u64, Error> {
    let mut word = [0; 8];
    let addr = Addr(site.store_addr);
    target.memory.read(addr, &mut word[..store_len(site)]).map_err(|e| Error::from_memory(target, e))?;
    Ok(u64::from_le_bytes(word))
}

/// Looks at a site.
///
/// # Errors
/// When the process is gone or the page is no longer mapped.
pub fn look(target: &Target, site: &Site) -> Result<Live, Error> {
    let live = read_word(target, site)?;
    let mask = own_mask(site);
    // Of a punned jump the four bytes behind it are part of the jump: a breakpoint in them sends it
    // into nowhere.
    if live & mask == site.new_word & mask {
        return Ok(if pun_intact(target, site)? { Live::Armed } else { Live::Foreign(live) });
    }
    Ok(if live & mask == site.old_word & mask { Live::Original } else { Live::Foreign(live) })
}

fn pun_intact(target: &Target, site: &Site) -> Result<bool, Error> {
    if site.class != b'J' {
        return Ok(true);
    }
    let mut displacement = [0; 4];
    target.memory.read(Addr(site.site) + 1, &mut displacement).map_err(|e| Error::from_memory(target, e))?;
    let expected = site.pad_new.get(1..5).unwrap_or(&[]);
    Ok(displacement == expected)
}

/// Writes the jump into the padding (classes P and S). Nobody runs there before the site is armed.
///
/// # Errors
/// When the padding is no longer what the plan saw, or cannot be written.
pub fn write_pad(target: &Target, site: &Site, function: &str) -> Result<(), Error> {
    let len = usize::from(site.pad_len).min(8);
    if len == 0 {
        return Ok(());
    }
    let addr = Addr(site.pad_addr);
    let live = target.memory.read_vec(addr, len).map_err(|e| Error::from_memory(target, e))?;
    if live == site.pad_new[..len] {
        return Ok(());
    }
    if live != site.pad_old[..len] {
        return Err(foreign(function, addr, &live, &site.pad_old[..len]));
    }
    store(target, addr, &site.pad_new[..len])
}

/// Makes the arming store.
///
/// # Errors
/// When the live word is not the planned one, or the store did not take.
pub fn arm(target: &Target, site: &Site, function: &str) -> Result<(), Error> {
    let len = store_len(site);
    let addr = Addr(site.store_addr);
    let live = read_word(target, site)?;
    let (old, new) = (site.old_word.to_le_bytes(), site.new_word.to_le_bytes());
    let mask = own_mask(site);
    if live & !mask != site.old_word & !mask || !only_old_or_new(site, live) {
        return Err(foreign(function, addr, &live.to_le_bytes()[..len], &old[..len]));
    }
    store(target, addr, &new[..len])?;
    let now = read_word(target, site)?;
    if now == site.new_word {
        Ok(())
    } else {
        Err(foreign(function, addr, &now.to_le_bytes()[..len], &new[..len]))
    }
}

/// Gives a site its old bytes back, if they are still ours. `false`: somebody else's byte stands
/// there and was left alone.
///
/// # Errors
/// When the process is gone or the store did not take.
pub fn restore(target: &Target, site: &Site) -> Result<bool, Error> {
    let mask = own_mask(site);
    let live = read_word(target, site)?;
    if live & mask == site.old_word & mask {
        return Ok(true);
    }
    if !only_old_or_new(site, live) {
        return Ok(false);
    }
    let word = (live & !mask | site.old_word & mask).to_le_bytes();
    store(target, Addr(site.store_addr), &word[..store_len(site)])?;
    Ok(look(target, site)? == Live::Original)
}

fn store(target: &Target, addr: Addr, bytes: &[u8]) -> Result<(), Error> {
    target.memory.write_forced(addr, bytes).map_err(|source| Error::Store {
        pid: target.pid(),
        addr: addr.0,
        source,
    })
}

fn foreign(function: &str, addr: Addr, found: &[u8], expected: &[u8]) -> Error {
    let whose = match found.iter().zip(expected).find(|(f, e)| f != e) {
        Some((0xcc, _)) => "a breakpoint or probe",
        Some((0xf1, _)) => "a debug trap",
        Some((0xe9 | 0xeb | 0xff, _)) => "a jump: another hook",
        _ => "unknown",
    };
    Error::Foreign {
        function: function.to_owned(),
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

    fn own_target() -> Target {
        Target::open(std::process::id().cast_signed()).unwrap()
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
        let target = own_target();
        let word = 0x1111_2222_3333_4444u64;
        let site = site(&word, word, 0x1111_2222_3333_55eb, 8);
        assert_eq!(look(&target, &site).unwrap(), Live::Original);
        arm(&target, &site, "f").unwrap();
        assert_eq!(look(&target, &site).unwrap(), Live::Armed);
        // A neighbour changes while the site is armed: restoring must not undo that.
        let at = Addr(site.store_addr);
        target.memory.write(at + 7, &[0x99]).unwrap();
        assert!(restore(&target, &site).unwrap());
        assert_eq!(target.memory.read_u64(at).unwrap(), 0x9911_2222_3333_4444);
        std::hint::black_box(&word);
    }

    #[test]
    fn bytes_torn_by_a_removed_probe_are_mended() {
        let target = own_target();
        let word = 0x1111_2222_3333_4455u64;
        let site = site(&word, word, 0x1111_2222_3333_7aeb, 8);
        let at = Addr(site.store_addr);
        arm(&target, &site, "f").unwrap();
        target.memory.write(at, &[0x55]).unwrap();
        assert_eq!(look(&target, &site).unwrap(), Live::Foreign(0x1111_2222_3333_7a55));
        arm(&target, &site, "f").unwrap();
        assert_eq!(look(&target, &site).unwrap(), Live::Armed);
        target.memory.write(at, &[0x55]).unwrap();
        assert!(restore(&target, &site).unwrap());
        assert_eq!(target.memory.read_u64(at).unwrap(), 0x1111_2222_3333_4455);
        std::hint::black_box(&word);
    }

    #[test]
    fn foreign_bytes_are_neither_overwritten_nor_removed() {
        let target = own_target();
        let word = 0x55u64;
        let site = site(&word, 0x55, 0xe9, 1);
        let at = Addr(site.store_addr);
        target.memory.write(at, &[0xcc]).unwrap();
        assert!(arm(&target, &site, "f").unwrap_err().to_string().contains("a breakpoint or probe"));
        assert!(!restore(&target, &site).unwrap());
        assert_eq!(look(&target, &site).unwrap(), Live::Foreign(0xcc));
        std::hint::black_box(&word);
    }
}
