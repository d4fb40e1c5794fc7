//! What a patch object exports: one [`Patch`], in the shape of the kernel's `klp_patch`.
//!
//! Arrays end with an all-zero entry, as there. The command reads the descriptor from the *file*,
//! with the object's own relocations applied, and checks every pointer and string against the
//! file's bounds; nothing in the target ever walks these pointers.

use core::ffi::{c_char, c_int, c_void};

/// The patch takes the place of every patch that is enabled (atomic replace).
pub const PATCH_REPLACE: u64 = 1;
/// The patch needs the program's own loader (own thread-local storage, further libraries).
pub const PATCH_NEEDS_LOADER: u64 = 1 << 1;

/// A patch: the exported symbol `suture_patch`.
#[repr(C)]
#[derive(Debug)]
pub struct Patch {
    /// The `SUTURE_ABI` the object was compiled with.
    pub abi: u32,
    /// `sizeof(struct suture_patch)` as the object knows it.
    pub size: u32,
    /// Name of the patch: 1–55 characters of `A–Z a–z 0–9 _ . -`, unique among enabled patches.
    pub name: *const c_char,
    /// `SUTURE_REPLACE`, `SUTURE_NEEDS_LOADER`.
    pub flags: u64,
    /// Objects, ended by an entry whose `name` and `funcs` are both null.
    pub objects: *const Object,
    /// States, ended by id 0. May be null.
    pub states: *const State,
    /// References to be filled before any code of the patch runs, ended by a null slot. May be null.
    pub references: *const Reference,
}

/// One object of the target: the main executable or a shared library.
#[repr(C)]
#[derive(Debug)]
pub struct Object {
    /// SONAME or file name of the library; null = the main executable.
    pub name: *const c_char,
    /// Build-id the object must have, in hexadecimal; null = not checked.
    pub build_id: *const c_char,
    /// Functions, ended by an all-zero entry.
    pub funcs: *const Func,
}

/// One function to be replaced: by name, or by where it is in an object without symbols.
#[repr(C)]
#[derive(Debug)]
pub struct Func {
    /// Symbol name of the function in its object; null = it has none, `offset` and `expected` say which.
    pub old_name: *const c_char,
    /// The function that takes its place.
    pub new_func: *const c_void,
    /// Which of several symbols of that name, from 1; 0 = the name must be unique.
    pub sympos: u64,
    /// Without a name: address of its entry as the file has it, the load address not added. The object's
    /// build-id must be given.
    pub offset: u64,
    /// Without a name: the first bytes of the function in the file, four or more, in hexadecimal.
    pub expected: *const c_char,
}

/// All `<*, id>` shadow variables are freed when the last holder of the state leaves.
pub const STATE_IS_SHADOW: u32 = 1;
/// A patch with this state can neither be disabled nor be replaced by one that lacks the state.
pub const STATE_BLOCK_DISABLE: u32 = 1 << 1;

/// A side effect of a patch that outlives single functions.
#[repr(C)]
#[derive(Debug)]
pub struct State {
    /// Non-zero number known to every patch that shares the state.
    pub id: u64,
    /// `SUTURE_IS_SHADOW`, `SUTURE_BLOCK_DISABLE`.
    pub flags: u32,
    /// Must be 0.
    pub reserved: u32,
    /// What to call when the state comes and goes.
    pub callbacks: Callbacks,
}

/// Callbacks of a state, each optional.
#[repr(C)]
#[derive(Debug)]
pub struct Callbacks {
    /// Before any thread can run new code; a non-zero errno refuses the patch.
    pub pre_patch: Option<extern "C" fn(patch: *mut Patch, state: *mut State) -> c_int>,
    /// When every thread runs new code.
    pub post_patch: Option<extern "C" fn(patch: *mut Patch, state: *mut State)>,
    /// Before the first thread may go back to old code.
    pub pre_unpatch: Option<extern "C" fn(patch: *mut Patch, state: *mut State)>,
    /// When no thread runs new code any more.
    pub post_unpatch: Option<extern "C" fn(patch: *mut Patch, state: *mut State)>,
    /// Destructor of the state's shadow variables.
    pub shadow_dtor: Option<extern "C" fn(obj: *mut c_void, data: *mut c_void)>,
}

/// The slot receives the address of a symbol.
pub const REFERENCE_SYMBOL: u32 = 0;
/// The slot receives the entry under which the *old* body of a replaced function stays callable.
pub const REFERENCE_OLD_FUNC: u32 = 1;
/// The slot receives load address + `offset`, after `expected` was found there (stripped objects).
pub const REFERENCE_OFFSET: u32 = 2;

/// A pointer of the patch that is filled from the target.
///
/// Plain `extern` references need no entry here: they are resolved from the target's dynamic and
/// static symbol tables. Entries are for what a symbol name alone cannot say.
#[repr(C)]
#[derive(Debug)]
pub struct Reference {
    /// The pointer to be filled, inside the patch's writable data.
    pub slot: *mut *mut c_void,
    /// `SUTURE_REF_SYMBOL`, `SUTURE_REF_OLD_FUNC` or `SUTURE_REF_OFFSET`.
    pub kind: u32,
    /// Must be 0.
    pub reserved: u32,
    /// Object the reference is looked up in; null = the main executable.
    pub object: *const c_char,
    /// Symbol name (kinds `SYMBOL` and `OLD_FUNC`); null for a function that is named by its offset.
    pub symbol: *const c_char,
    /// Which of several symbols of that name, from 1; 0 = must be unique.
    pub sympos: u64,
    /// Offset from the object's load address (kind `OFFSET`, and `OLD_FUNC` without a name).
    pub offset: u64,
    /// Bytes that must stand there, in hexadecimal (kind `OFFSET`).
    pub expected: *const c_char,
}

const _: () = {
    assert!(size_of::<Patch>() == 48);
    assert!(size_of::<Object>() == 24);
    assert!(size_of::<Func>() == 40);
    assert!(size_of::<State>() == 56);
    assert!(size_of::<Reference>() == 56);
};
