//! Symbols of one object, from `.dynsym` and `.symtab` together.
//!
//! Names stay where they are in the file: a table of a large program has 85 000, few of which anybody asks
//! for. For a handful of questions the rows are searched, for more of them a table of hashes is made.

use crate::{Vaddr, demangle};
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hasher};
use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Symbol<'f> {
    /// Name, without version.
    pub name: &'f str,
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

/// Everything of a symbol but its name.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row {
    pub addr: u64,
    pub size: u64,
    /// Offset in its string table.
    pub name: u32,
    pub kind: SymbolKind,
    pub global: bool,
    pub weak: bool,
    pub dynamic: bool,
    /// It stands in `.dynsym`'s string table, not in `.symtab`'s.
    pub in_dynamic: bool,
}

/// Rows of one symbol table of a file, and where in the file its names are.
#[derive(Debug, Default)]
pub(crate) struct RawTable {
    pub rows: Vec<Row>,
    pub strings: Range<usize>,
}

/// Lookups answered by searching all rows, before an index is made.
const SEARCHES: usize = 8;

/// What an object file keeps of its symbols.
#[derive(Debug, Default)]
pub(crate) struct Table {
    rows: Vec<Row>,
    /// Places of `.symtab`'s and of `.dynsym`'s names.
    strings: [Range<usize>; 2],
    searches: AtomicUsize,
    index: OnceLock<HashMap<u64, Vec<u32>>>,
    /// The same for questions about addresses: address and position, sorted.
    searches_at: AtomicUsize,
    places: OnceLock<Vec<(u64, u32)>>,
}

impl Table {
    /// Puts the tables together. Order decides `sympos`: `.symtab` order first (as the kernel counts
    /// kallsyms), then what only `.dynsym` knows. A symbol in both tables stands once.
    pub fn new(data: &[u8], symtab: RawTable, dynsym: RawTable) -> Self {
        let mut table = Self {
            strings: [symtab.strings, dynsym.strings],
            rows: symtab.rows,
            searches: AtomicUsize::new(0),
            index: OnceLock::new(),
            searches_at: AtomicUsize::new(0),
            places: OnceLock::new(),
        };
        let mut by_addr: Vec<(u64, usize)> = table.rows.iter().map(|r| r.addr).zip(0..).collect();
        by_addr.sort_unstable();
        for row in dynsym.rows {
            let from = by_addr.partition_point(|(addr, _)| *addr < row.addr);
            let name = table.name(data, &row);
            let here = by_addr[from..].iter().take_while(|(addr, _)| *addr == row.addr);
            let twin = here.map(|(_, i)| *i).find(|&i| table.name(data, &table.rows[i]) == name);
            match twin {
                Some(i) => table.rows[i].dynamic = true,
                None => table.rows.push(row),
            }
        }
        table
    }

    fn name<'f>(&self, data: &'f [u8], row: &Row) -> &'f [u8] {
        let strings = self.strings[usize::from(row.in_dynamic)].clone();
        let text = data.get(strings).and_then(|s| s.get(row.name as usize..)).unwrap_or_default();
        let end = text.iter().position(|&b| b == 0).unwrap_or(0);
        &text[..end]
    }

    /// Whether the name at the row is `name`; cheaper than reading it.
    fn is_named(&self, data: &[u8], row: &Row, name: &[u8]) -> bool {
        let strings = self.strings[usize::from(row.in_dynamic)].clone();
        let text = data.get(strings).and_then(|s| s.get(row.name as usize..)).unwrap_or_default();
        text.starts_with(name) && text.get(name.len()) == Some(&0)
    }

    fn rows_named(&self, data: &[u8], name: &[u8]) -> Vec<u32> {
        let searched = self.searches.fetch_add(1, Ordering::Relaxed);
        if searched < SEARCHES && self.index.get().is_none() {
            let rows = (0u32..).zip(&self.rows);
            return rows.filter(|(_, r)| self.is_named(data, r, name)).map(|(i, _)| i).collect();
        }
        let index = self.index.get_or_init(|| {
            let mut index: HashMap<u64, Vec<u32>> = HashMap::with_capacity(self.rows.len());
            for (i, row) in (0u32..).zip(&self.rows) {
                index.entry(hash(self.name(data, row))).or_default().push(i);
            }
            index
        });
        let same = index.get(&hash(name)).into_iter().flatten().copied();
        same.filter(|&i| self.is_named(data, &self.rows[i as usize], name)).collect()
    }

    /// Positions of the symbols at an address, ascending.
    fn rows_at(&self, addr: u64) -> Vec<u32> {
        let searched = self.searches_at.fetch_add(1, Ordering::Relaxed);
        let rows = || (0u32..).zip(&self.rows);
        if searched < SEARCHES && self.places.get().is_none() {
            return rows().filter(|(_, r)| r.addr == addr).map(|(i, _)| i).collect();
        }
        let places = self.places.get_or_init(|| {
            let mut places: Vec<(u64, u32)> = rows().map(|(i, r)| (r.addr, i)).collect();
            places.sort_unstable();
            places
        });
        let from = places.partition_point(|(at, _)| *at < addr);
        places[from..].iter().take_while(|(at, _)| *at == addr).map(|(_, i)| *i).collect()
    }
}

fn hash(name: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(name);
    hasher.finish()
}

/// Defined symbols of one object, each (name, address) once.
#[derive(Clone, Copy, Debug)]
pub struct Symbols<'f> {
    pub(crate) data: &'f [u8],
    pub(crate) table: &'f Table,
}

impl<'f> Symbols<'f> {
    /// Number of symbols; positions are below it.
    #[must_use]
    pub fn len(self) -> usize {
        self.table.rows.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.table.rows.is_empty()
    }

    /// The symbol at a position; `None` when its name is no text.
    #[must_use]
    pub fn get(self, position: usize) -> Option<Symbol<'f>> {
        let row = self.table.rows.get(position)?;
        let name = std::str::from_utf8(self.table.name(self.data, row)).ok()?;
        let Row { size, kind, global, weak, dynamic, .. } = *row;
        let symbol = Symbol { name, addr: Vaddr(row.addr), size, kind, global, weak, dynamic };
        (!name.is_empty()).then_some(symbol)
    }

    /// All symbols.
    pub fn all(self) -> impl DoubleEndedIterator<Item = Symbol<'f>> {
        (0..self.len()).filter_map(move |i| self.get(i))
    }

    /// Position, address and kind of all symbols: what can be known without reading names.
    pub fn places(self) -> impl Iterator<Item = (usize, Vaddr, SymbolKind)> + 'f {
        self.table.rows.iter().enumerate().map(|(i, r)| (i, Vaddr(r.addr), r.kind))
    }

    /// All symbols at that address.
    pub fn at(self, addr: Vaddr) -> impl Iterator<Item = Symbol<'f>> {
        self.table.rows_at(addr.0).into_iter().filter_map(move |i| self.get(i as usize))
    }

    /// All symbols of that name, in `sympos` order.
    pub fn named(self, name: &str) -> impl Iterator<Item = Symbol<'f>> + use<'f> {
        let rows = self.table.rows_named(self.data, name.as_bytes());
        rows.into_iter().filter_map(move |i| self.get(i as usize))
    }

    /// Functions (`Func` and `Ifunc`) of that name at distinct addresses, in `sympos` order.
    #[must_use]
    pub fn functions_named(self, name: &str) -> Vec<Symbol<'f>> {
        let mut found: Vec<Symbol<'f>> = Vec::new();
        for symbol in self.named(name) {
            if matches!(symbol.kind, SymbolKind::Func | SymbolKind::Ifunc)
                && !found.iter().any(|s| s.addr == symbol.addr)
            {
                found.push(symbol);
            }
        }
        found
    }

    /// Names that look like `name`, best first, for "did you mean". A readable name (`cart::total`) is
    /// compared with readable ones, without their parameters unless it has some.
    #[must_use]
    pub fn similar(self, name: &str, fits: impl Fn(&Symbol<'_>) -> bool, most: usize) -> Vec<String> {
        let readable = name.contains("::");
        let shown = |symbol: Symbol<'_>| {
            if !readable {
                return symbol.name.to_owned();
            }
            let full = demangle(symbol.name);
            if name.contains('(') { full } else { without_parameters(&full).to_owned() }
        };
        let mut close = Vec::new();
        for symbol in self.all().filter(fits) {
            if readable && !is_mangled(symbol.name) {
                continue;
            }
            rank(name, shown(symbol), &mut close);
        }
        best(close, most)
    }
}

/// Those of some names that look like `name`, best first.
#[must_use]
pub fn similar_names(name: &str, all: impl Iterator<Item = String>, most: usize) -> Vec<String> {
    let mut close = Vec::new();
    all.for_each(|other| rank(name, other, &mut close));
    best(close, most)
}

fn rank(name: &str, other: String, close: &mut Vec<(usize, String)>) {
    let limit = (name.len() / 3).max(1);
    if other.len().abs_diff(name.len()) > limit {
        return;
    }
    let distance = edit_distance(name.as_bytes(), other.as_bytes());
    if distance <= limit && distance > 0 {
        close.push((distance, other));
    }
}

fn best(mut close: Vec<(usize, String)>, most: usize) -> Vec<String> {
    close.sort_unstable();
    close.dedup();
    close.into_iter().take(most).map(|(_, other)| other).collect()
}

fn is_mangled(name: &str) -> bool {
    name.starts_with("_Z") || name.starts_with("_R")
}

/// `cart::total(int)` without what stands in the last parentheses.
fn without_parameters(readable: &str) -> &str {
    readable.split('(').next().unwrap_or(readable)
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

    /// Names of both tables in one string table.
    fn table(symtab: &[(&str, u64)], dynsym: &[(&str, u64)]) -> (Vec<u8>, Table) {
        let mut data = vec![0];
        let mut rows = |symbols: &[(&str, u64)], in_dynamic| {
            let row = |&(name, addr): &(&str, u64)| {
                let at = u32::try_from(data.len()).unwrap();
                data.extend(name.as_bytes());
                data.push(0);
                let (kind, global) = (SymbolKind::Func, true);
                Row { addr, size: 1, name: at, kind, global, weak: false, dynamic: in_dynamic, in_dynamic }
            };
            symbols.iter().map(row).collect::<Vec<Row>>()
        };
        let (symtab, dynsym) = (rows(symtab, false), rows(dynsym, true));
        let strings = 0..data.len();
        let raw = |rows| RawTable { rows, strings: strings.clone() };
        let table = Table::new(&data, raw(symtab), raw(dynsym));
        (data, table)
    }

    #[test]
    fn a_symbol_of_both_tables_stands_once_and_order_is_symtabs() {
        let (data, table) = table(&[("dup", 16), ("dup", 8), ("f", 1)], &[("f", 1), ("g", 2)]);
        let symbols = Symbols { data: &data, table: &table };
        // Searched at first, answered from the index later.
        for _ in 0..2 * SEARCHES {
            assert_eq!(symbols.all().count(), 4);
            let dups: Vec<u64> = symbols.functions_named("dup").iter().map(|s| s.addr.0).collect();
            assert_eq!(dups, [16, 8]);
            assert!(symbols.named("f").all(|s| s.dynamic));
            assert!(symbols.named("g").all(|s| s.dynamic) && symbols.named("dup").all(|s| !s.dynamic));
            assert!(symbols.named("nosuch").next().is_none() && symbols.named("du").next().is_none());
            assert!(symbols.named("").next().is_none());
        }
        assert!(table.index.get().is_some());
    }

    #[test]
    fn similar_names_are_offered_best_first() {
        let (data, table) = table(&[("pingCommand", 1), ("pongCommand", 2), ("x", 3)], &[]);
        let symbols = Symbols { data: &data, table: &table };
        let similar = |name: &str| symbols.similar(name, |_| true, 3);
        assert_eq!(similar("pingComand"), ["pingCommand", "pongCommand"]);
        assert!(similar("zzzzzz").is_empty());
        assert_eq!(symbols.similar("pingComand", |s| s.addr.0 == 2, 3), ["pongCommand"]);
    }

    #[test]
    fn readable_names_are_compared_with_readable_ones() {
        let (data, table) = table(
            &[("_ZN4cart5totalEi", 1), ("_ZN4cart5tallyEv", 2), ("cart_total", 3), ("_RNvC4demo5price", 4)],
            &[],
        );
        let symbols = Symbols { data: &data, table: &table };
        let similar = |name: &str| symbols.similar(name, |_| true, 3);
        assert_eq!(similar("cart::totl"), ["cart::total", "cart::tally"]);
        assert_eq!(similar("cart::total(long)"), ["cart::total(int)"]);
        assert_eq!(similar("demo::prise"), ["demo::price"]);
        assert_eq!(similar("cart_totl"), ["cart_total"]);
    }

    #[test]
    fn lists_are_searched_too() {
        let names = ["libone.so.1", "libtwo.so.1", "libc.so.6"].map(str::to_owned);
        assert_eq!(similar_names("libone.so.2", names.into_iter(), 1), ["libone.so.1"]);
    }

    #[test]
    fn names_outside_their_table_are_none() {
        let (data, mut table) = table(&[("f", 1), ("g", 2)], &[]);
        table.rows[1].name = 1_000;
        let symbols = Symbols { data: &data, table: &table };
        assert_eq!(symbols.all().map(|s| s.name).collect::<Vec<_>>(), ["f"]);
        let cut = Symbols { data: &data[..2], table: &table };
        assert_eq!(cut.all().count(), 0);
    }
}
