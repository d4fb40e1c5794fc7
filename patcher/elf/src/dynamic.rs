//! The dynamic-linking tables of an object: symbols with versions, hash lookup, relocations.
//!
//! Everything is read from the file, through the addresses of the dynamic section, and every index
//! and offset is checked against the file: a damaged table yields fewer symbols, never a panic and
//! never an endless walk.

use crate::relocs::{self, Reloc};
use crate::{ElfError, ObjectFile, Vaddr};

const DT_HASH: u64 = 4;
const DT_STRTAB: u64 = 5;
const DT_SYMTAB: u64 = 6;
const DT_GNU_HASH: u64 = 0x6fff_fef5;
const DT_VERSYM: u64 = 0x6fff_fff0;
const DT_VERDEF: u64 = 0x6fff_fffc;
const DT_VERDEFNUM: u64 = 0x6fff_fffd;
const DT_VERNEED: u64 = 0x6fff_fffe;
const DT_VERNEEDNUM: u64 = 0x6fff_ffff;

const SYMBOL_SIZE: u64 = 24;
/// The bit of a version entry that keeps a definition from unversioned references.
pub const VERSION_HIDDEN: u16 = 0x8000;

/// An entry of `.dynsym`, defined or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DynSymbol<'a> {
    /// Index in the table.
    pub index: u32,
    /// Name without version.
    pub name: &'a str,
    /// `STB_*`.
    pub binding: u8,
    /// `STT_*`.
    pub kind: u8,
    /// `STV_*`.
    pub visibility: u8,
    /// `st_shndx`; 0 = undefined.
    pub section: u16,
    /// `st_value`.
    pub value: u64,
    /// `st_size`.
    pub size: u64,
}

/// A version name an index of the version table stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// Name, for example `GLIBC_2.2.5`.
    pub name: String,
    /// The library a needed version is expected from; `None` for the object's own versions.
    pub file: Option<String>,
    /// A reference that must not be satisfied by the base version.
    pub hidden: bool,
    /// The object's own name, which stands in index 1 and versions nothing.
    pub base: bool,
}

/// The dynamic-linking tables of one object.
#[derive(Clone, Debug)]
pub struct DynamicTables {
    file: ObjectFile,
    symtab: Option<Vaddr>,
    count: u32,
    versym: Option<Vaddr>,
    versions: Vec<Option<Version>>,
}

impl DynamicTables {
    /// Finds the tables of an object. Objects without any have no symbols and no relocations.
    ///
    /// # Errors
    /// When the tables do not lie in the file.
    pub fn new(file: &ObjectFile) -> Result<Self, ElfError> {
        let at = |tag| file.dynamic_value(tag).map(Vaddr);
        let mut tables = Self {
            symtab: at(DT_SYMTAB),
            count: 0,
            versym: at(DT_VERSYM),
            versions: Vec::new(),
            file: file.clone(),
        };
        tables.count = tables.count_symbols();
        if let Some(symtab) = tables.symtab
            && file.bytes_at(symtab, u64::from(tables.count) * SYMBOL_SIZE).is_none()
        {
            return Err(ElfError::Malformed {
                path: file.path().to_owned(),
                what: "the dynamic symbol table reaches past the end of its segment".into(),
            });
        }
        if tables.versym.is_some() {
            tables.read_needed_versions();
            tables.read_defined_versions();
        }
        Ok(tables)
    }

    /// The object.
    #[must_use]
    pub fn file(&self) -> &ObjectFile {
        &self.file
    }

    /// The symbol of that index.
    #[must_use]
    pub fn symbol(&self, index: u32) -> Option<DynSymbol<'_>> {
        if index >= self.count {
            return None;
        }
        let entry = self.file.bytes_at(self.symtab? + u64::from(index) * SYMBOL_SIZE, SYMBOL_SIZE)?;
        let word = |at: usize| u32::from_le_bytes([entry[at], entry[at + 1], entry[at + 2], entry[at + 3]]);
        let quad = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
        Some(DynSymbol {
            index,
            name: self.file.dynamic_string(u64::from(word(0)))?,
            binding: entry[4] >> 4,
            kind: entry[4] & 15,
            visibility: entry[5] & 3,
            section: u16::from_le_bytes([entry[6], entry[7]]),
            value: quad(8),
            size: quad(16),
        })
    }

    /// Whether the symbol of that index has that name, without decoding the symbol.
    #[must_use]
    pub fn symbol_is_named(&self, index: u32, name: &str) -> bool {
        let matches = || {
            let entry = self.file.bytes_at(self.symtab? + u64::from(index) * SYMBOL_SIZE, 4)?;
            let at = self.file.dynamic_value(DT_STRTAB)?.checked_add(u64::from(le32(entry, 0)))?;
            let found = self.file.bytes_at(Vaddr(at), name.len() as u64 + 1)?;
            Some(found.split_last() == Some((&0, name.as_bytes())))
        };
        index != 0 && index < self.count && matches() == Some(true)
    }

    /// All symbols whose name can be read, without the null symbol.
    pub fn symbols(&self) -> impl Iterator<Item = DynSymbol<'_>> {
        (1..self.count).filter_map(|i| self.symbol(i))
    }

    /// Symbols that the object wants from others. Most are passed over without a look at their names.
    pub fn imports(&self) -> impl Iterator<Item = DynSymbol<'_>> {
        let len = u64::from(self.count) * SYMBOL_SIZE;
        let table = self.symtab.and_then(|at| self.file.bytes_at(at, len)).unwrap_or_default();
        let undefined = |(_, entry): &(u32, &[u8])| le16(entry, 6) == 0;
        let entries = (0..).zip(table.chunks_exact(SYMBOL_SIZE as usize)).skip(1);
        entries.filter(undefined).filter_map(|(index, _)| self.symbol(index))
    }

    /// Symbols of that name in table order. Undefined symbols that carry a value (the address of a
    /// function in a program that is not position independent) are among them only where the hash
    /// table lists them, as it does for the loader.
    #[must_use]
    pub fn named(&self, name: &str) -> Vec<DynSymbol<'_>> {
        let indices = if let Some(table) = self.file.dynamic_value(DT_GNU_HASH) {
            self.gnu_chain(Vaddr(table), gnu_hash(name)).unwrap_or_default()
        } else if let Some(table) = self.file.dynamic_value(DT_HASH) {
            self.sysv_chain(Vaddr(table), sysv_hash(name)).unwrap_or_default()
        } else {
            (1..self.count).collect()
        };
        let mut found: Vec<_> =
            indices.into_iter().filter_map(|i| self.symbol(i)).filter(|s| s.name == name).collect();
        found.sort_by_key(|s| s.index);
        found
    }

    /// Whether the object's symbols carry versions.
    #[must_use]
    pub fn versioned(&self) -> bool {
        self.versym.is_some()
    }

    /// The raw version entry of a symbol: index, and [`VERSION_HIDDEN`].
    #[must_use]
    pub fn version_index(&self, symbol: u32) -> Option<u16> {
        let entry = self.file.bytes_at(self.versym? + u64::from(symbol) * 2, 2)?;
        Some(u16::from_le_bytes([entry[0], entry[1]]))
    }

    /// The version a symbol is defined or referenced with; `None` for index 0 and 1, and for the
    /// object's own base entry.
    #[must_use]
    pub fn version_of(&self, symbol: u32) -> Option<&Version> {
        let index = self.version_index(symbol)? & !VERSION_HIDDEN;
        self.versions.get(usize::from(index))?.as_ref().filter(|v| !v.base)
    }

    /// All relocations: packed relative ones, then `DT_RELA`, then `DT_JMPREL`.
    ///
    /// # Errors
    /// When a table does not lie in the file or is not in the format of x86-64.
    pub fn relocations(&self) -> Result<Vec<Reloc>, ElfError> {
        relocs::read(&self.file)
    }

    fn u32_at(&self, addr: Vaddr) -> Option<u32> {
        Some(u32::from_le_bytes(self.file.bytes_at(addr, 4)?.try_into().ok()?))
    }

    fn count_symbols(&self) -> u32 {
        let sysv = || self.u32_at(Vaddr(self.file.dynamic_value(DT_HASH)?) + 4);
        let gnu = || self.count_by_gnu_hash(Vaddr(self.file.dynamic_value(DT_GNU_HASH)?));
        let by_hash = sysv().or_else(gnu).unwrap_or(0);
        // A GNU hash table says nothing about undefined symbols behind the last defined one; there
        // are none, because linkers put them first. Objects that define nothing have an empty table
        // that does not tell their count either: the section header does.
        let by_section = self.file.section(".dynsym").map_or(0, |(_, content)| content.len() / 24);
        by_hash.max(u32::try_from(by_section).unwrap_or(0))
    }

    /// Number of symbols a GNU hash table knows of: the end of the last chain.
    fn count_by_gnu_hash(&self, table: Vaddr) -> Option<u32> {
        let gnu = GnuHash::read(self, table)?;
        let last = (0..gnu.buckets).filter_map(|i| self.u32_at(gnu.bucket(i))).max()?;
        if last < gnu.first {
            return Some(gnu.first);
        }
        let mut index = last;
        while self.u32_at(gnu.chain(index)?)? & 1 == 0 {
            index = index.checked_add(1)?;
        }
        index.checked_add(1)
    }

    fn gnu_chain(&self, table: Vaddr, hash: u32) -> Option<Vec<u32>> {
        let gnu = GnuHash::read(self, table)?;
        let word = self.file.bytes_at(gnu.bloom + u64::from((hash / 64) & (gnu.words - 1)) * 8, 8)?;
        let word = u64::from_le_bytes(word.try_into().ok()?);
        if word >> (hash % 64) & word >> (hash.checked_shr(gnu.shift)? % 64) & 1 == 0 {
            return None;
        }
        let mut index = self.u32_at(gnu.bucket(hash % gnu.buckets))?;
        let mut found = Vec::new();
        while index >= gnu.first && index < self.count {
            let entry = self.u32_at(gnu.chain(index)?)?;
            if entry | 1 == hash | 1 {
                found.push(index);
            }
            if entry & 1 != 0 {
                break;
            }
            index += 1;
        }
        Some(found)
    }

    fn sysv_chain(&self, table: Vaddr, hash: u32) -> Option<Vec<u32>> {
        let buckets = self.u32_at(table)?;
        let at = |i: u32| self.u32_at(table + 8 + u64::from(i) * 4);
        let mut index = at(hash.checked_rem(buckets)?)?;
        let mut found = Vec::new();
        // A chain visits each symbol at most once; one that does not is damaged.
        for _ in 0..self.count {
            if index == 0 || index >= self.count {
                break;
            }
            found.push(index);
            index = at(buckets.checked_add(index)?)?;
        }
        Some(found)
    }

    fn set_version(&mut self, index: u16, version: Version) {
        let index = usize::from(index & !VERSION_HIDDEN);
        if self.versions.len() <= index {
            self.versions.resize(index + 1, None);
        }
        self.versions[index] = Some(version);
    }

    fn read_needed_versions(&mut self) -> Option<()> {
        let file = self.file.clone();
        let mut at = Vaddr(file.dynamic_value(DT_VERNEED)?);
        for _ in 0..file.dynamic_value(DT_VERNEEDNUM)?.min(0xffff) {
            let entry = file.bytes_at(at, 16)?;
            let library = file.dynamic_string(u64::from(le32(entry, 4)))?;
            let mut aux = at + u64::from(le32(entry, 8));
            for _ in 0..le16(entry, 2) {
                let need = file.bytes_at(aux, 16)?;
                let version = Version {
                    name: file.dynamic_string(u64::from(le32(need, 8)))?.to_owned(),
                    file: Some(library.to_owned()),
                    hidden: le16(need, 6) & VERSION_HIDDEN != 0,
                    base: false,
                };
                self.set_version(le16(need, 6), version);
                aux = aux + u64::from(le32(need, 12));
            }
            at = at + u64::from(le32(entry, 12));
        }
        Some(())
    }

    fn read_defined_versions(&mut self) -> Option<()> {
        let file = self.file.clone();
        let mut at = Vaddr(file.dynamic_value(DT_VERDEF)?);
        for _ in 0..file.dynamic_value(DT_VERDEFNUM)?.min(0xffff) {
            let entry = file.bytes_at(at, 20)?;
            let aux = file.bytes_at(at + u64::from(le32(entry, 12)), 8)?;
            let version = Version {
                name: file.dynamic_string(u64::from(le32(aux, 0)))?.to_owned(),
                file: None,
                hidden: false,
                base: le16(entry, 2) & 1 != 0,
            };
            self.set_version(le16(entry, 4), version);
            at = at + u64::from(le32(entry, 16));
        }
        Some(())
    }
}

/// Header of a GNU hash table.
struct GnuHash {
    buckets: u32,
    first: u32,
    words: u32,
    shift: u32,
    bloom: Vaddr,
}

impl GnuHash {
    fn read(tables: &DynamicTables, table: Vaddr) -> Option<Self> {
        let field = |i: u64| tables.u32_at(table + i * 4);
        let gnu = Self {
            buckets: field(0)?,
            first: field(1)?,
            words: field(2)?,
            shift: field(3)?,
            bloom: table + 16,
        };
        (gnu.buckets > 0 && gnu.words.is_power_of_two()).then_some(gnu)
    }

    fn bucket(&self, index: u32) -> Vaddr {
        self.bloom + u64::from(self.words) * 8 + u64::from(index) * 4
    }

    fn chain(&self, symbol: u32) -> Option<Vaddr> {
        Some(self.bucket(self.buckets) + u64::from(symbol.checked_sub(self.first)?) * 4)
    }
}

fn le16(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn le32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn gnu_hash(name: &str) -> u32 {
    name.bytes().fold(5381, |h: u32, b| h.wrapping_mul(33).wrapping_add(u32::from(b)))
}

fn sysv_hash(name: &str) -> u32 {
    name.bytes().fold(0, |h: u32, b| {
        let h = (h << 4).wrapping_add(u32::from(b));
        let high = h & 0xf000_0000;
        (h ^ high >> 24) & !high
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn libc() -> Option<DynamicTables> {
        let path = Path::new("/lib/x86_64-linux-gnu/libc.so.6");
        path.exists().then(|| DynamicTables::new(&ObjectFile::open(path).unwrap()).unwrap())
    }

    #[test]
    fn libcs_versions_are_told_apart() {
        let Some(libc) = libc() else {
            return eprintln!("skipped: no libc.so.6 in Debian's place");
        };
        let found = libc.named("pthread_cond_wait");
        let versions: Vec<_> = found
            .iter()
            .map(|s| {
                let hidden = libc.version_index(s.index).unwrap() & VERSION_HIDDEN != 0;
                (libc.version_of(s.index).unwrap().name.as_str(), hidden)
            })
            .collect();
        assert!(versions.contains(&("GLIBC_2.2.5", true)), "{versions:?}");
        assert!(versions.contains(&("GLIBC_2.3.2", false)), "{versions:?}");
        assert!(libc.named("no_such_symbol").is_empty());
        assert!(libc.named("printf").iter().all(|s| s.section != 0 && s.value != 0));
    }

    #[test]
    fn every_symbol_of_libc_is_found_by_its_hash() {
        let Some(libc) = libc() else {
            return eprintln!("skipped: no libc.so.6 in Debian's place");
        };
        let defined: Vec<_> = libc.symbols().filter(|s| s.section != 0).collect();
        assert!(defined.len() > 2_000);
        for symbol in defined {
            assert!(libc.named(symbol.name).contains(&symbol), "{symbol:?}");
        }
    }

    #[test]
    fn imports_are_the_symbols_that_are_not_defined() {
        let Some(libc) = libc() else {
            return eprintln!("skipped: no libc.so.6 in Debian's place");
        };
        let undefined: Vec<_> = libc.symbols().filter(|s| s.section == 0).collect();
        assert!(!undefined.is_empty());
        assert_eq!(libc.imports().collect::<Vec<_>>(), undefined);
    }

    #[test]
    fn the_hash_functions_are_the_abis() {
        // Values of the gABI's and of binutils' own functions for the same names.
        assert_eq!(sysv_hash("printf"), 0x077905a6);
        assert_eq!(gnu_hash("printf"), 0x156b2bb8);
        assert_eq!(gnu_hash(""), 5381);
    }
}
