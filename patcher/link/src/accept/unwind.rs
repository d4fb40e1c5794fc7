//! The unwind tables of a patch.
//!
//! Unwinders in the target find them by the search table of `.eh_frame_hdr`, so that table must be
//! there, sorted, and lead nowhere but into the image.

use super::{AcceptError, AcceptOptions};
use crate::elf;
use suture_elf::{ObjectFile, Segment, Vaddr};

/// Encodings every linker writes: pc-relative pointer, 4-byte count, pairs of 4-byte offsets from the
/// start of the header.
const HEADER: [u8; 4] = [1, 0x1b, 0x03, 0x3b];

pub(super) fn check(file: &ObjectFile, options: AcceptOptions) -> Result<Option<Vaddr>, AcceptError> {
    let bad = |what: &str| AcceptError::Unwind { what: what.to_owned() };
    let Some(segment) = file.program_header(elf::PT_GNU_EH_FRAME) else {
        // A patch without code (states without callbacks) has nothing to unwind.
        if options.without_unwind_tables || !file.segments().iter().any(Segment::executable) {
            return Ok(None);
        }
        return Err(bad("it has no unwind tables (.eh_frame_hdr)"));
    };
    let header = file.bytes_at(segment.addr, segment.filesz).unwrap_or_default();
    let word = |at: usize| header.get(at..at + 4).map(|b| i32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    if !header.starts_with(&HEADER) {
        return Err(bad("its .eh_frame_hdr has no search table in the usual format"));
    }
    let (Some(frame), Some(count)) = (word(4), word(8)) else {
        return Err(bad("its .eh_frame_hdr is cut off"));
    };
    let at = |base: u64, offset: i32| Vaddr(base.wrapping_add_signed(i64::from(offset)));
    let mut previous = None;
    let readable = |addr: Vaddr| file.segments().iter().any(|s| s.backs(addr));
    if !readable(at(segment.addr.0 + 4, frame)) {
        return Err(bad("its .eh_frame_hdr leads to no .eh_frame"));
    }
    for i in 0..usize::try_from(count).unwrap_or(0) {
        let (Some(start), Some(entry)) = (word(12 + i * 8), word(16 + i * 8)) else {
            return Err(bad("its table of unwind entries reaches past its segment"));
        };
        let code = at(segment.addr.0, start);
        if !file.segments().iter().any(|s| s.executable() && s.backs(code)) {
            return Err(bad("its table of unwind entries names an address outside its code"));
        }
        if !readable(at(segment.addr.0, entry)) {
            return Err(bad("its table of unwind entries leads outside its file"));
        }
        if previous.is_some_and(|p| p > start) {
            return Err(bad("its table of unwind entries is not sorted"));
        }
        previous = Some(start);
    }
    if count <= 0 && !options.without_unwind_tables {
        return Err(bad("its unwind tables are empty"));
    }
    Ok(Some(segment.addr))
}
