//! Reading the descriptor's structures, believing none of them.

use super::{
    CALLBACKS, DescriptorError, FuncDescriptor, ObjectDescriptor, PlaceDescriptor, ReferenceDescriptor,
    ReferenceTarget, StateDescriptor, object_label,
};
use crate::image::{PatchFile, Word};
use std::collections::{HashMap, HashSet};
use std::mem::{offset_of, size_of};
use suture_abi::descriptor as abi;
use suture_elf::{BuildId, Frames, Vaddr};

/// Longest symbol, object or expected-bytes string that is read.
const MAX_STRING: usize = 1 << 16;
/// Most entries of one array. A patch of 65 536 functions is not hand-made and not sane.
const MAX_ENTRIES: usize = 1 << 16;
/// Fewer bytes than this stand at the entry of nearly every function.
const LEAST_EXPECTED: usize = 4;

pub(super) struct Reader<'p> {
    pub(super) patch: &'p PatchFile,
    frames: Frames,
    /// Sizes of the patch's functions, by entry.
    sizes: HashMap<Vaddr, u64>,
}

impl<'p> Reader<'p> {
    pub(super) fn new(patch: &'p PatchFile) -> Self {
        let symbols = patch.file().symbols().all().rev().filter(|s| s.size > 0);
        let sizes = symbols.map(|s| (s.addr, s.size)).collect();
        Self { patch, frames: Frames::new(patch.file()), sizes }
    }
}

impl Reader<'_> {
    pub(super) fn aligned(&self, addr: Vaddr, what: &str) -> Result<Vaddr, DescriptorError> {
        if self.patch.segment_at(addr).is_none() {
            return Err(DescriptorError::Dangling { field: what.into(), addr });
        }
        if !addr.0.is_multiple_of(8) {
            return Err(DescriptorError::Misaligned { field: what.into(), addr });
        }
        Ok(addr)
    }

    pub(super) fn u32(&self, at: Vaddr, what: &str) -> Result<u32, DescriptorError> {
        let bytes = self.patch.bytes(at);
        bytes
            .map(u32::from_le_bytes)
            .ok_or_else(|| DescriptorError::Dangling { field: what.into(), addr: at })
    }

    fn word(&self, at: Vaddr, what: &str) -> Result<Word, DescriptorError> {
        self.patch.word(at).ok_or_else(|| DescriptorError::Dangling { field: what.into(), addr: at })
    }

    pub(super) fn number(&self, at: Vaddr, what: &str) -> Result<u64, DescriptorError> {
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

    pub(super) fn pointer(&self, at: Vaddr, what: &str) -> Result<Option<Vaddr>, DescriptorError> {
        self.any_pointer(at, what)?.map(|addr| self.aligned(addr, what)).transpose()
    }

    pub(super) fn string(&self, at: Vaddr, what: &str) -> Result<Option<String>, DescriptorError> {
        let Some(addr) = self.any_pointer(at, what)? else { return Ok(None) };
        // Control characters would reach terminals in messages.
        let text = self.patch.string(addr, MAX_STRING).filter(|text| !text.contains(char::is_control));
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

    pub(super) fn objects(&self, start: Vaddr) -> Result<Vec<ObjectDescriptor>, DescriptorError> {
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
            let funcs = self.funcs(funcs, &label)?;
            // An offset means something in one build only.
            if let Some(func) = funcs.iter().find(|f| f.place.is_some() && build_id.is_none()) {
                return Err(DescriptorError::NoBuildId { object: label, function: func.old_name.clone() });
            }
            objects.push(ObjectDescriptor { funcs, name, build_id });
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
            let name = self.string(field(offset_of!(abi::Func, old_name)), &what)?.filter(|n| !n.is_empty());
            let place = self.place(entry, name.is_some())?;
            let old_name = match (name, &place) {
                (Some(name), _) => name,
                (None, Some(place)) => nameless(place.offset),
                (None, None) => return Err(DescriptorError::Null { field: what }),
            };
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
            funcs.push(FuncDescriptor { old_name, place, sympos, new_func, new_size });
        }
        Ok(funcs)
    }

    /// The place that names a function without a symbol.
    fn place(&self, entry: Vaddr, named: bool) -> Result<Option<PlaceDescriptor>, DescriptorError> {
        let field = |offset: usize| entry + offset as u64;
        let offset = self.number(field(offset_of!(abi::Func, offset)), "the offset of a function")?;
        let what = format!("the first bytes of the function at {}", nameless(Vaddr(offset)));
        let Some(text) = self.string(field(offset_of!(abi::Func, expected)), &what)? else {
            return Ok(None);
        };
        if named {
            let expected = "but the function has a name already";
            let field = "the offset of a function".into();
            return Err(DescriptorError::Value { field, value: offset, expected });
        }
        let bytes = BuildId::from_hex(&text).map(|bytes| bytes.as_bytes().to_vec());
        match bytes {
            Some(expected) if expected.len() >= LEAST_EXPECTED => {
                Ok(Some(PlaceDescriptor { offset: Vaddr(offset), expected }))
            }
            Some(_) => Err(DescriptorError::FewBytes { field: what }),
            None => Err(DescriptorError::Hex { field: what, text }),
        }
    }

    fn code(&self, addr: Vaddr, what: &str) -> Result<(), DescriptorError> {
        let code = self.patch.segment_at(addr).is_some_and(|s| s.executable() && s.backs(addr));
        if code { Ok(()) } else { Err(DescriptorError::NotCode { field: what.into(), addr }) }
    }

    fn size_of(&self, func: Vaddr) -> Option<u64> {
        self.sizes.get(&func).copied().or_else(|| self.frames.starting_at(func).map(|f| f.end.0 - f.start.0))
    }

    pub(super) fn states(&self, start: Vaddr) -> Result<Vec<StateDescriptor>, DescriptorError> {
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
                at: entry,
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

    pub(super) fn references(&self, start: Vaddr) -> Result<Vec<ReferenceDescriptor>, DescriptorError> {
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
        let number = |offset, what| self.number(field(offset), &format!("{what} {which}"));
        let name = || text(offset_of!(abi::Reference, symbol), format!("the symbol {which}"));
        // A function of the patch that has no name is called by its place, as in the function's entry.
        let old_name = || match number(offset_of!(abi::Reference, offset), "the offset")? {
            0 => name(),
            offset => Ok(nameless(Vaddr(offset))),
        };
        let sympos = || number(offset_of!(abi::Reference, sympos), "sympos");
        match self.u32(field(offset_of!(abi::Reference, kind)), &format!("the kind {which}"))? {
            abi::REFERENCE_SYMBOL => Ok(ReferenceTarget::Symbol { name: name()?, sympos: sympos()? }),
            abi::REFERENCE_OLD_FUNC => Ok(ReferenceTarget::OldFunc { name: old_name()?, sympos: sympos()? }),
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

/// What a function is called that is named by its place.
fn nameless(offset: Vaddr) -> String {
    format!("+{:#x}", offset.0)
}
