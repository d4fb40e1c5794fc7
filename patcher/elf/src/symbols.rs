//! Symbols of one object, from `.dynsym` and `.symtab` together.

use crate::Vaddr;
use std::collections::HashMap;

/// What a symbol stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SymbolKind {
    /// `STT_FUNC`.
    Func,
    /// `STT_GNU_IFUNC`: the value is a resolver, not the function.
    Ifunc,
    /// `STT_OBJECT` or `STT_COMMON`.
    Data,
    /// `STT_TLS`: the value is an offset in the object's TLS template.
    Tls,
    /// `STT_NOTYPE`: assembly labels.
    Label,
}

/// A defined symbol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Symbol {
    /// Name, without version.
    pub name: String,
    /// Value: an address, or an offset for TLS.
    pub addr: Vaddr,
    /// Size in bytes; 0 = unknown.
    pub size: u64,
    /// Kind.
    pub kind: SymbolKind,
    /// Visible outside its translation unit (global, weak or unique binding).
    pub global: bool,
    /// Weak binding.
    pub weak: bool,
    /// Comes from `.dynsym` (and is exported).
    pub dynamic: bool,
}

/// Defined symbols of one object, each (name, address) once.
#[derive(Debug, Default)]
pub struct SymbolTable {
    symbols: Vec<Symbol>,
    by_name: HashMap<String, Vec<usize>>,
}

impl SymbolTable {
    /// Builds the table. Order decides `sympos`: `.symtab` order first (as the kernel counts
    /// kallsyms), then what only `.dynsym` knows. A symbol in both tables stands once.
    #[must_use]
    pub fn new(symtab: Vec<Symbol>, dynsym: Vec<Symbol>) -> Self {
        let mut table = Self::default();
        for symbol in symtab {
            table.push(symbol);
        }
        for symbol in dynsym {
            let twin = table
                .by_name
                .get(&symbol.name)
                .and_then(|at| at.iter().copied().find(|&i| table.symbols[i].addr == symbol.addr));
            match twin {
                Some(i) => table.symbols[i].dynamic = true,
                None => table.push(symbol),
            }
        }
        table
    }

    fn push(&mut self, symbol: Symbol) {
        self.by_name.entry(symbol.name.clone()).or_default().push(self.symbols.len());
        self.symbols.push(symbol);
    }

    /// All symbols.
    #[must_use]
    pub fn all(&self) -> &[Symbol] {
        &self.symbols
    }

    /// All symbols of that name, in `sympos` order.
    pub fn named<'a>(&'a self, name: &str) -> impl Iterator<Item = &'a Symbol> + 'a {
        self.by_name.get(name).into_iter().flatten().map(|&i| &self.symbols[i])
    }

    /// Functions (`Func` and `Ifunc`) of that name at distinct addresses, in `sympos` order.
    #[must_use]
    pub fn functions_named(&self, name: &str) -> Vec<&Symbol> {
        let mut found: Vec<&Symbol> = Vec::new();
        for symbol in self.named(name) {
            if matches!(symbol.kind, SymbolKind::Func | SymbolKind::Ifunc)
                && !found.iter().any(|s| s.addr == symbol.addr)
            {
                found.push(symbol);
            }
        }
        found
    }

    /// Names of functions that look like `name`, best first, for "did you mean".
    #[must_use]
    pub fn similar_functions(&self, name: &str, most: usize) -> Vec<&str> {
        let limit = (name.len() / 3).max(1);
        let mut close: Vec<(usize, &str)> = self
            .by_name
            .iter()
            .filter(|(other, at)| {
                other.len().abs_diff(name.len()) <= limit
                    && at.iter().any(|&i| self.symbols[i].kind == SymbolKind::Func)
            })
            .map(|(other, _)| (edit_distance(name.as_bytes(), other.as_bytes()), other.as_str()))
            .filter(|&(distance, _)| distance <= limit)
            .collect();
        close.sort_unstable();
        close.into_iter().take(most).map(|(_, other)| other).collect()
    }
}

/// Levenshtein distance, one row at a time.
fn edit_distance(a: &[u8], b: &[u8]) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let cost = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = cost.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn func(name: &str, addr: u64) -> Symbol {
        Symbol {
            name: name.into(),
            addr: Vaddr(addr),
            size: 1,
            kind: SymbolKind::Func,
            global: true,
            weak: false,
            dynamic: false,
        }
    }

    #[test]
    fn a_symbol_of_both_tables_stands_once_and_order_is_symtabs() {
        let table = SymbolTable::new(
            vec![func("dup", 16), func("dup", 8), func("f", 1)],
            vec![func("f", 1), func("g", 2)],
        );
        assert_eq!(table.all().len(), 4);
        let dups: Vec<u64> = table.functions_named("dup").iter().map(|s| s.addr.0).collect();
        assert_eq!(dups, [16, 8]);
        assert!(table.named("f").all(|s| s.dynamic));
        assert!(table.named("nosuch").next().is_none());
    }

    #[test]
    fn similar_names_are_offered_best_first() {
        let table =
            SymbolTable::new(vec![func("pingCommand", 1), func("pongCommand", 2), func("x", 3)], vec![]);
        assert_eq!(table.similar_functions("pingComand", 3), ["pingCommand", "pongCommand"]);
        assert!(table.similar_functions("zzzzzz", 3).is_empty());
    }
}
