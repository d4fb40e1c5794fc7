//! Relocations of a loadable object.

use crate::{ElfError, ObjectFile, Vaddr};

const DT_PLTRELSZ: u64 = 2;
const DT_RELA: u64 = 7;
const DT_RELASZ: u64 = 8;
const DT_RELAENT: u64 = 9;
const DT_REL: u64 = 17;
const DT_PLTREL: u64 = 20;
const DT_JMPREL: u64 = 23;
const DT_RELRSZ: u64 = 35;
const DT_RELR: u64 = 36;

/// `R_X86_64_RELATIVE`, the type packed relocations have.
const RELATIVE: u32 = 8;
const RELA_SIZE: u64 = 24;

/// One relocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reloc {
    /// Address of the word it fills.
    pub place: Vaddr,
    /// `R_X86_64_*`.
    pub kind: u32,
    /// Index of its symbol; 0 = none.
    pub symbol: u32,
    /// Addend (for packed ones: what stands in the file at `place`).
    pub addend: i64,
}

/// Reads all relocations in the order the loader applies them.
pub(crate) fn read(file: &ObjectFile) -> Result<Vec<Reloc>, ElfError> {
    let bad = |what: &str| ElfError::Malformed { path: file.path().to_owned(), what: what.to_owned() };
    let value = |tag| file.dynamic_value(tag);
    if value(DT_REL).is_some() || value(DT_PLTREL).is_some_and(|kind| kind != DT_RELA) {
        return Err(bad("it has relocations without addends, which x86-64 does not use"));
    }
    if value(DT_RELAENT).is_some_and(|size| size != RELA_SIZE) {
        return Err(bad("its relocations have an unknown size"));
    }
    let mut relocs = Vec::new();
    if let (Some(start), Some(size)) = (value(DT_RELR), value(DT_RELRSZ)) {
        let table = file.bytes_at(Vaddr(start), size).ok_or_else(|| bad("DT_RELR lies outside the file"))?;
        let places = packed(table).ok_or_else(|| bad("DT_RELR does not start with an address"))?;
        for place in places {
            let word = file.bytes_at(place, 8).and_then(|b| b.try_into().ok());
            let word = word.ok_or_else(|| bad("DT_RELR relocates a word outside the file"))?;
            relocs.push(Reloc { place, kind: RELATIVE, symbol: 0, addend: i64::from_le_bytes(word) });
        }
    }
    for (start, size) in [(DT_RELA, DT_RELASZ), (DT_JMPREL, DT_PLTRELSZ)] {
        let (Some(start), Some(size)) = (value(start), value(size)) else { continue };
        let table = file.bytes_at(Vaddr(start), size);
        let table = table.ok_or_else(|| bad("a relocation table lies outside the file"))?;
        relocs.extend(table.chunks_exact(RELA_SIZE as usize).map(entry));
    }
    Ok(relocs)
}

fn entry(bytes: &[u8]) -> Reloc {
    let quad = |at: usize| {
        let mut word = [0; 8];
        word.copy_from_slice(&bytes[at..at + 8]);
        u64::from_le_bytes(word)
    };
    let info = quad(8);
    Reloc {
        place: Vaddr(quad(0)),
        kind: info as u32,
        symbol: (info >> 32) as u32,
        addend: quad(16).cast_signed(),
    }
}

/// Places of a `DT_RELR` table: an even entry is an address, an odd one a bitmap of the 63 words
/// behind the last place.
fn packed(table: &[u8]) -> Option<Vec<Vaddr>> {
    let mut places = Vec::new();
    let mut next: Option<u64> = None;
    for entry in table.chunks_exact(8) {
        let entry = u64::from_le_bytes(entry.try_into().ok()?);
        if entry & 1 == 0 {
            places.push(Vaddr(entry));
            next = Some(entry.wrapping_add(8));
        } else {
            let from = next?;
            let bits = (0..63).filter(|bit| entry >> (bit + 1) & 1 != 0);
            places.extend(bits.map(|bit| Vaddr(from.wrapping_add(bit * 8))));
            next = Some(from.wrapping_add(63 * 8));
        }
    }
    Some(places)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packed_relocations_unfold() {
        let table: Vec<u8> =
            [0x1000u64, 0b1011, 1 | 1 << 63, 0x3000].iter().flat_map(|w| w.to_le_bytes()).collect();
        let places: Vec<u64> = packed(&table).unwrap().iter().map(|p| p.0).collect();
        // The first bitmap starts at 0x1008, the second 63 words later.
        assert_eq!(places, [0x1000, 0x1008, 0x1018, 0x1008 + 63 * 8 + 62 * 8, 0x3000]);
        assert_eq!(packed(&3u64.to_le_bytes()), None);
    }

    #[test]
    fn the_test_program_itself_has_relocations_inside_its_segments() {
        let file = ObjectFile::open(std::path::Path::new("/proc/self/exe")).unwrap();
        let relocs = read(&file).unwrap();
        assert!(relocs.iter().any(|r| r.kind == RELATIVE));
        let inside = |r: &Reloc| {
            file.segments().iter().any(|s| r.place >= s.addr && r.place.0 - s.addr.0 + 8 <= s.memsz)
        };
        assert!(relocs.iter().all(inside));
    }
}
