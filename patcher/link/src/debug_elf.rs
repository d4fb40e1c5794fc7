//! The copy of a patch's ELF file that a debugger reads in the target.
//!
//! gdb's JIT interface takes the addresses of sections and symbols as final ones, so the load address
//! is added to them here. Section indices stay, so that symbols keep their sections; debug
//! information (which would need relocating as well) is left out.

use suture_elf::{Base, ObjectFile};

const HEADER: usize = 64;
const SECTION: usize = 64;
const SYMBOL: usize = 24;
const SHT_SYMTAB: u32 = 2;
const SHT_NOBITS: u32 = 8;
const SHT_DYNSYM: u32 = 11;
const SHF_ALLOC: u64 = 2;
const SHN_LORESERVE: u16 = 0xff00;
const STT_TLS: u8 = 6;
const OUTSIDE: [&[u8]; 3] = [b".debug_", b".zdebug_", b".rela.debug_"];

/// The adjusted copy; `None` for files without section headers, which tell a debugger nothing.
#[must_use]
pub fn adjusted(file: &ObjectFile, base: Base) -> Option<Vec<u8>> {
    let data = file.data();
    let table = usize::try_from(u64_at(data, 40)?).ok()?;
    let count = usize::from(u16_at(data, 60)?);
    let names = usize::from(u16_at(data, 62)?);
    if count == 0 || u16_at(data, 58)? as usize != SECTION {
        return None;
    }
    let mut sections: Vec<Vec<u8>> = (0..count)
        .map(|i| Some(data.get(table.checked_add(i * SECTION)?..)?.get(..SECTION)?.to_vec()))
        .collect::<Option<_>>()?;
    let strings = content(data, sections.get(names)?)?;
    let mut copy = data.get(..HEADER)?.to_vec();
    for section in &mut sections {
        let name = strings.get(u32_at(section, 0)? as usize..)?;
        let kind = u32_at(section, 4)?;
        if OUTSIDE.iter().any(|prefix| name.starts_with(prefix)) {
            // Type SHT_NULL, nothing in it; the name stays.
            section[4..].fill(0);
            continue;
        }
        if u64_at(section, 8)? & SHF_ALLOC != 0 {
            let addr = base.0.wrapping_add(u64_at(section, 16)?);
            section[16..24].copy_from_slice(&addr.to_le_bytes());
        }
        if kind == 0 || kind == SHT_NOBITS {
            continue;
        }
        let bytes = content(data, section)?;
        copy.resize(copy.len().next_multiple_of(16), 0);
        let at = copy.len();
        copy.extend_from_slice(bytes);
        section[24..32].copy_from_slice(&(at as u64).to_le_bytes());
        if kind == SHT_SYMTAB || kind == SHT_DYNSYM {
            copy[at..].chunks_exact_mut(SYMBOL).for_each(|symbol| adjust(symbol, base));
        }
    }
    copy.resize(copy.len().next_multiple_of(8), 0);
    let at = copy.len() as u64;
    sections.iter().for_each(|section| copy.extend_from_slice(section));
    copy[40..48].copy_from_slice(&at.to_le_bytes());
    // No program headers: theirs are the file's addresses.
    copy[32..40].fill(0);
    copy[56..58].fill(0);
    Some(copy)
}

fn adjust(symbol: &mut [u8], base: Base) {
    let section = u16::from_le_bytes([symbol[6], symbol[7]]);
    if section == 0 || section >= SHN_LORESERVE || symbol[4] & 15 == STT_TLS {
        return;
    }
    let mut value = [0; 8];
    value.copy_from_slice(&symbol[8..16]);
    let value = base.0.wrapping_add(u64::from_le_bytes(value));
    symbol[8..16].copy_from_slice(&value.to_le_bytes());
}

fn content<'d>(data: &'d [u8], section: &[u8]) -> Option<&'d [u8]> {
    let offset = usize::try_from(u64_at(section, 24)?).ok()?;
    let size = usize::try_from(u64_at(section, 32)?).ok()?;
    data.get(offset..offset.checked_add(size)?)
}

fn u16_at(data: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(data.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(data: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(data.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(data: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(data.get(at..at + 8)?.try_into().ok()?))
}
