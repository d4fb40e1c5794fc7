//! The ELF numbers the linker works with, as plain integers.

use object::elf;

pub const PT_LOAD: u32 = elf::PT_LOAD.0;
pub const PT_DYNAMIC: u32 = elf::PT_DYNAMIC.0;
pub const PT_INTERP: u32 = elf::PT_INTERP.0;
pub const PT_NOTE: u32 = elf::PT_NOTE.0;
pub const PT_PHDR: u32 = elf::PT_PHDR.0;
pub const PT_TLS: u32 = elf::PT_TLS.0;
pub const PT_GNU_EH_FRAME: u32 = elf::PT_GNU_EH_FRAME.0;
pub const PT_GNU_STACK: u32 = elf::PT_GNU_STACK.0;
pub const PT_GNU_RELRO: u32 = elf::PT_GNU_RELRO.0;
pub const PT_GNU_PROPERTY: u32 = elf::PT_GNU_PROPERTY.0;
pub const PF_X: u32 = elf::PF_X.0;
pub const PF_W: u32 = elf::PF_W.0;
pub const PF_R: u32 = elf::PF_R.0;

pub const DT_INIT: u64 = 12;
pub const DT_FINI: u64 = 13;
pub const DT_SYMBOLIC: u64 = 16;
pub const DT_DEBUG: u64 = 21;
pub const DT_TEXTREL: u64 = 22;
pub const DT_INIT_ARRAY: u64 = 25;
pub const DT_FINI_ARRAY: u64 = 26;
pub const DT_INIT_ARRAYSZ: u64 = 27;
pub const DT_FINI_ARRAYSZ: u64 = 28;
pub const DT_FLAGS: u64 = 30;
pub const DT_FLAGS_1: u64 = 0x6fff_fffb;
pub const DF_SYMBOLIC: u64 = 2;
pub const DF_TEXTREL: u64 = 4;
pub const DF_1_PIE: u64 = 0x0800_0000;

pub const R_64: u32 = 1;
pub const R_COPY: u32 = 5;
pub const R_GLOB_DAT: u32 = 6;
pub const R_JUMP_SLOT: u32 = 7;
pub const R_RELATIVE: u32 = 8;
pub const R_DTPMOD64: u32 = 16;
pub const R_DTPOFF64: u32 = 17;
pub const R_TPOFF64: u32 = 18;
pub const R_TLSDESC: u32 = 36;
pub const R_IRELATIVE: u32 = 37;

pub const STB_LOCAL: u8 = 0;
pub const STB_GLOBAL: u8 = 1;
pub const STB_WEAK: u8 = 2;
pub const STB_UNIQUE: u8 = 10;
pub const STT_NOTYPE: u8 = 0;
pub const STT_OBJECT: u8 = 1;
pub const STT_FUNC: u8 = 2;
pub const STT_COMMON: u8 = 5;
pub const STT_TLS: u8 = 6;
pub const STT_IFUNC: u8 = 10;
pub const STV_DEFAULT: u8 = 0;
pub const STV_PROTECTED: u8 = 3;
pub const SHN_ABS: u16 = 0xfff1;

/// What a relocation type is called.
pub fn reloc_name(kind: u32) -> String {
    let name = match kind {
        R_64 => "64",
        R_COPY => "COPY",
        R_GLOB_DAT => "GLOB_DAT",
        R_JUMP_SLOT => "JUMP_SLOT",
        R_RELATIVE => "RELATIVE",
        R_DTPMOD64 => "DTPMOD64",
        R_DTPOFF64 => "DTPOFF64",
        R_TPOFF64 => "TPOFF64",
        R_TLSDESC => "TLSDESC",
        R_IRELATIVE => "IRELATIVE",
        2 => "PC32",
        10 => "32",
        11 => "32S",
        24 => "PC64",
        _ => return format!("type {kind}"),
    };
    format!("R_X86_64_{name}")
}
