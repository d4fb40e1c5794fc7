//! One ELF file, mapped and checked.

use crate::symbols::{RawTable, Row, Table};
use crate::{BuildId, ElfError, PAGE, SymbolKind, Symbols, Vaddr};
use object::elf;
use object::read::elf::{Dyn, FileHeader, ProgramHeader, SectionHeader, Sym};
use object::{Endianness, ReadRef};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, OnceLock};

type Header = elf::FileHeader64<Endianness>;

/// Executable or shared object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    /// `ET_EXEC`: loads where it says.
    Exec,
    /// `ET_DYN`: position independent executable or shared object.
    Dyn,
}

/// A `PT_LOAD` segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// First address.
    pub addr: Vaddr,
    /// Bytes in memory.
    pub memsz: u64,
    /// Offset in the file.
    pub offset: u64,
    /// Bytes in the file.
    pub filesz: u64,
    /// `PF_R`, `PF_W`, `PF_X`.
    pub flags: u32,
    /// Alignment.
    pub align: u64,
}

impl Segment {
    fn of(phdr: &elf::ProgramHeader64<Endianness>, endian: Endianness) -> Self {
        Self {
            addr: Vaddr(phdr.p_vaddr(endian)),
            memsz: phdr.p_memsz(endian),
            offset: phdr.p_offset(endian),
            filesz: phdr.p_filesz(endian),
            flags: phdr.p_flags(endian).0,
            align: phdr.p_align(endian),
        }
    }

    /// Whether code can run in it.
    #[must_use]
    pub fn executable(&self) -> bool {
        self.flags & elf::PF_X.0 != 0
    }

    /// Whether the loader leaves it writable (RELRO not considered).
    #[must_use]
    pub fn writable(&self) -> bool {
        self.flags & elf::PF_W.0 != 0
    }

    /// Whether `addr` lies in the part that the file backs.
    #[must_use]
    pub fn backs(&self, addr: Vaddr) -> bool {
        addr >= self.addr && addr.0 - self.addr.0 < self.filesz
    }
}

/// What is wrong with a segment that is loaded, if anything is.
fn check_loadable(segment: &Segment, is_in_file: bool) -> Result<(), &'static str> {
    let end = segment.addr.0.checked_add(segment.memsz);
    let sizes_fit = segment.filesz <= segment.memsz && end.is_some_and(|end| end < 1 << 47);
    match (is_in_file, sizes_fit) {
        (false, _) => Err("a loadable segment reaches past the end of the file"),
        (true, false) => Err("a loadable segment has impossible sizes"),
        (true, true) => Ok(()),
    }
}

enum Data {
    Mapped(memmap2::Mmap),
    Owned(Vec<u8>),
}

impl Data {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Owned(bytes) => bytes,
        }
    }
}

/// What must be in a file.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Content {
    /// Everything that is loaded.
    Whole,
    /// Symbols; what is loaded may be missing.
    Symbols,
}

/// A parsed object file. Cheap to clone; symbols are read on first use.
#[derive(Clone)]
pub struct ObjectFile(Arc<Inner>);

struct Inner {
    path: String,
    data: Data,
    kind: Type,
    entry: Vaddr,
    segments: Vec<Segment>,
    program_headers: Vec<(u32, Segment)>,
    dynamic: Vec<(u64, u64)>,
    build_id: Option<BuildId>,
    symbols: OnceLock<Table>,
}

impl std::fmt::Debug for ObjectFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ObjectFile({})", self.0.path)
    }
}

impl ObjectFile {
    /// Maps and checks a file.
    ///
    /// # Errors
    /// When it cannot be read, is no ELF file, is not for x86-64, or is damaged.
    pub fn open(path: &Path) -> Result<Self, ElfError> {
        let name = path.display().to_string();
        let file = File::open(path).map_err(|source| ElfError::Io { path: name.clone(), source })?;
        Self::from_file(&file, name.clone())
    }

    /// Maps and checks an open file; `path` is only used in messages.
    ///
    /// # Errors
    /// As [`ObjectFile::open`].
    pub fn from_file(file: &File, path: String) -> Result<Self, ElfError> {
        Self::map(file, path, Content::Whole)
    }

    #[allow(unsafe_code)]
    fn map(file: &File, path: String, kept: Content) -> Result<Self, ElfError> {
        let failed = |source| ElfError::Io { path: path.clone(), source };
        let meta = file.metadata().map_err(failed)?;
        if meta.is_dir() {
            return Err(failed(io::ErrorKind::IsADirectory.into()));
        }
        if !meta.is_file() || meta.len() == 0 {
            return Err(ElfError::NotElf { path });
        }
        // SAFETY: the mapping is private and read-only; a concurrent truncation of the file could
        // raise SIGBUS here, in the command, never in the target. Reading instead costs 10 ms for
        // the 90 MB of a node binary, mapping 0.02 ms.
        let map = unsafe { memmap2::Mmap::map(file) }.map_err(failed)?;
        Self::parse(Data::Mapped(map), path, kept)
    }

    /// Checks bytes that are already in memory.
    ///
    /// # Errors
    /// As [`ObjectFile::open`].
    pub fn from_bytes(bytes: Vec<u8>, path: String) -> Result<Self, ElfError> {
        Self::parse(Data::Owned(bytes), path, Content::Whole)
    }

    /// Maps and checks an open debug file: one with the symbols of an object, and without its code and data.
    ///
    /// # Errors
    /// As [`ObjectFile::open`].
    pub fn debug_from_file(file: &File, path: String) -> Result<Self, ElfError> {
        Self::map(file, path, Content::Symbols)
    }

    /// The same for bytes in memory.
    ///
    /// # Errors
    /// As [`ObjectFile::open`].
    pub fn debug_from_bytes(bytes: Vec<u8>, path: String) -> Result<Self, ElfError> {
        Self::parse(Data::Owned(bytes), path, Content::Symbols)
    }

    fn parse(data: Data, path: String, kept: Content) -> Result<Self, ElfError> {
        let bytes = data.bytes();
        let bad = |what: &str| ElfError::Malformed { path: path.clone(), what: what.to_owned() };
        if !bytes.starts_with(b"\x7fELF") {
            return Err(ElfError::NotElf { path });
        }
        foreign(bytes).map_or(Ok(()), |found| Err(ElfError::Foreign { path: path.clone(), found }))?;
        let header = Header::parse(bytes).map_err(|e| bad(&e.to_string()))?;
        let endian = header.endian().map_err(|e| bad(&e.to_string()))?;
        let kind = match header.e_type(endian) {
            elf::ET_EXEC => Type::Exec,
            elf::ET_DYN => Type::Dyn,
            elf::ET_REL => return Err(bad("relocatable object; link it with -shared")),
            other => return Err(bad(&format!("file type {other:?} cannot be loaded"))),
        };
        let phdrs = header.program_headers(endian, bytes).map_err(|e| bad(&e.to_string()))?;
        let mut program_headers = Vec::new();
        let mut dynamic = Vec::new();
        let mut build_id = None;
        for phdr in phdrs {
            let segment = Segment::of(phdr, endian);
            let kind = phdr.p_type(endian);
            let content = bytes.read_bytes_at(segment.offset, segment.filesz);
            if kind == elf::PT_LOAD {
                // Debug files made by elfutils say how long the segments were.
                let there = content.is_ok() || kept == Content::Symbols;
                check_loadable(&segment, there).map_err(bad)?;
            }
            if kind == elf::PT_NOTE && build_id.is_none() {
                build_id = content.ok().and_then(BuildId::from_notes);
            }
            if kind == elf::PT_DYNAMIC
                && kept == Content::Whole
                && let Some(entries) = phdr.dynamic(endian, bytes).map_err(|e| bad(&e.to_string()))?
            {
                dynamic = entries
                    .iter()
                    .map(|d| (d.tag(endian).0 as u64, d.val(endian)))
                    .take_while(|&(tag, _)| tag != 0)
                    .collect();
            }
            program_headers.push((kind.0, segment));
        }
        let segments: Vec<Segment> =
            program_headers.iter().filter(|(k, _)| *k == elf::PT_LOAD.0).map(|&(_, s)| s).collect();
        if segments.is_empty() {
            return Err(bad("it has no loadable segment"));
        }
        if kept == Content::Symbols {
            // Segments of notes may say where they were in the object; the section says where they are.
            build_id = header.sections(endian, bytes).ok().and_then(|sections| {
                let (_, section) = sections.section_by_name(endian, b".note.gnu.build-id")?;
                BuildId::from_notes(section.data(endian, bytes).ok()?)
            });
        }
        let entry = Vaddr(header.e_entry(endian));
        Ok(Self(Arc::new(Inner {
            kind,
            entry,
            segments,
            program_headers,
            dynamic,
            build_id,
            symbols: OnceLock::new(),
            path,
            data,
        })))
    }

    /// Path for messages.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.0.path
    }

    /// Executable or shared object.
    #[must_use]
    pub fn kind(&self) -> Type {
        self.0.kind
    }

    /// Entry point (`e_entry`).
    #[must_use]
    pub fn entry(&self) -> Vaddr {
        self.0.entry
    }

    /// The whole file.
    #[must_use]
    pub fn data(&self) -> &[u8] {
        self.0.data.bytes()
    }

    /// `PT_LOAD` segments in file order.
    #[must_use]
    pub fn segments(&self) -> &[Segment] {
        &self.0.segments
    }

    /// All program headers: type and place.
    #[must_use]
    pub fn program_headers(&self) -> &[(u32, Segment)] {
        &self.0.program_headers
    }

    /// The first program header of that `PT_*` type.
    #[must_use]
    pub fn program_header(&self, kind: u32) -> Option<Segment> {
        self.0.program_headers.iter().find(|(k, _)| *k == kind).map(|&(_, s)| s)
    }

    /// Entries of the dynamic section, without the terminator; empty for static executables.
    #[must_use]
    pub fn dynamic(&self) -> &[(u64, u64)] {
        &self.0.dynamic
    }

    /// First value of a dynamic tag.
    #[must_use]
    pub fn dynamic_value(&self, tag: u64) -> Option<u64> {
        self.0.dynamic.iter().find(|&&(t, _)| t == tag).map(|&(_, v)| v)
    }

    /// A string of the dynamic string table.
    #[must_use]
    pub fn dynamic_string(&self, offset: u64) -> Option<&str> {
        let table = self.dynamic_value(5)?; // DT_STRTAB
        let rest = self.bytes_from(Vaddr(table.checked_add(offset)?))?;
        let end = rest.iter().position(|&b| b == 0)?;
        std::str::from_utf8(&rest[..end]).ok()
    }

    /// `DT_SONAME`.
    #[must_use]
    pub fn soname(&self) -> Option<&str> {
        self.dynamic_string(self.dynamic_value(14)?)
    }

    /// `DT_NEEDED` names in order.
    #[must_use]
    pub fn needed(&self) -> Vec<&str> {
        let offsets = self.0.dynamic.iter().filter(|(tag, _)| *tag == 1);
        offsets.filter_map(|&(_, offset)| self.dynamic_string(offset)).collect()
    }

    /// The GNU build-id.
    #[must_use]
    pub fn build_id(&self) -> Option<&BuildId> {
        self.0.build_id.as_ref()
    }

    /// File-backed bytes `[addr, addr + len)` as the file has them (no relocation applied).
    #[must_use]
    pub fn bytes_at(&self, addr: Vaddr, len: u64) -> Option<&[u8]> {
        self.bytes_from(addr)?.get(..usize::try_from(len).ok()?)
    }

    /// File-backed bytes from `addr` to the end of its segment.
    #[must_use]
    pub fn bytes_from(&self, addr: Vaddr) -> Option<&[u8]> {
        let segment = self.0.segments.iter().find(|s| s.backs(addr))?;
        let skip = addr.0 - segment.addr.0;
        let start = usize::try_from(segment.offset + skip).ok()?;
        let end = usize::try_from(segment.offset + segment.filesz).ok()?;
        self.data().get(start..end)
    }

    /// The part of the last page of an executable segment that the segment does not use, when the file
    /// has nothing but zeros there: the loader maps it with the segment, and nothing runs or reads it.
    #[must_use]
    pub fn page_tail(&self, segment: &Segment) -> Option<Range<Vaddr>> {
        let end = segment.addr + segment.filesz;
        let page_end = Vaddr(end.0.next_multiple_of(PAGE));
        let alone = self.0.segments.iter().all(|other| {
            let pages = other.addr.0 & !(PAGE - 1)..(other.addr.0 + other.memsz).next_multiple_of(PAGE);
            other == segment || !pages.contains(&(page_end.0 - 1))
        });
        let from = usize::try_from(segment.offset + segment.filesz).ok()?;
        let zeros = self.data().get(from..from + (page_end.0 - end.0) as usize)?;
        let usable = alone
            && segment.executable()
            && !segment.writable()
            && segment.memsz == segment.filesz
            && zeros.iter().all(|byte| *byte == 0);
        (usable && end < page_end).then_some(end..page_end)
    }

    /// Contents and address of a section by name (files without section headers have none).
    #[must_use]
    pub fn section(&self, name: &str) -> Option<(Vaddr, &[u8])> {
        let bytes = self.data();
        let header = Header::parse(bytes).ok()?;
        let endian = header.endian().ok()?;
        let sections = header.sections(endian, bytes).ok()?;
        let (_, section) = sections.section_by_name(endian, name.as_bytes())?;
        Some((Vaddr(section.sh_addr(endian)), section.data(endian, bytes).ok()?))
    }

    /// Defined symbols of `.symtab` and `.dynsym`.
    #[must_use]
    pub fn symbols(&self) -> Symbols<'_> {
        let table = self.0.symbols.get_or_init(|| {
            let [symtab, dynsym] = [elf::SHT_SYMTAB, elf::SHT_DYNSYM].map(|kind| self.read_symbols(kind));
            Table::new(self.data(), symtab, dynsym)
        });
        Symbols { data: self.data(), table }
    }

    fn read_symbols(&self, kind: elf::SectionType) -> RawTable {
        let bytes = self.data();
        let read = || -> object::Result<RawTable> {
            let header = Header::parse(bytes)?;
            let endian = header.endian()?;
            let sections = header.sections(endian, bytes)?;
            let table = sections.symbols(endian, bytes, kind)?;
            let range = match table.is_empty() {
                true => None,
                false => sections.section(table.string_section())?.file_range(endian),
            };
            let (start, size) = range.unwrap_or_default();
            let start = usize::try_from(start).unwrap_or(usize::MAX);
            let strings = start..start.saturating_add(usize::try_from(size).unwrap_or(usize::MAX));
            let dynamic = kind == elf::SHT_DYNSYM;
            let rows = table.iter().filter_map(|sym| {
                let kind = symbol_kind(sym.st_type())?;
                let name = sym.st_name(endian);
                if name == 0 || sym.is_undefined(endian) || sym.st_shndx(endian) == elf::SHN_ABS {
                    return None;
                }
                Some(Row {
                    addr: sym.st_value(endian),
                    size: sym.st_size(endian),
                    name,
                    kind,
                    global: sym.st_bind() != elf::STB_LOCAL,
                    weak: sym.st_bind() == elf::STB_WEAK,
                    dynamic,
                    in_dynamic: dynamic,
                })
            });
            Ok(RawTable { rows: rows.collect(), strings })
        };
        // A damaged symbol table is no symbol table: names are then simply not found.
        read().unwrap_or_default()
    }
}

fn symbol_kind(kind: elf::SymbolType) -> Option<SymbolKind> {
    match kind {
        elf::STT_FUNC => Some(SymbolKind::Func),
        elf::STT_GNU_IFUNC => Some(SymbolKind::Ifunc),
        elf::STT_OBJECT | elf::STT_COMMON => Some(SymbolKind::Data),
        elf::STT_TLS => Some(SymbolKind::Tls),
        elf::STT_NOTYPE => Some(SymbolKind::Label),
        _ => None,
    }
}

/// What a foreign object is, or `None` when it is 64-bit little-endian x86-64.
fn foreign(bytes: &[u8]) -> Option<String> {
    let class = bytes.get(4).copied().unwrap_or_default();
    let order = bytes.get(5).copied().unwrap_or_default();
    let machine = bytes.get(18..20).map_or(0, |m| u16::from_le_bytes([m[0], m[1]]));
    match (class, order, machine) {
        (2, 1, 62) => None,
        (1, 1, _) => Some("32-bit".into()),
        (2, 1, 183) => Some("aarch64".into()),
        (2, 1, 243) => Some("riscv64".into()),
        (2, 1, other) => Some(format!("64-bit machine-{other}")),
        (_, 2, _) => Some("big-endian".into()),
        _ => Some("damaged or unknown".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> ObjectFile {
        ObjectFile::open(Path::new("/proc/self/exe")).unwrap()
    }

    #[test]
    fn reads_an_executable() {
        let file = own();
        assert_eq!(file.kind(), Type::Dyn);
        assert!(file.segments().iter().any(Segment::executable));
        assert!(file.needed().iter().any(|n| n.starts_with("libc.so")));
        let main = file.symbols().functions_named("main");
        assert_eq!(main.len(), 1);
        assert!(file.bytes_at(main[0].addr, 4).is_some());
        assert!(file.bytes_at(Vaddr(u64::MAX - 2), 8).is_none());
        assert!(file.section(".text").is_some());
    }

    #[test]
    fn says_what_a_wrong_file_is() {
        let of = |bytes: Vec<u8>| ObjectFile::from_bytes(bytes, "x".into()).unwrap_err().to_string();
        assert_eq!(of(b"#!/bin/sh".to_vec()), "x is not an ELF file");
        let mut bytes = own().data().to_vec();
        bytes[18] = 183;
        assert!(of(bytes.clone()).contains("aarch64"));
        bytes[4] = 1;
        assert!(of(bytes.clone()).contains("32-bit"));
        bytes.truncate(30);
        bytes[4] = 2;
        bytes[18] = 62;
        assert!(of(bytes).contains("damaged"));
    }

    #[test]
    fn cut_and_scribbled_files_never_panic() {
        let whole = std::fs::read("/bin/true").unwrap();
        for cut in (0..whole.len()).step_by(97) {
            let _ = ObjectFile::from_bytes(whole[..cut].to_vec(), "cut".into());
        }
        let mut state = 1u64;
        for _ in 0..2_000 {
            let mut bytes = whole.clone();
            for _ in 0..8 {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let at = (state >> 33) as usize % 2_000.min(bytes.len());
                bytes[at] = (state >> 20) as u8;
            }
            if let Ok(file) = ObjectFile::from_bytes(bytes, "noise".into()) {
                let _ = (file.symbols().all().count(), file.needed().len(), file.soname().map(str::len));
                let _ = file.section(".text");
            }
        }
    }
}
