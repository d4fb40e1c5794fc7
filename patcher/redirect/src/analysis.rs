//! What the planner knows of one object file.

use crate::Refusal;
use crate::refs::{self, References};
use iced_x86::{Decoder, DecoderOptions, Instruction};
use std::collections::HashMap;
use std::ops::{Deref, Range};
use std::sync::{Arc, Mutex, OnceLock};
use suture_elf::{AddressSet, Frame, Frames, ObjectFile, SymbolKind, Vaddr};

/// Ranges above this number are answered from the index instead of a search for each call.
const SEARCH_LIMIT: usize = 256;

/// One object file, decoded as far as somebody asked. Cheap to clone and to share.
#[derive(Clone, Debug)]
pub struct ObjectAnalysis(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    file: ObjectFile,
    frames: Frames,
    /// Addresses of function and label symbols, ascending, each once, and the symbol's position.
    entries: OnceLock<Vec<(Vaddr, u32)>>,
    index: OnceLock<References>,
    special: OnceLock<[Vec<Range<Vaddr>>; 3]>,
    restartable: OnceLock<Vec<Vaddr>>,
    /// Padding behind functions that were looked at, by the function's range. Each function is the
    /// neighbour of many, and to know its last instruction all of it has to be decoded.
    paddings: Mutex<HashMap<Range<Vaddr>, Range<Vaddr>>>,
    /// What rule 4 says of functions and their replacements: the same in every process of a program. With each verdict
    /// the new function's file, which is told apart by where its analysis lies.
    registers: Mutex<HashMap<(Vaddr, Question), Verdict>>,
    /// What was found by searches, by the ranges that were asked for.
    searches: Mutex<HashMap<AddressSet, Arc<References>>>,
}

/// Searches that are remembered. An apply to many processes asks for the same few in each.
const MAX_SEARCHES: usize = 256;

/// References that somebody asked for.
#[derive(Clone, Debug)]
pub(crate) enum Found<'a> {
    /// All there are, or what the caller has.
    Borrowed(&'a References),
    /// Those of a search.
    Searched(Arc<References>),
}

impl Deref for Found<'_> {
    type Target = References;

    fn deref(&self) -> &References {
        match self {
            Self::Borrowed(references) => references,
            Self::Searched(references) => references,
        }
    }
}

type Verdict = (Result<(), Refusal>, Option<ObjectAnalysis>);

/// What takes the place of a function, as far as rule 4 is about it.
#[derive(Clone, Copy, Debug)]
pub(crate) enum NewCode<'a> {
    /// It destroys every register it may.
    Unknown,
    /// It leaves every register as it was.
    Transparent,
    /// A function of a file.
    At(&'a ObjectAnalysis, Vaddr),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Question {
    Unknown,
    Transparent,
    At(usize, Vaddr),
}

impl ObjectAnalysis {
    /// Prepares an object; nothing is decoded yet.
    #[must_use]
    pub fn new(file: &ObjectFile) -> Self {
        Self(Arc::new(Inner {
            file: file.clone(),
            frames: Frames::new(file),
            entries: OnceLock::new(),
            index: OnceLock::new(),
            special: OnceLock::new(),
            restartable: OnceLock::new(),
            paddings: Mutex::default(),
            registers: Mutex::default(),
            searches: Mutex::default(),
        }))
    }

    /// The file.
    #[must_use]
    pub fn file(&self) -> &ObjectFile {
        &self.0.file
    }

    /// Its unwind ranges.
    #[must_use]
    pub fn frames(&self) -> &Frames {
        &self.0.frames
    }

    /// Executable segments: address and contents.
    pub(crate) fn code(&self) -> impl Iterator<Item = (Vaddr, &[u8])> {
        let file = &self.0.file;
        file.segments()
            .iter()
            .filter(|s| s.executable())
            .filter_map(|s| Some((s.addr, file.bytes_at(s.addr, s.filesz)?)))
    }

    /// From the first to the last executable byte.
    pub(crate) fn code_hull(&self) -> Range<Vaddr> {
        let start = self.code().map(|(addr, _)| addr).min().unwrap_or_default();
        let end = self.code().map(|(addr, bytes)| addr + bytes.len() as u64).max().unwrap_or_default();
        start..end
    }

    /// Code from `addr` to the end of its segment.
    pub(crate) fn code_from(&self, addr: Vaddr) -> Option<&[u8]> {
        let segment = self.0.file.segments().iter().find(|s| s.executable() && s.backs(addr))?;
        self.0.file.bytes_at(addr, segment.addr.0 + segment.filesz - addr.0)
    }

    /// Where the executable segment of the address starts.
    pub(crate) fn segment_start(&self, addr: Vaddr) -> Option<Vaddr> {
        self.0.file.segments().iter().find(|s| s.executable() && s.backs(addr)).map(|s| s.addr)
    }

    /// Code as it is in memory: the segment's, or the zeros behind it in its last page.
    pub(crate) fn mapped_bytes(&self, addr: Vaddr, len: u64) -> Option<&[u8]> {
        static ZEROS: [u8; 16] = [0; 16];
        if let Some(bytes) = self.0.file.bytes_at(addr, len) {
            return Some(bytes);
        }
        let within = |tail: Range<Vaddr>| tail.start <= addr && addr + len <= tail.end;
        let mut tails = self.0.file.segments().iter().filter_map(|s| self.0.file.page_tail(s));
        tails.any(within).then(|| ZEROS.get(..usize::try_from(len).ok()?)).flatten()
    }

    /// From the first to the last address of any segment.
    pub(crate) fn image_hull(&self) -> Range<u64> {
        let segments = self.0.file.segments();
        let start = segments.iter().map(|s| s.addr.0 & !0xfff).min().unwrap_or_default();
        let end = segments.iter().map(|s| s.addr.0 + s.memsz).max().unwrap_or_default();
        start..end.next_multiple_of(0x1000)
    }

    fn special(&self) -> &[Vec<Range<Vaddr>>; 3] {
        self.0.special.get_or_init(|| {
            [&[".plt", ".plt.sec", ".plt.got", ".iplt"][..], &[".init", ".fini"], &["__rseq_cs"]].map(
                |names| {
                    let sections = names.iter().filter_map(|name| self.0.file.section(name));
                    sections.map(|(addr, bytes)| addr..addr + bytes.len() as u64).collect()
                },
            )
        })
    }

    /// Stubs of the procedure linkage table.
    pub(crate) fn plt(&self) -> &[Range<Vaddr>] {
        &self.special()[0]
    }

    /// Code that only the loader runs.
    pub(crate) fn start_code(&self) -> &[Range<Vaddr>] {
        &self.special()[1]
    }

    /// Code addresses in descriptors of restartable sequences: the kernel compares interrupted
    /// program counters with them.
    pub(crate) fn restartable(&self) -> &[Vaddr] {
        self.0.restartable.get_or_init(|| {
            let tables = &self.special()[2];
            let mut found = Vec::new();
            if !tables.is_empty() {
                let hull = self.code_hull();
                crate::pointers::each(&self.0.file, &(hull.start.0..hull.end.0), |target, place| {
                    if tables.iter().any(|t| t.contains(&Vaddr(place))) {
                        found.push(Vaddr(target));
                    }
                });
            }
            found
        })
    }

    /// The padding behind a function, found by `look` the first time.
    pub(crate) fn padding(
        &self,
        function: Range<Vaddr>,
        look: impl FnOnce(&Range<Vaddr>) -> Range<Vaddr>,
    ) -> Range<Vaddr> {
        let known = |all: &HashMap<_, Range<Vaddr>>| all.get(&function).cloned();
        if let Some(padding) = self.0.paddings.lock().ok().and_then(|all| known(&all)) {
            return padding;
        }
        let padding = look(&function);
        if let Ok(mut all) = self.0.paddings.lock() {
            all.insert(function, padding.clone());
        }
        padding
    }

    fn entries(&self) -> &[(Vaddr, u32)] {
        self.0.entries.get_or_init(|| {
            let kinds = [SymbolKind::Func, SymbolKind::Ifunc, SymbolKind::Label];
            let symbols = self.0.file.symbols().places().filter(|(_, _, kind)| kinds.contains(kind));
            let mut entries: Vec<(Vaddr, u32)> = symbols.map(|(i, addr, _)| (addr, i as u32)).collect();
            entries.sort_unstable();
            entries
        })
    }

    /// Symbols that stand at the address.
    pub(crate) fn symbols_at(&self, addr: Vaddr) -> impl Iterator<Item = suture_elf::Symbol<'_>> {
        let entries = self.entries();
        let from = entries.partition_point(|e| e.0 < addr);
        let here = entries[from..].iter().take_while(move |e| e.0 == addr);
        here.filter_map(|e| self.0.file.symbols().get(e.1 as usize))
    }

    /// The first symbol in the range, if there is one.
    pub(crate) fn symbol_in(&self, range: &Range<Vaddr>) -> Option<Vaddr> {
        let entries = self.entries();
        let from = entries.partition_point(|e| e.0 < range.start);
        entries.get(from).map(|e| e.0).filter(|a| *a < range.end)
    }

    /// Name of the function an address lies in, for messages.
    pub(crate) fn name_of(&self, addr: Vaddr) -> String {
        let start = self.0.frames.at(addr).map_or(addr, |f| f.start);
        let named = self.symbols_at(start).next();
        named.map_or_else(|| format!("the function at {start}"), |s| suture_elf::demangle(s.name))
    }

    /// What rule 4 says of a function and its replacement, found by `look` the first time.
    pub(crate) fn registers(
        &self,
        entry: Vaddr,
        new: NewCode<'_>,
        look: impl FnOnce() -> Result<(), Refusal>,
    ) -> Result<(), Refusal> {
        let (question, file) = match new {
            NewCode::Unknown => (Question::Unknown, None),
            NewCode::Transparent => (Question::Transparent, None),
            NewCode::At(file, entry) => {
                (Question::At(Arc::as_ptr(&file.0).addr(), entry), Some(file.clone()))
            }
        };
        let known = |(verdict, _): &Verdict| verdict.clone();
        let key = (entry, question);
        if let Some(known) = self.0.registers.lock().ok().and_then(|all| all.get(&key).map(known)) {
            return known;
        }
        let verdict = look();
        if let Ok(mut all) = self.0.registers.lock() {
            all.insert(key, (verdict.clone(), file));
        }
        verdict
    }

    /// References into the ranges.
    pub(crate) fn references(&self, ranges: Vec<Range<Vaddr>>) -> Found<'_> {
        let ranges = AddressSet::new(ranges.into_iter().map(|r| r.start.0..r.end.0).collect());
        match self.0.index.get() {
            Some(index) => Found::Borrowed(index),
            None if ranges.ranges().len() > SEARCH_LIMIT => Found::Borrowed(self.index()),
            None => Found::Searched(self.search(ranges)),
        }
    }

    fn search(&self, ranges: AddressSet) -> Arc<References> {
        if let Some(known) = self.0.searches.lock().ok().and_then(|all| all.get(&ranges).cloned()) {
            return known;
        }
        let found = Arc::new(refs::search(self, &ranges));
        if let Ok(mut all) = self.0.searches.lock()
            && all.len() < MAX_SEARCHES
        {
            all.insert(ranges, found.clone());
        }
        found
    }

    /// Whether references come from decoded code, so that each is what it looks like.
    pub(crate) fn is_indexed(&self) -> bool {
        self.0.index.get().is_some()
    }

    /// References into everything.
    pub(crate) fn index(&self) -> &References {
        self.0.index.get_or_init(|| refs::index(self))
    }

    /// Decodes `range`, up to its end or the end of the segment. What is no instruction ends it.
    pub(crate) fn decode(&self, range: &Range<Vaddr>) -> Vec<Instruction> {
        let Some(bytes) = self.code_from(range.start) else { return Vec::new() };
        let length = usize::try_from(range.end.0.saturating_sub(range.start.0)).unwrap_or(0);
        let bytes = &bytes[..length.min(bytes.len())];
        let decoder = Decoder::with_ip(64, bytes, range.start.0, DecoderOptions::NONE);
        decoder.into_iter().take_while(|insn| !insn.is_invalid()).collect()
    }

    /// Decodes all code that overlaps the range: function by function where unwind tables say where
    /// functions start, else from the start of the segment or of the gap.
    pub(crate) fn each_instruction(&self, range: &Range<Vaddr>, mut each: impl FnMut(&Instruction)) {
        let frames = &self.0.frames;
        for (addr, bytes) in self.code() {
            let end = addr + bytes.len() as u64;
            let mut at = addr;
            if range.start > addr {
                at = frames
                    .index_before(range.start)
                    .and_then(|i| frames.get(i))
                    .map_or(addr, |f| f.start.max(addr));
            }
            let stop = range.end.min(end);
            while at < stop {
                // A frame's end is a boundary too: padding or code without unwind tables follows.
                let next = frames.next_start(at).filter(|n| *n < end).unwrap_or(end);
                let part = frames.starting_at(at).map_or(next, |f: Frame| f.end.min(next).max(at + 1));
                self.decode_part(&bytes[(at.0 - addr.0) as usize..(part.0 - addr.0) as usize], at, &mut each);
                at = part;
            }
        }
    }

    fn decode_part(&self, bytes: &[u8], addr: Vaddr, each: &mut impl FnMut(&Instruction)) {
        let mut decoder = Decoder::with_ip(64, bytes, addr.0, DecoderOptions::NONE);
        let mut insn = Instruction::default();
        while decoder.can_decode() {
            decoder.decode_out(&mut insn);
            if !insn.is_invalid() {
                each(&insn);
            }
        }
    }
}
