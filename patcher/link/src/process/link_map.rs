//! Reading the loader's books: `r_debug`, its namespaces, their link maps.

use super::object::is_runtime;
use super::{LoadedObject, MemoryRef, ProcessError, ProcessView, scope};
use crate::elf;
use std::ops::Range;
use std::sync::OnceLock;
use suture_elf::{Addr, Base, BuildId, DynamicTables, ElfError, MapsSnapshot, Memory, ObjectFile, Pages};

const AT_PHDR: u64 = 3;
const AT_PHNUM: u64 = 5;
const AT_SYSINFO_EHDR: u64 = 33;
const PHDR_SIZE: u64 = 56;
/// `RT_CONSISTENT`.
const CONSISTENT: u64 = 0;
const MAX_OBJECTS: usize = 8192;
const MAX_NAMESPACES: usize = 64;
const MAX_PATH: usize = 4096;

/// What `/proc` says about the process.
#[derive(Clone, Debug)]
pub struct Facts {
    /// `/proc/PID/auxv`.
    pub auxv: Vec<u8>,
    /// Path of the executable, as `/proc/PID/exe` shows it.
    pub exe: String,
    /// The memory map.
    pub maps: MapsSnapshot,
}

/// An object whose file is wanted.
#[derive(Clone, Debug)]
pub struct FileRequest<'a> {
    /// Path in the process's own file system view.
    pub path: &'a str,
    /// The kernel says that this path leads to another file now, or to none.
    pub deleted: bool,
    /// A mapping of the file (for `/proc/PID/map_files`).
    pub mapped: Range<u64>,
}

/// Opens files for the linker.
pub type OpenFile<'a> = dyn Fn(&FileRequest<'_>) -> Result<ObjectFile, ElfError> + 'a;

/// An entry of a link map.
struct Entry {
    link_map: Addr,
    base: Base,
    name: String,
    l_ld: Addr,
    namespace: usize,
}

/// One look at the books.
struct Reader<'m> {
    memory: Pages<'m>,
}

impl Reader<'_> {
    fn u64(&self, at: Addr, what: &'static str) -> Result<u64, ProcessError> {
        self.memory.read_u64(at).map_err(|source| ProcessError::Memory { what, source })
    }

    fn u32(&self, at: Addr, what: &'static str) -> Result<u64, ProcessError> {
        let mut bytes = [0; 4];
        self.memory.read(at, &mut bytes).map_err(|source| ProcessError::Memory { what, source })?;
        Ok(u64::from(u32::from_le_bytes(bytes)))
    }

    /// Address of `r_debug`, through the program's own dynamic section.
    fn r_debug(&self, auxv: &[u8]) -> Result<Addr, ProcessError> {
        let phdr = aux_value(auxv, AT_PHDR).ok_or(ProcessError::NoProgramHeaders)?;
        let count = aux_value(auxv, AT_PHNUM).ok_or(ProcessError::NoProgramHeaders)?.min(256);
        let mut dynamic = None;
        let mut base = None;
        let mut first_load = None;
        let mut has_loader = false;
        for i in 0..count {
            let entry = Addr(phdr.wrapping_add(i * PHDR_SIZE));
            let vaddr = self.u64(entry + 16, "the program headers")?;
            let offset = self.u64(entry + 8, "the program headers")?;
            match self.u32(entry, "the program headers")? as u32 {
                elf::PT_PHDR => base = Some(phdr.wrapping_sub(vaddr)),
                elf::PT_DYNAMIC => dynamic = Some(vaddr),
                elf::PT_LOAD if offset == 0 => first_load = Some(vaddr),
                elf::PT_INTERP => has_loader = true,
                _ => {}
            }
        }
        let dynamic = dynamic.ok_or(ProcessError::Static)?;
        // Without PT_PHDR: the headers follow the ELF header, which starts the first segment.
        let base = base.or_else(|| first_load.map(|vaddr| phdr.wrapping_sub(vaddr).wrapping_sub(64)));
        let base = base.ok_or(ProcessError::NoProgramHeaders)?;
        for i in 0..4096u64 {
            let entry = Addr(base.wrapping_add(dynamic).wrapping_add(i * 16));
            match self.u64(entry, "the program's dynamic section")? {
                0 => break,
                elf::DT_DEBUG => {
                    let at = self.u64(entry + 8, "the program's dynamic section")?;
                    return match (at, has_loader) {
                        (0, true) => Err(ProcessError::NotStarted),
                        // A static PIE, which relocates itself; not every C library keeps books then.
                        (0, false) => Err(ProcessError::Static),
                        _ => Ok(Addr(at)),
                    };
                }
                _ => {}
            }
        }
        Err(ProcessError::Static)
    }

    /// All link maps, and the addresses of the states that say whether they are consistent.
    fn entries(&self, r_debug: Addr) -> Result<Vec<Entry>, ProcessError> {
        const WHAT: &str = "the loader's list of objects";
        let mut entries = Vec::new();
        let mut debug = r_debug;
        for namespace in 0..MAX_NAMESPACES {
            if self.u32(debug + 24, WHAT)? != CONSISTENT {
                return Err(ProcessError::Changing);
            }
            let mut at = self.u64(debug + 8, WHAT)?;
            if at == 0 && namespace == 0 {
                return Err(ProcessError::NotStarted);
            }
            while at != 0 {
                let link_map = Addr(at);
                let name = Addr(self.u64(link_map + 8, WHAT)?);
                let name = self.memory.read_cstr(name, MAX_PATH);
                entries.push(Entry {
                    link_map,
                    base: Base(self.u64(link_map, WHAT)?),
                    name: name.map_err(|source| ProcessError::Memory { what: WHAT, source })?,
                    l_ld: Addr(self.u64(link_map + 16, WHAT)?),
                    namespace,
                });
                at = self.u64(link_map + 24, WHAT)?;
                if entries.len() > MAX_OBJECTS {
                    return Err(ProcessError::Endless { at: debug });
                }
            }
            // `r_next` exists from version 2 on (further namespaces).
            let version = self.u32(debug, WHAT)?;
            let next = if version >= 2 { self.u64(debug + 40, WHAT)? } else { 0 };
            if next == 0 {
                return Ok(entries);
            }
            debug = Addr(next);
        }
        Err(ProcessError::Endless { at: r_debug })
    }
}

fn aux_value(auxv: &[u8], key: u64) -> Option<u64> {
    let word = |b: &[u8]| b.try_into().map_or(0, u64::from_le_bytes);
    auxv.chunks_exact(16).find(|pair| word(&pair[..8]) == key).map(|pair| word(&pair[8..]))
}

pub(super) fn read<'m>(
    memory: &'m dyn Memory,
    facts: Facts,
    open: &OpenFile<'_>,
) -> Result<ProcessView<'m>, ProcessError> {
    let reader = Reader { memory: Pages::new(memory) };
    let r_debug = reader.r_debug(&facts.auxv)?;
    let entries = reader.entries(r_debug)?;
    let vdso = aux_value(&facts.auxv, AT_SYSINFO_EHDR);
    let mut objects = Vec::with_capacity(entries.len());
    for (i, entry) in entries.iter().enumerate() {
        objects.push(load(memory, &facts, entry, i == 0, vdso, open)?);
    }
    // Files were opened meanwhile; the list must still be the one they were opened for.
    let again = Reader { memory: Pages::new(memory) }.entries(r_debug)?;
    let same = |(a, b): (&Entry, &Entry)| a.link_map == b.link_map && a.base == b.base && a.l_ld == b.l_ld;
    if again.len() != entries.len() || !entries.iter().zip(&again).all(same) {
        return Err(ProcessError::Changing);
    }
    let last = entries.last().map_or(0, |e| e.namespace);
    let namespaces = (0..=last).map(|n| entries.iter().filter(|e| e.namespace == n).count()).collect();
    let mut view = ProcessView {
        memory: MemoryRef(memory),
        objects,
        maps: facts.maps,
        exports: None,
        r_debug,
        namespaces,
    };
    scope::mark_startup(&mut view);
    Ok(view)
}

fn load(
    memory: &dyn Memory,
    facts: &Facts,
    entry: &Entry,
    main: bool,
    vdso: Option<u64>,
    open: &OpenFile<'_>,
) -> Result<LoadedObject, ProcessError> {
    let region = facts.maps.region_at(entry.l_ld.0);
    let vdso =
        region.is_some_and(|r| r.path.as_deref() == Some("[vdso]") || vdso.is_some_and(|at| r.contains(at)));
    let mapped_path = region.and_then(|r| r.path.as_deref());
    let path = mapped_path.unwrap_or(if main { &facts.exe } else { &entry.name });
    let deleted = path.ends_with(" (deleted)");
    let path = path.strip_suffix(" (deleted)").unwrap_or(path).to_owned();
    let fail = |source| ProcessError::File { name: path.clone(), at: entry.l_ld, source };
    let file = if vdso {
        let range = region.map_or(0..0, |r| r.start..r.end);
        let length = usize::try_from(range.end - range.start).unwrap_or(0);
        let bytes = memory.read_vec(Addr(range.start), length);
        let bytes = bytes.map_err(|source| ProcessError::Memory { what: "the vdso", source })?;
        ObjectFile::from_bytes(bytes, path.clone()).map_err(fail)?
    } else {
        let mapped = region.map_or(entry.l_ld.0..entry.l_ld.0 + 1, |r| r.start..r.end);
        let file = open(&FileRequest { path: &path, deleted, mapped }).map_err(fail)?;
        prove(memory, entry, &path, &file)?;
        file
    };
    let tables = DynamicTables::new(&file).map_err(fail)?;
    let file_name = path.rsplit('/').next().unwrap_or(&path);
    let name = file.soname().unwrap_or(file_name).to_owned();
    let word = memory.read_u64(entry.l_ld);
    Ok(LoadedObject {
        runtime: is_runtime(&name),
        name,
        base: entry.base,
        l_ld: entry.l_ld,
        dynamic_word: word.map_err(|source| ProcessError::Memory { what: "a dynamic section", source })?,
        link_map: entry.link_map,
        tables,
        file,
        namespace: entry.namespace,
        main,
        vdso,
        startup: false,
        relocations: OnceLock::new(),
        debug: OnceLock::new(),
        path,
    })
}

/// Compares what identifies a build: the note segments (build-id), or where there is no build-id the
/// ELF header with the program headers; and the place of the dynamic section.
fn prove(memory: &dyn Memory, entry: &Entry, path: &str, file: &ObjectFile) -> Result<(), ProcessError> {
    let dynamic = file.program_header(elf::PT_DYNAMIC).map(|s| entry.base + s.addr);
    let mut same = dynamic == Some(entry.l_ld);
    let mut loaded = None;
    let notes = file.program_headers().iter().filter(|(kind, _)| *kind == elf::PT_NOTE);
    for (_, note) in notes {
        let Some(bytes) = file.bytes_at(note.addr, note.filesz) else { continue };
        match memory.read_vec(entry.base + note.addr, bytes.len()) {
            Ok(live) => {
                loaded = loaded.or_else(|| BuildId::from_notes(&live));
                same &= live == bytes;
            }
            Err(_) => same = false,
        }
    }
    if file.build_id().is_none()
        && let Some(first) = file.segments().first()
    {
        let length = first.filesz.min(64 + PHDR_SIZE * file.program_headers().len() as u64);
        let live = memory.read_vec(entry.base + first.addr, usize::try_from(length).unwrap_or(0));
        same &= live.ok().as_deref() == file.bytes_at(first.addr, length);
    }
    if same {
        return Ok(());
    }
    let text = |id: Option<&BuildId>| id.map_or_else(|| "none".to_owned(), ToString::to_string);
    Err(ProcessError::Replaced {
        name: path.rsplit('/').next().unwrap_or(path).to_owned(),
        path: path.to_owned(),
        loaded: text(loaded.as_ref()),
        on_disk: text(file.build_id()),
    })
}
