//! A place for a few hundred bytes of code in a process that has none of ours.
//!
//! The last page of an executable mapping is mapped whole, but its segment usually ends before. The
//! bytes behind it are never executed and never read: that is the cave. Writing there makes one page
//! of the object private.
//!
//! What an earlier command left there is never overwritten, since a clone may be at work in it; it is used
//! again if it fits, else another copy is put beside it.

use super::boot;
use crate::error::Error;
use crate::target::Target;
use suture_abi::doorbell::{TIMEOUT_OFFSET, TIMEOUT_SLOTS};
use suture_elf::{Addr, MapsSnapshot, Memory, PAGE};

/// The ends of a process's executable mappings.
#[derive(Debug, Default)]
pub struct Caves {
    /// Copies of the boot code that commands before this one have left.
    pub copies: Vec<Copy>,
    /// Where another copy can be put.
    pub room: Option<Addr>,
}

/// A copy of the boot code in a process.
#[derive(Clone, Debug)]
pub struct Copy {
    /// Its address.
    pub at: Addr,
    /// The table behind it, as words.
    pub table: Vec<u64>,
}

impl Copy {
    /// The addresses its image is for.
    #[must_use]
    pub fn image(&self) -> std::ops::Range<u64> {
        let [base, len] = [0, 1].map(|word| self.table.get(word).copied().unwrap_or(0));
        base..base.saturating_add(len)
    }

    /// Whether it is what would be written for that table.
    #[must_use]
    pub fn is_for(&self, code: &[u8]) -> bool {
        words(&code[boot::code_len()..]) == self.table
    }
}

/// Looks for copies, and for room for `len` bytes.
///
/// # Errors
/// When the process is gone.
pub fn look(target: &Target, maps: &MapsSnapshot, code: &[u8]) -> Result<Caves, Error> {
    let mut caves = Caves::default();
    for region in maps.regions.iter().filter(|r| r.exec && r.inode != 0 && r.path.is_some()) {
        let page = region.end - PAGE;
        let Ok(bytes) = target.memory.read_vec(Addr(page), 4096) else {
            target.still_there()?;
            continue;
        };
        caves.copies.extend(copies(Addr(page), &bytes, code));
        // Zeros to the end of the page; a code byte before them may be a zero too, hence the gap.
        let used = bytes.iter().rposition(|&b| b != 0).map_or(0, |at| at as u64 + 1);
        let start = (used + 64).next_multiple_of(64);
        if caves.room.is_none() && used > 0 && start + code.len() as u64 <= PAGE {
            caves.room = Some(Addr(page + start));
        }
    }
    Ok(caves)
}

/// Copies of the boot code in a page, with whatever table.
fn copies(page: Addr, bytes: &[u8], code: &[u8]) -> Vec<Copy> {
    let aligned = (0..bytes.len().saturating_sub(code.len() - 1)).step_by(64);
    let here = aligned.filter(|&at| same_code(&bytes[at..at + boot::code_len()], &code[..boot::code_len()]));
    let copy = |at: usize| Copy {
        at: page + at as u64,
        table: words(&bytes[at + boot::code_len()..at + code.len()]),
    };
    here.map(copy).collect()
}

/// Whether code is the same but for the time-outs at its beginning.
fn same_code(one: &[u8], other: &[u8]) -> bool {
    let slots = TIMEOUT_OFFSET as usize..(TIMEOUT_OFFSET + 16 * TIMEOUT_SLOTS) as usize;
    one.len() == other.len()
        && one[..slots.start] == other[..slots.start]
        && one[slots.end..] == other[slots.end..]
}

fn words(bytes: &[u8]) -> Vec<u64> {
    let word = |b: &[u8]| b.try_into().map_or(0, u64::from_le_bytes);
    bytes.chunks_exact(8).map(word).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inject::boot::Table;

    #[test]
    fn a_copy_is_known_whatever_its_table_and_time_outs_are() {
        let code = boot::code(&Table { base: 0x7000, len: 0x3000, ..Table::default() });
        let mut page = vec![0; 4096];
        page[128..128 + code.len()].copy_from_slice(&code);
        page[128 + 8] = 9;
        let other = boot::code(&Table { base: 0x9000, ..Table::default() });
        let found = copies(Addr(0x1000), &page, &other);
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].at, found[0].image()), (Addr(0x1080), 0x7000..0xa000));
        assert!(found[0].is_for(&code) && !found[0].is_for(&other));
        page[128 + 100] ^= 1;
        assert!(copies(Addr(0x1000), &page, &other).is_empty(), "other code");
    }
}
