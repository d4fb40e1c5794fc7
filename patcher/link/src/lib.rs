//! Links a patch object into a running process, from outside.
//!
//! The patch's descriptor is read and checked ([`descriptor`]), the file is held against allow-lists
//! ([`accept`]), the process's objects are read from its loader's books ([`process`]), names are
//! looked up as the process's own loader would ([`lookup`]), the image gets a place ([`layout`]) and
//! its relocations ([`relocate`]). The result is a [`plan::LinkPlan`]: finished pages, and fixups for
//! every word that depends on another object. Nothing here makes a system call; memory is read
//! through [`suture_elf::Memory`], files are opened by the caller.
#![deny(unsafe_code)]

pub mod accept;
pub mod debug_elf;
pub mod descriptor;
mod elf;
pub mod functions;
pub mod image;
pub mod late;
pub mod layout;
pub mod lookup;
pub mod plan;
pub mod process;
pub mod relocate;

pub use accept::{AcceptError, AcceptOptions, Acceptance};
pub use descriptor::{
    CALLBACKS, DescriptorError, FuncDescriptor, ObjectDescriptor, PatchDescriptor, StateDescriptor,
};
pub use functions::FunctionError;
pub use image::PatchFile;
pub use late::{LateObject, LateWord};
pub use plan::{LinkError, LinkOptions, LinkPlan, ResolvedFunc, link};
pub use process::{
    DebugFile, Exports, Facts, FileRequest, LoadedObject, OpenFile, ProcessError, ProcessView,
};

use serde::Serializer;
use suture_elf::{BuildId, Vaddr};

fn vaddr<S: Serializer>(addr: &Vaddr, s: S) -> Result<S::Ok, S::Error> {
    s.collect_str(addr)
}

fn vaddr_option<S: Serializer>(addr: &Option<Vaddr>, s: S) -> Result<S::Ok, S::Error> {
    match addr {
        Some(addr) => s.collect_str(addr),
        None => s.serialize_none(),
    }
}

fn vaddrs<S: Serializer>(addrs: &[Option<Vaddr>; 5], s: S) -> Result<S::Ok, S::Error> {
    s.collect_seq(addrs.iter().map(|a| a.map(|a| a.to_string())))
}

fn build_id<S: Serializer>(id: &Option<BuildId>, s: S) -> Result<S::Ok, S::Error> {
    match id {
        Some(id) => s.collect_str(id),
        None => s.serialize_none(),
    }
}
