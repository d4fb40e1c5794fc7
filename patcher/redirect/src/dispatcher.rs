//! The code a slot leads to while a transition runs.
//!
//! One dispatcher per site, emitted with the site, never changed. It runs at the entry of the function, on
//! whatever thread calls it, in a signal handler too, and must leave no trace but the count of the pass:
//! every register is preserved (callers compiled with `-fipa-ra` keep values in any of them), flags are
//! dead at an entry (checked by the planner). The stack below `rsp` belongs to the callee.
//!
//! ```text
//! push r11; push r10
//! again:  r11 = directory[thread id / RECORDS_PER_CHUNK], to the slow path if there is none
//! lock add dword [record.passes], 1        first the pass,
//! passes - [record.look_at] < 0 ?          else the thread looks at its own stack
//! side = [record.side]                     then the side: see the runtime's record.rs
//! choice = [choice word]                   one load: a choice is immutable
//! [rsp - 8] = side == choice.id ? choice.switched : choice.unswitched
//! pop r10; pop r11
//! jmp [rsp - 24]                           the same word
//! ```
//!
//! The target goes through the red zone, which signal handlers leave alone (System V psABI 3.2.2), because
//! no register is free for it. A `ret` would do the same at the price of a mispredicted return, and breaks
//! shadow stacks.

use dynasmrt::{DynasmApi, DynasmLabelApi, VecAssembler, dynasm, x64::X64Relocation};
use suture_abi::dispatch::{CHUNKS, Constants, RECORDS_PER_CHUNK};
use suture_elf::Addr;

/// The dispatcher of a site, for the address `at`. `None` = its choice word is out of reach.
#[must_use]
pub fn dispatcher(at: Addr, choice: Addr, of: &Constants) -> Option<Vec<u8>> {
    // Numbers that turn a thread id into the offset of its chunk's entry, and into that of its record.
    let to_entry = RECORDS_PER_CHUNK.trailing_zeros() as i8 - 3;
    let entries = (CHUNKS as i32 - 1) << 3;
    let in_chunk = RECORDS_PER_CHUNK as i32 - 1;
    let thread_id = i32::try_from(of.thread_id).ok()?;
    let [directory, slow_path, self_look] = [of.directory, of.slow_path, of.self_look].map(u64::cast_signed);
    let mut ops = VecAssembler::<X64Relocation>::new(at.0 as usize);
    // The choice word is data of the arena, at a distance from here; the assembler knows labels only.
    let load_choice = |ops: &mut VecAssembler<X64Relocation>| {
        // mov r10, [rip + distance]: seven bytes.
        let behind = at.0 + ops.offset().0 as u64 + 7;
        let distance = i32::try_from(choice.0.wrapping_sub(behind).cast_signed()).ok()?;
        dynasm!(ops ; .arch x64 ; mov r10, QWORD [rip + distance]);
        Some(())
    };
    dynasm!(ops
        ; .arch x64
        ; push r11
        ; push r10
        ;again:
        // mov r10d, fs:[thread_id]
        ; .bytes [0x64u8, 0x44, 0x8b, 0x14, 0x25]
        ; .i32 thread_id
        ; mov r11d, r10d
        ; shr r11d, to_entry
        ; and r11d, entries
        ; add r11, [>directory]
        ; mov r11, [r11]
        ; test r11, r11
        ; jz >slow
        ; and r10d, in_chunk
        ; shl r10d, 6
        ; add r11, r10
        ; lock add DWORD [r11 + 4], 1
        ; mov r10d, [r11 + 4]
        ; sub r10d, [r11 + 8]
        ; jns >look
        ;decide:
        ; mov r11d, [r11]
    );
    load_choice(&mut ops)?;
    dynasm!(ops
        ; .arch x64
        ; cmp r11d, [r10]
        ; je >switched
        ; mov r11, [r10 + 16]
        ; mov [rsp - 8], r11
        ; pop r10
        ; pop r11
        ; jmp QWORD [rsp - 24]
        ;switched:
        ; mov r11, [r10 + 8]
        ; mov [rsp - 8], r11
        ; pop r10
        ; pop r11
        ; jmp QWORD [rsp - 24]
        ;look:
        ; lea r10, [<decide]
        ; jmp QWORD [>self_look]
        ;slow:
        ; lea r10, [<again]
        ; jmp QWORD [>slow_path]
        ; .align 8
        ;directory:
        ; .i64 directory
        ;slow_path:
        ; .i64 slow_path
        ;self_look:
        ; .i64 self_look
    );
    ops.finalize().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::{Decoder, DecoderOptions, Mnemonic};

    #[test]
    fn it_saves_two_registers_and_reaches_its_words() {
        let of = Constants {
            directory: 0x1122_3344_5566,
            slow_path: 0x66_7788_99aa,
            self_look: 0x77_8899_aabb,
            thread_id: 0x2d0,
        };
        let code = dispatcher(Addr(0x7000_0000), Addr(0x7000_1008), &of).unwrap();
        assert!(code.len() <= 192, "{}", code.len());
        let mut decoder = Decoder::with_ip(64, &code, 0x7000_0000, DecoderOptions::NONE);
        let instructions: Vec<_> = decoder.iter().collect();
        let word = |i: &iced_x86::Instruction| {
            let at = (i.memory_displacement64() - 0x7000_0000) as usize;
            code.get(at..at + 8).map(|b| u64::from_le_bytes(b.try_into().unwrap()))
        };
        let near =
            |m: Mnemonic| instructions.iter().find(|i| i.mnemonic() == m && i.is_ip_rel_memory_operand());
        assert_eq!(near(Mnemonic::Add).and_then(word), Some(of.directory));
        let jumps =
            instructions.iter().filter(|i| i.mnemonic() == Mnemonic::Jmp && i.is_ip_rel_memory_operand());
        assert_eq!(jumps.filter_map(word).collect::<Vec<_>>(), [of.self_look, of.slow_path]);
        assert_eq!(near(Mnemonic::Mov).map(|i| i.memory_displacement64()), Some(0x7000_1008));
        let thread_id = instructions.iter().find(|i| i.segment_prefix() == iced_x86::Register::FS).unwrap();
        assert_eq!(thread_id.memory_displacement64(), 0x2d0);
        assert!(instructions.iter().any(|i| i.has_lock_prefix()));
        assert!(dispatcher(Addr(0x1000), Addr(0x2_0000_0000), &of).is_none());
    }
}
