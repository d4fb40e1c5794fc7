//! Where the thread-local data of loaded objects lies.

use super::{Resolver, SymbolError, Use, find_in};
use crate::elf;
use crate::process::ProcessView;
use suture_elf::{Addr, Segment};

/// The loader's numbers for one object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TlsPlace {
    /// Module number.
    pub module: u64,
    /// Distance of the object's block below the thread pointer; `None` = it has no fixed place.
    pub below: Option<u64>,
}

/// The descriptors libc exports for libthread_db: where in a link map the two numbers stand.
const MODULE_FIELD: &str = "_thread_db_link_map_l_tls_modid";
const OFFSET_FIELD: &str = "_thread_db_link_map_l_tls_offset";

impl Resolver<'_, '_> {
    /// Where the thread-local data of an object lies; `name` is the symbol it is asked for.
    ///
    /// # Errors
    /// When the numbers cannot be found, or two sources disagree.
    pub fn tls_place(&self, object: usize, name: &str) -> Result<TlsPlace, SymbolError> {
        tls_place(self.view, object).map_err(|why| SymbolError::NoTlsBooks {
            name: name.into(),
            object: self.view.objects[object].name.clone(),
            why,
        })
    }
}

/// Where in a link map an object's number for thread-local data stands.
pub fn module_field(view: &ProcessView<'_>) -> Option<u64> {
    link_map_field(view, 0, MODULE_FIELD)
}

fn tls_place(view: &ProcessView<'_>, object: usize) -> Result<TlsPlace, String> {
    let by_slots = from_slots(view, object);
    let from_books = match (by_formula(view, object), from_link_map(view, object)) {
        (Some(formula), Some(books)) if formula != books => {
            return Err(format!("libc's books say {books:?}, the ABI's formula {formula:?}"));
        }
        (formula, books) => formula.or(books),
    };
    if let Some(place) = from_books {
        let module_fits = by_slots.0.is_none_or(|module| module == place.module);
        let offset_fits = by_slots.1.is_none_or(|below| place.below == Some(below));
        if module_fits && offset_fits {
            return Ok(place);
        }
        return Err(format!("libc's books say {place:?}, its slots {by_slots:?}"));
    }
    let module = by_slots.0.ok_or("libc exports no description of its link maps")?;
    Ok(TlsPlace { module, below: by_slots.1 })
}

/// The main executable is module 1 and its block ends at the thread pointer, its size rounded up so
/// that its start keeps the alignment the segment has.
fn by_formula(view: &ProcessView<'_>, object: usize) -> Option<TlsPlace> {
    let object = &view.objects[object];
    let tls: Segment = object.file.program_header(elf::PT_TLS).filter(|_| object.main)?;
    let align = tls.align.max(1);
    let first = tls.addr.0.wrapping_neg() & (align - 1);
    let below = tls.memsz.saturating_sub(first).checked_next_multiple_of(align)? + first;
    Some(TlsPlace { module: 1, below: Some(below) })
}

fn from_link_map(view: &ProcessView<'_>, object: usize) -> Option<TlsPlace> {
    let object = &view.objects[object];
    let field = |name| link_map_field(view, object.namespace, name);
    let read = |offset: u64| view.memory.0.read_u64(Addr(object.link_map.0.wrapping_add(offset))).ok();
    let module = read(field(MODULE_FIELD)?)?;
    let offset = read(field(OFFSET_FIELD)?)?;
    // 0: never placed. -1: the loader promised never to place it.
    let below = Some(offset).filter(|&o| o != 0 && o != u64::MAX);
    (module != 0).then_some(TlsPlace { module, below })
}

/// Where a field stands in a link map, by what the C library of a namespace says of it.
fn link_map_field(view: &ProcessView<'_>, namespace: usize, name: &str) -> Option<u64> {
    let all: Vec<usize> =
        (0..view.objects.len()).filter(|&i| view.objects[i].namespace == namespace).collect();
    let found = find_in(view, &all, name, None, Use::Call)?;
    let at = view.objects[found.object].base + suture_elf::Vaddr(found.symbol.value);
    let description = view.memory.0.read_vec(at, 12).ok()?;
    let word = |i: usize| {
        let b = &description[i * 4..];
        u32::from_le_bytes([b[0], b[1], b[2], b[3]])
    };
    // Bits, number of elements, offset in bytes.
    (word(0) == 64 && word(1) == 1 && word(2) < 1 << 16).then(|| u64::from(word(2)))
}

/// What the object's own slots for its own variables hold: module number, distance below the thread
/// pointer.
fn from_slots(view: &ProcessView<'_>, object: usize) -> (Option<u64>, Option<u64>) {
    let loaded = &view.objects[object];
    let (mut module, mut below) = (None, None);
    for reloc in loaded.relocations().iter().filter(|r| r.symbol == 0) {
        let live = || view.memory.0.read_u64(loaded.base + reloc.place).ok();
        match reloc.kind {
            elf::R_DTPMOD64 if module.is_none() => module = live().filter(|&m| m != 0),
            elf::R_TPOFF64 if below.is_none() => {
                below = live().map(|v| reloc.addend.cast_unsigned().wrapping_sub(v));
            }
            _ => {}
        }
    }
    (module, below)
}
