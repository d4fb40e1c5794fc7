//! The patch's relocations: finished words, and fixups for what depends on other objects.

use crate::elf;
use crate::image::PatchFile;
use crate::late::{LateValue, LateWords};
use crate::layout::ImageLayout;
use crate::lookup::{Binding, Resolver, SymbolError, Use, module_field};
use crate::process::ProcessView;
use serde::Serialize;
use suture_abi::batch::{FIXUP_ADDRESS, FIXUP_RESOLVER, FIXUP_TLSDESC, FIXUP_VALUE, Fixup, Object};
use suture_elf::{Addr, Base, Reloc, Vaddr};

/// The objects a plan refers to, in the order of their first use.
#[derive(Debug, Default)]
pub struct ObjectSet {
    indices: Vec<usize>,
}

impl ObjectSet {
    /// Index of a process object in the plan.
    pub fn index(&mut self, object: usize) -> u32 {
        let known = self.indices.iter().position(|&i| i == object);
        let index = known.unwrap_or_else(|| {
            self.indices.push(object);
            self.indices.len() - 1
        });
        u32::try_from(index).unwrap_or(u32::MAX)
    }

    /// Indices into [`ProcessView::objects`].
    #[must_use]
    pub fn members(&self) -> &[usize] {
        &self.indices
    }

    /// The rows of the batch.
    #[must_use]
    pub fn rows(&self, view: &ProcessView<'_>) -> Vec<Object> {
        let row = |&i: &usize| {
            let o = &view.objects[i];
            Object { base: o.base.0, l_ld: o.l_ld.0, link_map: o.link_map.0, dynamic: o.dynamic_word }
        };
        self.indices.iter().map(row).collect()
    }
}

/// What an import was bound to, for people.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct BoundSymbol {
    /// Name.
    pub name: String,
    /// `address`, `resolver`, `thread-local`, `null`, `own`, `absolute`; `late` = in a library that is not loaded.
    pub kind: &'static str,
    /// Object, where there is one.
    pub object: Option<String>,
}

/// Words that the commit fills, and who they come from.
#[derive(Debug, Default)]
pub struct Relocated {
    /// Fixups in the order of their places.
    pub fixups: Vec<Fixup>,
    /// Imports, by name.
    pub bound: Vec<BoundSymbol>,
    /// Words that depend on libraries that may come or go.
    pub late: LateWords,
}

/// Applies the relocations of a patch at a load address.
///
/// # Errors
/// Every symbol that cannot be bound, not only the first.
pub fn relocate(
    patch: &PatchFile,
    resolver: &Resolver<'_, '_>,
    view: &ProcessView<'_>,
    layout: &mut ImageLayout,
    base: Base,
    objects: &mut ObjectSet,
) -> Result<Relocated, Vec<SymbolError>> {
    let late = LateWords::default();
    let mut words = Words { resolver, view, layout, base, objects, fixups: Vec::new(), late };
    let mut bound = Vec::new();
    let mut errors: Vec<SymbolError> = Vec::new();
    for reloc in patch.relocs() {
        if let Err(error) = words.apply(patch, reloc, &mut bound)
            && !errors.contains(&error)
        {
            errors.push(error);
        }
    }
    bound.sort();
    bound.dedup();
    match errors.is_empty() {
        true => Ok(Relocated { fixups: words.fixups, bound, late: words.late }),
        false => Err(errors),
    }
}

struct Words<'a, 'v, 'm> {
    resolver: &'a Resolver<'v, 'm>,
    view: &'a ProcessView<'m>,
    layout: &'a mut ImageLayout,
    base: Base,
    objects: &'a mut ObjectSet,
    fixups: Vec<Fixup>,
    late: LateWords,
}

impl Words<'_, '_, '_> {
    fn apply(
        &mut self,
        patch: &PatchFile,
        reloc: &Reloc,
        bound: &mut Vec<BoundSymbol>,
    ) -> Result<(), SymbolError> {
        if reloc.kind == elf::R_RELATIVE {
            let target = self.base + Vaddr(reloc.addend.cast_unsigned());
            self.word(reloc.place, target.0);
            return Ok(());
        }
        let name = patch.tables().symbol(reloc.symbol).map_or("", |s| s.name);
        let call = matches!(
            reloc.kind,
            elf::R_JUMP_SLOT | elf::R_DTPMOD64 | elf::R_DTPOFF64 | elf::R_TPOFF64 | elf::R_TLSDESC
        );
        let binding = self.resolver.bind(reloc.symbol, if call { Use::Call } else { Use::Address })?;
        if !matches!(binding, Binding::Own(_)) {
            bound.push(self.describe(name, binding));
        }
        match reloc.kind {
            elf::R_64 => self.pointer(reloc.place, name, binding, reloc.addend),
            elf::R_GLOB_DAT | elf::R_JUMP_SLOT => self.pointer(reloc.place, name, binding, 0),
            // Acceptance let nothing else but thread-local relocations through.
            _ => self.thread_local(reloc, name, binding),
        }
    }

    /// A word known now. Places that no file content backs are filled at commit.
    fn word(&mut self, place: Vaddr, value: u64) {
        if !self.layout.write(place, value) {
            self.fixup(place, FIXUP_VALUE, 0, value);
        }
    }

    fn fixup(&mut self, place: Vaddr, kind: u32, object: u32, addend: u64) {
        self.fixups.push(Fixup { place: (self.base + place).0, kind, object, addend });
    }

    fn pointer(
        &mut self,
        place: Vaddr,
        name: &str,
        binding: Binding,
        addend: i64,
    ) -> Result<(), SymbolError> {
        match binding {
            Binding::Own(vaddr) => {
                let target: Addr = self.base + vaddr;
                self.word(place, target.0.wrapping_add_signed(addend));
            }
            Binding::Null => self.word(place, addend.cast_unsigned()),
            Binding::Absolute(value) => self.word(place, value.wrapping_add_signed(addend)),
            Binding::Address { object, vaddr } => {
                let vaddr = Vaddr(vaddr.0.wrapping_add_signed(addend));
                self.again(place, object, LateValue::Address(vaddr));
                let object = self.objects.index(object);
                self.fixup(place, FIXUP_ADDRESS, object, vaddr.0);
            }
            Binding::Late { late, vaddr } => {
                let vaddr = Vaddr(vaddr.0.wrapping_add_signed(addend));
                self.absent(place, late, LateValue::Address(vaddr));
            }
            Binding::Resolver { .. } if addend != 0 => {
                return Err(SymbolError::ResolverAddend { name: name.into() });
            }
            Binding::Resolver { object, vaddr } => {
                self.stale(name, object);
                let object = self.objects.index(object);
                self.fixup(place, FIXUP_RESOLVER, object, vaddr.0);
            }
            Binding::Tls { .. } | Binding::LateTls { .. } => {
                return Err(self.mismatch(name, binding, "thread-local", "an ordinary variable"));
            }
        }
        Ok(())
    }

    /// A word of a library that is not there.
    fn absent(&mut self, place: Vaddr, late: usize, value: LateValue) {
        let until = self.late.add(self.layout, self.base, place, late, value);
        self.word(place, until);
    }

    /// A word of a library that is there, if it could go and come again.
    fn again(&mut self, place: Vaddr, object: usize, value: LateValue) {
        if let Some(late) = self.resolver.late_of(object) {
            self.late.add(self.layout, self.base, place, late, value);
        }
    }

    /// A name that could not be bound again.
    fn stale(&mut self, name: &str, object: usize) {
        if self.resolver.late_of(object).is_some() {
            self.late.stale.push(name.to_owned());
        }
    }

    fn thread_local(&mut self, reloc: &Reloc, name: &str, binding: Binding) -> Result<(), SymbolError> {
        let (object, offset) = match binding {
            Binding::Tls { object, offset } => (object, offset),
            Binding::LateTls { late, offset } => return self.late_tls(reloc, name, late, offset),
            Binding::Address { .. } | Binding::Resolver { .. } | Binding::Late { .. } => {
                return Err(self.mismatch(name, binding, "an ordinary symbol", "a thread-local variable"));
            }
            _ => return Err(SymbolError::TlsMissing { name: name.into() }),
        };
        let offset = offset.wrapping_add_signed(reloc.addend);
        if reloc.kind == elf::R_DTPOFF64 {
            self.again(reloc.place, object, LateValue::TlsOffset(offset));
            self.word(reloc.place, offset);
            return Ok(());
        }
        let place = self.resolver.tls_place(object, name)?;
        let label = || self.view.objects[object].name.clone();
        if reloc.kind == elf::R_DTPMOD64 {
            // Looked up in the process, so only where it is asked for.
            if self.resolver.late_of(object).is_some() {
                match module_field(self.view) {
                    Some(field) => self.again(reloc.place, object, LateValue::TlsModule(field)),
                    None => self.stale(name, object),
                }
            }
            self.fixup(reloc.place, FIXUP_VALUE, 0, place.module);
            return Ok(());
        }
        // The next time it lies elsewhere.
        self.stale(name, object);
        let below = place.below;
        let below = below.ok_or_else(|| SymbolError::NoStaticTls { name: name.into(), object: label() })?;
        let value = offset.wrapping_sub(below);
        if reloc.kind == elf::R_TLSDESC {
            // Two words: the function that turns the second into an offset from the thread pointer.
            self.fixup(reloc.place, FIXUP_TLSDESC, 0, 0);
            self.fixup(reloc.place + 8, FIXUP_VALUE, 0, value);
        } else {
            self.fixup(reloc.place, FIXUP_VALUE, 0, value);
        }
        Ok(())
    }

    /// A thread-local variable of a library that is not there.
    fn late_tls(&mut self, reloc: &Reloc, name: &str, late: usize, offset: u64) -> Result<(), SymbolError> {
        let object = || self.resolver.late()[late].name.clone();
        let value = match reloc.kind {
            elf::R_DTPOFF64 => LateValue::TlsOffset(offset.wrapping_add_signed(reloc.addend)),
            elf::R_DTPMOD64 => {
                LateValue::TlsModule(module_field(self.view).ok_or_else(|| SymbolError::NoTlsBooks {
                    name: name.into(),
                    object: object(),
                    why: "libc exports no description of its link maps".into(),
                })?)
            }
            _ => return Err(SymbolError::NoStaticTls { name: name.into(), object: object() }),
        };
        self.absent(reloc.place, late, value);
        Ok(())
    }

    fn describe(&self, name: &str, binding: Binding) -> BoundSymbol {
        let (kind, object) = match binding {
            Binding::Own(_) => ("own", None),
            Binding::Null => ("null", None),
            Binding::Absolute(_) => ("absolute", None),
            Binding::Address { object, .. } => ("address", Some(object)),
            Binding::Resolver { object, .. } => ("resolver", Some(object)),
            Binding::Tls { object, .. } => ("thread-local", Some(object)),
            Binding::Late { late, .. } | Binding::LateTls { late, .. } => {
                let object = Some(self.resolver.late()[late].name.clone());
                return BoundSymbol { name: name.to_owned(), kind: "late", object };
            }
        };
        let object = object.map(|i| self.view.objects[i].name.clone());
        BoundSymbol { name: name.to_owned(), kind, object }
    }

    /// The binding is `there`, the patch has `here`.
    fn mismatch(&self, name: &str, binding: Binding, there: &'static str, here: &'static str) -> SymbolError {
        let object = self.describe(name, binding).object.unwrap_or_default();
        SymbolError::TlsMismatch { name: name.into(), object, there, here }
    }
}
