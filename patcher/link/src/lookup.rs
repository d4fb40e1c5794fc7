//! Looking names up as the process's own loader would.
//!
//! The rules are the loader's (scope order, versions, weak and unique definitions, the address of a
//! function in a program that is not position independent), with four differences: a patch is bound
//! only to objects that cannot be unloaded under it; the names of the functions that are made for patches
//! are the runtime's, whoever else has them; its other names are not seen; and names that nobody exports
//! are looked for among the private symbols of the objects it patches.

mod error;
mod ifunc;
mod private;
mod tls;
mod versions;

pub use error::SymbolError;
pub(crate) use ifunc::bound_bodies;
pub use tls::TlsPlace;
pub(crate) use tls::module_field;

use crate::elf;
use crate::image::PatchFile;
use crate::late::LateObject;
use crate::process::{DebugFile, LoadedObject, ProcessView};
use std::cell::RefCell;
use std::collections::HashMap;
use suture_elf::{DynSymbol, Symbol, SymbolKind, VERSION_HIDDEN, Vaddr};

/// What a symbol of the patch is bound to. Symbolic: no load address is in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Binding {
    /// A definition of the patch itself.
    Own(Vaddr),
    /// Nothing: a weak reference that nobody satisfies.
    Null,
    /// An address in an object.
    Address {
        /// Index into [`ProcessView::objects`].
        object: usize,
        /// Address in it.
        vaddr: Vaddr,
    },
    /// A number that moves with nothing.
    Absolute(u64),
    /// What the resolver of an indirect function returns.
    Resolver {
        /// Index into [`ProcessView::objects`].
        object: usize,
        /// The resolver.
        vaddr: Vaddr,
    },
    /// A thread-local variable.
    Tls {
        /// Index into [`ProcessView::objects`].
        object: usize,
        /// Offset in the object's TLS block.
        offset: u64,
    },
    /// An address in a library that is not loaded.
    Late {
        /// Index into [`crate::LinkOptions::late`].
        late: usize,
        /// Address in it.
        vaddr: Vaddr,
    },
    /// A thread-local variable of a library that is not loaded.
    LateTls {
        /// Index into [`crate::LinkOptions::late`].
        late: usize,
        /// Offset in its TLS block.
        offset: u64,
    },
}

/// A definition found in an object's dynamic symbol table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Found<'v> {
    pub object: usize,
    pub symbol: DynSymbol<'v>,
}

/// How the address of a definition will be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Use {
    /// Its address is taken or its data read: all users must agree on one address.
    Address,
    /// It is called through a slot, or is thread-local: an undefined symbol with a value does not
    /// count.
    Call,
}

/// Looks names up for one patch in one process.
#[derive(Debug)]
pub struct Resolver<'v, 'm> {
    view: &'v ProcessView<'m>,
    patch: &'v PatchFile,
    /// Objects names are looked up in, in order.
    scope: Vec<usize>,
    /// Objects the patch changes: their private symbols count too.
    patched: Vec<usize>,
    /// Names the patch needs that are not loaded, for messages.
    not_loaded: Vec<String>,
    /// Objects of the patch that are not loaded and of which no file is known, for messages.
    absent: Vec<String>,
    /// Libraries of the patch that may come or go.
    late: &'v [LateObject],
    debug_file: DebugFile<'v>,
    bindings: RefCell<HashMap<(u32, Use), Result<Binding, SymbolError>>>,
}

impl<'v, 'm> Resolver<'v, 'm> {
    /// A resolver for a patch that changes `patched`, all in one namespace.
    #[must_use]
    pub fn new(
        view: &'v ProcessView<'m>,
        patch: &'v PatchFile,
        patched: Vec<usize>,
        mut absent: Vec<String>,
        late: &'v [LateObject],
        debug_file: DebugFile<'v>,
    ) -> Self {
        let mut scope: Vec<usize> = Vec::new();
        let roots = if patched.is_empty() { &[0][..] } else { &patched };
        for &object in roots.iter().filter(|&&o| o < view.objects.len()) {
            for i in view.scope_of(object) {
                if !scope.contains(&i) && !view.objects[i].runtime {
                    scope.push(i);
                }
            }
        }
        absent.retain(|name| !late.iter().any(|l| l.name == *name));
        let namespace = roots.first().and_then(|&o| view.objects.get(o)).map_or(0, |o| o.namespace);
        Self {
            not_loaded: view.not_loaded(patch.file(), namespace),
            view,
            patch,
            scope,
            patched,
            absent,
            late,
            debug_file,
            bindings: RefCell::default(),
        }
    }

    /// Refuses exported definitions of the patch that the process has too.
    ///
    /// # Errors
    /// [`SymbolError::Preempted`] for the first of them.
    pub fn check_exports(&self, exported: &[String]) -> Result<(), SymbolError> {
        for name in exported {
            if let Some(found) = self.find(name, None, Use::Call) {
                let object = self.view.objects[found.object].name.clone();
                return Err(SymbolError::Preempted { name: name.clone(), object });
            }
        }
        Ok(())
    }

    /// What a symbol of the patch's dynamic symbol table is bound to.
    ///
    /// # Errors
    /// When it cannot be bound, or not safely.
    pub fn bind(&self, index: u32, used: Use) -> Result<Binding, SymbolError> {
        if let Some(known) = self.bindings.borrow().get(&(index, used)) {
            return known.clone();
        }
        let binding = self.bind_new(index, used);
        self.bindings.borrow_mut().insert((index, used), binding.clone());
        binding
    }

    fn bind_new(&self, index: u32, used: Use) -> Result<Binding, SymbolError> {
        let tables = self.patch.tables();
        let Some(symbol) = tables.symbol(index).filter(|s| s.index != 0) else {
            return Ok(Binding::Null);
        };
        let defined = symbol.section != 0;
        let own = || {
            if symbol.section == elf::SHN_ABS {
                Binding::Absolute(symbol.value)
            } else {
                Binding::Own(Vaddr(symbol.value))
            }
        };
        let bound_here = symbol.visibility != elf::STV_DEFAULT || symbol.binding == elf::STB_LOCAL;
        // Strong definitions are the patch's own: those that the process has too were refused.
        if defined && (bound_here || symbol.binding == elf::STB_GLOBAL || self.symbolic()) {
            return Ok(own());
        }
        if suture_abi::is_for_patches(symbol.name) {
            return self.bind_runtime(symbol.name);
        }
        let version = tables.version_of(index).filter(|v| v.file.is_some());
        let found = self.find(symbol.name, version, used);
        // No linker would have bound new code to a symbol that is there for old programs only. The loader would, but
        // a function of the patched program is what was meant.
        let (found, compat) = match found {
            Some(found) if version.is_none() && self.is_hidden(&found) => (None, Some(found)),
            found => (found, None),
        };
        if let Some(found) = found {
            return self.binding_of(&found);
        }
        if let Some(binding) = self.bind_late(symbol.name, version, used)? {
            return Ok(binding);
        }
        if let Some(binding) = self.bind_private(symbol.name, symbol.kind)? {
            return Ok(binding);
        }
        if let Some(found) = compat {
            return self.binding_of(&found);
        }
        if defined {
            return Ok(own());
        }
        if symbol.binding == elf::STB_WEAK {
            return Ok(Binding::Null);
        }
        Err(self.missing(symbol.name, version))
    }

    /// A function of the runtime. It is in no scope, wherever it came from: names of the program never hide it.
    fn bind_runtime(&self, name: &str) -> Result<Binding, SymbolError> {
        let Some(exports) = &self.view.exports else { return Ok(Binding::Absolute(0)) };
        let addr = exports.get(name).ok_or_else(|| SymbolError::NotInRuntime { name: name.into() })?;
        Ok(Binding::Absolute(addr.0))
    }

    /// Whether the patch was linked to prefer its own definitions.
    fn symbolic(&self) -> bool {
        let file = self.patch.file();
        file.dynamic_value(elf::DT_SYMBOLIC).is_some()
            || file.dynamic_value(elf::DT_FLAGS).unwrap_or(0) & elf::DF_SYMBOLIC != 0
    }

    /// The first definition in scope order.
    pub(crate) fn find(
        &self,
        name: &str,
        version: Option<&suture_elf::Version>,
        used: Use,
    ) -> Option<Found<'v>> {
        find_in(self.view, &self.scope, name, version, used)
    }

    /// Whether a symbol has a version that is no default.
    fn is_hidden(&self, found: &Found<'v>) -> bool {
        let index = self.view.objects[found.object].tables.version_index(found.symbol.index);
        index.is_some_and(|index| index & VERSION_HIDDEN != 0)
    }

    fn binding_of(&self, found: &Found<'v>) -> Result<Binding, SymbolError> {
        let Found { object, symbol } = *found;
        let vaddr = Vaddr(symbol.value);
        Ok(match symbol.kind {
            elf::STT_TLS => Binding::Tls { object, offset: symbol.value },
            elf::STT_IFUNC if symbol.section != 0 => self.bind_ifunc(object, vaddr, Some(symbol)),
            _ if symbol.section == elf::SHN_ABS => Binding::Absolute(symbol.value),
            _ => Binding::Address { object, vaddr },
        })
    }

    /// A symbol of an object, by its own symbol table: for the descriptor's reference table.
    ///
    /// # Errors
    /// When the name is unknown there, ambiguous, or thread-local.
    pub fn bind_in(&self, object: usize, name: &str, sympos: u64) -> Result<Binding, SymbolError> {
        let symbol = self.symbol_in(&self.view.objects[object], name, sympos)?;
        Ok(match symbol.kind {
            SymbolKind::Ifunc => self.bind_ifunc(object, symbol.addr, None),
            _ => Binding::Address { object, vaddr: symbol.addr },
        })
    }

    /// The same for a library that is not loaded.
    ///
    /// # Errors
    /// As [`Self::bind_in`], and for an indirect function.
    pub fn bind_in_late(&self, late: usize, name: &str, sympos: u64) -> Result<Binding, SymbolError> {
        let symbol = self.symbol_in(&self.late[late].object, name, sympos)?;
        match symbol.kind {
            SymbolKind::Ifunc => Err(self.late_indirect(late, name)),
            _ => Ok(Binding::Late { late, vaddr: symbol.addr }),
        }
    }

    fn symbol_in<'s>(
        &'s self,
        object: &'s LoadedObject,
        name: &str,
        sympos: u64,
    ) -> Result<Symbol<'s>, SymbolError> {
        let symbol = self.private_symbol(object, name, sympos)?;
        let symbol = symbol.ok_or_else(|| SymbolError::NotInObject {
            name: name.into(),
            object: object.name.clone(),
            similar: self.similar(object, name),
        })?;
        match symbol.kind {
            SymbolKind::Tls => Err(SymbolError::TlsPointer { name: name.into() }),
            _ => Ok(symbol),
        }
    }

    /// What a library exports that is not loaded: after everything that is, as its own loader would have it.
    fn bind_late(
        &self,
        name: &str,
        version: Option<&suture_elf::Version>,
        used: Use,
    ) -> Result<Option<Binding>, SymbolError> {
        for (late, it) in self.absent_late() {
            let Some(symbol) = versions::pick(&it.object.tables, name, version, used) else { continue };
            return match symbol.kind {
                elf::STT_TLS => Ok(Some(Binding::LateTls { late, offset: symbol.value })),
                elf::STT_IFUNC => Err(self.late_indirect(late, name)),
                _ if symbol.section == elf::SHN_ABS => Ok(Some(Binding::Absolute(symbol.value))),
                _ => Ok(Some(Binding::Late { late, vaddr: Vaddr(symbol.value) })),
            };
        }
        Ok(None)
    }

    /// Libraries of the patch that are not loaded, and whose files are known.
    fn absent_late(&self) -> impl Iterator<Item = (usize, &'v LateObject)> {
        self.late.iter().enumerate().filter(|(_, late)| late.loaded.is_none())
    }

    fn late_indirect(&self, late: usize, name: &str) -> SymbolError {
        SymbolError::LateIndirect { name: name.into(), object: self.late[late].name.clone() }
    }

    /// Libraries of the patch that may come or go.
    #[must_use]
    pub fn late(&self) -> &'v [LateObject] {
        self.late
    }

    /// Position of a loaded object among them.
    #[must_use]
    pub fn late_of(&self, object: usize) -> Option<usize> {
        self.late.iter().position(|late| late.loaded == Some(object))
    }

    /// Symbols of an object, and of its debug file, that look like a name.
    fn similar(&self, object: &LoadedObject, name: &str) -> Vec<String> {
        let tables = [Some(object.file.symbols()), object.debug_symbols(self.debug_file)];
        let mut similar: Vec<String> =
            tables.iter().flatten().flat_map(|table| table.similar(name, |_| true, 3)).collect();
        similar.dedup();
        similar
    }

    fn missing(&self, name: &str, version: Option<&suture_elf::Version>) -> SymbolError {
        let name = name.to_owned();
        // The name with another version says that the library is another one than at link time.
        if let Some(version) = version {
            let others = versions::known(self.view, &self.scope, &name);
            if !others.is_empty() {
                return SymbolError::Version { name, version: version.name.clone(), others };
            }
        }
        let elsewhere = (0..self.view.objects.len()).filter(|i| !self.scope.contains(i)).find(|&i| {
            let o = &self.view.objects[i];
            !o.vdso && !o.runtime && find_in(self.view, &[i], &name, None, Use::Call).is_some()
        });
        if let Some(object) = elsewhere {
            return SymbolError::CanGo { name, object: self.view.objects[object].name.clone() };
        }
        let library = version.and_then(|v| v.file.clone());
        let not_loaded = match library {
            Some(library) if self.not_loaded.contains(&library) => vec![library],
            Some(_) => Vec::new(),
            None => self.not_loaded.clone(),
        };
        let patched = self.patched.iter().map(|&object| &self.view.objects[object]);
        let own = patched.chain(self.absent_late().map(|(_, late)| &late.object));
        let similar = own.flat_map(|object| self.similar(object, &name)).take(3).collect();
        SymbolError::Missing { name, not_loaded, absent: self.absent.clone(), similar }
    }
}

/// The first definition of a name in the objects of a scope.
pub(crate) fn find_in<'v>(
    view: &'v ProcessView<'_>,
    scope: &[usize],
    name: &str,
    version: Option<&suture_elf::Version>,
    used: Use,
) -> Option<Found<'v>> {
    scope.iter().find_map(|&object| {
        let symbol = versions::pick(&view.objects[object].tables, name, version, used)?;
        Some(Found { object, symbol })
    })
}
