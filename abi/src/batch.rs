//! One all-or-nothing change: the payload of [`crate::channel::op::PREPARE`].
//!
//! A batch starts with [`Header`]; each table is an array at an 8-byte aligned offset from the start
//! of the payload. Everything in it was decided and checked outside; the worker checks only bounds,
//! that objects are where they were, and that maps and stores succeed.

/// First bytes of [`Header`]: "SUTRBAT\0", little endian.
pub const BATCH_MAGIC: u64 = 0x0054_4142_5254_5553;

/// An array inside the payload.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Table {
    /// Offset from the start of the payload, 8-byte aligned.
    pub offset: u32,
    /// Number of entries (bytes, for the two byte tables).
    pub count: u32,
}

/// Start of a batch.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Header {
    /// [`BATCH_MAGIC`].
    pub magic: u64,
    /// [`crate::ABI_VERSION`].
    pub abi: u32,
    /// [`BATCH_PATCH`] and others.
    pub flags: u32,
    /// [`crate::block::RuntimeBlock::generation`] the plan was made against.
    pub generation: u64,
    /// Offset of the thread id from `fs` in the program's C library.
    pub thread_id: u32,
    /// Must be 0.
    pub reserved: u32,
    /// Where the main thread's stack ends (`__libc_stack_end`), or 0.
    pub main_stack_end: u64,
    /// [`Object`]s the plan refers to.
    pub objects: Table,
    /// [`Mapping`]s to make, in order.
    pub mappings: Table,
    /// [`Fixup`]s to apply after the mappings exist.
    pub fixups: Table,
    /// [`Site`]s the batch needs, new ones and existing ones.
    pub sites: Table,
    /// [`Func`]s of the patch.
    pub funcs: Table,
    /// [`Image`]s of the patch (at most one).
    pub images: Table,
    /// [`Range`]s of code that must not be on a thread's stack when it changes sides.
    pub ranges: Table,
    /// [`State`]s of the patch, in the descriptor's order.
    pub states: Table,
    /// [`crate::late::Recipe`]s: what is to be done when objects come and go.
    pub recipes: Table,
    /// Address of the loader's `r_debug`, or 0.
    pub r_debug: u64,
    /// Bytes: name of the patch, no NUL.
    pub name: Table,
    /// Bytes: the command's own description of the patch, kept for status and never parsed inside.
    pub description: Table,
    /// [`NamedObject`]s of the patch, in the descriptor's order.
    pub named: Table,
    /// [`NamePart`]s: names of its functions, by object.
    pub names: Table,
}

/// The batch brings a patch (always, except for a batch that only adds hooks).
pub const BATCH_PATCH: u32 = 1;
/// The patch takes the place of all patches enabled before (atomic replace).
pub const BATCH_REPLACE: u32 = 2;
/// Threads' headers are in a ring (musl), instead of naming themselves twice (glibc).
pub const BATCH_LINKED_THREADS: u32 = 4;
/// The program shows signs of making stacks of its own: only the command, which searches memory for them, may
/// find threads clear.
pub const BATCH_OWN_STACKS: u32 = 8;
/// The patch's functions are always reached through their stubs.
pub const BATCH_STUBS_ONLY: u32 = 16;

/// A loaded object, as the plan saw it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Object {
    /// Load address (`l_addr`).
    pub base: u64,
    /// Address of the object's dynamic section (`l_ld`); with `dynamic` proves it is still there.
    pub l_ld: u64,
    /// Address of its `struct link_map`, or 0.
    pub link_map: u64,
    /// First 8 bytes at `l_ld`.
    pub dynamic: u64,
}

/// Mapping is anonymous, zero-filled.
pub const MAPPING_ANON: u32 = 0;
/// Mapping shows [`Mapping::offset`] of the code file (op `CODE_FILE`), `MAP_PRIVATE`.
pub const MAPPING_FILE: u32 = 1;

/// One `mmap(MAP_PRIVATE | MAP_FIXED_NOREPLACE)`; the returned address is compared.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Mapping {
    /// Page-aligned address.
    pub addr: u64,
    /// Length in bytes, whole pages.
    pub len: u64,
    /// Offset in the code file, whole pages.
    pub offset: u64,
    /// [`MAPPING_ANON`] or [`MAPPING_FILE`].
    pub kind: u32,
    /// `PROT_*` while fixups are applied. Never both `PROT_WRITE` and `PROT_EXEC`.
    pub prot: u32,
    /// `PROT_*` afterwards. Only writable mappings may differ from `prot` (to read-only).
    pub final_prot: u32,
    /// [`ROLE_IMAGE`] or [`ROLE_ARENA`].
    pub role: u32,
}

/// Part of the patch image: unmapped on failure and, later, when nothing can return into it.
pub const ROLE_IMAGE: u32 = 0;
/// Stubs, copies, slots, punned pages: kept for the life of the process once a site was armed.
pub const ROLE_ARENA: u32 = 1;

/// The kernel's `PROT_READ`.
pub const PROT_READ: u32 = 1;
/// The kernel's `PROT_WRITE`.
pub const PROT_WRITE: u32 = 2;
/// The kernel's `PROT_EXEC`.
pub const PROT_EXEC: u32 = 4;

/// `*place = object.base + addend`.
pub const FIXUP_ADDRESS: u32 = 0;
/// `*place = resolver()` with the IFUNC resolver at `object.base + addend`, run on the worker.
pub const FIXUP_RESOLVER: u32 = 1;
/// `*place = addend`, whatever the object (TLS offsets and module numbers read outside).
pub const FIXUP_VALUE: u32 = 2;
/// `*place =` address of the runtime's TLS descriptor resolver for a static offset.
pub const FIXUP_TLSDESC: u32 = 3;

/// One 8-byte word to be filled in a writable mapping of this batch.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Fixup {
    /// Address of the word.
    pub place: u64,
    /// One of the `FIXUP_*` kinds.
    pub kind: u32,
    /// Index into the batch's objects (`FIXUP_ADDRESS`, `FIXUP_RESOLVER`).
    pub object: u32,
    /// Offset from the object's base, or the value.
    pub addend: u64,
}

/// A redirect site (one per replaced function entry of the process).
///
/// For a new site the row is created from these fields. For an existing one (`id != 0`) only `id`
/// is looked at: stub, copy and slot bytes are immutable once armed, so the site is used as it is.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Site {
    /// 0 = new; else [`crate::block::SiteRow::id`] of the site to use.
    pub id: u32,
    /// Class letter: `b'P'`, `b'S'`, `b'A'`, `b'J'` or `b'W'`.
    pub class: u8,
    /// Bytes the arming store writes: 1 (J) or 8 (P, S, A, W).
    pub store_len: u8,
    /// Bytes of [`Site::pad_new`] in use (P, S), else 0.
    pub pad_len: u8,
    /// Length of the window that belongs to the site (for overlap checks).
    pub window_len: u8,
    /// Address of the function's entry.
    pub entry: u64,
    /// Address of the instruction the store replaces.
    pub site: u64,
    /// Address the store is made at (aligned to `store_len`).
    pub store_addr: u64,
    /// The `store_len` bytes before, little endian.
    pub old_word: u64,
    /// The `store_len` bytes after, little endian.
    pub new_word: u64,
    /// Address of the padding that gets a jump first (P, S), else 0.
    pub pad_addr: u64,
    /// Padding before.
    pub pad_old: [u8; 8],
    /// Padding after. For J and W, where `pad_len` is 0, its first `window_len` bytes are the whole jump (with
    /// the bytes that stay as they are), so that a verify pass can compare them.
    pub pad_new: [u8; 8],
    /// Address of the stub (undo of the prologue, then `jmp [rip+slot]`).
    pub stub: u64,
    /// Address of the slot, 8-byte aligned, in a writable mapping without code.
    pub slot: u64,
    /// Address of the choice word ([`crate::dispatch`]), as the slot.
    pub choice: u64,
    /// Address of the dispatcher: what the slot holds during a transition.
    pub dispatcher: u64,
    /// Address under which the old function stays callable.
    pub copy: u64,
    /// Bytes of the copy.
    pub copy_len: u64,
    /// The [`crate::late::Recipe`] that says where the site's object is: in a batch its position from 1, in the
    /// books its number; 0 = an object that stays.
    pub recipe: u32,
    /// 1 = addresses in the object are offsets from its load base.
    pub late: u8,
    /// Byte of `new_word` (of `pad_new`, where there is padding) at which the displacement of a jump to the stub
    /// begins, or [`crate::late::JUMP_NONE`]. Counts only with `late`.
    pub jump: u8,
    /// Must be 0.
    pub reserved: u16,
}

impl Site {
    /// Whether the jump leads to a page of its own, and the bytes behind the store are part of it: J and W.
    #[must_use]
    pub const fn is_pun(&self) -> bool {
        matches!(self.class, b'J' | b'W')
    }
}

/// Code of the function a site belongs to, in its object: the function itself, and the parts the
/// compiler split off it.
pub const RANGE_OLD: u32 = 0;
/// Code of a function's replacement, in the patch image.
pub const RANGE_NEW: u32 = 1;

/// Not code of a function, but of the C library: where functions of `makecontext` return to. On a stack it
/// says that frames of the thread are elsewhere, so no scan may pass over it.
pub const RANGE_CONTEXT: u32 = 2;

/// Code of one function. A function has several: compilers move cold parts away.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Range {
    /// Index into the batch's funcs; any for [`RANGE_CONTEXT`].
    pub func: u32,
    /// [`RANGE_OLD`], [`RANGE_NEW`] or [`RANGE_CONTEXT`].
    pub kind: u32,
    /// First address.
    pub start: u64,
    /// Address after the last byte.
    pub end: u64,
}

/// Not a hook of the runtime.
pub const HOOK_NONE: u32 = 0;
/// The replacement is the runtime's own answer to `_dl_find_object`.
pub const HOOK_DL_FIND_OBJECT: u32 = 1;
/// The replacement is the runtime's own `dl_iterate_phdr`.
pub const HOOK_DL_ITERATE_PHDR: u32 = 2;
/// The replacement hands the creator's side on to the new thread, while a transition runs.
pub const HOOK_PTHREAD_CREATE: u32 = 3;
/// The replacement hands the caller's side on to the child process, while a transition runs.
pub const HOOK_FORK: u32 = 4;
/// The replacement looks what the loader has mapped and unmapped.
pub const HOOK_DL_DEBUG_STATE: u32 = 5;

/// The replacement is the old function itself: a function that only an older patch replaces, in a
/// patch that takes the place of all others.
pub const FUNC_NOP: u32 = 1;

/// One replaced function.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Func {
    /// Index into the batch's sites.
    pub site: u32,
    /// [`HOOK_NONE`], or a hook: then `new_func` is ignored and the func belongs to the runtime.
    pub hook: u32,
    /// Address of the new function.
    pub new_func: u64,
    /// Size of the new function in bytes.
    pub new_size: u64,
    /// Size of the old function in bytes (from its entry).
    pub old_size: u64,
    /// 0 or [`FUNC_NOP`]: then `new_func` is the site's copy.
    pub flags: u32,
    /// Must be 0.
    pub reserved: u32,
}

/// A state of the patch, with its callbacks' addresses in the mapped image (0 = none).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// [`crate::descriptor::State::id`].
    pub id: u64,
    /// `STATE_*` of [`crate::descriptor`].
    pub flags: u32,
    /// Must be 0.
    pub reserved: u32,
    /// Address of the `struct suture_state` the callbacks are handed.
    pub state: u64,
    /// Address of the `struct suture_patch` the callbacks are handed.
    pub patch: u64,
    /// Address of the callback.
    pub pre_patch: u64,
    /// Address of the callback.
    pub post_patch: u64,
    /// Address of the callback.
    pub pre_unpatch: u64,
    /// Address of the callback.
    pub post_unpatch: u64,
    /// Address of the destructor.
    pub shadow_dtor: u64,
}

/// An object of the patch, for whoever asks from inside the process.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NamedObject {
    /// Name as the patch has it, `main` for the executable, NUL padded, cut where it is longer.
    pub name: [[u8; 32]; 4],
    /// 1 = it is there and stays. Else its functions' sites say by their [`crate::late::Recipe`] when it is there.
    pub stays: u32,
    /// Must be 0.
    pub reserved: u32,
}

/// A piece of the name of a function of the patch, as its directory is called: `NAME,POSITION`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NamePart {
    /// Index into the batch's [`NamedObject`]s: where the function is.
    pub object: u32,
    /// 1 = the next row goes on with it, else it ends here.
    pub more: u32,
    /// Entry of the function, as its site has it, or 0.
    pub entry: u64,
    /// Text, NUL padded.
    pub text: [[u8; 24]; 2],
}

/// The mapped image of the patch object, for unwinders and debuggers.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Image {
    /// First address.
    pub start: u64,
    /// Address after the last byte.
    pub end: u64,
    /// Load address: what is added to the file's virtual addresses.
    pub base: u64,
    /// Address of `.eh_frame_hdr` inside the image, or 0.
    pub eh_frame_hdr: u64,
    /// First address of the image's executable part.
    pub text_start: u64,
    /// Address after its last byte.
    pub text_end: u64,
    /// Address of the program headers inside the image.
    pub phdr: u64,
    /// Number of program headers.
    pub phnum: u64,
    /// Index into the batch's objects: whose link map answers for this image.
    pub object: u32,
    /// Must be 0.
    pub reserved: u32,
    /// Address of an adjusted ELF file for gdb's JIT interface inside a mapping of this batch, or 0.
    pub debug_elf: u64,
    /// Its length.
    pub debug_elf_len: u64,
}

const _: () = {
    assert!(size_of::<Header>() == 152);
    assert!(size_of::<NamedObject>() == 136);
    assert!(size_of::<NamePart>() == 64);
    assert!(size_of::<Object>() == 32);
    assert!(size_of::<Mapping>() == 40);
    assert!(size_of::<Fixup>() == 24);
    assert!(size_of::<Site>() == 128);
    assert!(size_of::<Func>() == 40);
    assert!(size_of::<Range>() == 24);
    assert!(size_of::<State>() == 72);
    assert!(size_of::<Image>() == 88);
};
