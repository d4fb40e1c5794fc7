//! Places of a function that a redirect may stand at, best first.

use crate::analysis::ObjectAnalysis;
use crate::function::{Function, is_terminal};
use crate::options::Class;
use crate::padding;
use iced_x86::{Code, Instruction, Mnemonic, OpKind, Register};
use std::ops::Range;
use suture_elf::Vaddr;

/// One step of a prologue, and what undoes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Undo {
    /// `pop` of the register with this number.
    Pop(u8),
    /// `lea rsp, [rsp + n]`.
    Add(i32),
}

/// An instruction boundary at the entry or behind an undoable prologue.
#[derive(Clone, Debug)]
pub(crate) struct Boundary {
    /// Index of the instruction at the boundary.
    pub index: usize,
    /// Its address.
    pub at: Vaddr,
    /// Steps to undo, in the order of the prologue.
    pub undo: Vec<Undo>,
}

/// A place, a class, and the bytes it would change.
#[derive(Clone, Debug)]
pub(crate) struct Candidate {
    pub class: Class,
    /// Index into the boundaries.
    pub boundary: usize,
    /// Bytes that belong to the site.
    pub window: Range<Vaddr>,
    /// Padding that gets a near jump first (P, S).
    pub pad: Option<Pad>,
    /// How the jump lies over the first instruction (W).
    pub wide: Option<Wide>,
}

/// A jump of which only the beginning is stored: prefixes that mean nothing, the opcode, and the low bytes of
/// the displacement.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wide {
    /// Prefixes.
    pub prefixes: u64,
    /// Bytes of the displacement that may be chosen, at most three.
    pub free: u64,
}

impl Wide {
    /// Bytes that are stored.
    pub fn stored(self) -> u64 {
        self.prefixes + 1 + self.free
    }

    /// Length of the jump.
    pub fn len(self) -> u64 {
        self.prefixes + JUMP
    }
}

/// Five bytes of padding.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pad {
    /// Their address.
    pub at: Vaddr,
    /// Where the padding begins: what arrives there would run on into them.
    pub run: Vaddr,
}

/// Length of a near jump.
pub(crate) const JUMP: u64 = 5;
/// Prefixes that change nothing about a near jump: an override of a segment that long mode ignores, and, next to
/// the opcode, one for an operand of 64 bits, which it has anyway (Intel SDM 2.2.1, AMD APM volume 3, 1.2).
pub(crate) const PREFIXES: [u8; 2] = [0x26, 0x48];
/// Longest padding that assemblers make.
pub(crate) const LONGEST: u64 = 256;
/// Boundaries looked at, prologues of more steps do not occur.
const MAX_STEPS: usize = 12;
/// Pads offered for one boundary: as many as a short jump reaches on one side.
const MAX_PADS: usize = 26;

/// The entry (behind `endbr64`) and every boundary behind an undoable prologue.
pub(crate) fn boundaries(function: &Function) -> Vec<Boundary> {
    let Some(first) = function.first() else { return Vec::new() };
    let mut found = Vec::new();
    let mut undo = Vec::new();
    for index in first..function.code.len().min(first + MAX_STEPS) {
        let insn = &function.code[index];
        found.push(Boundary { index, at: Vaddr(insn.ip()), undo: undo.clone() });
        let before = index.checked_sub(1).filter(|b| *b >= first).map(|b| &function.code[b]);
        match step(insn, before) {
            Some(Some(undone)) => undo.push(undone),
            Some(None) => {}
            None => break,
        }
    }
    found
}

/// What undoes the instruction: `Some(None)` = nothing has to, `None` = nothing can.
fn step(insn: &Instruction, before: Option<&Instruction>) -> Option<Option<Undo>> {
    match insn.code() {
        Code::Push_r64 if insn.op0_register() != Register::RSP => {
            Some(Some(Undo::Pop(insn.op0_register().number() as u8)))
        }
        // The `pop rbp` that undoes the push in front of it restores what this one changes.
        Code::Mov_rm64_r64 | Code::Mov_r64_rm64
            if insn.op0_kind() == OpKind::Register
                && insn.op0_register() == Register::RBP
                && insn.op1_kind() == OpKind::Register
                && insn.op1_register() == Register::RSP
                && before
                    .is_some_and(|b| b.code() == Code::Push_r64 && b.op0_register() == Register::RBP) =>
        {
            Some(None)
        }
        Code::Sub_rm64_imm8 | Code::Sub_rm64_imm32
            if insn.op0_kind() == OpKind::Register && insn.op0_register() == Register::RSP =>
        {
            i32::try_from(insn.immediate(1).cast_signed()).ok().map(|n| Some(Undo::Add(n)))
        }
        _ => None,
    }
}

/// All candidates of a function in the order they should be tried.
pub(crate) fn candidates(
    object: &ObjectAnalysis,
    function: &Function,
    places: &[Boundary],
) -> Vec<Candidate> {
    let mut found = Vec::new();
    let tail = if function.ends_for_good() {
        padding::behind(object, function.entry, function.end)
    } else {
        function.end..function.end
    };
    for (boundary, place) in places.iter().enumerate() {
        let insn = &function.code[place.index];
        let mut add = |class, len, pad| {
            found.push(Candidate { class, boundary, window: place.at..place.at + len, pad, wide: None });
        };
        if boundary == 0
            && let Some(pad) = compiler_pad(object, function, place)
        {
            add(Class::P, 2, Some(Pad { at: pad, run: pad }));
        }
        let len = insn.len() as u64;
        if len >= 2 && in_one_word(place.at, 2) {
            for pad in short_pads(object, place.at) {
                add(Class::S, len, Some(pad));
            }
        }
        if len >= JUMP && in_one_word(place.at, JUMP) {
            add(Class::A, len, None);
        } else if is_terminal(insn)
            && insn.next_ip() == function.end.0
            && place.at + JUMP <= tail.end
            && in_one_word(place.at, JUMP)
        {
            add(Class::A, JUMP, None);
        }
    }
    let mut puns: Vec<(usize, usize)> = places
        .iter()
        .enumerate()
        .filter(|(_, p)| p.at + JUMP <= tail.end)
        .map(|(i, p)| {
            let inside = |insn: &&Instruction| insn.ip() < p.at.0 + JUMP;
            (function.code[p.index + 1..].iter().take_while(inside).count(), i)
        })
        .collect();
    puns.sort_unstable();
    found.extend(puns.into_iter().map(|(_, boundary)| {
        let at = places[boundary].at;
        Candidate { class: Class::J, boundary, window: at..at + JUMP, pad: None, wide: None }
    }));
    found.extend(wide(function, places, tail.end));
    found
}

/// Class W: jumps whose beginning takes the place of the first instruction, or of as much of it as lies in one
/// aligned word. With each prefix more the bytes that cannot be chosen are others. Those with the longest choice
/// first.
fn wide(function: &Function, places: &[Boundary], end: Vaddr) -> Vec<Candidate> {
    let mut found = Vec::new();
    for (boundary, place) in places.iter().enumerate() {
        let len = function.code[place.index].len() as u64;
        let stored = len.min(8 - place.at.0 % 8);
        // One byte is class J, five are class A.
        if !(2..JUMP).contains(&stored) {
            continue;
        }
        for prefixes in 0..stored.min(PREFIXES.len() as u64 + 1) {
            let shape = Wide { prefixes, free: stored - 1 - prefixes };
            let window = place.at..place.at + shape.len();
            if window.end <= end {
                found.push(Candidate { class: Class::W, boundary, window, pad: None, wide: Some(shape) });
            }
        }
    }
    found.sort_by_key(|c| c.wide.map(|w| (std::cmp::Reverse(w.free), c.boundary)));
    found
}

/// Whether `len` bytes at `at` lie in one aligned 8-byte word.
pub(crate) fn in_one_word(at: Vaddr, len: u64) -> bool {
    at.0 % 8 + len <= 8
}

/// Whether the pad lies outside the word that the store at `at` writes, or wholly inside it: then the
/// store itself writes the pad (compilers put the two NOPs of class P at the end of a word).
fn pad_fits(pad: Vaddr, at: Vaddr) -> bool {
    let word = Vaddr(at.0 & !7);
    pad + JUMP <= word || pad >= word + 8 || in_word_of(pad, at)
}

/// Whether the pad lies wholly in the word that the store at `at` writes.
pub(crate) fn in_word_of(pad: Vaddr, at: Vaddr) -> bool {
    pad.0 & !7 == at.0 & !7 && in_one_word(pad, JUMP)
}

/// Class P: two NOP bytes at the entry, and in front of the entry enough one-byte NOPs for a jump.
/// The short jump is `EB F8` (pad at entry − 6), behind `endbr64` `EB F5` (pad at entry − 5): a
/// thread between the two NOPs then runs `clc` or `cmc`, and flags are dead at an entry.
fn compiler_pad(object: &ObjectAnalysis, function: &Function, place: &Boundary) -> Option<Vaddr> {
    let bytes = object.code_from(place.at)?;
    if !(bytes.starts_with(&[0x90, 0x90]) || bytes.starts_with(&[0x66, 0x90])) || !in_one_word(place.at, 2) {
        return None;
    }
    let back = if place.at == function.entry { 6 } else { 5 };
    let pad = Vaddr(function.entry.0.checked_sub(back)?);
    let nops = object.file().bytes_at(pad, back)?;
    if !pad_fits(pad, place.at) {
        return None;
    }
    nops.iter().all(|b| *b == 0x90).then_some(pad)
}

/// Class S: places for a near jump in padding that a short jump at `at` reaches. First those whose displacement lies
/// in one aligned word, so that it can be changed; of these those that leave the least of the padding unused; then the
/// nearest.
fn short_pads(object: &ObjectAnalysis, at: Vaddr) -> Vec<Pad> {
    let from = at + 2;
    let reach = Vaddr(from.0.saturating_sub(128))..from + 128;
    let mut pads: Vec<(u64, Pad)> = Vec::new();
    for padding in padding::around(object, &reach) {
        let start = Vaddr(padding.start.0.max(reach.start.0));
        for pad in (start.0..reach.end.0.min(padding.end.0.saturating_sub(JUMP - 1))).map(Vaddr) {
            let packed = (pad.0 - start.0).is_multiple_of(JUMP);
            let rank = match can_lead_straight(pad) {
                true if packed => 0,
                // One of them in each word is enough.
                true if pad.0 % 8 == 7 => 1,
                false if packed => 2,
                _ => continue,
            };
            if pad_fits(pad, at) {
                let run = padding.start.max(Vaddr(pad.0.saturating_sub(LONGEST)));
                pads.push((rank, Pad { at: pad, run }));
            }
        }
    }
    pads.sort_by_key(|(rank, pad)| (*rank, pad.at.0.abs_diff(from.0)));
    pads.truncate(MAX_PADS);
    pads.into_iter().map(|(_, pad)| pad).collect()
}

/// Whether the displacement of a jump at `at` lies in one aligned word.
fn can_lead_straight(at: Vaddr) -> bool {
    in_one_word(at + 1, JUMP - 1)
}

/// Whether the instruction may be run from a copy in place of where it is.
pub(crate) fn movable(insn: &Instruction) -> Result<(), &'static str> {
    use iced_x86::FlowControl;
    match insn.flow_control() {
        FlowControl::Call if insn.mnemonic() == Mnemonic::Call => Err("a call"),
        FlowControl::Call => Err("a system call"),
        FlowControl::IndirectCall => Err("a call"),
        FlowControl::Interrupt => Err("an interrupt"),
        FlowControl::XbeginXabortXend => Err("a transaction"),
        _ => Ok(()),
    }
}
