//! Names that nobody exports: the symbol tables of the patched objects, and of their debug files.

use super::{Binding, Resolver, SymbolError};
use crate::elf;
use crate::process::LoadedObject;
use suture_elf::{Symbol, SymbolKind, Symbols};

/// Parts into which gcc takes functions: what is left cannot be called as the function.
const PARTS: [&str; 5] = [".cold", ".part.", ".constprop.", ".isra.", ".llvm."];

impl Resolver<'_, '_> {
    /// Binds an ordinary import to a private symbol of the patched objects: exactly one must match.
    pub(super) fn bind_private(&self, name: &str, kind: u8) -> Result<Option<Binding>, SymbolError> {
        let mut found: Vec<(Holder, &LoadedObject, Symbol<'_>)> = Vec::new();
        let mut places = Vec::new();
        for (holder, object) in self.holders() {
            let candidates = self.candidates(object, name);
            let count = candidates.len();
            let label = &object.name;
            places.extend((1..=count).map(|i| format!("position {i} in {label}")));
            found.extend(candidates.into_iter().map(|s| (holder, object, s)));
        }
        if found.len() > 1 {
            return Err(SymbolError::Ambiguous { name: name.into(), places });
        }
        let Some((holder, object, symbol)) = found.pop() else {
            return self.check_folded(name, kind).map(|()| None);
        };
        check_size(object, &symbol)?;
        let (vaddr, offset) = (symbol.addr, symbol.addr.0);
        Ok(Some(match (holder, symbol.kind) {
            (Holder::Loaded(object), SymbolKind::Tls) => Binding::Tls { object, offset },
            (Holder::Loaded(object), SymbolKind::Ifunc) => self.bind_ifunc(object, vaddr, None),
            (Holder::Loaded(object), _) => Binding::Address { object, vaddr },
            (Holder::Late(late), SymbolKind::Tls) => Binding::LateTls { late, offset },
            (Holder::Late(late), SymbolKind::Ifunc) => return Err(self.late_indirect(late, name)),
            (Holder::Late(late), _) => Binding::Late { late, vaddr },
        }))
    }

    /// Objects whose private symbols count.
    fn holders(&self) -> impl Iterator<Item = (Holder, &LoadedObject)> {
        let loaded = self.patched.iter().map(|&i| (Holder::Loaded(i), &self.view.objects[i]));
        loaded.chain(self.absent_late().map(|(i, late)| (Holder::Late(i), &late.object)))
    }

    /// The symbol of that name and position in one object. `None` when there is none.
    pub(super) fn private_symbol<'s>(
        &'s self,
        object: &'s LoadedObject,
        name: &str,
        sympos: u64,
    ) -> Result<Option<Symbol<'s>>, SymbolError> {
        let mut candidates = self.candidates(object, name);
        let label = object.name.clone();
        let count = candidates.len();
        let index = match (sympos, count) {
            (_, 0) => return Ok(None),
            (0, 1) => 0,
            (0, _) => {
                let places = (1..=count).map(|i| format!("position {i} in {label}")).collect();
                return Err(SymbolError::Ambiguous { name: name.into(), places });
            }
            (n, _) if n <= count as u64 => (n - 1) as usize,
            _ => {
                return Err(SymbolError::Position { name: name.into(), sympos, object: label, count });
            }
        };
        let symbol = candidates.swap_remove(index);
        check_size(object, &symbol)?;
        Ok(Some(symbol))
    }

    /// Symbols of that name at distinct addresses: the object's own table, else its debug file's.
    fn candidates<'s>(&self, object: &'s LoadedObject, name: &str) -> Vec<Symbol<'s>> {
        let own = distinct(object.file.symbols(), name);
        if !own.is_empty() {
            return own;
        }
        object.debug_symbols(self.debug_file).map_or_else(Vec::new, |symbols| distinct(symbols, name))
    }

    /// Says so when the compiler left only parts of a function.
    fn check_folded(&self, name: &str, kind: u8) -> Result<(), SymbolError> {
        if kind == elf::STT_OBJECT || kind == elf::STT_TLS {
            return Ok(());
        }
        for (_, loaded) in self.holders() {
            let tables = [Some(loaded.file.symbols()), loaded.debug_symbols(self.debug_file)];
            let part = tables.iter().flatten().flat_map(|table| table.all()).find(|s| {
                s.name.strip_prefix(name).is_some_and(|rest| PARTS.iter().any(|p| rest.starts_with(p)))
            });
            if let Some(part) = part {
                return Err(SymbolError::Folded {
                    name: name.into(),
                    object: loaded.name.clone(),
                    variant: part.name.to_owned(),
                });
            }
        }
        Ok(())
    }
}

/// An object whose private symbols count.
#[derive(Clone, Copy)]
enum Holder {
    /// Index into the objects of the view.
    Loaded(usize),
    /// Index into the late libraries.
    Late(usize),
}

fn check_size(object: &LoadedObject, symbol: &Symbol<'_>) -> Result<(), SymbolError> {
    if symbol.kind == SymbolKind::Func && symbol.size == 0 {
        let variant = format!("{} (size 0)", symbol.name);
        let (name, object) = (symbol.name.to_owned(), object.name.clone());
        return Err(SymbolError::Folded { name, object, variant });
    }
    Ok(())
}

fn distinct<'f>(symbols: Symbols<'f>, name: &str) -> Vec<Symbol<'f>> {
    let mut found: Vec<Symbol<'f>> = Vec::new();
    for symbol in symbols.named(name) {
        if !found.iter().any(|s| s.addr == symbol.addr && s.kind == symbol.kind) {
            found.push(symbol);
        }
    }
    found
}
