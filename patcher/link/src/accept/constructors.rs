//! Code that a loader would run by itself.
//!
//! Every shared object linked with the compiler's start files has some: `_init`, `frame_dummy`, and
//! `__do_global_dtors_aux`. They do nothing that matters to a patch and are not run. Anything more
//! is program code, and a patch that silently lacked it would be wrong.

use super::AcceptError;
use crate::elf;
use crate::image::{PatchFile, Word};
use suture_elf::Vaddr;

pub(super) fn check(patch: &PatchFile) -> Result<(), AcceptError> {
    let value = |tag| patch.file().dynamic_value(tag);
    if let Some(init) = value(elf::DT_INIT).filter(|&init| init != 0)
        && !is_start_file_init(patch, Vaddr(init))
    {
        return Err(AcceptError::Constructor { what: format!("_init at {}", Vaddr(init)) });
    }
    if let Some(fini) = value(elf::DT_FINI).filter(|&fini| fini != 0)
        && !is_start_file_fini(patch, Vaddr(fini))
    {
        return Err(AcceptError::Destructor { what: format!("_fini at {}", Vaddr(fini)) });
    }
    for func in array(patch, elf::DT_INIT_ARRAY, elf::DT_INIT_ARRAYSZ)? {
        if !is_frame_dummy(patch, func) {
            return Err(AcceptError::Constructor { what: label(patch, func) });
        }
    }
    for func in array(patch, elf::DT_FINI_ARRAY, elf::DT_FINI_ARRAYSZ)? {
        if !is_do_global_dtors(patch, func) {
            return Err(AcceptError::Destructor { what: label(patch, func) });
        }
    }
    Ok(())
}

fn label(patch: &PatchFile, func: Vaddr) -> String {
    let symbol = patch.file().symbols().at(func).next();
    symbol.map_or_else(|| format!("a function at {func}"), |s| suture_elf::demangle(s.name))
}

/// Entries of an array of functions; null entries are skipped, as the loader's are.
fn array(patch: &PatchFile, tag: u64, size: u64) -> Result<Vec<Vaddr>, AcceptError> {
    let value = |tag| patch.file().dynamic_value(tag);
    let (Some(start), Some(size)) = (value(tag), value(size)) else { return Ok(Vec::new()) };
    let mut funcs = Vec::new();
    for at in (0..size.min(1 << 20)).step_by(8) {
        match patch.word(Vaddr(start) + at) {
            Some(Word::Plain(0)) => {}
            Some(Word::Own(func)) => funcs.push(func),
            _ => {
                let what = format!("an array of constructors at {}", Vaddr(start));
                return Err(AcceptError::Damaged { what });
            }
        }
    }
    Ok(funcs)
}

/// Code at an address, behind an `endbr64` if there is one.
fn code(patch: &PatchFile, addr: Vaddr) -> Option<(Vaddr, [u8; 32])> {
    let at = if patch.bytes::<4>(addr)? == [0xf3, 0x0f, 0x1e, 0xfa] { addr + 4 } else { addr };
    // Fewer bytes may be left in the segment than asked for.
    let bytes = (0..32).map(|i| patch.bytes::<1>(at + i).map_or(0, |b| b[0]));
    let mut window = [0; 32];
    bytes.zip(&mut window).for_each(|(b, to)| *to = b);
    Some((at, window))
}

/// ```text
/// sub $8,%rsp; mov __gmon_start__@GOT(%rip),%rax; test %rax,%rax; je 1f; call *%rax; 1: add $8,%rsp; ret
/// ```
fn is_start_file_init(patch: &PatchFile, addr: Vaddr) -> bool {
    code(patch, addr).is_some_and(|(_, c)| {
        c[..7] == [0x48, 0x83, 0xec, 0x08, 0x48, 0x8b, 0x05]
            && c[11..23] == [0x48, 0x85, 0xc0, 0x74, 0x02, 0xff, 0xd0, 0x48, 0x83, 0xc4, 0x08, 0xc3]
    })
}

/// ```text
/// sub $8,%rsp; add $8,%rsp; ret
/// ```
fn is_start_file_fini(patch: &PatchFile, addr: Vaddr) -> bool {
    code(patch, addr).is_some_and(|(_, c)| c[..9] == [0x48, 0x83, 0xec, 0x08, 0x48, 0x83, 0xc4, 0x08, 0xc3])
}

/// A jump to `register_tm_clones`, which starts with two address loads:
/// ```text
/// frame_dummy: jmp register_tm_clones        register_tm_clones: lea a(%rip),%rdi; lea b(%rip),%rsi
/// ```
fn is_frame_dummy(patch: &PatchFile, addr: Vaddr) -> bool {
    let Some((at, c)) = code(patch, addr) else { return false };
    let (next, displacement) = match c[0] {
        0xe9 => (5, i64::from(i32::from_le_bytes([c[1], c[2], c[3], c[4]]))),
        0xeb => (2, i64::from(c[1].cast_signed())),
        _ => return false,
    };
    let target = Vaddr(at.0.wrapping_add(next).wrapping_add_signed(displacement));
    code(patch, target).is_some_and(|(_, c)| c[..3] == [0x48, 0x8d, 0x3d] && c[7..10] == [0x48, 0x8d, 0x35])
}

/// ```text
/// cmpb $0,completed(%rip); jne end; push %rbp; cmpq $0,__cxa_finalize@GOT(%rip)
/// ```
fn is_do_global_dtors(patch: &PatchFile, addr: Vaddr) -> bool {
    code(patch, addr)
        .is_some_and(|(_, c)| c[..2] == [0x80, 0x3d] && c[6] == 0 && [0x75, 0x0f].contains(&c[7]))
}
