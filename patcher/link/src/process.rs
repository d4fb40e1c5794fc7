//! A process as the linker sees it: which objects are loaded where, and who looks names up where.
//!
//! Everything comes from the loader's own public data (`r_debug`, link maps), from the memory map,
//! and from the objects' files. A file is believed only after the build-id in memory was found to be
//! its own.

mod link_map;
mod object;
mod scope;

pub use link_map::{Facts, FileRequest, OpenFile};
pub use object::{DebugFile, LoadedObject};

use std::collections::HashMap;
use suture_elf::{Addr, ElfError, MapsSnapshot, Memory, MemoryError, ObjectFile, Symbol};
use thiserror::Error;

/// Why a process cannot be linked against.
#[derive(Debug, Error)]
pub enum ProcessError {
    /// No loader.
    #[error(
        "the program is statically linked: it has no dynamic loader whose books say what is loaded; patch a dynamically linked build"
    )]
    Static,
    /// The loader has not published its books yet.
    #[error("the program's loader has not finished loading it; try again")]
    NotStarted,
    /// The loader is at work.
    #[error("the program is loading or unloading a library right now; try again")]
    Changing,
    /// The kernel's vector lacks something.
    #[error("the auxiliary vector of the process says nothing about its program headers")]
    NoProgramHeaders,
    /// A list that does not end.
    #[error("the loader's list of objects at {at} does not end")]
    Endless {
        /// First entry.
        at: Addr,
    },
    /// Memory that cannot be read.
    #[error("cannot read {what}: {source}")]
    Memory {
        /// What was read.
        what: &'static str,
        /// The failed read.
        source: MemoryError,
    },
    /// No file could be had for an object.
    #[error("the file of {name} (loaded at {at}) cannot be read: {source}")]
    File {
        /// Name.
        name: String,
        /// Its dynamic section.
        at: Addr,
        /// Why.
        source: ElfError,
    },
    /// The file is not what is mapped.
    #[error(
        "{name} was replaced on disk after the process loaded it: the process has build-id {loaded}, {path} has {on_disk}; patching needs the file the process runs (restart it, or keep the old file in the debug store)"
    )]
    Replaced {
        /// Name.
        name: String,
        /// Path that was read.
        path: String,
        /// Build-id in memory.
        loaded: String,
        /// Build-id of the file.
        on_disk: String,
    },
}

/// What is loaded in a process at one moment.
#[derive(Debug)]
pub struct ProcessView<'m> {
    /// The process's memory.
    pub memory: MemoryRef<'m>,
    /// Objects of all namespaces, each namespace in the order of its link map; the main executable
    /// is the first.
    pub objects: Vec<LoadedObject>,
    /// The memory map.
    pub maps: MapsSnapshot,
    /// What the runtime exports for patches; `None` while there is none, and then a plan is only for looking
    /// at.
    pub exports: Option<Exports>,
    /// Address of the loader's `r_debug`.
    pub r_debug: Addr,
    /// Sizes of the namespaces, in order.
    namespaces: Vec<usize>,
}

/// Addresses by name.
pub type Exports = HashMap<String, Addr>;

/// The memory a view reads from.
#[derive(Clone, Copy)]
pub struct MemoryRef<'m>(pub &'m dyn Memory);

impl std::fmt::Debug for MemoryRef<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Memory")
    }
}

impl<'m> ProcessView<'m> {
    /// Reads the loader's books and opens the objects' files through `open`.
    ///
    /// # Errors
    /// When the books cannot be read or change meanwhile, or a file is missing or another one.
    pub fn read(memory: &'m dyn Memory, facts: Facts, open: &OpenFile<'_>) -> Result<Self, ProcessError> {
        link_map::read(memory, facts, open)
    }

    /// A file alone, as if it were loaded where nothing can be: to look its functions up.
    ///
    /// # Errors
    /// When its tables are damaged.
    pub fn of_file(memory: &'m dyn Memory, file: &ObjectFile) -> Result<Self, ElfError> {
        let object = LoadedObject::nowhere(file)?;
        let maps = MapsSnapshot::default();
        let (memory, r_debug) = (MemoryRef(memory), Addr(0));
        Ok(Self { memory, objects: vec![object], maps, exports: None, r_debug, namespaces: vec![1] })
    }

    /// The objects that are found under a name: SONAME, file name or path; `None` is the main
    /// executable.
    #[must_use]
    pub fn objects_named(&self, name: Option<&str>) -> Vec<usize> {
        let is =
            |o: &LoadedObject| name.map_or(o.main, |n| !o.main && o.is_named(n) || o.main && o.path == n);
        (0..self.objects.len()).filter(|&i| is(&self.objects[i]) && !self.objects[i].vdso).collect()
    }

    /// The object whose segments hold an address.
    #[must_use]
    pub fn object_at(&self, addr: Addr) -> Option<usize> {
        self.objects.iter().position(|o| o.contains(addr))
    }

    /// The defined symbol that starts at an address of an object, functions first.
    #[must_use]
    pub fn symbol_at(&self, object: usize, addr: Addr) -> Option<Symbol<'_>> {
        let object = &self.objects[object];
        let vaddr = addr - object.base;
        let symbols = object.file.symbols();
        let starts = || symbols.at(vaddr);
        starts().find(|s| s.kind == suture_elf::SymbolKind::Func && s.size > 0).or_else(|| starts().next())
    }
}
