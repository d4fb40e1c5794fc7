//! Which patch files the linker takes: everything it knows how to do, and nothing else.
//!
//! Segment types, dynamic tags and relocation types are allow-lists. A tag that nobody here knows
//! may mean relocations in a packed format; a loader that skips it runs unrelocated code.

mod constructors;
mod unwind;

use crate::elf;
use crate::image::PatchFile;
use serde::Serialize;
use suture_abi::PATCH_SYMBOL;
use suture_elf::{ObjectFile, Type, Vaddr};
use thiserror::Error;

/// Why a patch file is not taken. Each message says what, why, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum AcceptError {
    /// An executable.
    #[error("it is an executable ({why}); link the patch with -shared")]
    Executable {
        /// How that shows.
        why: &'static str,
    },
    /// A segment type that is not on the list.
    #[error(
        "it has a segment of unknown type {kind:#x}, whose meaning cannot be honoured; link it without that"
    )]
    Segment {
        /// `PT_*`.
        kind: u32,
    },
    /// A dynamic tag that is not on the list.
    #[error(
        "it has the dynamic tag {tag:#x}, which this linker does not implement; ignoring it could run unrelocated code. Link the patch without that feature (packed relocations, filters, auditing)"
    )]
    Tag {
        /// `DT_*`.
        tag: u64,
    },
    /// A relocation type that is not on the list.
    #[error(
        "the relocation at {place} is {kind}, which cannot stand in a shared object for all targets; compile with -fPIC"
    )]
    Relocation {
        /// Where.
        place: Vaddr,
        /// Name of its type.
        kind: String,
    },
    /// Code would have to be written.
    #[error(
        "it has text relocations (at {place}): its code would have to be written to; compile every file of the patch with -fPIC"
    )]
    TextRelocation {
        /// Where, or 0 when only the flag says so.
        place: Vaddr,
    },
    /// Writable code.
    #[error(
        "the segment at {addr} is writable and executable; no page of a target ever is. Link without -z execstack, -N and custom scripts"
    )]
    WritableCode {
        /// Segment.
        addr: Vaddr,
    },
    /// An executable stack.
    #[error(
        "it asks for an executable stack; add `.section .note.GNU-stack,\"\",@progbits` to its assembly files, or compile nested functions away"
    )]
    ExecutableStack,
    /// Copy relocations.
    #[error("it has a copy relocation for `{symbol}`; compile with -fPIC and link with -shared")]
    Copy {
        /// Symbol.
        symbol: String,
    },
    /// Own thread-local storage.
    #[error(
        "it has thread-local variables of its own ({what}): threads that run already have no room for them. Use shadow variables, or a state the program already keeps per thread"
    )]
    OwnTls {
        /// How that shows.
        what: String,
    },
    /// The Rust standard library.
    #[error(
        "it contains the Rust standard library, whose thread-local variables a running process has no room for; write the patch as #![no_std] with panic = \"abort\""
    )]
    StdRust,
    /// An IFUNC of its own.
    #[error(
        "it defines an indirect function ({what}); its resolver would run before the patch is accepted. Choose the variant at build time, or call through a pointer"
    )]
    OwnIfunc {
        /// Which.
        what: String,
    },
    /// Program code that runs at load time.
    #[error(
        "it has constructors ({what}); they would be program code on a foreign thread. Initialise statically, or do it in a pre_patch callback; link with -nostartfiles"
    )]
    Constructor {
        /// Which.
        what: String,
    },
    /// Program code that runs at unload time.
    #[error(
        "it has destructors ({what}), which would never run; do it in a post_unpatch callback; link with -nostartfiles"
    )]
    Destructor {
        /// Which.
        what: String,
    },
    /// No usable unwind tables.
    #[error(
        "{what}: an exception, a cancellation or a backtrace that crosses the patch would end the program. Compile with -fasynchronous-unwind-tables and link with --eh-frame-hdr (both are the default)"
    )]
    Unwind {
        /// What is missing or wrong.
        what: String,
    },
    /// Segments that do not fit pages.
    #[error(
        "the segments at {first} and {second} share a page but not their protection; link with -z max-page-size=4096 or more"
    )]
    SharedPage {
        /// One segment.
        first: Vaddr,
        /// The other.
        second: Vaddr,
    },
    /// Unreasonable size.
    #[error("its image spans {span:#x} bytes, more than the 1 GiB a patch may have")]
    TooLarge {
        /// Bytes from the first to the last page.
        span: u64,
    },
    /// Damaged.
    #[error("it is damaged: {what}")]
    Damaged {
        /// How.
        what: String,
    },
}

/// What the author or the user allows beyond the ordinary.
#[derive(Clone, Copy, Debug, Default)]
pub struct AcceptOptions {
    /// New functions without unwind tables are taken (hand-written assembly).
    pub without_unwind_tables: bool,
}

/// What acceptance found out about a patch that is taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Acceptance {
    /// Imports by which the patch leaves its own addresses behind in the program (handlers, thread
    /// start functions): such a patch is never unmapped.
    pub pinned: Vec<String>,
    /// Strong definitions it exports besides the descriptor; refused where the process has them too.
    pub exported: Vec<String>,
    /// Address of `.eh_frame_hdr`, if there is one.
    #[serde(serialize_with = "crate::vaddr_option")]
    pub eh_frame_hdr: Option<Vaddr>,
}

/// Bytes from the first to the last page an image may have.
const MAX_SPAN: u64 = 1 << 30;

const SEGMENTS: [u32; 9] = [
    0,
    elf::PT_LOAD,
    elf::PT_DYNAMIC,
    elf::PT_NOTE,
    elf::PT_PHDR,
    elf::PT_GNU_EH_FRAME,
    elf::PT_GNU_STACK,
    elf::PT_GNU_RELRO,
    elf::PT_GNU_PROPERTY,
];

/// Tags that are implemented, or say nothing that matters here.
const TAGS: [u64; 43] = [
    1,           // NEEDED
    2,           // PLTRELSZ
    3,           // PLTGOT
    4,           // HASH
    5,           // STRTAB
    6,           // SYMTAB
    7,           // RELA
    8,           // RELASZ
    9,           // RELAENT
    10,          // STRSZ
    11,          // SYMENT
    12,          // INIT, see `constructors`
    13,          // FINI
    14,          // SONAME
    15,          // RPATH: no library is loaded
    16,          // SYMBOLIC
    20,          // PLTREL, checked by the reader of relocations
    21,          // DEBUG
    23,          // JMPREL
    24,          // BIND_NOW: always
    25,          // INIT_ARRAY
    26,          // FINI_ARRAY
    27,          // INIT_ARRAYSZ
    28,          // FINI_ARRAYSZ
    29,          // RUNPATH
    30,          // FLAGS, see below
    35,          // RELRSZ
    36,          // RELR
    37,          // RELRENT
    0x6fff_fef5, // GNU_HASH
    0x6fff_fef6, // TLSDESC_PLT: descriptors are filled at once
    0x6fff_fef7, // TLSDESC_GOT
    0x6fff_fff0, // VERSYM
    0x6fff_fff9, // RELACOUNT
    0x6fff_fffa, // RELCOUNT
    0x6fff_fffb, // FLAGS_1, see below
    0x6fff_fffc, // VERDEF
    0x6fff_fffd, // VERDEFNUM
    0x6fff_fffe, // VERNEED
    0x6fff_ffff, // VERNEEDNUM
    0x7000_0000, // X86_64_PLT: where the PLT is, for tools
    0x7000_0001, // X86_64_PLTSZ
    0x7000_0003, // X86_64_PLTENT
];

const RELOCATIONS: [u32; 8] = [
    elf::R_64,
    elf::R_GLOB_DAT,
    elf::R_JUMP_SLOT,
    elf::R_RELATIVE,
    elf::R_DTPMOD64,
    elf::R_DTPOFF64,
    elf::R_TPOFF64,
    elf::R_TLSDESC,
];

/// Imports that hand addresses of the patch to the program for later.
const PINNING: [&str; 14] = [
    "atexit",
    "at_quick_exit",
    "on_exit",
    "__cxa_atexit",
    "__cxa_at_quick_exit",
    "__cxa_thread_atexit",
    "__cxa_thread_atexit_impl",
    "__register_atfork",
    "pthread_atfork",
    "pthread_key_create",
    "pthread_create",
    "sigaction",
    "signal",
    "makecontext",
];

/// Checks a patch file against the allow-lists.
///
/// # Errors
/// The first thing that is not allowed.
pub fn check(patch: &PatchFile, options: AcceptOptions) -> Result<Acceptance, AcceptError> {
    let file = patch.file();
    check_kind(file)?;
    check_rust(file)?;
    check_segments(file)?;
    check_tags(file)?;
    check_relocations(patch)?;
    constructors::check(patch)?;
    let eh_frame_hdr = unwind::check(file, options)?;
    let imports = patch.tables().symbols().filter(|s| s.section == 0);
    let pinned = imports.filter(|s| PINNING.contains(&s.name)).map(|s| s.name.to_owned()).collect();
    let mut exported = Vec::new();
    for symbol in patch.tables().symbols().filter(|s| s.section != 0) {
        if symbol.kind == elf::STT_IFUNC {
            return Err(AcceptError::OwnIfunc { what: symbol.name.to_owned() });
        }
        let visible = [elf::STV_DEFAULT, elf::STV_PROTECTED].contains(&symbol.visibility);
        if symbol.binding == elf::STB_GLOBAL && visible && symbol.name != PATCH_SYMBOL {
            exported.push(symbol.name.to_owned());
        }
    }
    Ok(Acceptance { pinned, exported, eh_frame_hdr })
}

fn check_kind(file: &ObjectFile) -> Result<(), AcceptError> {
    if file.kind() == Type::Exec {
        return Err(AcceptError::Executable { why: "it loads at a fixed address" });
    }
    if file.program_header(elf::PT_INTERP).is_some() {
        return Err(AcceptError::Executable { why: "it names a program interpreter" });
    }
    if file.dynamic_value(elf::DT_FLAGS_1).unwrap_or(0) & elf::DF_1_PIE != 0 {
        return Err(AcceptError::Executable { why: "it is linked with -pie" });
    }
    Ok(())
}

/// Tells the standard library of Rust from `core` and `alloc` by names only it has. Comes before the
/// check for thread-local storage, which would be true but not help the author.
fn check_rust(file: &ObjectFile) -> Result<(), AcceptError> {
    let std = |name: &str| name.starts_with("_ZN3std2rt") || name.starts_with("_ZN3std9panicking");
    let v0 = |name: &str| name.starts_with("_RN") && name.contains("3std9panicking");
    if file.symbols().all().any(|s| std(s.name) || v0(s.name)) {
        return Err(AcceptError::StdRust);
    }
    Ok(())
}

fn check_segments(file: &ObjectFile) -> Result<(), AcceptError> {
    for &(kind, segment) in file.program_headers() {
        match kind {
            elf::PT_TLS if segment.memsz > 0 => {
                return Err(AcceptError::OwnTls { what: format!("{} bytes per thread", segment.memsz) });
            }
            elf::PT_GNU_STACK if segment.flags & elf::PF_X != 0 => return Err(AcceptError::ExecutableStack),
            elf::PT_LOAD if segment.flags & elf::PF_W != 0 && segment.flags & elf::PF_X != 0 => {
                return Err(AcceptError::WritableCode { addr: segment.addr });
            }
            elf::PT_TLS => {}
            kind if !SEGMENTS.contains(&kind) => return Err(AcceptError::Segment { kind }),
            _ => {}
        }
    }
    let segments = file.segments();
    for pair in segments.windows(2) {
        let first_end = pair[0].addr.0 + pair[0].memsz;
        if pair[1].addr.0 < first_end {
            let what = format!("the segments at {} and {} overlap", pair[0].addr, pair[1].addr);
            return Err(AcceptError::Damaged { what });
        }
        let same_page = first_end > pair[1].addr.0 & !0xfff;
        if same_page && pair[0].memsz > 0 && pair[1].memsz > 0 {
            return Err(AcceptError::SharedPage { first: pair[0].addr, second: pair[1].addr });
        }
    }
    let first = segments.first().map_or(0, |s| s.addr.0 & !0xfff);
    let end = segments.last().map_or(0, |s| s.addr.0 + s.memsz);
    let span = end.saturating_sub(first);
    if span > MAX_SPAN {
        return Err(AcceptError::TooLarge { span });
    }
    Ok(())
}

fn check_tags(file: &ObjectFile) -> Result<(), AcceptError> {
    let text_flag = file.dynamic_value(elf::DT_FLAGS).unwrap_or(0) & elf::DF_TEXTREL != 0;
    if text_flag || file.dynamic_value(elf::DT_TEXTREL).is_some() {
        return Err(AcceptError::TextRelocation { place: Vaddr(0) });
    }
    match file.dynamic().iter().find(|(tag, _)| !TAGS.contains(tag)) {
        Some(&(tag, _)) => Err(AcceptError::Tag { tag }),
        None => Ok(()),
    }
}

fn check_relocations(patch: &PatchFile) -> Result<(), AcceptError> {
    for reloc in patch.relocs() {
        let symbol = patch.tables().symbol(reloc.symbol);
        let name = symbol.map_or("", |s| s.name).to_owned();
        if !patch.segment_at(reloc.place).is_some_and(suture_elf::Segment::writable) {
            return Err(AcceptError::TextRelocation { place: reloc.place });
        }
        let tls = [elf::R_DTPMOD64, elf::R_DTPOFF64, elf::R_TPOFF64, elf::R_TLSDESC].contains(&reloc.kind);
        match reloc.kind {
            elf::R_COPY => return Err(AcceptError::Copy { symbol: name }),
            elf::R_IRELATIVE => {
                return Err(AcceptError::OwnIfunc { what: format!("resolved at {}", reloc.place) });
            }
            kind if !RELOCATIONS.contains(&kind) => {
                let kind = elf::reloc_name(kind);
                return Err(AcceptError::Relocation { place: reloc.place, kind });
            }
            _ if tls && symbol.is_none_or(|s| s.index == 0 || s.section != 0) => {
                let what = if name.is_empty() { "a local one".to_owned() } else { format!("`{name}`") };
                return Err(AcceptError::OwnTls { what });
            }
            _ if reloc.place.0 % 8 != 0 => {
                let what = format!("the relocation at {} is not aligned", reloc.place);
                return Err(AcceptError::Damaged { what });
            }
            elf::R_RELATIVE => check_relative(patch, Vaddr(reloc.addend.cast_unsigned()), reloc.place)?,
            _ => {}
        }
    }
    Ok(())
}

/// A pointer of the image to itself must stay inside, one past the end allowed.
fn check_relative(patch: &PatchFile, to: Vaddr, place: Vaddr) -> Result<(), AcceptError> {
    let end = patch.file().segments().iter().map(|s| s.addr.0 + s.memsz).max().unwrap_or(0);
    if to.0 <= end {
        return Ok(());
    }
    let what = format!("the relocation at {place} points to {to}, outside the patch");
    Err(AcceptError::Damaged { what })
}
