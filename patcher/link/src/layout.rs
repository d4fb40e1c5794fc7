//! The image in pages: what is mapped from the code file, what is empty, and with which protection.

use crate::elf;
use std::ops::Range;
use suture_abi::batch::{MAPPING_ANON, MAPPING_FILE, Mapping, PROT_EXEC, PROT_READ, PROT_WRITE, ROLE_IMAGE};
use suture_elf::maps::{REACH, USER_END};
use suture_elf::{Base, MapsSnapshot, ObjectFile, PAGE, Segment, Vaddr};

/// Room to the neighbours of an image: an index that runs off their ends must not land in it.
pub const GUARD: u64 = 64 << 10;

/// Pages of one protection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    start: Vaddr,
    len: u64,
    /// Offset of its content in the blob; `None` = empty pages.
    content: Option<u64>,
    prot: u32,
    final_prot: u32,
}

/// The image of a patch in pages, with no load address in it yet.
#[derive(Clone, Debug)]
pub struct ImageLayout {
    runs: Vec<Run>,
    start: Vaddr,
    end: Vaddr,
    align: u64,
    blob: Vec<u8>,
}

impl ImageLayout {
    /// Lays out the segments of an accepted patch file.
    #[must_use]
    pub fn new(file: &ObjectFile) -> Self {
        let segments = file.segments();
        let start = Vaddr(segments.first().map_or(0, |s| s.addr.0 & !(PAGE - 1)));
        let mut layout = Self { runs: Vec::new(), start, end: start, align: PAGE, blob: Vec::new() };
        let relro = file.program_header(elf::PT_GNU_RELRO);
        for segment in segments.iter().filter(|s| s.memsz > 0) {
            layout.align = layout.align.max(segment.align.min(1 << 21));
            layout.fill_gap(segment);
            layout.add(file, segment, relro.filter(|_| segment.writable()));
        }
        layout
    }

    /// Segments aligned to more than a page leave holes; nobody else's mapping may get into them.
    fn fill_gap(&mut self, segment: &Segment) {
        let from = segment.addr.0 & !(PAGE - 1);
        if self.end.0 < from {
            self.push(self.end.0..from, None, 0, 0);
        }
    }

    fn add(&mut self, file: &ObjectFile, segment: &Segment, relro: Option<Segment>) {
        let first = segment.addr.0 & !(PAGE - 1);
        let file_end = segment.addr.0 + segment.filesz;
        let content_end = if segment.filesz == 0 { first } else { file_end.next_multiple_of(PAGE) };
        let end = (segment.addr.0 + segment.memsz).next_multiple_of(PAGE);
        let mut prot = PROT_READ;
        prot |= if segment.writable() { PROT_WRITE } else { 0 };
        prot |= if segment.executable() { PROT_EXEC } else { 0 };
        let content = self.blob.len() as u64;
        self.blob.resize(self.blob.len() + (content_end - first) as usize, 0);
        if let Some(bytes) = file.bytes_at(segment.addr, segment.filesz) {
            let at = (content + segment.addr.0 - first) as usize;
            self.blob[at..at + bytes.len()].copy_from_slice(bytes);
        }
        // As the loader does it: only whole pages of the RELRO range become read-only.
        let read_only = relro.map_or(0..0, |r| {
            let end = (r.addr.0 + r.memsz) & !(PAGE - 1);
            (r.addr.0 & !(PAGE - 1))..end.max(r.addr.0 & !(PAGE - 1))
        });
        let mut cuts = vec![first, content_end, end, read_only.start, read_only.end];
        cuts.retain(|cut| (first..=end).contains(cut));
        cuts.sort_unstable();
        cuts.dedup();
        for cut in cuts.windows(2) {
            let content = (cut[0] < content_end).then_some(content + cut[0] - first);
            let final_prot = if read_only.contains(&cut[0]) { prot & !PROT_WRITE } else { prot };
            self.push(cut[0]..cut[1], content, prot, final_prot);
        }
    }

    fn push(&mut self, pages: Range<u64>, content: Option<u64>, prot: u32, final_prot: u32) {
        let len = pages.end - pages.start;
        self.runs.push(Run { start: Vaddr(pages.start), len, content, prot, final_prot });
        self.end = Vaddr(pages.end);
    }

    /// Addresses from the first to the last executable page, empty if there is none.
    #[must_use]
    pub fn text(&self) -> Range<Vaddr> {
        let code = || self.runs.iter().filter(|r| r.prot & PROT_EXEC != 0);
        let start = code().map(|r| r.start).min().unwrap_or(self.start);
        let end = code().map(|r| r.start + r.len).max().unwrap_or(self.start);
        start..end
    }

    /// Bytes from the first to the last page.
    #[must_use]
    pub fn span(&self) -> u64 {
        self.end.0 - self.start.0
    }

    /// Addresses of the pages in the file's own terms.
    #[must_use]
    pub fn range(&self) -> Range<Vaddr> {
        self.start..self.end
    }

    /// Whether a word lies in pages that are writable while fixups are applied.
    #[must_use]
    pub fn is_writable(&self, place: Vaddr) -> bool {
        self.run_at(place).is_some_and(|run| run.prot & PROT_WRITE != 0)
    }

    /// Keeps the pages of a word that is writable while fixups are applied so for good.
    pub fn keep_writable(&mut self, place: Vaddr) {
        let holds =
            |r: &&mut Run| place >= r.start && place.0 - r.start.0 < r.len && r.prot & PROT_WRITE != 0;
        if let Some(run) = self.runs.iter_mut().find(holds) {
            run.final_prot = run.prot;
        }
    }

    fn run_at(&self, place: Vaddr) -> Option<&Run> {
        self.runs.iter().find(|r| place >= r.start && place.0 - r.start.0 < r.len)
    }

    /// Writes a word into the content of the image; `false` when empty pages back it.
    pub fn write(&mut self, place: Vaddr, word: u64) -> bool {
        let Some(run) = self.run_at(place) else { return false };
        let Some(content) = run.content else { return false };
        let at = (content + place.0 - run.start.0) as usize;
        match self.blob.get_mut(at..at + 8) {
            Some(bytes) => {
                bytes.copy_from_slice(&word.to_le_bytes());
                true
            }
            None => false,
        }
    }

    /// Load addresses for the image and `more` bytes behind it: near `near` where there is room, the
    /// nearest first, else anywhere.
    #[must_use]
    pub fn places(&self, maps: &MapsSnapshot, near: &Range<u64>, more: u64) -> Vec<Base> {
        // A hole of page-aligned addresses holds an image of a larger alignment if it is that much
        // larger.
        let slack = self.align - PAGE;
        let len = self.span() + more + slack;
        let mut found = maps.holes_near(near, len, GUARD, REACH);
        if found.is_empty() {
            found = maps.holes_near(near, len, GUARD, USER_END);
        }
        let aligned = found.into_iter().filter_map(|at| {
            let base = at.wrapping_sub(self.start.0).checked_next_multiple_of(self.align)?;
            Some(Base(base))
        });
        aligned.collect()
    }

    /// The mappings of the image at a load address, and the content they show.
    #[must_use]
    pub fn into_mappings(self, base: Base) -> (Vec<Mapping>, Vec<u8>) {
        let mappings = self.runs.iter().map(|run| Mapping {
            addr: (base + run.start).0,
            len: run.len,
            offset: run.content.unwrap_or(0),
            kind: if run.content.is_some() { MAPPING_FILE } else { MAPPING_ANON },
            prot: run.prot,
            final_prot: run.final_prot,
            role: ROLE_IMAGE,
        });
        (mappings.collect(), self.blob)
    }
}
