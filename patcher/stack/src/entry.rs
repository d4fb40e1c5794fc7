//! Threads that wait in an entry of ours ([`suture_abi::doorbell`]) for the rest of an interrupted call.
//!
//! The entry has no call frame information, and below it lies its frame, in which the program's registers are.
//! A walk begins where the thread will go on; a scan sees the frame like everything else.

use std::mem::offset_of;
use suture_abi::doorbell::{Frame, RED_ZONE, WAITS};
use suture_elf::{Addr, Memory};
use suture_unwind::{Register, Registers};

/// The registers with which a thread goes on that is asleep in an entry, waiting for the rest of its call;
/// those of any other thread as they are.
#[must_use]
pub fn beneath(registers: Registers, memory: &dyn Memory) -> Registers {
    let saved = |pc: u64, sp: u64| {
        let mut code = [0; WAITS.len()];
        memory.read(Addr(pc.checked_sub(code.len() as u64)?), &mut code).ok()?;
        let word = |offset: usize| memory.read_u64(Addr(sp.checked_add(offset as u64)?)).ok();
        let below = (size_of::<Frame>() as u64).checked_add(RED_ZONE)?.checked_add(sp)?;
        let pairs = [
            (Register::RBX, offset_of!(Frame, rbx)),
            (Register::RBP, offset_of!(Frame, rbp)),
            (Register(12), offset_of!(Frame, r12)),
            (Register(13), offset_of!(Frame, r13)),
            (Register(14), offset_of!(Frame, r14)),
            (Register(15), offset_of!(Frame, r15)),
        ];
        let start = Registers::from_pc_sp(word(offset_of!(Frame, rip))?, below);
        let known = |registers: Registers, (register, at): (Register, usize)| {
            word(at).map_or(registers, |value| registers.with(register, value))
        };
        (code == WAITS).then(|| pairs.into_iter().fold(start, known))
    };
    registers.pc().zip(registers.sp()).and_then(|(pc, sp)| saved(pc, sp)).unwrap_or(registers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use suture_unwind::StackCopy;

    #[test]
    fn a_thread_that_waits_in_an_entry_is_walked_from_its_call() {
        let frame = 0x40;
        let mut page = vec![0; 0x200];
        page[0x10..0x10 + WAITS.len()].copy_from_slice(&WAITS);
        for (offset, word) in [
            (offset_of!(Frame, rip), 0x4444u64),
            (offset_of!(Frame, rbp), 0x55),
            (offset_of!(Frame, r12), 0x66),
        ] {
            page[frame + offset..frame + offset + 8].copy_from_slice(&word.to_le_bytes());
        }
        let pc = 0x1010 + WAITS.len() as u64;
        let stack = StackCopy::new(0x1000, &page);
        let at = |pc| beneath(Registers::from_pc_sp(pc, 0x1040), &stack);
        let sp = 0x1040 + size_of::<Frame>() as u64 + RED_ZONE;
        assert_eq!((at(pc).pc(), at(pc).sp()), (Some(0x4444), Some(sp)));
        assert_eq!((at(pc).get(Register::RBP), at(pc).get(Register(12))), (Some(0x55), Some(0x66)));
        assert_eq!(at(pc - 1), Registers::from_pc_sp(pc - 1, 0x1040), "anywhere else");
    }
}
