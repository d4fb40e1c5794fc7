//! Places in objects that a walk has to recognise, found by what the code does: stripped files name
//! none of them.

use crate::module::Module;
use iced_x86::{Code, Decoder, DecoderOptions, Instruction, OpKind, Register};
use std::ops::Range;
use suture_elf::{DynamicTables, ObjectFile, Vaddr};

/// What is known of one object.
#[derive(Debug, Default)]
pub(crate) struct Facts {
    /// Where functions of `makecontext` return to.
    pub start_context: Option<Range<Vaddr>>,
    /// `main` of an executable.
    pub main: Option<Vaddr>,
    /// `e_entry`: `_start` of an executable or of the loader.
    pub entry: Option<Vaddr>,
}

impl Facts {
    pub fn of(module: &Module) -> Self {
        let Some(file) = module.file() else { return Self::default() };
        // By the hash table of the loader: reading all symbols takes a hundred times longer.
        let makecontext = exported(file, "makecontext");
        let entry = Some(file.entry()).filter(|e| module.code_from(*e).is_some());
        Self {
            start_context: makecontext.and_then(|at| start_context(module, at)),
            main: entry.and_then(|at| main(module, at)),
            entry,
        }
    }
}

fn exported(file: &ObjectFile, name: &str) -> Option<Vaddr> {
    let tables = DynamicTables::new(file).ok()?;
    tables.named(name).first().filter(|s| s.section != 0).map(|s| Vaddr(s.value))
}

/// Instructions from an address on, as far as they can be decoded.
pub(crate) fn decode(module: &Module, at: Vaddr, most: usize) -> impl Iterator<Item = Instruction> {
    let bytes = module.code_from(at).unwrap_or_default();
    let bytes = bytes.get(..bytes.len().min(15 * most)).unwrap_or_default();
    let decoder = Decoder::with_ip(64, bytes, at.0, DecoderOptions::NONE);
    decoder.into_iter().take(most).take_while(|i| !i.is_invalid())
}

/// `makecontext` puts one code address on the new stack: that of the code behind the function.
fn start_context(module: &Module, makecontext: Vaddr) -> Option<Range<Vaddr>> {
    let frame = module.fde(makecontext)?;
    let end = frame.fde.end_address();
    let code = decode(module, makecontext, 512).take_while(|i| i.ip() < end);
    let mut addresses = code.filter(|i| i.code() == Code::Lea_r64_m && i.is_ip_rel_memory_operand());
    let start = addresses.find_map(|i| {
        let target = Vaddr(i.ip_rel_memory_address());
        module.code_from(target).is_some().then_some(target)
    })?;
    let end = module.fde(start).map_or(start + 1, |f| Vaddr(f.fde.end_address()));
    Some(start..end)
}

/// `_start` passes `main` as the first argument of `__libc_start_main`.
fn main(module: &Module, entry: Vaddr) -> Option<Vaddr> {
    let mut code = decode(module, entry, 24);
    let rdi = code.find(|i| {
        let register = i.op0_kind() == OpKind::Register && i.op0_register().full_register() == Register::RDI;
        register && matches!(i.mnemonic(), iced_x86::Mnemonic::Lea | iced_x86::Mnemonic::Mov)
    })?;
    let target = match rdi.code() {
        Code::Lea_r64_m if rdi.is_ip_rel_memory_operand() => rdi.ip_rel_memory_address(),
        // From the GOT: a relative relocation, whose addend the linker also wrote there or not.
        Code::Mov_r64_rm64 if rdi.is_ip_rel_memory_operand() => pointer(module, rdi.ip_rel_memory_address())?,
        Code::Mov_r64_imm64 | Code::Mov_rm64_imm32 | Code::Mov_r32_imm32 => rdi.immediate(1),
        _ => return None,
    };
    module.code_from(Vaddr(target)).map(|_| Vaddr(target))
}

/// What the loader writes at `place`.
fn pointer(module: &Module, place: u64) -> Option<u64> {
    const R_X86_64_RELATIVE: u32 = 8;
    const R_X86_64_GLOB_DAT: u32 = 6;
    let tables = DynamicTables::new(module.file()?).ok()?;
    let relocations = tables.relocations().ok()?;
    let found = relocations.iter().find(|r| r.place.0 == place);
    match found {
        Some(r) if r.kind == R_X86_64_RELATIVE => Some(r.addend.cast_unsigned()),
        Some(r) if r.kind == R_X86_64_GLOB_DAT => {
            tables.symbol(r.symbol).filter(|s| s.section != 0).map(|s| s.value)
        }
        Some(_) => None,
        None => module.bytes_from(Vaddr(place))?.first_chunk().copied().map(u64::from_le_bytes),
    }
}

/// Whether the instruction that ends at `at` is a call: what a return address follows.
///
/// Instructions cannot be decoded backwards, so every length that a call can have is tried. Bytes in
/// front may by chance look like one; that the walk then goes wrong would need a wrong frame as well.
pub(crate) fn follows_call(module: &Module, at: Vaddr) -> bool {
    (2..=9).any(|length| {
        let start = Vaddr(at.0.wrapping_sub(length));
        let insn = decode(module, start, 1).next();
        insn.is_some_and(|i| i.next_ip() == at.0 && (i.is_call_near() || i.is_call_near_indirect()))
    })
}

/// Whether the code at a return address ends the thread: how the C library's `clone` goes on when the
/// thread's function returns.
pub(crate) fn exits_thread(module: &Module, at: Vaddr) -> bool {
    const SYS_EXIT: u64 = 60;
    let mut number = None;
    for insn in decode(module, at, 4) {
        match insn.code() {
            Code::Syscall => return number == Some(SYS_EXIT),
            Code::Mov_r32_imm32 | Code::Mov_r8_imm8 | Code::Mov_rm64_imm32
                if insn.op0_register().full_register() == Register::RAX =>
            {
                number = Some(insn.immediate(1));
            }
            _ => {}
        }
    }
    false
}
