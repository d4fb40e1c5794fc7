//! Functions that a linker has folded into one (`--icf`): whoever replaces one replaces the others, too.
//!
//! A symbol table does not tell folded functions from names that were meant to be one function. Those differ in
//! underscores (`write`, `__write`, `__libc_write`) or read the same (constructors of C++ have two symbols), so
//! only names that have nothing to do with each other are reported.

use suture_elf::{SymbolKind, Symbols, Vaddr, demangle};

/// Most names that are listed.
const SHOWN: usize = 3;

/// What is odd about replacing the function called `name` at `entry`, if it has unrelated names.
#[must_use]
pub fn warning(symbols: Symbols<'_>, name: &str, entry: Vaddr) -> Option<String> {
    let is_function = |kind| matches!(kind, SymbolKind::Func | SymbolKind::Ifunc);
    let mut others: Vec<String> = symbols
        .at(entry)
        .filter(|symbol| is_function(symbol.kind))
        .map(|symbol| demangle(symbol.name))
        .filter(|other| !are_related(name, other))
        .collect();
    others.sort_unstable();
    others.dedup();
    let more = others.len().saturating_sub(SHOWN);
    others.truncate(SHOWN);
    let rest = if more > 0 { format!(" and {more} more") } else { String::new() };
    let list = others.iter().map(|other| format!("`{other}`")).collect::<Vec<_>>().join(", ");
    let folded =
        format!("`{name}` is one function with {list}{rest} in this program: all of them are replaced");
    (!others.is_empty()).then_some(folded)
}

/// Whether two names look like one function on purpose.
fn are_related(one: &str, other: &str) -> bool {
    let core = |name: &str| -> String { name.chars().filter(|c| c.is_alphanumeric()).collect() };
    let (one, other) = (core(one), core(other));
    one.contains(&other) || other.contains(&one)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings_of_one_name_are_related() {
        assert!(are_related("write", "__libc_write"));
        assert!(are_related("__write", "write"));
        assert!(are_related("Shape::Shape()", "Shape::Shape()"));
        assert!(!are_related("price_of_apples", "price_of_pears"));
    }
}
