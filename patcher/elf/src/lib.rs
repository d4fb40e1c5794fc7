//! ELF objects as the planner and the linker see them.
//!
//! Everything here is pure: it reads bytes that somebody else fetched, from a file or from a
//! process's memory, trusts none of them, and returns typed views. All addresses of an
//! [`ObjectFile`] are the file's own ([`Vaddr`]); a process adds a [`Base`] to them.
#![deny(unsafe_code)]

mod addr;
mod address_set;
mod build_id;
mod debug;
mod dynamic;
mod error;
mod exceptions;
mod file;
mod frames;
pub mod maps;
mod memory;
mod names;
mod relocs;
mod symbols;

pub use addr::{Addr, Base, PAGE, Vaddr};
pub use address_set::AddressSet;
pub use build_id::BuildId;
pub use debug::DebugLink;
pub use dynamic::{DynSymbol, DynamicTables, VERSION_HIDDEN, Version};
pub use error::ElfError;
pub use exceptions::CallSite;
pub use file::{ObjectFile, Segment, Type};
pub use frames::{Frame, Frames};
pub use maps::{MapsError, MapsSnapshot, Region};
pub use memory::{Memory, MemoryError, Pages};
pub use names::demangle;
pub use relocs::Reloc;
pub use symbols::{Symbol, SymbolKind, Symbols, similar_names};
