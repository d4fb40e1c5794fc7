//! The patch's own image as its file describes it, with the relocations that need nobody else.

use crate::elf;
use std::collections::BTreeMap;
use suture_elf::{DynSymbol, DynamicTables, ElfError, ObjectFile, Reloc, Segment, Vaddr};

/// What stands in a word of the image once relocations are applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// A number that no relocation touches.
    Plain(u64),
    /// An address inside the patch (may be 0 for a null pointer written as a relocation).
    Own(Vaddr),
    /// Filled from outside: the symbol of that index.
    Foreign(u32),
}

/// The file of a patch with its relocations, sorted by place.
#[derive(Debug)]
pub struct PatchFile {
    file: ObjectFile,
    tables: DynamicTables,
    relocs: BTreeMap<u64, Reloc>,
}

impl PatchFile {
    /// Reads the tables of a patch.
    ///
    /// # Errors
    /// When they are damaged.
    pub fn new(file: &ObjectFile) -> Result<Self, ElfError> {
        let tables = DynamicTables::new(file)?;
        let bad = |what: String| ElfError::Malformed { path: file.path().to_owned(), what };
        let mut relocs = BTreeMap::new();
        for reloc in tables.relocations()? {
            // R_X86_64_NONE names no place.
            if reloc.kind == 0 {
                continue;
            }
            let width = if reloc.kind == elf::R_TLSDESC { 16 } else { 8 };
            if !file.segments().iter().any(|s| holds(s, reloc.place, width)) {
                return Err(bad(format!("a relocation at {} lies outside its segments", reloc.place)));
            }
            if reloc.symbol != 0 && tables.symbol(reloc.symbol).is_none() {
                return Err(bad(format!("the relocation at {} names no symbol", reloc.place)));
            }
            if relocs.insert(reloc.place.0, reloc).is_some() {
                return Err(bad(format!("the word at {} is relocated twice", reloc.place)));
            }
        }
        Ok(Self { file: file.clone(), tables, relocs })
    }

    /// The file.
    #[must_use]
    pub fn file(&self) -> &ObjectFile {
        &self.file
    }

    /// Its dynamic tables.
    #[must_use]
    pub fn tables(&self) -> &DynamicTables {
        &self.tables
    }

    /// Its relocations by place.
    pub fn relocs(&self) -> impl Iterator<Item = &Reloc> {
        self.relocs.values()
    }

    /// The defined symbol of that name and a non-hidden visibility, if it is exported.
    #[must_use]
    pub fn exported(&self, name: &str) -> Option<DynSymbol<'_>> {
        self.tables.named(name).into_iter().find(|s| s.section != 0 && s.binding != elf::STB_LOCAL)
    }

    /// The loadable segment an address lies in, its zero-filled part included.
    #[must_use]
    pub fn segment_at(&self, addr: Vaddr) -> Option<&Segment> {
        self.file.segments().iter().find(|s| holds(s, addr, 1))
    }

    /// The bytes at an address as far as the segment goes, without relocations: the file's part, and
    /// how many zero bytes follow it.
    fn raw(&self, addr: Vaddr) -> Option<(&[u8], u64)> {
        let segment = self.segment_at(addr)?;
        let skip = addr.0 - segment.addr.0;
        let left = segment.filesz.saturating_sub(skip);
        let file = if left == 0 { &[][..] } else { self.file.bytes_at(addr, left)? };
        Some((file, segment.memsz - skip - left))
    }

    /// `N` bytes at an address without relocations; zero where only memory backs them.
    #[must_use]
    pub fn bytes<const N: usize>(&self, addr: Vaddr) -> Option<[u8; N]> {
        let (file, zeros) = self.raw(addr)?;
        let mut bytes = [0; N];
        let have = file.len().min(N);
        bytes[..have].copy_from_slice(&file[..have]);
        (((N - have) as u64) <= zeros).then_some(bytes)
    }

    /// The word at an address with relocations applied. `None` when it lies outside the image, or a
    /// relocation covers only part of it.
    #[must_use]
    pub fn word(&self, addr: Vaddr) -> Option<Word> {
        let plain = u64::from_le_bytes(self.bytes(addr)?);
        let before = addr.0.saturating_sub(7);
        let Some((&place, reloc)) = self.relocs.range(before..addr.0.saturating_add(8)).next() else {
            return Some(Word::Plain(plain));
        };
        if place != addr.0 {
            return None;
        }
        match reloc.kind {
            elf::R_RELATIVE => Some(Word::Own(Vaddr(reloc.addend.cast_unsigned()))),
            elf::R_64 | elf::R_GLOB_DAT => {
                let symbol = self.tables.symbol(reloc.symbol)?;
                // GLOB_DAT has no addend on x86-64 in practice; the ABI's formula ignores it.
                let addend = if reloc.kind == elf::R_64 { reloc.addend.cast_unsigned() } else { 0 };
                if symbol.section == 0 {
                    return Some(Word::Foreign(reloc.symbol));
                }
                Some(Word::Own(Vaddr(symbol.value.wrapping_add(addend))))
            }
            _ => Some(Word::Foreign(reloc.symbol)),
        }
    }

    /// A NUL-terminated string of at most `most` bytes.
    #[must_use]
    pub fn string(&self, addr: Vaddr, most: usize) -> Option<&str> {
        let (file, zeros) = self.raw(addr)?;
        let window = &file[..file.len().min(most + 1)];
        let end = match window.iter().position(|&b| b == 0) {
            Some(end) => end,
            // The string may end where the file's part ends and zero-filled memory begins.
            None if window.len() == file.len() && zeros > 0 => window.len(),
            None => return None,
        };
        std::str::from_utf8(&window[..end]).ok()
    }
}

/// Whether `[addr, addr + len)` lies in a segment's memory.
fn holds(segment: &Segment, addr: Vaddr, len: u64) -> bool {
    addr >= segment.addr && (addr.0 - segment.addr.0).checked_add(len).is_some_and(|end| end <= segment.memsz)
}
