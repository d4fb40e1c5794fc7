//! Finding the runtime inside a process.
//!
//! The library is found by its file name in the memory map and read from memory, not from disk: the
//! file may have been upgraded since.

use super::Target;
use crate::error::Error;
use suture_abi::block::{BLOCK_MAGIC, RuntimeBlock};
use suture_abi::{ABI_VERSION, BLOCK_SYMBOL, RUNTIME_SONAME};
use suture_elf::{Addr, MapsSnapshot, Memory, Pages, Region};
use suture_link::Exports;

const PT_DYNAMIC: u32 = 2;
const DT_HASH: u64 = 4;
const DT_STRTAB: u64 = 5;
const DT_SYMTAB: u64 = 6;

/// The runtime of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Runtime {
    /// Address of its block.
    pub block: Addr,
    /// Where it is loaded.
    pub base: Addr,
    /// It was put in by a command, rather than loaded by the program's loader.
    pub injected: bool,
}

/// The runtime of a process. Looked for in its memory map until it was found: it is never unloaded, and the memory
/// that was opened is that of one program.
///
/// # Errors
/// As [`find`].
pub fn of(target: &Target) -> Result<Runtime, Error> {
    match target.runtime.get() {
        Some(known) => Ok(*known),
        None => of_maps(target, &target.maps()?),
    }
}

/// The address of the runtime's block.
///
/// # Errors
/// As [`find`].
pub fn block(target: &Target) -> Result<Addr, Error> {
    of(target).map(|runtime| runtime.block)
}

/// [`of`], with a memory map that was just read.
///
/// # Errors
/// As [`find`].
pub fn of_maps(target: &Target, maps: &MapsSnapshot) -> Result<Runtime, Error> {
    match target.runtime.get() {
        Some(known) => Ok(*known),
        None => find(target, maps).map(|found| *target.runtime.get_or_init(|| found)),
    }
}

/// Finds the runtime and checks that both sides speak the same contract.
///
/// An injected image that is not ready is none: its clone is at work, or it stayed behind in a process
/// that was forked in the middle.
///
/// # Errors
/// [`Error::NotPrepared`] when there is no runtime, [`Error::NotReady`] when the loader has not
/// initialised it yet, [`Error::AbiMismatch`] when it is another one.
fn find(target: &Target, maps: &MapsSnapshot) -> Result<Runtime, Error> {
    let pid = target.pid();
    let path = |r: &&Region| r.path.clone().unwrap_or_default();
    let mut loading = false;
    for region in maps.regions.iter().filter(|r| r.offset == 0 && is_runtime(&path(r))) {
        let Some(block) = block_symbol(target, Addr(region.start)) else { continue };
        let injected = is_injected(&path(&region));
        let Ok(head) = target.memory.read_vec(block, 16) else {
            // Not all of it is mapped yet.
            target.still_there()?;
            loading |= !injected;
            continue;
        };
        let word = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let magic = u64::from(word(0)) | u64::from(word(4)) << 32;
        if magic != BLOCK_MAGIC {
            loading |= !injected;
            continue;
        }
        if word(8) != ABI_VERSION || word(12) as usize != size_of::<RuntimeBlock>() {
            return Err(Error::AbiMismatch { pid, theirs: word(8), ours: ABI_VERSION });
        }
        return Ok(Runtime { block, base: Addr(region.start), injected });
    }
    Err(if loading { Error::NotReady { pid } } else { Error::NotPrepared { pid } })
}

/// Whether a mapped path is that of a memfd.
fn is_injected(path: &str) -> bool {
    path.starts_with("/memfd:")
}

/// Whether a mapped path is the runtime: its file name, or a memfd of that name.
fn is_runtime(path: &str) -> bool {
    let path = path.strip_suffix(" (deleted)").unwrap_or(path);
    let name = path.rsplit('/').next().unwrap_or(path);
    name.strip_prefix("memfd:").unwrap_or(name) == RUNTIME_SONAME
}

/// What the runtime of a process exports; `None` if it has none.
///
/// # Errors
/// As [`find`].
pub fn exports(target: &Target, maps: &MapsSnapshot) -> Result<Option<Exports>, Error> {
    match of_maps(target, maps) {
        Ok(runtime) => Ok(Some(symbols(target, runtime.base).unwrap_or_default())),
        Err(Error::NotPrepared { .. } | Error::NotReady { .. }) => Ok(None),
        Err(other) => Err(other),
    }
}

fn block_symbol(target: &Target, base: Addr) -> Option<Addr> {
    symbols(target, base)?.get(BLOCK_SYMBOL).copied()
}

/// The defined symbols of the library's own dynamic symbol table.
fn symbols(target: &Target, base: Addr) -> Option<Exports> {
    // Names lie side by side.
    let memory = Pages::new(&target.memory);
    let half = |bytes: &[u8], at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
    let quad = |bytes: &[u8], at: usize| bytes[at..at + 8].try_into().map_or(0, u64::from_le_bytes);
    let header = memory.read_vec(base, 64).ok()?;
    if !header.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let phdrs = memory.read_vec(base + quad(&header, 32), usize::from(half(&header, 56)) * 56).ok()?;
    let dynamic =
        phdrs.chunks_exact(56).find(|p| u32::from_le_bytes([p[0], p[1], p[2], p[3]]) == PT_DYNAMIC)?;
    let entries =
        memory.read_vec(base + quad(dynamic, 16), usize::try_from(quad(dynamic, 40)).ok()?.min(4096)).ok()?;
    let value = |tag: u64| {
        let entry = entries.chunks_exact(16).find(|e| quad(e, 0) == tag)?;
        let value = quad(entry, 8);
        // glibc adjusts these entries in memory, musl leaves the file's offsets.
        Some(if value >= base.0 { Addr(value) } else { base + value })
    };
    let (symtab, strtab, hash) = (value(DT_SYMTAB)?, value(DT_STRTAB)?, value(DT_HASH)?);
    let count = memory.read_u64(hash).ok()? >> 32;
    let table = memory.read_vec(symtab, usize::try_from(count).ok()?.min(4096) * 24).ok()?;
    let named = |symbol: &[u8]| {
        let name = u64::from(u32::from_le_bytes([symbol[0], symbol[1], symbol[2], symbol[3]]));
        let defined = half(symbol, 6) != 0;
        Some((memory.read_cstr(strtab + name, 64).ok()?, base + quad(symbol, 8))).filter(|_| defined)
    };
    Some(table.chunks_exact(24).filter_map(named).collect())
}

#[cfg(test)]
mod tests {
    use super::is_runtime;

    #[test]
    fn the_runtime_is_known_by_its_file_name() {
        assert!(is_runtime("/usr/lib/suture/libsuture.so"));
        assert!(is_runtime("/usr/lib/suture/libsuture.so (deleted)"));
        assert!(is_runtime("/memfd:libsuture.so (deleted)"));
        assert!(!is_runtime("/usr/lib/libsuture.so.old"));
        assert!(!is_runtime("[heap]"));
    }
}
