//! Entries of jump tables.

use super::state::Value;
use crate::module::Module;
use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic};
use std::collections::BTreeSet;
use std::ops::Range;
use suture_elf::Vaddr;

/// Most entries of one table.
pub(super) const MAX_ENTRIES: u64 = 4_096;

/// Targets of a jump through a table, as long as `accept` takes them. Tables do not say how long they
/// are: one ends after `most` entries, where something else begins whose address is in `others`, or
/// where an entry leads to no possible target.
pub(super) fn targets(
    module: &Module,
    jump: Value,
    most: u64,
    others: &BTreeSet<u64>,
    accept: impl Fn(Vaddr) -> bool,
) -> Vec<Vaddr> {
    let (table, size) = match jump {
        Value::Target(table, _) => (table, 4),
        Value::Pointer(table) => (table, 8),
        _ => return Vec::new(),
    };
    let end = others.range(table.saturating_add(1)..).next().copied().unwrap_or(u64::MAX);
    let places = (0..most).map(|i| table.wrapping_add(size * i)).take_while(|place| *place < end);
    let entry = |place: u64| {
        let bytes = module.bytes_from(Vaddr(place))?;
        Some(Vaddr(match jump {
            Value::Target(_, base) => {
                base.wrapping_add_signed(i64::from(i32::from_le_bytes(*bytes.first_chunk()?)))
            }
            _ => u64::from_le_bytes(*bytes.first_chunk()?),
        }))
    };
    places.map_while(entry).take_while(|target| accept(*target)).collect()
}

/// The instructions of a function one after the other.
pub(super) struct Code(Vec<Instruction>);

/// How far in front of a jump its guard is looked for.
const LOOK_BACK: usize = 24;

impl Code {
    pub fn new(module: &Module, range: &Range<Vaddr>) -> Self {
        let length = usize::try_from(range.end.0 - range.start.0).unwrap_or(0);
        let bytes = module.code_from(range.start).unwrap_or_default();
        let bytes = bytes.get(..length.min(bytes.len())).unwrap_or_default();
        Self(Decoder::with_ip(64, bytes, range.start.0, DecoderOptions::NONE).into_iter().collect())
    }

    /// Whether an instruction starts there.
    pub fn starts_at(&self, at: Vaddr) -> bool {
        self.0.binary_search_by_key(&at.0, Instruction::ip).is_ok()
    }

    /// Number of entries that the comparison in front of a jump lets through; without one, any.
    pub fn entries(&self, jump: Vaddr) -> u64 {
        let end = self.0.partition_point(|i| i.ip() < jump.0);
        let before = &self.0[end.saturating_sub(LOOK_BACK)..end];
        let guards = [Mnemonic::Ja, Mnemonic::Jae, Mnemonic::Jb, Mnemonic::Jbe];
        let Some(guard) = before.iter().rposition(|i| guards.contains(&i.mnemonic())) else {
            return u64::MAX;
        };
        let compare = before[..guard].iter().rev().take(4).find(|i| i.mnemonic() == Mnemonic::Cmp);
        let immediate = compare.and_then(|i| i.try_immediate(1).ok());
        let exclusive = matches!(before[guard].mnemonic(), Mnemonic::Jae | Mnemonic::Jb);
        // The immediate is as wide as the comparison; tables have no more entries than this.
        immediate.map_or(u64::MAX, |n| (n & 0xffff).saturating_add(u64::from(!exclusive)))
    }
}
