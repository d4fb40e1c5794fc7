//! Call frame information of one loaded object.

use gimli::{BaseAddresses, EhFrame, EhFrameHdr, EndianSlice, LittleEndian, ParsedEhFrameHdr, UnwindSection};
use std::ops::Range;
use suture_elf::{Base, ObjectFile, Vaddr};

pub(crate) type Reader<'a> = EndianSlice<'a, LittleEndian>;

const PT_GNU_EH_FRAME: u32 = 0x6474_e550;

/// A loaded object and where it is. Its CFI is read from the file: it lies in pages that are never
/// written, and the file's identity was proven by build-id.
#[derive(Clone, Debug)]
pub struct Module {
    /// Name for reports.
    pub name: String,
    /// Load address.
    pub base: Base,
    file: ObjectFile,
    hdr: Option<Vaddr>,
}

/// What a lookup found.
pub(crate) struct Found<'a> {
    pub fde: gimli::FrameDescriptionEntry<Reader<'a>>,
    pub section: EhFrame<Reader<'a>>,
    pub bases: BaseAddresses,
}

impl Module {
    /// A module from its file.
    #[must_use]
    pub fn new(name: String, base: Base, file: ObjectFile) -> Self {
        let hdr = file.program_header(PT_GNU_EH_FRAME).map(|s| s.addr);
        Self { name, base, file, hdr }
    }

    /// The file.
    #[must_use]
    pub fn file(&self) -> &ObjectFile {
        &self.file
    }

    /// Addresses it occupies in the process.
    #[must_use]
    pub fn range(&self) -> Range<u64> {
        let start = self.file.segments().iter().map(|s| s.addr.0).min().unwrap_or(0);
        let end = self.file.segments().iter().map(|s| s.addr.0 + s.memsz).max().unwrap_or(0);
        self.base.0.wrapping_add(start)..self.base.0.wrapping_add(end)
    }

    /// The FDE that covers `pc` (an address in the process).
    pub(crate) fn fde(&self, pc: u64) -> Option<Found<'_>> {
        let hdr_addr = self.hdr?;
        let hdr_bytes = self.file.bytes_from(hdr_addr)?;
        let bases = BaseAddresses::default().set_eh_frame_hdr(hdr_addr.0);
        let hdr: ParsedEhFrameHdr<Reader<'_>> =
            EhFrameHdr::new(hdr_bytes, LittleEndian).parse(&bases, 8).ok()?;
        let gimli::Pointer::Direct(frame_addr) = hdr.eh_frame_ptr() else { return None };
        let section = EhFrame::new(self.file.bytes_from(Vaddr(frame_addr))?, LittleEndian);
        let bases = bases.set_eh_frame(frame_addr);
        let address = pc.wrapping_sub(self.base.0);
        let fde = hdr
            .table()?
            .fde_for_address(&section, &bases, address, |s, b, o| s.cie_from_offset(b, o))
            .ok()
            .filter(|fde| fde.contains(address))?;
        Some(Found { fde, section, bases })
    }
}
