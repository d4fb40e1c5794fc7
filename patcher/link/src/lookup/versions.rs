//! Which of an object's symbols of a name satisfies a reference: the loader's own rules.

use super::Use;
use crate::elf;
use crate::process::ProcessView;
use suture_elf::{DynSymbol, DynamicTables, VERSION_HIDDEN, Version};

/// The definition of `name` in one object that a reference with that version means.
pub(super) fn pick<'t>(
    tables: &'t DynamicTables,
    name: &str,
    version: Option<&Version>,
    used: Use,
) -> Option<DynSymbol<'t>> {
    let mut only_default = None;
    let mut defaults = 0;
    for symbol in tables.named(name).into_iter().filter(|s| counts(s, used)) {
        let Some(index) = tables.version_index(symbol.index) else {
            // An object without versions satisfies every reference.
            return Some(symbol);
        };
        let hidden = index & VERSION_HIDDEN != 0;
        match version {
            Some(wanted) => {
                let matches = match tables.version_of(symbol.index) {
                    Some(has) => has.name == wanted.name,
                    // Unversioned, in an object that has versions for other symbols.
                    None => !wanted.hidden && !hidden,
                };
                if matches {
                    return Some(symbol);
                }
            }
            // Index 0 and 1 are unversioned, 2 is the first version the object ever had: what
            // programs from before the versions were linked with.
            None if index & !VERSION_HIDDEN < 3 => return Some(symbol),
            None if !hidden => {
                defaults += 1;
                only_default = Some(symbol);
            }
            None => {}
        }
    }
    only_default.filter(|_| defaults == 1)
}

/// Whether the loader would look at the symbol at all.
fn counts(symbol: &DynSymbol<'_>, used: Use) -> bool {
    let kinds =
        [elf::STT_NOTYPE, elf::STT_OBJECT, elf::STT_FUNC, elf::STT_COMMON, elf::STT_TLS, elf::STT_IFUNC];
    let visible = [elf::STV_DEFAULT, elf::STV_PROTECTED].contains(&symbol.visibility);
    let bound = [elf::STB_GLOBAL, elf::STB_WEAK, elf::STB_UNIQUE].contains(&symbol.binding);
    // An undefined symbol with a value is the address of a function's PLT entry in a program that
    // is not position independent; everybody must take that for the function's address.
    let has_place = match symbol.section {
        0 => symbol.value != 0 && used == Use::Address && symbol.kind != elf::STT_TLS,
        elf::SHN_ABS => true,
        _ => symbol.value != 0 || symbol.kind == elf::STT_TLS,
    };
    kinds.contains(&symbol.kind) && visible && bound && has_place
}

/// Versions of a name that the objects of a scope define, for messages.
pub(super) fn known(view: &ProcessView<'_>, scope: &[usize], name: &str) -> Vec<String> {
    let mut known = Vec::new();
    for &i in scope {
        let object = &view.objects[i];
        for symbol in object.tables.named(name).into_iter().filter(|s| counts(s, Use::Call)) {
            if let Some(version) = object.tables.version_of(symbol.index) {
                known.push(format!("{} ({})", version.name, object.name));
            }
        }
    }
    known
}
