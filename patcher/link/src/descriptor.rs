//! The descriptor of a patch: `suture_patch`, read from the file.
//!
//! Nothing of it is believed: every pointer must lead into the file, every array and string must
//! end, every name must be one. The target never sees these structures.

use crate::image::{PatchFile, Word};
use serde::Serialize;
use std::collections::HashSet;
use std::mem::{offset_of, size_of};
use suture_abi::descriptor as abi;
use suture_abi::{ABI_VERSION, PATCH_SYMBOL};
use suture_elf::{BuildId, Frames, Vaddr};
use thiserror::Error;

/// Longest name of a patch.
pub const MAX_NAME: usize = 55;
/// Longest symbol, object or expected-bytes string that is read.
const MAX_STRING: usize = 1 << 16;
/// Most entries of one array. A patch of 65 536 functions is not hand-made and not sane.
const MAX_ENTRIES: usize = 1 << 16;

/// Why a descriptor cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum DescriptorError {
    /// No descriptor.
    #[error("no symbol `suture_patch` is exported; write the patch with SUTURE_PATCH of suture.h")]
    Missing,
    /// Compiled against another contract.
    #[error(
        "compiled for descriptor version {found}, this command knows {ours}; compile the patch with the suture.h of this version"
    )]
    Abi {
        /// Version in the patch.
        found: u32,
        /// Our version.
        ours: u32,
    },
    /// The structure has another size than ours.
    #[error(
        "the descriptor says it has {found} bytes, version {ABI_VERSION} has {ours}; compile the patch with the suture.h of this version"
    )]
    Size {
        /// Size in the patch.
        found: u32,
        /// Our size.
        ours: usize,
    },
    /// A pointer that leads nowhere.
    #[error("{field} points to {addr}, which is outside the patch's file")]
    Dangling {
        /// Which pointer.
        field: String,
        /// Where it points.
        addr: Vaddr,
    },
    /// A pointer to something that is not in the patch.
    #[error("{field} refers to `{symbol}`, which the patch does not define")]
    NotOwn {
        /// Which pointer.
        field: String,
        /// The symbol it is filled with.
        symbol: String,
    },
    /// A pointer that is no pointer: a number no relocation belongs to.
    #[error("{field} is the number {value:#x} instead of an address; link the patch with -shared")]
    NotRelocated {
        /// Which pointer.
        field: String,
        /// The number.
        value: u64,
    },
    /// A structure or slot that is not aligned.
    #[error("{field} points to {addr}, which is not a multiple of 8")]
    Misaligned {
        /// Which pointer.
        field: String,
        /// Where it points.
        addr: Vaddr,
    },
    /// An array without its all-zero entry.
    #[error("{array} does not end; its last entry must be all zero")]
    Unterminated {
        /// Which array.
        array: String,
    },
    /// A string that does not end, or is no UTF-8.
    #[error("{field} is no text, or does not end")]
    BadString {
        /// Which string.
        field: String,
    },
    /// A required pointer is null.
    #[error("{field} is missing")]
    Null {
        /// Which pointer.
        field: String,
    },
    /// The name cannot be one.
    #[error("the patch's name {name:?} is not 1 to 55 characters of A-Z a-z 0-9 _ . -")]
    Name {
        /// The name.
        name: String,
    },
    /// Flags nobody knows.
    #[error("{field} has unknown bits {bits:#x}")]
    Flags {
        /// Which flags.
        field: String,
        /// The bits.
        bits: u64,
    },
    /// A field that must be zero is not, or one that must not be is.
    #[error("{field} is {value}, {expected}")]
    Value {
        /// Which field.
        field: String,
        /// What stands there.
        value: u64,
        /// What should.
        expected: &'static str,
    },
    /// A build-id or byte string that is not hexadecimal.
    #[error("{field} is {text:?}, which is not hexadecimal")]
    Hex {
        /// Which field.
        field: String,
        /// What stands there.
        text: String,
    },
    /// The same function twice (`EEXIST`).
    #[error("{object} replaces `{function}` twice")]
    Duplicate {
        /// Object.
        object: String,
        /// Function.
        function: String,
    },
    /// The same object twice.
    #[error("{object} stands in the patch twice; put its functions together")]
    DuplicateObject {
        /// Object.
        object: String,
    },
    /// The same state twice.
    #[error("state {id} stands in the patch twice")]
    DuplicateState {
        /// Id.
        id: u64,
    },
    /// A new function that is no code.
    #[error("{field} at {addr} is not in executable memory of the patch")]
    NotCode {
        /// Which pointer.
        field: String,
        /// Where it points.
        addr: Vaddr,
    },
    /// A slot that cannot be filled.
    #[error("{field} at {addr} is not in writable memory of the patch")]
    NotWritable {
        /// Which pointer.
        field: String,
        /// Where it points.
        addr: Vaddr,
    },
    /// Nobody knows where a new function ends.
    #[error(
        "the size of the new `{function}` is unknown: it has neither a symbol nor unwind tables; do not strip the patch"
    )]
    NoSize {
        /// The replaced function's name.
        function: String,
    },
    /// Nothing to do.
    #[error("the patch replaces nothing: it has no objects and no states")]
    Empty,
}

/// One function to be replaced, and by what.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FuncDescriptor {
    /// Symbol name of the function in its object, mangled or demangled.
    pub old_name: String,
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
        let reader = Reader { patch, frames: Frames::new(patch.file()) };
        let at = reader.aligned(Vaddr(symbol.value), "suture_patch")?;
        let field = |offset: usize| at + offset as u64;
        let abi_version = reader.u32(field(offset_of!(abi::Patch, abi)), "suture_patch")?;
        if abi_version != ABI_VERSION {
            return Err(DescriptorError::Abi { found: abi_version, ours: ABI_VERSION });
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

struct Reader<'p> {
    patch: &'p PatchFile,
    frames: Frames,
}

impl Reader<'_> {
    fn aligned(&self, addr: Vaddr, what: &str) -> Result<Vaddr, DescriptorError> {
        if self.patch.segment_at(addr).is_none() {
            return Err(DescriptorError::Dangling { field: what.into(), addr });
        }
        if !addr.0.is_multiple_of(8) {
            return Err(DescriptorError::Misaligned { field: what.into(), addr });
        }
        Ok(addr)
    }

    fn u32(&self, at: Vaddr, what: &str) -> Result<u32, DescriptorError> {
        let bytes = self.patch.bytes(at);
        bytes
            .map(u32::from_le_bytes)
            .ok_or_else(|| DescriptorError::Dangling { field: what.into(), addr: at })
    }

    fn word(&self, at: Vaddr, what: &str) -> Result<Word, DescriptorError> {
        self.patch.word(at).ok_or_else(|| DescriptorError::Dangling { field: what.into(), addr: at })
    }

    fn number(&self, at: Vaddr, what: &str) -> Result<u64, DescriptorError> {
        match self.word(at, what)? {
            Word::Plain(value) => Ok(value),
            Word::Own(addr) => Err(DescriptorError::Value {
                field: what.into(),
                value: addr.0,
                expected: "an address, where a number must stand",
            }),
            Word::Foreign(symbol) => Err(self.not_own(what, symbol)),
        }
    }

    fn not_own(&self, what: &str, symbol: u32) -> DescriptorError {
        let symbol = self.patch.tables().symbol(symbol).map_or_else(String::new, |s| s.name.to_owned());
        DescriptorError::NotOwn { field: what.into(), symbol }
    }

    /// A pointer into the patch, or null.
    fn any_pointer(&self, at: Vaddr, what: &str) -> Result<Option<Vaddr>, DescriptorError> {
        let addr = match self.word(at, what)? {
            Word::Plain(0) => return Ok(None),
            Word::Plain(value) => {
                return Err(DescriptorError::NotRelocated { field: what.into(), value });
            }
            Word::Own(addr) => addr,
            Word::Foreign(symbol) => return Err(self.not_own(what, symbol)),
        };
        if self.patch.segment_at(addr).is_none() {
            return Err(DescriptorError::Dangling { field: what.into(), addr });
        }
        Ok(Some(addr))
    }

    fn pointer(&self, at: Vaddr, what: &str) -> Result<Option<Vaddr>, DescriptorError> {
        self.any_pointer(at, what)?.map(|addr| self.aligned(addr, what)).transpose()
    }

    fn string(&self, at: Vaddr, what: &str) -> Result<Option<String>, DescriptorError> {
        let Some(addr) = self.any_pointer(at, what)? else { return Ok(None) };
        let text = self.patch.string(addr, MAX_STRING);
        text.map(|t| Some(t.to_owned())).ok_or_else(|| DescriptorError::BadString { field: what.into() })
    }

    /// Addresses of the entries of an array, up to the all-zero one.
    fn entries(&self, start: Vaddr, size: usize, array: &str) -> Result<Vec<Vaddr>, DescriptorError> {
        let end = || DescriptorError::Unterminated { array: array.into() };
        let mut entries = Vec::new();
        loop {
            let entry = start + (entries.len() * size) as u64;
            let mut zero = true;
            for at in (0..size).step_by(8) {
                let word = self.patch.word(entry + at as u64).ok_or_else(end)?;
                zero &= word == Word::Plain(0);
            }
            if zero {
                return Ok(entries);
            }
            entries.push(entry);
            if entries.len() > MAX_ENTRIES {
                return Err(end());
            }
        }
    }

    fn objects(&self, start: Vaddr) -> Result<Vec<ObjectDescriptor>, DescriptorError> {
        let mut objects: Vec<ObjectDescriptor> = Vec::new();
        for entry in self.entries(start, size_of::<abi::Object>(), "the array of objects")? {
            let which = format!("of object {}", objects.len() + 1);
            let field = |offset: usize| entry + offset as u64;
            let name = self.string(field(offset_of!(abi::Object, name)), &format!("the name {which}"))?;
            if name.as_deref() == Some("") {
                return Err(DescriptorError::Null { field: format!("the name {which}") });
            }
            let label = object_label(name.as_deref());
            if objects.iter().any(|o| o.name == name) {
                return Err(DescriptorError::DuplicateObject { object: label });
            }
            let what = format!("the build-id of {label}");
            let build_id = self.string(field(offset_of!(abi::Object, build_id)), &what)?;
            let build_id = build_id
                .map(|text| BuildId::from_hex(&text).ok_or(DescriptorError::Hex { field: what, text }))
                .transpose()?;
            let what = format!("the array of functions of {label}");
            let funcs = self.pointer(field(offset_of!(abi::Object, funcs)), &what)?;
            let funcs = funcs.ok_or(DescriptorError::Null { field: what })?;
            objects.push(ObjectDescriptor { funcs: self.funcs(funcs, &label)?, name, build_id });
        }
        Ok(objects)
    }

    fn funcs(&self, start: Vaddr, object: &str) -> Result<Vec<FuncDescriptor>, DescriptorError> {
        let array = format!("the array of functions of {object}");
        let mut funcs: Vec<FuncDescriptor> = Vec::new();
        let mut seen = HashSet::new();
        for entry in self.entries(start, size_of::<abi::Func>(), &array)? {
            let field = |offset: usize| entry + offset as u64;
            let what = format!("the name of function {} of {object}", funcs.len() + 1);
            let old_name = self.string(field(offset_of!(abi::Func, old_name)), &what)?;
            let old_name = old_name.filter(|n| !n.is_empty()).ok_or(DescriptorError::Null { field: what })?;
            let what = format!("the new function for `{old_name}`");
            let new_func = self.any_pointer(field(offset_of!(abi::Func, new_func)), &what)?;
            let new_func = new_func.ok_or_else(|| DescriptorError::Null { field: what.clone() })?;
            self.code(new_func, &what)?;
            let sympos =
                self.number(field(offset_of!(abi::Func, sympos)), &format!("sympos of `{old_name}`"))?;
            if !seen.insert((old_name.clone(), sympos)) {
                return Err(DescriptorError::Duplicate { object: object.into(), function: old_name });
            }
            let new_size = self.size_of(new_func);
            let new_size = new_size.ok_or_else(|| DescriptorError::NoSize { function: old_name.clone() })?;
            funcs.push(FuncDescriptor { old_name, sympos, new_func, new_size });
        }
        Ok(funcs)
    }

    fn code(&self, addr: Vaddr, what: &str) -> Result<(), DescriptorError> {
        let code = self.patch.segment_at(addr).is_some_and(|s| s.executable() && s.backs(addr));
        if code { Ok(()) } else { Err(DescriptorError::NotCode { field: what.into(), addr }) }
    }

    fn size_of(&self, func: Vaddr) -> Option<u64> {
        let symbols = self.patch.file().symbols().all();
        let by_symbol = symbols.iter().find(|s| s.addr == func && s.size > 0).map(|s| s.size);
        by_symbol.or_else(|| self.frames.starting_at(func).map(|f| f.end.0 - f.start.0))
    }

    fn states(&self, start: Vaddr) -> Result<Vec<StateDescriptor>, DescriptorError> {
        let mut states: Vec<StateDescriptor> = Vec::new();
        for entry in self.entries(start, size_of::<abi::State>(), "the array of states")? {
            let field = |offset: usize| entry + offset as u64;
            let id = self.number(field(offset_of!(abi::State, id)), "the id of a state")?;
            if id == 0 {
                let expected = "but ids start at 1";
                return Err(DescriptorError::Value { field: "the id of a state".into(), value: 0, expected });
            }
            if states.iter().any(|s| s.id == id) {
                return Err(DescriptorError::DuplicateState { id });
            }
            let what = format!("the flags of state {id}");
            let flags = self.u32(field(offset_of!(abi::State, flags)), &what)?;
            let unknown = flags & !(abi::STATE_IS_SHADOW | abi::STATE_BLOCK_DISABLE);
            if unknown != 0 {
                return Err(DescriptorError::Flags { field: what, bits: u64::from(unknown) });
            }
            self.reserved(field(offset_of!(abi::State, reserved)), &format!("`reserved` of state {id}"))?;
            let mut callbacks = [None; 5];
            for (i, name) in CALLBACKS.iter().enumerate() {
                let what = format!("{name} of state {id}");
                let at = field(offset_of!(abi::State, callbacks) + i * 8);
                callbacks[i] = self.any_pointer(at, &what)?;
                callbacks[i].map_or(Ok(()), |code| self.code(code, &what))?;
            }
            states.push(StateDescriptor {
                id,
                is_shadow: flags & abi::STATE_IS_SHADOW != 0,
                block_disable: flags & abi::STATE_BLOCK_DISABLE != 0,
                callbacks,
            });
        }
        Ok(states)
    }

    fn reserved(&self, at: Vaddr, what: &str) -> Result<(), DescriptorError> {
        match self.u32(at, what)? {
            0 => Ok(()),
            value => {
                let expected = "but must be 0";
                Err(DescriptorError::Value { field: what.into(), value: u64::from(value), expected })
            }
        }
    }

    fn references(&self, start: Vaddr) -> Result<Vec<ReferenceDescriptor>, DescriptorError> {
        let mut references: Vec<ReferenceDescriptor> = Vec::new();
        for entry in self.entries(start, size_of::<abi::Reference>(), "the array of references")? {
            let which = format!("of reference {}", references.len() + 1);
            let field = |offset: usize| entry + offset as u64;
            let what = format!("the slot {which}");
            let slot = self.pointer(field(offset_of!(abi::Reference, slot)), &what)?;
            let slot = slot.ok_or_else(|| DescriptorError::Null { field: what.clone() })?;
            if !self.patch.segment_at(slot).is_some_and(suture_elf::Segment::writable) {
                return Err(DescriptorError::NotWritable { field: what, addr: slot });
            }
            // A null slot or one that a relocation fills too would be filled twice.
            if !matches!(self.word(slot, &what)?, Word::Plain(_)) {
                let expected = "but is initialised with an address; leave it uninitialised";
                return Err(DescriptorError::Value { field: what, value: slot.0, expected });
            }
            if references.iter().any(|r| r.slot == slot) {
                let expected = "which another reference fills already";
                return Err(DescriptorError::Value { field: what, value: slot.0, expected });
            }
            self.reserved(field(offset_of!(abi::Reference, reserved)), &format!("`reserved` {which}"))?;
            let object =
                self.string(field(offset_of!(abi::Reference, object)), &format!("the object {which}"))?;
            let target = self.reference_target(entry, &which)?;
            references.push(ReferenceDescriptor { slot, object, target });
        }
        Ok(references)
    }

    fn reference_target(&self, entry: Vaddr, which: &str) -> Result<ReferenceTarget, DescriptorError> {
        let field = |offset: usize| entry + offset as u64;
        let text = |offset, what: String| {
            let text = self.string(field(offset), &what)?;
            text.filter(|t| !t.is_empty()).ok_or(DescriptorError::Null { field: what })
        };
        let name = || text(offset_of!(abi::Reference, symbol), format!("the symbol {which}"));
        let number = |offset, what| self.number(field(offset), &format!("{what} {which}"));
        let sympos = || number(offset_of!(abi::Reference, sympos), "sympos");
        match self.u32(field(offset_of!(abi::Reference, kind)), &format!("the kind {which}"))? {
            abi::REFERENCE_SYMBOL => Ok(ReferenceTarget::Symbol { name: name()?, sympos: sympos()? }),
            abi::REFERENCE_OLD_FUNC => Ok(ReferenceTarget::OldFunc { name: name()?, sympos: sympos()? }),
            abi::REFERENCE_OFFSET => {
                let what = format!("the expected bytes {which}");
                let text = text(offset_of!(abi::Reference, expected), what.clone())?;
                let expected = BuildId::from_hex(&text).ok_or(DescriptorError::Hex { field: what, text })?;
                let offset = number(offset_of!(abi::Reference, offset), "the offset")?;
                Ok(ReferenceTarget::Offset { offset, expected: expected.as_bytes().to_vec() })
            }
            kind => Err(DescriptorError::Value {
                field: format!("the kind {which}"),
                value: u64::from(kind),
                expected: "but only 0, 1 and 2 are known",
            }),
        }
    }
}
