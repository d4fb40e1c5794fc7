//! One loaded object.

use std::ops::Range;
use std::sync::OnceLock;
use suture_abi::RUNTIME_SONAME;
use suture_elf::{Addr, Base, DynamicTables, ElfError, ObjectFile, Reloc, Symbols, Vaddr};

/// An object of the process, its file proven to be the mapped one.
#[derive(Debug)]
pub struct LoadedObject {
    /// SONAME, or file name where it has none.
    pub name: String,
    /// Path the process mapped it from.
    pub path: String,
    /// Load address.
    pub base: Base,
    /// Address of its dynamic section.
    pub l_ld: Addr,
    /// First 8 bytes there, which prove later that the object is still in place.
    pub dynamic_word: u64,
    /// Address of its link map.
    pub link_map: Addr,
    /// Its file.
    pub file: ObjectFile,
    /// Dynamic-linking tables of the file.
    pub tables: DynamicTables,
    /// Namespace: 0, or one made by `dlmopen`.
    pub namespace: usize,
    /// The main executable.
    pub main: bool,
    /// The kernel's virtual object, which nobody links against.
    pub vdso: bool,
    /// The runtime, which patches are never bound to.
    pub runtime: bool,
    /// Loaded at program start, therefore never unloaded.
    pub startup: bool,
    /// Read on first use: few patches need more than one object's.
    pub(super) relocations: OnceLock<Vec<Reloc>>,
    /// Asked for on first use.
    pub(super) debug: OnceLock<Option<ObjectFile>>,
}

/// Where the symbols of a stripped object come from: its debug file, if there is one. Who gives a file without
/// a build-id knows by other means that it is of the object's build.
#[derive(Clone, Copy)]
pub struct DebugFile<'a>(pub &'a dyn Fn(&LoadedObject) -> Option<ObjectFile>);

impl std::fmt::Debug for DebugFile<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DebugFile")
    }
}

/// Where no process has anything.
const NOWHERE: Base = Base(0xffff_8000_0000_0000);

impl LoadedObject {
    /// A file that is not loaded.
    pub(crate) fn nowhere(file: &ObjectFile) -> Result<Self, ElfError> {
        let path = file.path().to_owned();
        Ok(Self {
            name: file.soname().unwrap_or(path.rsplit('/').next().unwrap_or(&path)).to_owned(),
            base: NOWHERE,
            l_ld: Addr(0),
            dynamic_word: 0,
            link_map: Addr(0),
            tables: DynamicTables::new(file)?,
            file: file.clone(),
            namespace: 0,
            main: false,
            vdso: false,
            runtime: false,
            startup: false,
            relocations: OnceLock::new(),
            debug: OnceLock::new(),
            path,
        })
    }

    /// Its relocations; none where its tables are damaged.
    #[must_use]
    pub fn relocations(&self) -> &[Reloc] {
        self.relocations.get_or_init(|| self.tables.relocations().unwrap_or_default())
    }

    /// Address of the first symbol of that name that it defines, relative to its base.
    #[must_use]
    pub fn defined(&self, name: &str) -> Option<Vaddr> {
        let named = self.tables.named(name);
        named.into_iter().find(|s| s.section != 0 && s.value != 0).map(|s| Vaddr(s.value))
    }

    /// Symbols of its debug file, where the object itself is stripped and there is such a file.
    #[must_use]
    pub fn debug_symbols(&self, from: DebugFile<'_>) -> Option<Symbols<'_>> {
        let stripped = || self.file.symbols().all().all(|s| s.dynamic);
        let file = self.debug.get_or_init(|| if stripped() { (from.0)(self) } else { None });
        // A debug file of another build would name other addresses.
        let same = |f: &&ObjectFile| f.build_id().is_none() || f.build_id() == self.file.build_id();
        file.as_ref().filter(same).map(ObjectFile::symbols)
    }

    /// Whether the loader may unload it while the process runs: not the program, nor what it was started with.
    #[must_use]
    pub fn may_go(&self) -> bool {
        !self.startup && !self.main && !self.vdso
    }

    /// Whether a name in a descriptor or in `DT_NEEDED` means this object.
    #[must_use]
    pub fn is_named(&self, name: &str) -> bool {
        let file_name = self.path.rsplit('/').next().unwrap_or(&self.path);
        self.name == name || self.path == name || file_name == name
    }

    /// Addresses from the first to the last segment.
    #[must_use]
    pub fn range(&self) -> Range<u64> {
        let segments = self.file.segments();
        let start = segments.iter().map(|s| s.addr.0).min().unwrap_or(0);
        let end = segments.iter().map(|s| s.addr.0 + s.memsz).max().unwrap_or(0);
        self.base.0.wrapping_add(start)..self.base.0.wrapping_add(end)
    }

    /// Whether one of its segments holds the address.
    #[must_use]
    pub fn contains(&self, addr: Addr) -> bool {
        let vaddr = addr - self.base;
        self.file.segments().iter().any(|s| vaddr >= s.addr && vaddr.0 - s.addr.0 < s.memsz)
    }

    /// Whether the address can be that of a function in it: in an executable segment, outside its
    /// procedure linkage tables.
    #[must_use]
    pub fn has_code_at(&self, addr: Addr) -> bool {
        let vaddr = addr - self.base;
        let plt = [".plt", ".plt.sec", ".plt.got"].iter().filter_map(|name| self.file.section(name));
        let in_plt =
            plt.into_iter().any(|(start, bytes)| vaddr >= start && vaddr.0 - start.0 < bytes.len() as u64);
        !in_plt && self.file.segments().iter().any(|s| s.executable() && s.backs(vaddr))
    }
}

/// Whether a SONAME or file name is the runtime's.
pub(super) fn is_runtime(name: &str) -> bool {
    name == RUNTIME_SONAME
}
