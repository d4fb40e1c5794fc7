//! Loaded objects: their code, their call frame information, and a few facts about them.

use crate::facts::Facts;
use crate::table::SearchTable;
use gimli::{BaseAddresses, EhFrame, EndianSlice, LittleEndian, UnwindSection};
use std::ops::Range;
use std::sync::OnceLock;
use suture_elf::{
    Addr, Base, CallSite, ElfError, MapsSnapshot, Memory, MemoryError, ObjectFile, SymbolKind, Vaddr,
};

pub(crate) type Reader<'a> = EndianSlice<'a, LittleEndian>;

const PT_GNU_EH_FRAME: u32 = 0x6474_e550;

/// A loaded object and where it is. Cheap to make: nothing is read before a walk gets there.
#[derive(Debug)]
pub struct Module {
    /// Name for reports.
    pub name: String,
    /// Load address.
    pub base: Base,
    source: Source,
    hdr: Option<Vaddr>,
    facts: OnceLock<Facts>,
}

/// Where its bytes come from. Code and CFI lie in pages that are never written, so a file tells the
/// same as the memory, if its identity was proven by build-id.
#[derive(Debug)]
enum Source {
    File(ObjectFile),
    Memory(Vec<Piece>),
}

/// Part of an object that was copied from memory.
#[derive(Debug)]
struct Piece {
    addr: Vaddr,
    executable: bool,
    bytes: Vec<u8>,
}

/// What a lookup found.
pub(crate) struct Found<'a> {
    pub fde: gimli::FrameDescriptionEntry<Reader<'a>>,
    pub section: EhFrame<Reader<'a>>,
    pub bases: BaseAddresses,
}

impl Module {
    /// An object with its file: what the loader loaded, the runtime's own library wherever it was
    /// placed, the kernel's virtual object (an [`ObjectFile`] from its bytes; see
    /// [`Module::elf_in_memory`]).
    #[must_use]
    pub fn new(name: String, base: Base, file: ObjectFile) -> Self {
        let hdr = file.program_header(PT_GNU_EH_FRAME).map(|s| s.addr);
        Self { name, base, source: Source::File(file), hdr, facts: OnceLock::new() }
    }

    /// An object that lies in memory as it lies in a file, headers first: the vdso.
    ///
    /// # Errors
    /// When the range cannot be read, or holds no such object.
    pub fn elf_in_memory(name: String, range: Range<u64>, memory: &dyn Memory) -> Result<Self, ElfError> {
        let length = usize::try_from(range.end.saturating_sub(range.start)).unwrap_or(0);
        let unreadable = |e: MemoryError| ElfError::Malformed { path: name.clone(), what: e.to_string() };
        let bytes = memory.read_vec(Addr(range.start), length).map_err(unreadable)?;
        let file = ObjectFile::from_bytes(bytes, name.clone())?;
        let lowest = file.segments().iter().map(|s| s.addr.0 & !0xfff).min().unwrap_or(0);
        Ok(Self::new(name, Base(range.start.wrapping_sub(lowest)), file))
    }

    /// An object of which only the mapped image exists: a patch. `hdr` is the address of its
    /// `.eh_frame_hdr` in the process; what of `range` the map says is readable is copied now.
    ///
    /// # Errors
    /// When that cannot be read after all.
    pub fn image_in_memory(
        name: String,
        base: Base,
        range: &Range<u64>,
        hdr: Addr,
        maps: &MapsSnapshot,
        memory: &dyn Memory,
    ) -> Result<Self, MemoryError> {
        let mut pieces = Vec::new();
        for region in &maps.regions {
            let (start, end) = (region.start.max(range.start), region.end.min(range.end));
            if start < end && region.read {
                let bytes = memory.read_vec(Addr(start), (end - start) as usize)?;
                pieces.push(Piece { addr: Addr(start) - base, executable: region.exec, bytes });
            }
        }
        let hdr = Some(hdr - base);
        Ok(Self { name, base, source: Source::Memory(pieces), hdr, facts: OnceLock::new() })
    }

    /// Addresses it occupies in the process, from the first to the last.
    #[must_use]
    pub fn range(&self) -> Range<u64> {
        let hull = |ends: &mut dyn Iterator<Item = Range<u64>>| {
            ends.reduce(|a, b| a.start.min(b.start)..a.end.max(b.end)).unwrap_or(0..0)
        };
        let range = match &self.source {
            Source::File(file) => hull(&mut file.segments().iter().map(|s| s.addr.0..s.addr.0 + s.memsz)),
            Source::Memory(pieces) => {
                hull(&mut pieces.iter().map(|p| p.addr.0..p.addr.0 + p.bytes.len() as u64))
            }
        };
        self.base.0.wrapping_add(range.start)..self.base.0.wrapping_add(range.end)
    }

    /// Where functions of `makecontext` return to. Its address on a stack says that there is a coroutine's
    /// stack around it.
    #[must_use]
    pub fn context_return(&self) -> Option<Range<u64>> {
        self.facts().start_context.as_ref().map(|r| self.addresses(r))
    }

    fn addresses(&self, range: &Range<Vaddr>) -> Range<u64> {
        (self.base + range.start).0..(self.base + range.end).0
    }

    /// Name of the function an address of the process lies in, if a symbol says so.
    #[must_use]
    pub fn symbol_at(&self, addr: u64) -> Option<String> {
        let vaddr = Addr(addr) - self.base;
        let Source::File(file) = &self.source else { return None };
        let kinds = [SymbolKind::Func, SymbolKind::Ifunc, SymbolKind::Label];
        let symbols = file.symbols().all().filter(|s| kinds.contains(&s.kind) && s.addr <= vaddr);
        // A label without a size is believed as far as the next symbol.
        let nearest = symbols.max_by_key(|s| (s.addr, s.size))?;
        let within = nearest.size == 0 || vaddr.0 - nearest.addr.0 < nearest.size;
        within.then(|| suture_elf::demangle(nearest.name))
    }

    pub(crate) fn file(&self) -> Option<&ObjectFile> {
        match &self.source {
            Source::File(file) => Some(file),
            Source::Memory(_) => None,
        }
    }

    pub(crate) fn facts(&self) -> &Facts {
        self.facts.get_or_init(|| Facts::of(self))
    }

    /// Bytes from `addr` to the end of what is contiguous there.
    pub(crate) fn bytes_from(&self, addr: Vaddr) -> Option<&[u8]> {
        match &self.source {
            Source::File(file) => file.bytes_from(addr),
            Source::Memory(pieces) => pieces.iter().find_map(|piece| piece.bytes_from(addr)),
        }
    }

    /// The same, if it is code.
    pub(crate) fn code_from(&self, addr: Vaddr) -> Option<&[u8]> {
        let executable = match &self.source {
            Source::File(file) => file.segments().iter().any(|s| s.executable() && s.backs(addr)),
            Source::Memory(pieces) => pieces.iter().any(|p| p.executable && p.bytes_from(addr).is_some()),
        };
        if executable { self.bytes_from(addr) } else { None }
    }

    /// All code: address and bytes of each segment.
    pub(crate) fn code(&self) -> Vec<(Vaddr, &[u8])> {
        match &self.source {
            Source::File(file) => {
                let segments = file.segments().iter().filter(|s| s.executable());
                segments.filter_map(|s| Some((s.addr, file.bytes_at(s.addr, s.filesz)?))).collect()
            }
            Source::Memory(pieces) => {
                pieces.iter().filter(|p| p.executable).map(|p| (p.addr, p.bytes.as_slice())).collect()
            }
        }
    }

    fn search_table(&self) -> Option<SearchTable<'_>> {
        SearchTable::new(self.hdr?, self.bytes_from(self.hdr?)?)
    }

    /// The FDE that covers an address.
    pub(crate) fn fde(&self, at: Vaddr) -> Option<Found<'_>> {
        let table = self.search_table()?;
        let section = EhFrame::new(self.bytes_from(table.frames)?, LittleEndian);
        let bases = BaseAddresses::default().set_eh_frame(table.frames.0);
        let offset = gimli::EhFrameOffset(table.lookup(at)?);
        let fde = section.fde_from_offset(&bases, offset, EhFrame::cie_from_offset).ok()?;
        fde.contains(at.0).then_some(Found { fde, section, bases })
    }

    /// Start of the first FDE behind an address.
    pub(crate) fn next_fde(&self, at: Vaddr) -> Option<Vaddr> {
        self.search_table()?.next(at)
    }

    /// Exception table of an FDE; none where it cannot be read.
    pub(crate) fn call_sites(&self, found: &Found<'_>) -> Vec<CallSite> {
        let Some(gimli::Pointer::Direct(at)) = found.fde.lsda() else { return Vec::new() };
        let sites = |bytes| CallSite::read(bytes, Vaddr(at), Vaddr(found.fde.initial_address()));
        self.bytes_from(Vaddr(at)).and_then(sites).unwrap_or_default()
    }
}

impl Piece {
    fn bytes_from(&self, addr: Vaddr) -> Option<&[u8]> {
        let skip = usize::try_from(addr.0.checked_sub(self.addr.0)?).ok()?;
        self.bytes.get(skip..).filter(|rest| !rest.is_empty())
    }
}
