//! Entries of jump tables.

use super::state::Value;
use crate::module::Module;
use iced_x86::{Decoder, DecoderOptions, Instruction};
use std::collections::BTreeSet;
use std::ops::Range;
use suture_elf::Vaddr;

/// Most entries of one table.
const MAX_ENTRIES: u64 = 4_096;

/// Targets of a jump through a table, as long as `accept` takes them. Tables do not say how long they
/// are: one ends where something else begins whose address is in `others`, or where an entry leads to
/// no possible target.
pub(super) fn targets(
    module: &Module,
    jump: Value,
    others: &BTreeSet<u64>,
    accept: impl Fn(Vaddr) -> bool,
) -> Vec<Vaddr> {
    let (table, size) = match jump {
        Value::Target(table, _) => (table, 4),
        Value::Pointer(table) => (table, 8),
        _ => return Vec::new(),
    };
    let end = others.range(table.saturating_add(1)..).next().copied().unwrap_or(u64::MAX);
    let places = (0..MAX_ENTRIES).map(|i| table.wrapping_add(size * i)).take_while(|place| *place < end);
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
}
