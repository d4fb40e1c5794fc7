//! Functions that by their nature cannot be replaced.

use crate::Refusal;
use crate::analysis::ObjectAnalysis;
use std::ops::Range;
use suture_abi::RUNTIME_SONAME;
use suture_elf::{Frame, SymbolKind, Vaddr};

const TWICE: &str = "it returns twice, or to somewhere else";
const STACK: &str = "it continues on another stack or shares its stack with a child process";
const LOADER: &str = "the loader enters it with registers that only hand-written code preserves";
const COMPARED: &str = "the C library compares interrupted program counters with its addresses";
const START: &str = "it starts a program or a thread and has no caller";
const RUNTIME: &str = "it is part of the runtime itself";

/// Exact names.
const NAMES: &[(&[&str], &str)] = &[
    (&["setjmp", "_setjmp", "__sigsetjmp", "sigsetjmp", "__setjmp"], TWICE),
    (&["longjmp", "_longjmp", "siglongjmp", "__longjmp", "__longjmp_chk"], TWICE),
    (&["__libc_longjmp", "__libc_siglongjmp", "____longjmp_chk"], TWICE),
    (&["getcontext", "setcontext", "swapcontext", "__getcontext", "__setcontext", "__swapcontext"], TWICE),
    (&["vfork", "__vfork", "__libc_vfork"], STACK),
    (&["clone", "__clone", "clone3", "__clone3", "__clone_internal", "__start_context"], STACK),
    (&["__restore_rt", "__restore"], COMPARED),
    (&["__syscall_cancel_arch", "__syscall_cp_asm", "__cp_begin"], COMPARED),
    (&["_start", "_dl_start", "_dl_start_user", "_init", "_fini"], START),
    (
        &["__tls_get_addr", "__tls_get_addr_slow", "___tls_get_addr"],
        "compilers call it with any stack alignment",
    ),
    (&["__fentry__", "mcount", "_mcount"], LOADER),
];

/// Beginnings of names.
const PREFIXES: &[(&str, &str)] = &[
    ("_dl_runtime_resolve", LOADER),
    ("_dl_runtime_profile", LOADER),
    ("_dl_tlsdesc_", LOADER),
    ("__syscall_cancel_arch_", COMPARED),
];

/// Refuses a function by name, by kind of symbol, or by what it consists of.
pub(crate) fn check(object: &ObjectAnalysis, entry: Vaddr, frame: Option<&Frame>) -> Result<(), Refusal> {
    let nature = |name: &str, why| Err(Refusal::Nature { name: name.to_owned(), why });
    if object.file().soname() == Some(RUNTIME_SONAME) {
        return nature(RUNTIME_SONAME, RUNTIME);
    }
    for symbol in object.symbols_at(entry) {
        if symbol.kind == SymbolKind::Ifunc {
            return nature(
                symbol.name,
                "this is the resolver that chooses an implementation; replace the implementation",
            );
        }
        let exact = NAMES.iter().find(|(names, _)| names.contains(&symbol.name));
        let prefix = PREFIXES.iter().find(|(prefix, _)| symbol.name.starts_with(prefix));
        if let Some(why) = exact.map(|e| e.1).or(prefix.map(|p| p.1)) {
            return nature(symbol.name, why);
        }
    }
    if frame.is_some_and(|f| f.signal) {
        return nature("the return from a signal handler", COMPARED);
    }
    if within(object.plt(), entry) {
        return Err(Refusal::PltStub);
    }
    if within(object.start_code(), entry) {
        return nature("_init or _fini", START);
    }
    Ok(())
}

fn within(ranges: &[Range<Vaddr>], addr: Vaddr) -> bool {
    ranges.iter().any(|r| r.contains(&addr))
}
