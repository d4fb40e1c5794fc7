//! Indirect functions: what the loader decided for the program is right for the patch too.

use super::{Binding, Resolver, Use, find_in};
use crate::elf;
use crate::process::{LoadedObject, ProcessView};
use suture_elf::{Addr, DynSymbol, Reloc, Vaddr};

impl Resolver<'_, '_> {
    /// Binds to an indirect function: to its body where a slot shows which one the loader chose,
    /// else to whatever the resolver will return in the target.
    pub(super) fn bind_ifunc(
        &self,
        object: usize,
        resolver: Vaddr,
        symbol: Option<DynSymbol<'_>>,
    ) -> Binding {
        // The defining object's own slots are few and found by number; most functions that anybody
        // calls have one there. The other objects' slots have to be compared by name.
        let mut bound = bodies_in_definer(self.view, object, resolver);
        if let Some(symbol) = symbol.filter(|_| bound.is_empty()) {
            bound = bodies_in_users(self.view, object, resolver, symbol.name);
        }
        match bound.first() {
            Some(&(object, vaddr)) => Binding::Address { object, vaddr },
            None => Binding::Resolver { object, vaddr: resolver },
        }
    }
}

/// The bodies that slots of the process hold for an indirect function, each once: normally one.
pub(crate) fn bound_bodies(
    view: &ProcessView<'_>,
    definer: usize,
    resolver: Vaddr,
    name: Option<&str>,
) -> Vec<(usize, Vaddr)> {
    let mut bodies = bodies_in_definer(view, definer, resolver);
    for body in name.map_or_else(Vec::new, |name| bodies_in_users(view, definer, resolver, name)) {
        if !bodies.contains(&body) {
            bodies.push(body);
        }
    }
    bodies
}

/// Calls inside the defining object go through slots that name the resolver itself.
fn bodies_in_definer(view: &ProcessView<'_>, definer: usize, resolver: Vaddr) -> Vec<(usize, Vaddr)> {
    let slots = view.objects[definer].relocations().iter();
    let own = slots.filter(|r| r.kind == elf::R_IRELATIVE && r.addend.cast_unsigned() == resolver.0);
    let mut bodies: Vec<_> = own.filter_map(|r| body_in_slot(view, definer, definer, resolver, r)).collect();
    bodies.sort_unstable();
    bodies.dedup();
    bodies
}

/// Slots of all objects that were filled with this definition.
fn bodies_in_users(
    view: &ProcessView<'_>,
    definer: usize,
    resolver: Vaddr,
    name: &str,
) -> Vec<(usize, Vaddr)> {
    let mut bodies = Vec::new();
    let namespace = view.objects[definer].namespace;
    for (holder, object) in view.objects.iter().enumerate() {
        if object.namespace != namespace || object.vdso {
            continue;
        }
        for reloc in object.relocations().iter().filter(|r| names(object, r, name)) {
            if is_same_definition(view, holder, reloc, definer, resolver, name) {
                bodies.extend(body_in_slot(view, holder, definer, resolver, reloc));
            }
        }
    }
    bodies.sort_unstable();
    bodies.dedup();
    bodies
}

/// Whether a relocation fills a word with the address of the symbol of that name.
fn names(object: &LoadedObject, reloc: &Reloc, name: &str) -> bool {
    let binds = matches!(reloc.kind, elf::R_GLOB_DAT | elf::R_JUMP_SLOT)
        || reloc.kind == elf::R_64 && reloc.addend == 0;
    binds && object.tables.symbol_is_named(reloc.symbol, name)
}

/// Whether the reference of a slot means this definition: the same name may have several.
fn is_same_definition(
    view: &ProcessView<'_>,
    holder: usize,
    reloc: &Reloc,
    definer: usize,
    resolver: Vaddr,
    name: &str,
) -> bool {
    let used = if reloc.kind == elf::R_JUMP_SLOT { Use::Call } else { Use::Address };
    let version = view.objects[holder].tables.version_of(reloc.symbol);
    find_in(view, &view.scope_of(holder), name, version, used)
        .is_some_and(|found| found.object == definer && found.symbol.value == resolver.0)
}

/// The function a slot holds, unless it still waits for its first call.
fn body_in_slot(
    view: &ProcessView<'_>,
    holder: usize,
    definer: usize,
    resolver: Vaddr,
    reloc: &Reloc,
) -> Option<(usize, Vaddr)> {
    let value = Addr(view.memory.0.read_u64(view.objects[holder].base + reloc.place).ok()?);
    let object = view.object_at(value)?;
    // An unbound slot points into its own object's linkage table.
    let unbound = object == holder && holder != definer;
    let place = value - view.objects[object].base;
    let is_resolver = object == definer && place == resolver;
    let code = view.objects[object].has_code_at(value);
    (code && !unbound && !is_resolver).then_some((object, place))
}
