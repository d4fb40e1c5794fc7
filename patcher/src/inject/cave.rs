//! A place for a few hundred bytes of code in a process that has none of ours.
//!
//! The last page of an executable mapping is mapped whole, but its segment usually ends before. The
//! bytes behind it are never executed and never read: that is the cave. Writing there makes one page
//! of the object private.

use crate::error::Error;
use crate::target::Target;
use suture_elf::{Addr, MapsSnapshot, Memory};

/// Where code for one entry can be put.
///
/// # Errors
/// When no executable mapping has room at its end.
pub fn find(target: &Target, maps: &MapsSnapshot, code: &[u8]) -> Result<Addr, Error> {
    let len = code.len() as u64;
    for region in maps.regions.iter().filter(|r| r.exec && r.inode != 0 && r.path.is_some()) {
        let page = region.end - 4096;
        let Ok(bytes) = target.memory.read_vec(Addr(page), 4096) else { continue };
        // Zeros to the end of the page; a code byte before them may be a zero too, hence the gap.
        let used = bytes.iter().rposition(|&b| b != 0).map_or(0, |at| at as u64 + 1);
        let start = (used + 64).next_multiple_of(64);
        if start + len <= 4096 && used > 0 {
            return Ok(Addr(page + start));
        }
        // Left by a command that died: the same code can be used as it is.
        if let Some(at) = bytes.windows(code.len()).position(|w| w == code) {
            return Ok(Addr(page + at as u64));
        }
    }
    Err(Error::Unreadable { pid: target.pid(), what: "no executable mapping has room at its end".into() })
}
