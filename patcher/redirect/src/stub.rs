//! Bytes of stubs and jumps.
//!
//! A stub runs between the caller and the function, so it preserves every register and flag: `pop`
//! and `lea` undo the prologue, the jump takes its target from the slot.

use crate::window::Undo;
use dynasmrt::{DynasmApi, VecAssembler, dynasm, x64::X64Relocation};
use suture_elf::Addr;

/// Longest jump a punned page holds.
pub(crate) const SLOT_JUMP: u64 = 6;

// The macro converts register numbers with `into`, whatever type they have.
#[allow(clippy::useless_conversion)]
/// Undoes the prologue steps and jumps to where the slot says. `None` = the slot is out of reach.
pub(crate) fn stub(undo: &[Undo], at: Addr, slot: Addr) -> Option<Vec<u8>> {
    let mut ops = VecAssembler::<X64Relocation>::new(at.0 as usize);
    for step in undo.iter().rev() {
        match *step {
            Undo::Pop(register) => dynasm!(ops ; .arch x64 ; pop Rq(register)),
            Undo::Add(n) => dynasm!(ops ; .arch x64 ; lea rsp, [rsp + n]),
        }
    }
    let end = at + ops.offset().0 as u64 + SLOT_JUMP;
    let distance = displacement(end, slot)?;
    dynasm!(ops ; .arch x64 ; jmp QWORD [rip + distance]);
    ops.finalize().ok()
}

/// `jmp rel32` at `at`. `None` = out of reach.
pub(crate) fn jump(at: Addr, to: Addr) -> Option<[u8; 5]> {
    let [a, b, c, d] = displacement(at + 5, to)?.to_le_bytes();
    Some([0xe9, a, b, c, d])
}

fn displacement(from: Addr, to: Addr) -> Option<i32> {
    i32::try_from(to.0.wrapping_sub(from.0).cast_signed()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn undo_is_the_prologue_backwards() {
        // push rbp; push r12; sub rsp,0x188
        let undo = [Undo::Pop(5), Undo::Pop(12), Undo::Add(0x188)];
        let bytes = stub(&undo, Addr(0x1000), Addr(0x2000)).unwrap();
        let expected = [
            0x48, 0x8d, 0xa4, 0x24, 0x88, 0x01, 0x00, 0x00, // lea rsp,[rsp+0x188]
            0x41, 0x5c, // pop r12
            0x40, 0x5d, // pop rbp
            0xff, 0x25, 0xee, 0x0f, 0x00, 0x00, // jmp [rip+..]
        ];
        assert_eq!(bytes, expected);
        let plain = stub(&[], Addr(0x1000), Addr(0x2000)).unwrap();
        assert_eq!(plain.len() as u64, SLOT_JUMP);
    }

    #[test]
    fn reach_ends_at_two_gib() {
        assert!(stub(&[], Addr(0x1000), Addr(0x1_0000_0000)).is_none());
        assert_eq!(jump(Addr(0x1000), Addr(0x1005)), Some([0xe9, 0, 0, 0, 0]));
        assert_eq!(jump(Addr(0x9000_0000), Addr(0x9000_0004 - 0x8000_0000)), None);
        assert!(jump(Addr(0x9000_0000), Addr(0x9000_0005 - 0x8000_0000)).is_some());
    }
}
