//! Imported functions that do not return.
//!
//! What stands behind a call of one is some other block: data flow must not go on there.

use object::elf::{
    DT_JMPREL, DT_PLTRELSZ, DT_RELA, DT_RELASZ, DT_STRTAB, DT_SYMTAB, R_X86_64_GLOB_DAT, R_X86_64_JUMP_SLOT,
    R_X86_64_TLSDESC,
};
use std::collections::HashSet;
use suture_elf::{ObjectFile, Vaddr};

const NAMES: &[&str] = &[
    "abort",
    "exit",
    "_exit",
    "_Exit",
    "quick_exit",
    "pthread_exit",
    "thrd_exit",
    "longjmp",
    "_longjmp",
    "siglongjmp",
    "__longjmp_chk",
    "__stack_chk_fail",
    "__chk_fail",
    "__fortify_fail",
    "__assert_fail",
    "__assert",
    "__assert_perror_fail",
    "_Unwind_Resume",
    "__cxa_throw",
    "__cxa_rethrow",
    "__cxa_bad_cast",
    "__cxa_bad_typeid",
    "__cxa_throw_bad_array_new_length",
    "__cxa_call_unexpected",
    "__cxa_pure_virtual",
    "_ZSt9terminatev",
    "err",
    "errx",
    "verr",
    "verrx",
    "__libc_start_main",
    "setcontext",
    "_dl_signal_error",
    "__libc_fatal",
];

/// Standard C++ helpers: `std::__throw_*` and what Rust's panics are called.
const PREFIXES: &[&str] = &[
    "_ZSt17__throw_",
    "_ZSt18__throw_",
    "_ZSt19__throw_",
    "_ZSt20__throw_",
    "_ZSt21__throw_",
    "_ZSt24__throw_",
    "_ZSt25__throw_",
    "_ZSt26__throw_",
    "_ZSt28__throw_",
    "_ZSt16__throw_",
];

/// Whether a function of that name never returns.
pub(crate) fn never_returns(name: &str) -> bool {
    NAMES.contains(&name) || PREFIXES.iter().any(|p| name.starts_with(p))
}

/// Places that the loader fills with the address of a function that does not return.
pub(crate) fn slots(file: &ObjectFile) -> HashSet<Vaddr> {
    let mut slots = HashSet::new();
    let value = |tag: object::elf::DynamicTag| file.dynamic_value(tag.0 as u64);
    let (Some(symbols), Some(strings)) = (value(DT_SYMTAB), value(DT_STRTAB)) else { return slots };
    for (table, size) in [(DT_JMPREL, DT_PLTRELSZ), (DT_RELA, DT_RELASZ)] {
        let (Some(at), Some(size)) = (value(table), value(size)) else { continue };
        let Some(bytes) = file.bytes_at(Vaddr(at), size) else { continue };
        for entry in bytes.as_chunks::<24>().0 {
            let [place, info] =
                [0, 8].map(|i| u64::from_le_bytes(entry[i..i + 8].try_into().unwrap_or_default()));
            if ![R_X86_64_GLOB_DAT.0, R_X86_64_JUMP_SLOT.0].contains(&(info as u32)) {
                continue;
            }
            let symbol = Vaddr(symbols.wrapping_add(24 * (info >> 32)));
            let name = file.bytes_at(symbol, 4).and_then(|b| b.try_into().ok()).map(u32::from_le_bytes);
            let text = name.and_then(|n| file.bytes_from(Vaddr(strings.wrapping_add(u64::from(n)))));
            let text =
                text.and_then(|t| t.split(|b| *b == 0).next()).and_then(|t| std::str::from_utf8(t).ok());
            if text.is_some_and(never_returns) {
                slots.insert(Vaddr(place));
            }
        }
    }
    slots
}

/// Whether the object asks for thread-local variables by descriptor.
pub(crate) fn has_tls_descriptors(file: &ObjectFile) -> bool {
    let value = |tag: object::elf::DynamicTag| file.dynamic_value(tag.0 as u64);
    [(DT_JMPREL, DT_PLTRELSZ), (DT_RELA, DT_RELASZ)].into_iter().any(|(table, size)| {
        let bytes = value(table).zip(value(size)).and_then(|(at, size)| file.bytes_at(Vaddr(at), size));
        let kind = |entry: &[u8; 24]| u32::from_le_bytes([entry[8], entry[9], entry[10], entry[11]]);
        bytes.is_some_and(|b| b.as_chunks::<24>().0.iter().any(|e| kind(e) == R_X86_64_TLSDESC.0))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn this_program_imports_abort() {
        let file = ObjectFile::open(Path::new("/proc/self/exe")).unwrap();
        assert!(!slots(&file).is_empty());
        assert!(never_returns("__stack_chk_fail") && never_returns("_ZSt20__throw_length_errorPKc"));
        assert!(!never_returns("printf"));
    }
}
