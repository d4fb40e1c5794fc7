//! From a victim to an armed site: stub, copy, dispatcher, slot and the arming store, in the shape
//! the command ships to a process.

use dynasm::dynasm;
use dynasmrt::{DynasmApi, DynasmLabelApi};
use iced_x86::{BlockEncoder, BlockEncoderOptions, Decoder, DecoderOptions, Instruction, InstructionBlock};
use suture_abi::batch::Site;

use crate::error::{Error, Result};
use crate::memory::{Arena, Punned, Slot, displacement, jump};
use crate::op::{Assembler, Op};
use crate::shape::Class;

/// What the planner has to know of a function.
#[derive(Clone, Debug)]
pub struct Found<'a> {
    /// Address of the entry.
    pub entry: u64,
    /// Code from the entry on, at least to the end of the displaced instructions and the store.
    pub code: &'a [u8],
    /// Address of the instruction to replace.
    pub site: u64,
    /// Address after the displaced instructions.
    pub displaced_end: u64,
    /// Bytes from the site on that belong to it.
    pub window: u64,
    /// Prologue steps before the site.
    pub before: &'a [Op],
    /// Verified padding, or 0.
    pub pad: u64,
    /// The aligned word around the site, as it is in memory.
    pub word: u64,
}

/// A planned site with the values its slot may hold.
#[derive(Clone, Debug)]
pub struct Planned {
    /// The plan, as the command would ship it.
    pub site: Site,
    /// The slot and the dispatcher's words.
    pub slot: Slot,
    /// Entry of a dispatcher that takes the side named by [`Slot::side`]: 0 is old.
    pub dispatcher: u64,
}

/// Plans a site of `class` and puts its code into `arena` (and `punned`).
pub fn plan(class: Class, f: &Found, new: u64, arena: &mut Arena, punned: &mut Punned) -> Result<Planned> {
    let reject = |reason| Error::Site { class: char::from(class.letter()), site: f.site, reason };
    if !class.accepts(f.site) {
        return Err(reject("the store would cross an aligned word"));
    }
    if !f.before.iter().all(|op| op.is_undoable()) {
        return Err(reject("the prologue cannot be undone"));
    }
    if class == Class::A && f.window < 5 {
        return Err(reject("fewer than five bytes belong to the site"));
    }
    if matches!(class, Class::S | Class::P) && f.pad == 0 {
        return Err(reject("no padding"));
    }
    let slot = arena.next_slot();
    let stub = push_stub(arena, f.before, slot)?;
    let copy = arena.next_code();
    let copied = relocate(f, copy)?;
    arena.push_code(&copied);
    let dispatcher = push_dispatcher(arena, slot, copy, new)?;

    let store_len = if class == Class::J { 1 } else { 8 };
    let mut window_len = if class == Class::J { 5 } else { f.window.max(class.width()) as u8 };
    let shift = (f.site % 8) as usize;
    let mut pad_new = [0; 8];
    let mut pad_len = 0;
    if matches!(class, Class::S | Class::P) {
        pad_new[..5].copy_from_slice(&jump(f.pad, stub)?);
        pad_len = 5;
    }
    // The padding is written first and may share the site's word: both words hold the jump in it.
    let old_word = overlay(f.word, f.site & !7, f.pad, &pad_new[..pad_len.into()]);
    let mut word = old_word.to_le_bytes();
    match class {
        Class::J => {
            let at = (f.site - f.entry) as usize;
            let tail: [u8; 4] = f.code[at + 1..at + 5].try_into().expect("four bytes were asked for");
            let target = f.site.wrapping_add(5).wrapping_add_signed(i64::from(i32::from_le_bytes(tail)));
            punned.add(target, stub)?;
            pad_new[0] = 0xe9;
            pad_new[1..5].copy_from_slice(&tail);
        }
        Class::W => {
            let shape = Wide::of(f);
            let jump = shape.jump(f, stub, punned)?;
            word[shift..shift + shape.stored].copy_from_slice(&jump[..shape.stored]);
            window_len = jump.len() as u8;
            pad_new[..jump.len()].copy_from_slice(&jump);
        }
        Class::A => word[shift..shift + 5].copy_from_slice(&jump(f.site, stub)?),
        Class::S | Class::P => {
            let back = f.pad.wrapping_sub(f.site + 2).cast_signed();
            let back = i8::try_from(back).map_err(|_| reject("padding is out of a short jump's reach"))?;
            word[shift..shift + 2].copy_from_slice(&[0xeb, back.cast_unsigned()]);
        }
    }
    let (store_addr, old_word, new_word) = match class {
        Class::J => (f.site, f.word >> (8 * shift) & 0xff, 0xe9),
        _ => (f.site & !7, old_word, u64::from_le_bytes(word)),
    };
    let site = Site {
        id: 0,
        class: class.letter(),
        store_len,
        pad_len,
        window_len,
        entry: f.entry,
        site: f.site,
        store_addr,
        old_word,
        new_word,
        pad_addr: f.pad,
        pad_old: [0xcc; 8],
        pad_new,
        stub,
        slot: slot.addr,
        copy,
        copy_len: copied.len() as u64,
        // The harness has a dispatcher of its own.
        ..Site::default()
    };
    Ok(Planned { site, slot, dispatcher })
}

/// How a jump lies over the first instruction (W): all its forms occur among the places of a shape.
#[derive(Clone, Copy, Debug)]
pub struct Wide {
    /// Prefixes in front of the opcode.
    pub prefixes: usize,
    /// Bytes that are stored.
    pub stored: usize,
}

impl Wide {
    /// The form for a function.
    pub fn of(f: &Found<'_>) -> Self {
        let instruction = (f.displaced_end - f.site) as usize;
        let stored = instruction.min(8 - (f.site % 8) as usize).min(4);
        Self { prefixes: (f.site / 8) as usize % stored.min(3), stored }
    }

    /// Whether its jump leads up.
    pub fn is_upwards(self, f: &Found<'_>) -> bool {
        f.code[(f.site - f.entry) as usize + self.prefixes + 4] < 0x80
    }

    /// The whole jump, with the first displacement whose target is free.
    fn jump(self, f: &Found<'_>, stub: u64, punned: &mut Punned) -> Result<Vec<u8>> {
        let at = (f.site - f.entry) as usize;
        let mut jump = f.code[at..at + self.prefixes + 5].to_vec();
        jump[..self.prefixes].copy_from_slice(&[0x26, 0x48][2 - self.prefixes..]);
        jump[self.prefixes] = 0xe9;
        let free = self.prefixes + 1..self.stored;
        let mut last = Error::Site { class: 'W', site: f.site, reason: "no target" };
        for choice in 0..256_u32 {
            // Far apart where there is a choice, so that pages differ.
            let bytes = choice.wrapping_mul(0x0001_0101).to_le_bytes();
            jump[free.clone()].copy_from_slice(&bytes[..free.len()]);
            let displacement = jump.last_chunk().map_or(0, |d| i32::from_le_bytes(*d));
            let end = f.site + jump.len() as u64;
            match punned.add(end.wrapping_add_signed(i64::from(displacement)), stub) {
                Ok(()) => return Ok(jump),
                Err(error) => last = error,
            }
        }
        Err(last)
    }
}

/// `word` at `addr` with the bytes of `pad` at `pad_addr` laid over the part they share.
fn overlay(word: u64, addr: u64, pad_addr: u64, pad: &[u8]) -> u64 {
    let mut bytes = word.to_le_bytes();
    for (at, &byte) in (pad_addr..).zip(pad) {
        if (addr..addr + 8).contains(&at) {
            bytes[(at - addr) as usize] = byte;
        }
    }
    u64::from_le_bytes(bytes)
}

/// Stub: takes the prologue back and leaves through the slot. Flags and registers stay.
fn push_stub(arena: &mut Arena, before: &[Op], slot: Slot) -> Result<u64> {
    let stub = arena.next_code();
    let mut a = Assembler::new(stub as usize);
    for op in before.iter().rev() {
        op.emit_undo(&mut a);
    }
    let end = stub + a.offset().0 as u64 + 6;
    let distance = displacement(end, slot.addr)?;
    dynasm!(a ; .arch x64 ; jmp QWORD [rip + distance]);
    arena.push_code(&finalize(a));
    Ok(stub)
}

/// Dispatcher: counts a pass, compares the side, keeps r11; old through the copy, else new.
fn push_dispatcher(arena: &mut Arena, slot: Slot, copy: u64, new: u64) -> Result<u64> {
    let start = arena.next_code();
    let mut a = Assembler::new(start as usize);
    let (side, passes) = (slot.side() as i64, slot.passes() as i64);
    dynasm!(a ; .arch x64
        ; push r11
        ; mov r11, QWORD passes
        ; lock add DWORD [r11], BYTE 1
        ; mov r11, QWORD side
        ; cmp DWORD [r11], BYTE 0
        ; pop r11
        ; jne >other
        ; .bytes [0xcc_u8; 5].iter()
        ; other:
        ; .bytes [0xcc_u8; 5].iter()
    );
    let mut code = finalize(a);
    let other = code.len() - 5;
    let old = other - 5;
    code[old..other].copy_from_slice(&jump(start + old as u64, copy)?);
    code[other..].copy_from_slice(&jump(start + other as u64, new)?);
    arena.push_code(&code);
    Ok(start)
}

/// The instructions from the entry to the end of the displaced ones, encoded for `copy`, and a jump
/// behind them.
fn relocate(f: &Found, copy: u64) -> Result<Vec<u8>> {
    let fail = |reason: String| Error::Relocate { entry: f.entry, reason };
    let mut decoder = Decoder::with_ip(64, f.code, f.entry, DecoderOptions::NONE);
    let mut instructions: Vec<Instruction> = Vec::new();
    while decoder.ip() < f.displaced_end {
        let instruction = decoder.decode();
        if instruction.is_invalid() {
            return Err(fail(format!("undecodable bytes at {:#x}", instruction.ip())));
        }
        instructions.push(instruction);
    }
    if decoder.ip() != f.displaced_end {
        return Err(fail(format!("no instruction ends at {:#x}", f.displaced_end)));
    }
    let block = InstructionBlock::new(&instructions, copy);
    let encoded = BlockEncoder::encode(64, block, BlockEncoderOptions::NONE);
    let mut bytes = encoded.map_err(|e| fail(e.to_string()))?.code_buffer;
    let back = copy + bytes.len() as u64;
    bytes.extend_from_slice(&jump(back, f.displaced_end)?);
    Ok(bytes)
}

/// Bytes of an assembler without open labels.
pub fn finalize(a: Assembler) -> Vec<u8> {
    a.finalize().expect("every label of the harness is bound where it is used")
}
