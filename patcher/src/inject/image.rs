//! The runtime as a finished image for one address.
//!
//! `libsuture.so` has no needed library, no undefined symbol, no thread-local storage and only
//! relative relocations, so it can be placed by hand: no loader, no lock, no safe point, in any
//! program.

use super::boot::{BootMapping, MOST_MAPPINGS, Table};
use crate::error::Error;
use suture_elf::{ObjectFile, PAGE, Vaddr};

const DT_RELA: u64 = 7;
const DT_RELASZ: u64 = 8;
const DT_INIT_ARRAY: u64 = 25;
const DT_INIT_ARRAYSZ: u64 = 27;
const PT_TLS: u32 = 7;
const PT_GNU_RELRO: u32 = 0x6474_e552;
const R_X86_64_RELATIVE: u64 = 8;
/// Tags that would need a loader.
const NEEDS_LOADER: [u64; 5] = [1, 23, 36, 17, 12]; // NEEDED, JMPREL, RELR, REL, INIT

/// An image: what the memfd holds, and where it goes.
#[derive(Debug)]
pub struct Image {
    /// Contents of the memfd, whole pages.
    pub content: Vec<u8>,
    /// For the boot code.
    pub table: Table,
}

/// Bytes the image occupies from first to last page.
#[must_use]
pub fn span(file: &ObjectFile) -> u64 {
    file.segments().iter().map(|s| s.addr.0 + s.memsz).max().unwrap_or(0).next_multiple_of(PAGE)
}

/// Relocates the runtime to `base`.
///
/// # Errors
/// When the file needs what only a loader can do: it is not the runtime this command came with.
pub fn build(file: &ObjectFile, base: u64) -> Result<Image, Error> {
    let odd = |what: &str| Error::Patch {
        what: format!("{} cannot be placed without a loader: {what}", file.path()),
        errno: "EINVAL",
        hint: Some("use the libsuture.so that came with this command".into()),
    };
    if file.program_header(PT_TLS).is_some() {
        return Err(odd("it has thread-local storage"));
    }
    if let Some((tag, _)) = file.dynamic().iter().find(|(t, _)| NEEDS_LOADER.contains(t)) {
        return Err(odd(&format!("dynamic tag {tag}")));
    }
    let mut memory = vec![0u8; usize::try_from(span(file)).map_err(|_| odd("too large"))?];
    for segment in file.segments().iter().filter(|s| s.filesz > 0) {
        let bytes = file.bytes_at(segment.addr, segment.filesz).ok_or_else(|| odd("a segment is cut"))?;
        let at = usize::try_from(segment.addr.0).map_err(|_| odd("too large"))?;
        memory[at..at + bytes.len()].copy_from_slice(bytes);
    }
    let value = |tag| file.dynamic_value(tag).unwrap_or(0);
    let rela = file.bytes_at(Vaddr(value(DT_RELA)), value(DT_RELASZ)).unwrap_or_default();
    for entry in rela.chunks_exact(24) {
        let word = |at: usize| entry[at..at + 8].try_into().map_or(0, u64::from_le_bytes);
        let (place, kind, addend) = (word(0), word(8), word(16));
        let at = usize::try_from(place).ok().filter(|at| at + 8 <= memory.len());
        let (Some(at), R_X86_64_RELATIVE) = (at, kind) else {
            return Err(odd("a relocation is not relative"));
        };
        memory[at..at + 8].copy_from_slice(&base.wrapping_add(addend).to_le_bytes());
    }
    let init_at = usize::try_from(value(DT_INIT_ARRAY)).unwrap_or(usize::MAX);
    let init = memory.get(init_at..init_at.saturating_add(8)).and_then(|b| b.try_into().ok());
    let (Some(init), 8) = (init, value(DT_INIT_ARRAYSZ)) else {
        return Err(odd("it has no single initialiser"));
    };
    let mappings = mappings(file, base);
    if mappings.len() > MOST_MAPPINGS {
        return Err(odd("too many segments"));
    }
    let mut table =
        Table { base, len: span(file), init: u64::from_le_bytes(init), count: 0, ..Table::default() };
    for (slot, mapping) in table.mappings.iter_mut().zip(&mappings) {
        *slot = *mapping;
        table.count += 1;
    }
    Ok(Image { content: memory, table })
}

/// One mapping per segment; what the loader would make read-only after relocation is read-only from
/// the start, what the file does not back is anonymous.
fn mappings(file: &ObjectFile, base: u64) -> Vec<BootMapping> {
    let relro = file.program_header(PT_GNU_RELRO);
    let mut mappings: Vec<BootMapping> = Vec::new();
    let mut push = |start: u64, end: u64, prot: u64, backed: bool| {
        if start < end {
            let offset = if backed { start } else { u64::MAX };
            mappings.push(BootMapping { addr: base + start, len: end - start, prot, offset });
        }
    };
    for segment in file.segments() {
        let prot = u64::from(segment.flags & 4 != 0)
            | u64::from(segment.writable()) << 1
            | u64::from(segment.executable()) << 2;
        let start = segment.addr.0 & !(PAGE - 1);
        let backed = (segment.addr.0 + segment.filesz).next_multiple_of(PAGE);
        let end = (segment.addr.0 + segment.memsz).next_multiple_of(PAGE);
        let read_only = relro
            .filter(|r| segment.writable() && r.addr.0 & !(PAGE - 1) == start)
            .map_or(start, |r| ((r.addr.0 + r.memsz) & !(PAGE - 1)).min(backed));
        push(start, read_only, 1, true);
        push(read_only, backed, prot, true);
        push(backed.max(read_only), end, prot, false);
    }
    mappings
}
