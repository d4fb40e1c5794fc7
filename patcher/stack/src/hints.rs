//! Signs that an object makes stacks of its own.
//!
//! A sign proves nothing, and its absence neither: a program may switch stacks in a few lines of
//! assembly. Where there is one, a clear search ([`crate::hidden`]) deserves a word to the user.

use std::fmt;
use suture_elf::{DynamicTables, ObjectFile};

/// A sign of stacks that no thread was started on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hint {
    /// It imports `makecontext` or `swapcontext`.
    UserContexts,
    /// It uses or contains Boost.Context.
    BoostContext,
    /// It is built by the Go compiler: goroutines, and code without call frame information.
    Go,
    /// It is built for stacks of several pieces (`-fsplit-stack`).
    SplitStack,
    /// It uses another library of coroutines.
    Coroutines,
}

impl fmt::Display for Hint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::UserContexts => "makes contexts with makecontext or swapcontext",
            Self::BoostContext => "uses Boost.Context",
            Self::Go => "is built by the Go compiler",
            Self::SplitStack => "is built for split stacks",
            Self::Coroutines => "uses a library of coroutines",
        })
    }
}

const SYMBOLS: &[(&str, Hint)] = &[
    ("makecontext", Hint::UserContexts),
    ("swapcontext", Hint::UserContexts),
    ("setcontext", Hint::UserContexts),
    ("make_fcontext", Hint::BoostContext),
    ("jump_fcontext", Hint::BoostContext),
    ("ontop_fcontext", Hint::BoostContext),
    ("__morestack", Hint::SplitStack),
    ("__splitstack_makecontext", Hint::SplitStack),
    ("runtime.morestack", Hint::Go),
    ("runtime.mcall", Hint::Go),
    ("co_switch", Hint::Coroutines),
    ("coro_transfer", Hint::Coroutines),
    ("pth_uctx_switch", Hint::Coroutines),
    ("qemu_coroutine_switch", Hint::Coroutines),
];

const LIBRARIES: &[(&str, Hint)] = &[
    ("libboost_context", Hint::BoostContext),
    ("libboost_coroutine", Hint::BoostContext),
    ("libboost_fiber", Hint::BoostContext),
    ("libgo.so", Hint::Go),
    ("libco.so", Hint::Coroutines),
    ("libnpth.so", Hint::Coroutines),
    ("libpth.so", Hint::Coroutines),
];

/// Signs in one object; the C library itself, which only offers contexts, has none.
#[must_use]
pub fn of(file: &ObjectFile) -> Vec<Hint> {
    let mut found: Vec<Hint> = Vec::new();
    let tables = DynamicTables::new(file).ok();
    let imported: Vec<&str> = tables.iter().flat_map(DynamicTables::imports).map(|s| s.name).collect();
    for (name, hint) in SYMBOLS {
        // Contexts are used by who imports them; the others may be inside.
        let inside = *hint != Hint::UserContexts && file.symbols().named(name).next().is_some();
        if inside || imported.contains(name) {
            found.push(*hint);
        }
    }
    let libraries = file.needed();
    let linked = |name: &str| libraries.iter().chain(&file.soname()).any(|lib| lib.starts_with(name));
    found.extend(LIBRARIES.iter().filter(|(name, _)| linked(name)).map(|(_, hint)| *hint));
    if file.section(".go.buildinfo").is_some()
        || file.section(".note.go.buildid").is_some()
        || has_go_note(file)
    {
        found.push(Hint::Go);
    }
    if file.section(".note.GNU-split-stack").is_some() {
        found.push(Hint::SplitStack);
    }
    found.sort_unstable();
    found.dedup();
    found
}

/// The build note of the Go compiler: name `Go`, type 4.
fn has_go_note(file: &ObjectFile) -> bool {
    const PT_NOTE: u32 = 4;
    let notes = file.program_headers().iter().filter(|(kind, _)| *kind == PT_NOTE);
    let content = notes.filter_map(|(_, s)| file.data().get(s.offset as usize..)?.get(..s.filesz as usize));
    content
        .into_iter()
        .any(|bytes| bytes.starts_with(b"\x04\0\0\0") && bytes.get(8..16) == Some(b"\x04\0\0\0Go\0\0"))
}
