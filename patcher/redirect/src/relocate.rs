//! The copy: the old entry, callable while the entry itself is redirected.
//!
//! It holds the instructions from the entry to the end of the displaced one, encoded for where the
//! copy lies, and a jump to what follows. A call is never part of it: its return address would lie
//! in the copy, where no unwinder finds anything.

use crate::Refusal;
use crate::function::is_terminal;
use iced_x86::{BlockEncoder, BlockEncoderOptions, Code, Instruction, InstructionBlock};
use suture_elf::{Addr, Base, Vaddr};

/// Encodes `code`, decoded at file addresses, to run at `at` for an object loaded at `base`.
pub(crate) fn copy(code: &[Instruction], base: Base, at: Addr) -> Result<Vec<u8>, Refusal> {
    let Some(last) = code.last() else { return Ok(Vec::new()) };
    let mut moved: Vec<Instruction> = code.iter().map(|insn| rebased(insn, base)).collect();
    if !is_terminal(last) {
        let next = base + Vaddr(last.next_ip());
        // Its own address is of no matter, it only must not be one that a displaced branch names.
        let mut back = Instruction::with_branch(Code::Jmp_rel32_64, next.0)
            .map_err(|_| Refusal::CopyReach { at: Vaddr(last.ip()) })?;
        back.set_ip(u64::MAX - 16);
        moved.push(back);
    }
    let block = InstructionBlock::new(&moved, at.0);
    let encoded = BlockEncoder::encode(64, block, BlockEncoderOptions::NONE)
        .map_err(|_| Refusal::CopyReach { at: Vaddr(last.ip()) })?;
    Ok(encoded.code_buffer)
}

/// The instruction as it would have been decoded in the process.
fn rebased(insn: &Instruction, base: Base) -> Instruction {
    let mut moved = *insn;
    moved.set_ip((base + Vaddr(insn.ip())).0);
    if let Some(branch) = crate::refs::direct_branch(insn) {
        moved.set_near_branch64((base + branch.target).0);
    }
    if insn.is_ip_rel_memory_operand() {
        moved.set_memory_displacement64((base + Vaddr(insn.ip_rel_memory_address())).0);
    }
    moved
}
