//! Decodes single instructions anywhere in an object.
//!
//! Setting up a decoder costs more than decoding an instruction; a cursor keeps one for each segment.

use crate::analysis::ObjectAnalysis;
use iced_x86::{Decoder, DecoderOptions, Instruction};
use std::ops::Range;
use suture_elf::Vaddr;

/// One decoder for each executable segment.
pub(crate) struct Cursor<'a>(Vec<(Range<Vaddr>, Decoder<'a>)>);

impl<'a> Cursor<'a> {
    pub fn new(object: &'a ObjectAnalysis) -> Self {
        let decoders = object.code().map(|(addr, bytes)| {
            let decoder = Decoder::with_ip(64, bytes, addr.0, DecoderOptions::NONE);
            (addr..addr + bytes.len() as u64, decoder)
        });
        Self(decoders.collect())
    }

    /// The instruction at `at`.
    pub fn instruction(&mut self, at: Vaddr) -> Option<Instruction> {
        let (range, decoder) = self.0.iter_mut().find(|(range, _)| range.contains(&at))?;
        decoder.set_position(usize::try_from(at.0 - range.start.0).ok()?).ok()?;
        decoder.set_ip(at.0);
        let insn = decoder.decode();
        (!insn.is_invalid()).then_some(insn)
    }
}
