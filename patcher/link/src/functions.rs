//! The functions that are replaced, found in the objects that have them.

use crate::descriptor::{FuncDescriptor, PlaceDescriptor, object_label};
use crate::lookup::bound_bodies;
use crate::process::{DebugFile, LoadedObject, ProcessView};
use std::cell::OnceCell;
use suture_elf::{Frames, ObjectFile, Symbol, SymbolKind, Symbols, Vaddr, demangle};
use thiserror::Error;

/// Why a function cannot be replaced.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum FunctionError {
    /// No such function.
    #[error("{object} has no function `{name}`{}", suggest(similar))]
    Unknown {
        /// Name.
        name: String,
        /// Object.
        object: String,
        /// Names that look like it.
        similar: Vec<String>,
    },
    /// Only its dynamic symbols are left.
    #[error(
        "{object} has no function `{name}` among its exported ones, and is stripped of the others; install its debug symbols (of the same build-id), name it by its place (SUTURE_FUNC_OFFSET), or replace an exported function"
    )]
    Stripped {
        /// Name.
        name: String,
        /// Object.
        object: String,
    },
    /// A symbol of that name is no function.
    #[error("`{name}` in {object} is not a function")]
    NotFunction {
        /// Name.
        name: String,
        /// Object.
        object: String,
    },
    /// Several functions of that name.
    #[error("{object} has {} functions `{name}`: {}; name one with SUTURE_FUNC_AT", places.len(), places.join(", "))]
    Ambiguous {
        /// Name.
        name: String,
        /// Object.
        object: String,
        /// Positions with addresses.
        places: Vec<String>,
    },
    /// A position that does not exist.
    #[error("{object} has {count} function(s) `{name}`, so there is no position {sympos}")]
    Position {
        /// Name.
        name: String,
        /// Position asked for.
        sympos: u64,
        /// Object.
        object: String,
        /// How many there are.
        count: usize,
    },
    /// An indirect function that nobody calls yet.
    #[error(
        "`{name}` in {object} is an indirect function and no slot shows yet which body the loader chose; name the body itself"
    )]
    IndirectUnbound {
        /// Name.
        name: String,
        /// Object.
        object: String,
    },
    /// An indirect function with several bodies in use.
    #[error("`{name}` in {object} is an indirect function with several bodies in use ({}); name each body itself", bodies.join(", "))]
    IndirectSeveral {
        /// Name.
        name: String,
        /// Object.
        object: String,
        /// The bodies.
        bodies: Vec<String>,
    },
    /// An offset at which other bytes stand.
    #[error(
        "{object} has the bytes {found} at {offset}, the patch expects a function that begins with {expected}"
    )]
    Bytes {
        /// Object.
        object: String,
        /// Offset.
        offset: Vaddr,
        /// Bytes in the file.
        found: String,
        /// Bytes the patch expects.
        expected: String,
    },
    /// An offset at which no function begins.
    #[error("no function of {object} begins at {offset}{}", inside.map_or_else(String::new, |at| format!(": it lies in the one at {at}")))]
    NotEntry {
        /// Object.
        object: String,
        /// Offset.
        offset: Vaddr,
        /// Where the function begins that the offset lies in.
        inside: Option<Vaddr>,
    },
    /// Two names of one function (`EEXIST`).
    #[error("`{first}` and `{second}` are one function in {object}; replace it once")]
    Same {
        /// First name.
        first: String,
        /// Second name.
        second: String,
        /// Object.
        object: String,
    },
}

/// Names that may have been meant.
pub(crate) fn suggest(similar: &[String]) -> String {
    if similar.is_empty() {
        return String::new();
    }
    let names: Vec<String> = similar.iter().map(|name| format!("`{name}`")).collect();
    format!("; did you mean {}?", names.join(" or "))
}

/// Where a function that is replaced lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OldFunc {
    /// Index into [`ProcessView::objects`] of the object its code lies in.
    pub object: usize,
    /// Symbol name there.
    pub symbol: String,
    /// Entry.
    pub entry: Vaddr,
    /// Size in bytes; 0 = the symbol does not say.
    pub size: u64,
}

/// How many names are suggested.
const SIMILAR: usize = 3;

/// Unwind ranges of an object, read for the first function that is named by its place.
#[derive(Debug, Default)]
pub struct LazyFrames(OnceCell<Frames>);

impl LazyFrames {
    fn of(&self, file: &ObjectFile) -> &Frames {
        self.0.get_or_init(|| Frames::new(file))
    }
}

/// Finds the function a descriptor entry means. `frames` are those of the object.
///
/// # Errors
/// When there is none, or several, or it is an indirect function without one known body.
pub fn find(
    view: &ProcessView<'_>,
    object: usize,
    func: &FuncDescriptor,
    debug_file: DebugFile<'_>,
    frames: &LazyFrames,
) -> Result<OldFunc, FunctionError> {
    let loaded = &view.objects[object];
    if let Some(place) = &func.place {
        return at_place(loaded, object, &func.old_name, place, frames.of(&loaded.file));
    }
    let label = label(loaded);
    let mut found = candidates(loaded.file.symbols(), &func.old_name);
    if found.is_empty()
        && let Some(symbols) = loaded.debug_symbols(debug_file)
    {
        found = candidates(symbols, &func.old_name);
    }
    let count = found.len();
    let name = || func.old_name.clone();
    let symbol = match (func.sympos, count) {
        (_, 0) => return Err(unknown(loaded, &func.old_name, loaded.debug_symbols(debug_file))),
        (0, 1) => found[0],
        (0, _) => {
            let place =
                |(i, s): (usize, &Symbol<'_>)| format!("{} at {} ({})", i + 1, s.addr, demangle(s.name));
            let places = found.iter().enumerate().map(place).collect();
            return Err(FunctionError::Ambiguous { name: name(), object: label, places });
        }
        (n, _) if n <= count as u64 => found[(n - 1) as usize],
        (sympos, _) => return Err(FunctionError::Position { name: name(), sympos, object: label, count }),
    };
    if symbol.kind != SymbolKind::Ifunc {
        return Ok(OldFunc { object, symbol: symbol.name.to_owned(), entry: symbol.addr, size: symbol.size });
    }
    let bodies = bound_bodies(view, object, symbol.addr, Some(symbol.name));
    match bodies[..] {
        [(object, entry)] => {
            let body = view.symbol_at(object, view.objects[object].base + entry);
            let symbol = body.map_or_else(|| symbol.name.to_owned(), |s| s.name.to_owned());
            Ok(OldFunc { object, symbol, entry, size: body.map_or(0, |s| s.size) })
        }
        [] => Err(FunctionError::IndirectUnbound { name: name(), object: label }),
        _ => {
            let body = |&(o, at): &(usize, Vaddr)| {
                let base = view.objects[o].base;
                view.symbol_at(o, base + at).map_or_else(|| at.to_string(), |s| s.name.to_owned())
            };
            let bodies = bodies.iter().map(body).collect();
            Err(FunctionError::IndirectSeveral { name: name(), object: label, bodies })
        }
    }
}

/// The function at an offset, if one begins there with the bytes that the patch knows.
fn at_place(
    loaded: &LoadedObject,
    object: usize,
    name: &str,
    place: &PlaceDescriptor,
    frames: &Frames,
) -> Result<OldFunc, FunctionError> {
    let offset = place.offset;
    let code = loaded.file.segments().iter().any(|s| s.executable() && s.backs(offset));
    let found = loaded.file.bytes_at(offset, place.expected.len() as u64).filter(|_| code);
    let Some(found) = found else {
        return Err(FunctionError::NotEntry { object: label(loaded), offset, inside: None });
    };
    if found != place.expected {
        let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
        let (found, expected) = (hex(found), hex(&place.expected));
        return Err(FunctionError::Bytes { object: label(loaded), offset, found, expected });
    }
    let frame = frames.at(offset);
    let named = loaded.file.symbols().at(offset).find(is_function);
    match (frame, named) {
        (Some(frame), _) if frame.start == offset => {
            let size = frame.end.0 - frame.start.0;
            Ok(OldFunc { object, symbol: name.to_owned(), entry: offset, size })
        }
        (_, Some(symbol)) => {
            Ok(OldFunc { object, symbol: name.to_owned(), entry: offset, size: symbol.size })
        }
        (frame, None) => {
            let inside = frame.map(|f| f.start);
            Err(FunctionError::NotEntry { object: label(loaded), offset, inside })
        }
    }
}

fn label(object: &LoadedObject) -> String {
    if object.main { object_label(None) } else { object.name.clone() }
}

/// Functions of that name: the symbol name itself, else the name as people read it, with or without
/// its parameters.
fn candidates<'v>(symbols: Symbols<'v>, name: &str) -> Vec<Symbol<'v>> {
    let exact = symbols.functions_named(name);
    if !exact.is_empty() {
        return exact;
    }
    // Demangling every symbol of a large program takes 0.1 s; a mangled name contains the last
    // identifier of the readable one literally.
    let without_parameters = name.split('(').next().unwrap_or(name).trim_end();
    let last = without_parameters.rsplit("::").next().unwrap_or(without_parameters);
    let last = last.split('<').next().unwrap_or(last);
    if !last.chars().all(|c| c.is_alphanumeric() || c == '_') || last.is_empty() {
        return Vec::new();
    }
    let mut found: Vec<Symbol<'v>> = Vec::new();
    for symbol in symbols.all().filter(|s| is_function(s) && s.name.contains(last)) {
        let readable = demangle(symbol.name);
        let fits = readable == name || !name.contains('(') && readable.split('(').next() == Some(name);
        if fits && readable != symbol.name && !found.iter().any(|s| s.addr == symbol.addr) {
            found.push(symbol);
        }
    }
    found
}

fn is_function(symbol: &Symbol<'_>) -> bool {
    matches!(symbol.kind, SymbolKind::Func | SymbolKind::Ifunc)
}

fn unknown(object: &LoadedObject, name: &str, debug: Option<Symbols<'_>>) -> FunctionError {
    let tables = [Some(object.file.symbols()), debug];
    let tables = || tables.iter().flatten();
    let (name, label) = (name.to_owned(), label(object));
    if tables().any(|symbols| symbols.named(&name).next().is_some()) {
        return FunctionError::NotFunction { name, object: label };
    }
    let mut similar: Vec<String> =
        tables().flat_map(|symbols| symbols.similar(&name, is_function, SIMILAR)).collect();
    similar.dedup();
    similar.truncate(SIMILAR);
    if similar.is_empty() && tables().all(|symbols| symbols.all().all(|s| s.dynamic)) {
        return FunctionError::Stripped { name, object: label };
    }
    FunctionError::Unknown { name, object: label, similar }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[inline(never)]
    fn marker_of_this_test(n: u64) -> u64 {
        std::hint::black_box(n) + 1
    }

    #[test]
    fn rust_functions_are_found_by_readable_and_by_mangled_name() {
        assert_eq!(marker_of_this_test(1), 2);
        let file = ObjectFile::open(Path::new("/proc/self/exe")).unwrap();
        let symbols = file.symbols();
        let found = candidates(symbols, "suture_link::functions::tests::marker_of_this_test");
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(candidates(symbols, found[0].name), found);
        let similar = symbols.similar("suture_link::functions::tests::marker_of_that_test", is_function, 3);
        assert_eq!(similar, ["suture_link::functions::tests::marker_of_this_test"]);
    }
}
