//! Code pointers that the loader or the linker left in data.

use object::elf::{
    DT_FLAGS, DT_JMPREL, DT_PLTRELSZ, DT_RELA, DT_RELASZ, DT_RELR, DT_RELRSZ, DT_TEXTREL, R_X86_64_64,
    R_X86_64_IRELATIVE, R_X86_64_RELATIVE,
};
use std::ops::Range;
use suture_elf::{ObjectFile, Type, Vaddr};

/// Flag of `DT_FLAGS`: the loader changes read-only segments.
const DF_TEXTREL: u64 = 4;

/// Calls `found(target, place)` for every pointer in the object's data whose target `wanted` accepts.
///
/// Position independent objects name their pointers in relocations. Others hold plain addresses:
/// there each aligned word of data that looks like a code address counts.
pub(crate) fn each(file: &ObjectFile, wanted: &Range<u64>, mut found: impl FnMut(u64, u64)) {
    let mut report = |target: u64, place: u64| {
        if wanted.contains(&target) {
            found(target, place);
        }
    };
    relocations(file, |kind, target, place| {
        if [R_X86_64_RELATIVE.0, R_X86_64_IRELATIVE.0, R_X86_64_64.0].contains(&kind) {
            report(target, place);
        }
    });
    relative_words(file, &mut report);
    if file.kind() == Type::Exec {
        for segment in file.segments().iter().filter(|s| !s.executable()) {
            let Some(bytes) = file.bytes_at(segment.addr, segment.filesz) else { continue };
            let skip = segment.addr.0.next_multiple_of(8) - segment.addr.0;
            let words = bytes.get(usize::try_from(skip).unwrap_or(0)..).unwrap_or_default();
            for (i, word) in words.as_chunks::<8>().0.iter().enumerate() {
                report(u64::from_le_bytes(*word), segment.addr.0 + skip + 8 * i as u64);
            }
        }
    }
}

/// Places inside `range` that the loader changes.
pub(crate) fn relocated_places(file: &ObjectFile, range: &Range<u64>) -> Vec<Vaddr> {
    let flagged = file.dynamic_value(DT_TEXTREL.0 as u64).is_some()
        || file.dynamic_value(DT_FLAGS.0 as u64).is_some_and(|f| f & DF_TEXTREL != 0);
    let mut places = Vec::new();
    if flagged {
        relocations(file, |_, _, place| {
            if place + 8 > range.start && place < range.end {
                places.push(Vaddr(place));
            }
        });
    }
    places
}

/// All `RELA` entries: kind, addend plus value of the symbol where it is a plain address, place.
fn relocations(file: &ObjectFile, mut each: impl FnMut(u32, u64, u64)) {
    let tables = [(DT_RELA, DT_RELASZ), (DT_JMPREL, DT_PLTRELSZ)];
    let symbols = file.dynamic_value(object::elf::DT_SYMTAB.0 as u64);
    for (table, size) in tables {
        let (Some(at), Some(size)) = (file.dynamic_value(table.0 as u64), file.dynamic_value(size.0 as u64))
        else {
            continue;
        };
        let Some(bytes) = file.bytes_at(Vaddr(at), size) else { continue };
        for entry in bytes.as_chunks::<24>().0 {
            let word = |i: usize| {
                let mut w = [0; 8];
                w.copy_from_slice(&entry[8 * i..8 * i + 8]);
                u64::from_le_bytes(w)
            };
            let (place, info, addend) = (word(0), word(1), word(2));
            let symbol = info >> 32;
            let value = match symbols {
                Some(table) if symbol != 0 => symbol_value(file, table, symbol),
                _ => 0,
            };
            each(info as u32, value.wrapping_add(addend), place);
        }
    }
}

fn symbol_value(file: &ObjectFile, table: u64, index: u64) -> u64 {
    let at = Vaddr(table.wrapping_add(24 * index + 8));
    let bytes = file.bytes_at(at, 8).and_then(|b| b.try_into().ok());
    bytes.map_or(0, u64::from_le_bytes)
}

/// Compact relative relocations (`DT_RELR`): an even word is a place, an odd one marks which of the
/// next 63 words are places too. The pointer itself is what the file has there.
fn relative_words(file: &ObjectFile, report: &mut impl FnMut(u64, u64)) {
    let (Some(at), Some(size)) =
        (file.dynamic_value(DT_RELR.0 as u64), file.dynamic_value(DT_RELRSZ.0 as u64))
    else {
        return;
    };
    let Some(bytes) = file.bytes_at(Vaddr(at), size) else { return };
    let mut pointer = |place: u64| {
        if let Some(word) = file.bytes_at(Vaddr(place), 8).and_then(|b| b.try_into().ok()) {
            report(u64::from_le_bytes(word), place);
        }
    };
    let mut next = 0u64;
    for word in bytes.as_chunks::<8>().0 {
        let word = u64::from_le_bytes(*word);
        if word & 1 == 0 {
            pointer(word);
            next = word.wrapping_add(8);
        } else {
            for bit in (1..64).filter(|bit| word >> bit & 1 != 0) {
                pointer(next.wrapping_add(8 * (bit - 1)));
            }
            next = next.wrapping_add(8 * 63);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn a_function_in_a_table_is_a_pointer() {
        #[used]
        static TABLE: [fn() -> u64; 2] = [|| 1, || 2];
        let file = ObjectFile::open(Path::new("/proc/self/exe")).unwrap();
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let base = u64::from_str_radix(maps.split('-').next().unwrap(), 16).unwrap();
        let (place, target) = (TABLE.as_ptr() as u64 - base, TABLE[1] as usize as u64 - base);
        let mut found = Vec::new();
        each(&file, &(target..target + 1), |_, place| found.push(place));
        assert!(found.contains(&(place + 8)), "{found:x?} lacks {:x}", place + 8);
        assert!(relocated_places(&file, &(0..u64::MAX / 2)).is_empty());
    }
}
