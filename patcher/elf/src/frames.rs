//! Function ranges and landing pads, from the unwind tables (`.eh_frame`).
//!
//! Unwind tables are the only list of functions that stripped objects keep. The search table of
//! `.eh_frame_hdr` gives all starts at once; the entries behind them are read when asked for, so
//! that looking at one function of a large executable costs next to nothing.

use crate::{CallSite, ObjectFile, Vaddr};
use gimli::{
    BaseAddresses, CfaRule, CieOrFde, EhFrame, EhFrameHdr, EndianSlice, FrameDescriptionEntry, LittleEndian,
    RegisterRule, UnwindContext, UnwindSection, X86_64,
};
use object::elf::PT_GNU_EH_FRAME;

type Slice<'a> = EndianSlice<'a, LittleEndian>;

/// A range of code with one unwind description: a function, or one part of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// First address.
    pub start: Vaddr,
    /// Address after the last byte.
    pub end: Vaddr,
    /// Marked as the frame a signal handler returns to.
    pub signal: bool,
    /// Address of its exception table, if it has one.
    pub lsda: Option<Vaddr>,
}

impl Frame {
    /// Whether the address lies in it.
    #[must_use]
    pub fn contains(&self, addr: Vaddr) -> bool {
        self.start <= addr && addr < self.end
    }
}

/// All frames of an object.
#[derive(Debug)]
pub struct Frames {
    file: ObjectFile,
    /// Address of `.eh_frame`.
    section: u64,
    /// (start of the range, offset of its entry in `.eh_frame`), ascending, empty ranges left out.
    entries: Vec<(u64, u64)>,
}

impl Frames {
    /// Reads the search table, or the whole of `.eh_frame` when the object has no table. An object
    /// without (readable) unwind tables has no frames.
    #[must_use]
    pub fn new(file: &ObjectFile) -> Self {
        let (section, mut entries) = from_header(file).or_else(|| from_section(file)).unwrap_or_default();
        entries.sort_unstable();
        entries.dedup_by_key(|e| e.0);
        Self { file: file.clone(), section, entries }
    }

    /// Number of frames.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Starts of all frames, ascending.
    pub fn starts(&self) -> impl DoubleEndedIterator<Item = Vaddr> + ExactSizeIterator + '_ {
        self.entries.iter().map(|e| Vaddr(e.0))
    }

    /// The first start after `addr`.
    #[must_use]
    pub fn next_start(&self, addr: Vaddr) -> Option<Vaddr> {
        let after = self.entries.partition_point(|e| e.0 <= addr.0);
        self.entries.get(after).map(|e| Vaddr(e.0))
    }

    /// The `index`-th frame, in order of address.
    #[must_use]
    pub fn get(&self, index: usize) -> Option<Frame> {
        let fde = self.entry(index)?.1;
        let lsda = match fde.lsda() {
            Some(gimli::Pointer::Direct(at)) => Some(Vaddr(at)),
            _ => None,
        };
        Some(Frame {
            start: Vaddr(fde.initial_address()),
            end: Vaddr(fde.initial_address().checked_add(fde.len())?),
            signal: fde.is_signal_trampoline(),
            lsda,
        })
    }

    fn entry(&self, index: usize) -> Option<(EhFrame<Slice<'_>>, FrameDescriptionEntry<Slice<'_>>)> {
        let &(_, offset) = self.entries.get(index)?;
        let bytes = self.file.bytes_from(Vaddr(self.section))?;
        let eh_frame = EhFrame::new(bytes, LittleEndian);
        let offset = gimli::EhFrameOffset(usize::try_from(offset).ok()?);
        let fde = eh_frame.fde_from_offset(&self.bases(), offset, EhFrame::cie_from_offset).ok()?;
        Some((eh_frame, fde))
    }

    fn bases(&self) -> BaseAddresses {
        BaseAddresses::default().set_eh_frame(self.section)
    }

    /// Whether the code of a frame starts as a called function does: nothing on the stack but the
    /// return address, no register saved. Part of a function that is entered behind its prologue
    /// starts with a frame already made. `None` when the unwind information cannot be read.
    #[must_use]
    pub fn starts_like_a_function(&self, frame: &Frame) -> Option<bool> {
        let (section, fde) = self.entry(self.index_before(frame.start)?)?;
        let mut context = UnwindContext::new();
        let bases = self.bases();
        let row = fde.unwind_info_for_address(&section, &bases, &mut context, frame.start.0).ok()?;
        let cfa = CfaRule::RegisterAndOffset { register: X86_64::RSP, offset: 8 };
        let mut saved = row.registers().filter(|(register, _)| *register != X86_64::RA);
        let return_address = row.register(X86_64::RA);
        Some(*row.cfa() == cfa && saved.next().is_none() && return_address == Some(RegisterRule::Offset(-8)))
    }

    /// Index of the last frame that starts at or before `addr`.
    #[must_use]
    pub fn index_before(&self, addr: Vaddr) -> Option<usize> {
        self.entries.partition_point(|e| e.0 <= addr.0).checked_sub(1)
    }

    /// The frame `addr` lies in.
    #[must_use]
    pub fn at(&self, addr: Vaddr) -> Option<Frame> {
        self.get(self.index_before(addr)?).filter(|f| f.contains(addr))
    }

    /// The frame that starts at `addr`.
    #[must_use]
    pub fn starting_at(&self, addr: Vaddr) -> Option<Frame> {
        self.at(addr).filter(|f| f.start == addr)
    }

    /// Addresses where an exception can continue in this frame (C++ landing pads); `None` when the
    /// frame's exception table cannot be read.
    #[must_use]
    pub fn landing_pads(&self, frame: &Frame) -> Option<Vec<Vaddr>> {
        let Some(lsda) = frame.lsda else { return Some(Vec::new()) };
        let sites = CallSite::read(self.file.bytes_from(lsda)?, lsda, frame.start)?;
        Some(sites.into_iter().filter_map(|site| site.pad).collect())
    }
}

fn from_header(file: &ObjectFile) -> Option<(u64, Vec<(u64, u64)>)> {
    let segment = file.program_header(PT_GNU_EH_FRAME.0)?;
    let bytes = file.bytes_at(segment.addr, segment.filesz)?;
    let bases = BaseAddresses::default().set_eh_frame_hdr(segment.addr.0);
    let header = EhFrameHdr::from(Slice::new(bytes, LittleEndian)).parse(&bases, 8).ok()?;
    let section = header.eh_frame_ptr().direct().ok()?;
    let table = header.table()?;
    let mut entries = Vec::new();
    let mut rows = table.iter(&bases);
    while let Some((start, entry)) = rows.next().ok()? {
        entries.push((start.direct().ok()?, entry.direct().ok()?.checked_sub(section)?));
    }
    Some((section, entries))
}

fn from_section(file: &ObjectFile) -> Option<(u64, Vec<(u64, u64)>)> {
    let (addr, bytes) = file.section(".eh_frame")?;
    let eh_frame = EhFrame::new(bytes, LittleEndian);
    let bases = BaseAddresses::default().set_eh_frame(addr.0);
    let mut entries = Vec::new();
    let mut all = eh_frame.entries(&bases);
    while let Some(entry) = all.next().ok()? {
        let CieOrFde::Fde(partial) = entry else { continue };
        let fde = partial.parse(EhFrame::cie_from_offset).ok()?;
        if fde.len() != 0 {
            entries.push((fde.initial_address(), fde.offset() as u64));
        }
    }
    Some((addr.0, entries))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn own() -> ObjectFile {
        ObjectFile::open(Path::new("/proc/self/exe")).unwrap()
    }

    #[test]
    fn table_and_section_agree() {
        let file = own();
        let (section, mut quick) = from_header(&file).unwrap();
        let (addr, mut whole) = from_section(&file).unwrap();
        quick.sort_unstable();
        quick.dedup_by_key(|e| e.0);
        whole.sort_unstable();
        whole.dedup_by_key(|e| e.0);
        assert_eq!(section, addr);
        assert_eq!(quick, whole);
    }

    #[test]
    fn main_has_a_frame_of_its_own() {
        let file = own();
        let frames = Frames::new(&file);
        let main = file.symbols().functions_named("main")[0];
        let frame = frames.starting_at(main.addr).unwrap();
        assert_eq!(frame.end.0 - frame.start.0, main.size);
        assert!(!frame.signal);
        assert_eq!(frames.at(frame.end + u64::MAX), Some(frame));
        assert!(frames.at(Vaddr(0)).is_none());
        assert_eq!(frames.starts_like_a_function(&frame), Some(true));
    }

    #[test]
    fn landing_pads_lie_in_code() {
        let file = own();
        let frames = Frames::new(&file);
        let mut found = 0;
        for index in 0..frames.len() {
            let frame = frames.get(index).unwrap();
            for pad in frames.landing_pads(&frame).unwrap() {
                assert!(file.segments().iter().any(|s| s.executable() && s.backs(pad)));
                assert!(frames.at(pad).is_some(), "{pad}");
                found += 1;
            }
        }
        assert!(found > 0, "a Rust test program has cleanup code");
    }
}
