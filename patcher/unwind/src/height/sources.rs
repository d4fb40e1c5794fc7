//! The functions that a range is a part of: it jumps into them, or they into it.

use super::flow::{Rows, is_call, near_target};
use crate::module::Module;
use iced_x86::{Decoder, DecoderOptions, Instruction};
use std::ops::Range;
use suture_elf::Vaddr;

/// Unwind ranges that a range jumps into where they have made a frame.
pub(super) fn jumps_out_of(module: &Module, rows: &Rows<'_>, from: &Range<Vaddr>) -> Vec<Range<Vaddr>> {
    let mut found: Vec<Range<Vaddr>> = Vec::new();
    for insn in code(module, from).filter(|insn| !is_call(insn)) {
        let Some(target) = near_target(&insn).filter(|t| !from.contains(t)) else { continue };
        if let Some(frame) = rows.frame_at(target).filter(|_| !rows.is_entered_by_call(target)) {
            let range = &frame.stretches.frame;
            if !found.contains(range) {
                found.push(range.clone());
            }
        }
    }
    found
}

/// Unwind ranges with a direct jump into another one. Looks through all code of the object for the
/// displacement that such a jump would have (3 ms for the 15 MB of mariadbd).
pub(super) fn jumps_into(module: &Module, rows: &Rows<'_>, into: &Range<Vaddr>) -> Vec<Range<Vaddr>> {
    let mut found: Vec<Range<Vaddr>> = Vec::new();
    for (addr, bytes) in module.code() {
        displacements(bytes, addr.0, &(into.start.0..into.end.0), |offset, target| {
            let end = addr + (offset as u64 + 4);
            let before = |n: usize| offset.checked_sub(n).map_or(0, |at| bytes[at]);
            let jump = before(1) == 0xe9 || before(2) == 0x0f && before(1) & 0xf0 == 0x80;
            if !jump || into.contains(&end) {
                return;
            }
            let Some(frame) = rows.frame_at(Vaddr(end.0 - 5)) else { return };
            let range = frame.stretches.frame.clone();
            if !found.contains(&range) && has_jump(module, &range, end, Vaddr(target)) {
                found.push(range);
            }
        });
    }
    found
}

/// Calls `hit(offset, target)` for every offset whose 32-bit word, taken as a displacement from the
/// end of the word, leads into the range.
fn displacements(bytes: &[u8], addr: u64, into: &Range<u64>, mut hit: impl FnMut(usize, u64)) {
    const BLOCK: usize = 64;
    let Ok(span) = u32::try_from(into.end - into.start) else { return };
    // Modulo 2^32, so that blocks are passed over with vector instructions; checked again below.
    let origin = addr.wrapping_add(4).wrapping_sub(into.start) as u32;
    let word =
        |at: usize| bytes.get(at..at + 4).and_then(|w| w.first_chunk()).map(|w| u32::from_le_bytes(*w));
    for at in (0..bytes.len()).step_by(BLOCK) {
        let from = origin.wrapping_add(at as u32);
        let near = match bytes.get(at..at + BLOCK + 3) {
            Some(block) => {
                let mut near = false;
                for i in 0..BLOCK {
                    let word = u32::from_le_bytes([block[i], block[i + 1], block[i + 2], block[i + 3]]);
                    near |= word.wrapping_add(from.wrapping_add(i as u32)) < span;
                }
                near
            }
            None => true,
        };
        if !near {
            continue;
        }
        for offset in at..at + BLOCK {
            let Some(word) = word(offset) else { break };
            let end = addr + offset as u64 + 4;
            let target = end.wrapping_add_signed(i64::from(word.cast_signed()));
            if into.contains(&target) {
                hit(offset, target);
            }
        }
    }
}

/// Whether a range has the jump as an instruction, and not only bytes that look like it.
fn has_jump(module: &Module, range: &Range<Vaddr>, end: Vaddr, target: Vaddr) -> bool {
    let mut code = code(module, range).take_while(|i| i.ip() < end.0);
    code.any(|i| i.next_ip() == end.0 && near_target(&i) == Some(target) && !is_call(&i))
}

/// The instructions of a range one after the other.
fn code(module: &Module, range: &Range<Vaddr>) -> impl Iterator<Item = Instruction> {
    let length = usize::try_from(range.end.0 - range.start.0).unwrap_or(0);
    let bytes = module.code_from(range.start).and_then(|b| b.get(..length)).unwrap_or_default();
    Decoder::with_ip(64, bytes, range.start.0, DecoderOptions::NONE).into_iter()
}
