//! Why a name cannot be bound.

use crate::functions::suggest;
use thiserror::Error;

/// Why a symbol cannot be bound. Each message says what, why, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SymbolError {
    /// Nobody has it.
    #[error(
        "`{name}` is neither exported by a loaded object nor a private symbol of a patched one{}{}",
        hint(not_loaded, absent),
        suggest(similar)
    )]
    Missing {
        /// Name.
        name: String,
        /// Libraries that may have it but are not loaded.
        not_loaded: Vec<String>,
        /// Objects of the patch that are not loaded.
        absent: Vec<String>,
        /// Private symbols of the patched objects that look like it.
        similar: Vec<String>,
    },
    /// Only other versions exist.
    #[error("`{name}` is needed in version {version}, the process has {}; build the patch against the process's own libraries", others.join(", "))]
    Version {
        /// Name.
        name: String,
        /// Version the patch was linked with.
        version: String,
        /// Versions there are, with their objects.
        others: Vec<String>,
    },
    /// The runtime is older than the patch.
    #[error("the runtime in this process has no `{name}`: it is older than the patch")]
    NotInRuntime {
        /// Name.
        name: String,
    },
    /// Only an object that may be unloaded has it.
    #[error(
        "`{name}` is only exported by {object}, which the program loaded later and may unload under the patch; patch {object} too, or look the name up with dlsym in the patch"
    )]
    CanGo {
        /// Name.
        name: String,
        /// Object.
        object: String,
    },
    /// Several private symbols.
    #[error("`{name}` is ambiguous: {}; name one in a SUTURE_SYMBOL entry", places.join(", "))]
    Ambiguous {
        /// Name.
        name: String,
        /// Where, with positions.
        places: Vec<String>,
    },
    /// A position that does not exist.
    #[error("`{name}` has no position {sympos} in {object}, there are {count}")]
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
    /// A reference table entry that names nothing.
    #[error(
        "{object} has no symbol `{name}`{}",
        if similar.is_empty() {
            "; is it stripped? Install its debug symbols, or use SUTURE_OFFSET".to_owned()
        } else {
            suggest(similar)
        }
    )]
    NotInObject {
        /// Name.
        name: String,
        /// Object.
        object: String,
        /// Symbols of it that look like it.
        similar: Vec<String>,
    },
    /// The compiler took the function apart.
    #[error(
        "the compiler took `{name}` apart in {object}, only `{variant}` is left of it; copy the function into the patch"
    )]
    Folded {
        /// Name.
        name: String,
        /// Object.
        object: String,
        /// What is left.
        variant: String,
    },
    /// The patch's own definition would be the program's somewhere else.
    #[error(
        "preempted: {name}: the patch exports a definition that {object} has too, so the same source would mean one or the other; make it static or hidden (suture.h does, included last)"
    )]
    Preempted {
        /// Name.
        name: String,
        /// Object.
        object: String,
    },
    /// A pointer to a thread-local variable.
    #[error("`{name}` is thread-local and has no single address; declare it `extern __thread` in the patch")]
    TlsPointer {
        /// Name.
        name: String,
    },
    /// A thread-local variable used as an ordinary one, or the reverse.
    #[error("`{name}` is {there} in {object}, but the patch uses it as {here}; correct its declaration")]
    TlsMismatch {
        /// Name.
        name: String,
        /// Object.
        object: String,
        /// What it is.
        there: &'static str,
        /// What the patch takes it for.
        here: &'static str,
    },
    /// A weak thread-local reference that nobody satisfies.
    #[error("the thread-local `{name}` is not in the process; a weak reference to one cannot be null")]
    TlsMissing {
        /// Name.
        name: String,
    },
    /// Fast thread-local access to an object without a fixed place.
    #[error(
        "`{name}` lies in {object}, whose thread-local data has no fixed place; compile the patch with -ftls-model=global-dynamic and -mtls-dialect=gnu"
    )]
    NoStaticTls {
        /// Name.
        name: String,
        /// Object.
        object: String,
    },
    /// The loader's numbers for an object's thread-local data are not to be had.
    #[error(
        "where the thread-local data of {object} lies cannot be found out ({why}), so `{name}` cannot be bound"
    )]
    NoTlsBooks {
        /// Name.
        name: String,
        /// Object.
        object: String,
        /// Why.
        why: String,
    },
    /// An indirect function of a library that is not there to be asked.
    #[error(
        "`{name}` of {object} is an indirect function, and which one it is can only be known when {object} is loaded; call a function of {object} that calls it, or apply the patch when the program has loaded {object}"
    )]
    LateIndirect {
        /// Name.
        name: String,
        /// Library.
        object: String,
    },
    /// An address inside an indirect function.
    #[error("the patch takes an address inside `{name}`, whose place is only known when its resolver ran")]
    ResolverAddend {
        /// Name.
        name: String,
    },
}

fn hint(not_loaded: &[String], absent: &[String]) -> String {
    let mut hint = String::new();
    if !not_loaded.is_empty() {
        hint += &format!(
            "; the patch was linked with {}, which the process has not loaded",
            not_loaded.join(", ")
        );
    }
    if !absent.is_empty() {
        hint += &format!(
            "; {} of the patch is not loaded and no file of it is known (--object-file FILE)",
            absent.join(", ")
        );
    }
    hint
}
