//! The descriptor of a patch: `suture_patch`, read from the file.
//!
//! Nothing of it is believed: every pointer must lead into the file, every array and string must
//! end, every name must be one. The target never sees these structures.

mod error;
mod reader;

pub use error::DescriptorError;

use crate::image::PatchFile;
use reader::Reader;
use serde::Serialize;
use std::mem::{offset_of, size_of};
use suture_abi::descriptor as abi;
use suture_abi::{DESCRIPTOR_VERSION, PATCH_SYMBOL};
use suture_elf::{BuildId, Vaddr};

/// Longest name of a patch.
pub const MAX_NAME: usize = 55;

/// Where a function without a symbol lies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PlaceDescriptor {
    /// Its entry, as the file has it.
    #[serde(serialize_with = "crate::vaddr")]
    pub offset: Vaddr,
    /// Its first bytes in the file.
    pub expected: Vec<u8>,
}

/// One function to be replaced, and by what.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FuncDescriptor {
    /// Symbol name of the function in its object, mangled or demangled; `+0x1234` when it is named by
    /// its place.
    pub old_name: String,
    /// The place instead of a name.
    pub place: Option<PlaceDescriptor>,
    /// Which of several symbols of that name, from 1; 0 = unique.
    pub sympos: u64,
    /// The new function, in the patch.
    #[serde(serialize_with = "crate::vaddr")]
    pub new_func: Vaddr,
    /// Its size in bytes.
    pub new_size: u64,
}

/// One object and its functions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ObjectDescriptor {
    /// SONAME or file name; `None` = the main executable.
    pub name: Option<String>,
    /// Build-id the object must have.
    #[serde(serialize_with = "crate::build_id")]
    pub build_id: Option<BuildId>,
    /// Functions.
    pub funcs: Vec<FuncDescriptor>,
}

/// A callback of a state, in the order of `struct suture_callbacks`.
pub const CALLBACKS: [&str; 5] = ["pre_patch", "post_patch", "pre_unpatch", "post_unpatch", "shadow_dtor"];

/// A state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct StateDescriptor {
    /// Where it stands in the patch: what callbacks get as their state.
    #[serde(skip)]
    pub at: Vaddr,
    /// Id, not 0.
    pub id: u64,
    /// Its shadow variables are freed with it.
    pub is_shadow: bool,
    /// It cannot be given up.
    pub block_disable: bool,
    /// Callbacks, in the order of [`CALLBACKS`].
    #[serde(serialize_with = "crate::vaddrs")]
    pub callbacks: [Option<Vaddr>; 5],
}

/// What a reference is filled with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum ReferenceTarget {
    /// The address of a symbol.
    Symbol {
        /// Name.
        name: String,
        /// Position, 0 = unique.
        sympos: u64,
    },
    /// The entry under which the old body of a replaced function stays callable.
    OldFunc {
        /// Name as in the function's entry.
        name: String,
        /// Position as in the function's entry.
        sympos: u64,
    },
    /// Load address plus offset.
    Offset {
        /// Offset.
        offset: u64,
        /// Bytes that must stand there.
        expected: Vec<u8>,
    },
}

/// A pointer of the patch that is filled from the target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ReferenceDescriptor {
    /// The pointer, in writable data of the patch.
    #[serde(serialize_with = "crate::vaddr")]
    pub slot: Vaddr,
    /// Object it is looked up in; `None` = the main executable.
    pub object: Option<String>,
    /// What it receives.
    pub target: ReferenceTarget,
}

/// A checked descriptor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PatchDescriptor {
    /// Name.
    pub name: String,
    /// Takes the place of every enabled patch.
    pub replace: bool,
    /// Needs the program's own loader.
    pub needs_loader: bool,
    /// Objects.
    pub objects: Vec<ObjectDescriptor>,
    /// States.
    pub states: Vec<StateDescriptor>,
    /// References.
    pub references: Vec<ReferenceDescriptor>,
}

impl PatchDescriptor {
    /// Reads the descriptor of a patch file.
    ///
    /// # Errors
    /// The first thing that is wrong with it.
    pub fn read(patch: &PatchFile) -> Result<Self, DescriptorError> {
        let symbol = patch.exported(PATCH_SYMBOL).ok_or(DescriptorError::Missing)?;
        let reader = Reader::new(patch);
        let at = reader.aligned(Vaddr(symbol.value), "suture_patch")?;
        let field = |offset: usize| at + offset as u64;
        let abi_version = reader.u32(field(offset_of!(abi::Patch, abi)), "suture_patch")?;
        if abi_version != DESCRIPTOR_VERSION {
            return Err(DescriptorError::Abi { found: abi_version, ours: DESCRIPTOR_VERSION });
        }
        let size = reader.u32(field(offset_of!(abi::Patch, size)), "suture_patch.size")?;
        if size as usize != size_of::<abi::Patch>() {
            return Err(DescriptorError::Size { found: size, ours: size_of::<abi::Patch>() });
        }
        let name = reader.string(field(offset_of!(abi::Patch, name)), "the patch's name")?;
        let name = name.ok_or_else(|| DescriptorError::Null { field: "the patch's name".into() })?;
        check_name(&name)?;
        let flags = reader.number(field(offset_of!(abi::Patch, flags)), "the patch's flags")?;
        let unknown = flags & !(abi::PATCH_REPLACE | abi::PATCH_NEEDS_LOADER);
        if unknown != 0 {
            return Err(DescriptorError::Flags { field: "the patch's flags".into(), bits: unknown });
        }
        let pointer = |offset, what: &str| reader.pointer(field(offset), what);
        let objects = match pointer(offset_of!(abi::Patch, objects), "the array of objects")? {
            Some(objects) => reader.objects(objects)?,
            None => Vec::new(),
        };
        let states = match pointer(offset_of!(abi::Patch, states), "the array of states")? {
            Some(states) => reader.states(states)?,
            None => Vec::new(),
        };
        let references = match pointer(offset_of!(abi::Patch, references), "the array of references")? {
            Some(references) => reader.references(references)?,
            None => Vec::new(),
        };
        if objects.is_empty() && states.is_empty() {
            return Err(DescriptorError::Empty);
        }
        Ok(Self {
            name,
            replace: flags & abi::PATCH_REPLACE != 0,
            needs_loader: flags & abi::PATCH_NEEDS_LOADER != 0,
            objects,
            states,
            references,
        })
    }
}

fn check_name(name: &str) -> Result<(), DescriptorError> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    // "." and ".." are path components, and the name ends up in paths and in PATCH/ATTR arguments.
    if name.is_empty() || name.len() > MAX_NAME || !name.chars().all(allowed) || name.starts_with('.') {
        return Err(DescriptorError::Name { name: name.chars().take(MAX_NAME + 1).collect() });
    }
    Ok(())
}

/// What an object is called in messages.
pub(crate) fn object_label(name: Option<&str>) -> String {
    name.map_or_else(|| "the main executable".to_owned(), str::to_owned)
}
