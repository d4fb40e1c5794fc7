//! Stacks of coroutines that the program has registered.
//!
//! # What they change
//!
//! A thread is clear if its own stack is, and all registered ones: it may resume any of them. Of one that is
//! suspended the part above its saved stack pointer is searched (all of it where the program gave none). A thread
//! that runs on one has its own frames where the resumer's stack pointer was saved.
//!
//! The table is read after the thread's record. The stacks that matter are the thread's: registered and
//! suspended by itself, so that they do not change while it is off the processor, and not without a pass
//! if they were to enter a searched function after the record was read. A stack that another thread registers or
//! switches meanwhile is at worst seen half and searched for nothing.

use std::mem::offset_of;
use std::ops::Range;
use suture_abi::stacks::{CHUNKS, SLOTS, Slot, Stacks, USED};
use suture_elf::{Addr, Memory, MemoryError};

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stack {
    low: u64,
    /// Address after the highest.
    pub high: u64,
    saved: u64,
    resumer: u64,
}

/// Coroutines that resume each other, at most.
const NESTED: usize = 64;
/// What a switch may leave below the stack pointer it saves: `swapcontext` saves it as it is after its return,
/// and its return address lies below.
const BELOW: u64 = 8;

impl Stack {
    /// Whether a stack pointer is on it.
    #[must_use]
    pub fn holds(&self, sp: u64) -> bool {
        self.low < sp && sp <= self.high
    }

    /// All of it.
    #[must_use]
    pub fn range(&self) -> Range<u64> {
        self.low..self.high
    }

    /// Where its frames begin while it is suspended.
    ///
    /// # Errors
    /// When the word with the stack pointer cannot be read.
    pub fn suspended_at(&self, memory: &dyn Memory) -> Result<u64, MemoryError> {
        if self.saved == 0 {
            return Ok(self.low);
        }
        let sp = memory.read_u64(Addr(self.saved))?;
        Ok(if self.holds(sp) { sp.saturating_sub(BELOW).max(self.low) } else { self.low })
    }
}

/// Reads the table at an address (0 = there is none).
///
/// # Errors
/// When it cannot be read.
pub fn read(memory: &dyn Memory, table: u64) -> Result<Vec<Stack>, MemoryError> {
    if table == 0 || memory.read_u64(Addr(table) + offset_of!(Stacks, count) as u64)? == 0 {
        return Ok(Vec::new());
    }
    let chunks = memory.read_vec(Addr(table) + offset_of!(Stacks, chunks) as u64, 8 * CHUNKS)?;
    let mut stacks = Vec::new();
    for chunk in chunks.as_chunks::<8>().0.iter().map(|b| u64::from_le_bytes(*b)).take_while(|c| *c != 0) {
        let bytes = memory.read_vec(Addr(chunk), SLOTS * size_of::<Slot>())?;
        stacks.extend(bytes.chunks_exact(size_of::<Slot>()).filter_map(used));
    }
    Ok(stacks)
}

/// The stack of a slot, if one is registered.
fn used(slot: &[u8]) -> Option<Stack> {
    let word = |offset: usize| slot.get(offset..)?.first_chunk().map(|b| u64::from_le_bytes(*b));
    let version = slot.first_chunk().map(|b| u32::from_le_bytes(*b))?;
    let stack = Stack {
        low: word(offset_of!(Slot, low))?,
        high: word(offset_of!(Slot, high))?,
        saved: word(offset_of!(Slot, saved))?,
        resumer: word(offset_of!(Slot, resumer))?,
    };
    (version % 4 == USED && stack.low < stack.high).then_some(stack)
}

/// Where the own frames of a thread begin: at its stack pointer, or where whoever it resumed last says.
/// `None` when that is not known.
#[must_use]
pub fn own_start(stacks: &[Stack], sp: u64, memory: &dyn Memory) -> Option<u64> {
    let mut at = sp;
    for _ in 0..NESTED {
        let Some(stack) = stacks.iter().find(|s| s.holds(at)) else {
            return Some(if at == sp { sp } else { at.saturating_sub(BELOW) });
        };
        if stack.resumer == 0 {
            return None;
        }
        at = memory.read_u64(Addr(stack.resumer)).ok()?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Single words of memory.
    struct Words(Vec<(u64, u64)>);

    impl Memory for Words {
        fn read(&self, addr: Addr, buf: &mut [u8]) -> Result<(), MemoryError> {
            let found = self.0.iter().find(|(at, _)| *at == addr.0);
            let (_, word) = found.ok_or(MemoryError { addr, len: buf.len() })?;
            buf.copy_from_slice(&word.to_le_bytes());
            Ok(())
        }
    }

    fn stack(low: u64, saved: u64, resumer: u64) -> Stack {
        Stack { low, high: low + 0x1000, saved, resumer }
    }

    #[test]
    fn the_chain_of_resumers_leads_to_the_threads_own_frames() {
        let stacks = [stack(0x1000, 0, 0x10), stack(0x3000, 0, 0x18), stack(0x5000, 0, 0)];
        let words = Words(vec![(0x10, 0x3800), (0x18, 0x9000)]);
        assert_eq!(own_start(&stacks, 0x8000, &words), Some(0x8000), "on no registered stack");
        assert_eq!(own_start(&stacks, 0x3100, &words), Some(0x9000 - BELOW));
        assert_eq!(
            own_start(&stacks, 0x2000, &words),
            Some(0x9000 - BELOW),
            "empty, and by way of the second"
        );
        assert_eq!(own_start(&stacks, 0x5800, &words), None, "nobody says where");
        let circle = Words(vec![(0x10, 0x1800)]);
        assert_eq!(own_start(&stacks, 0x1100, &circle), None);
        assert_eq!(own_start(&stacks, 0x1100, &Words(Vec::new())), None);
    }

    #[test]
    fn a_suspended_stack_is_searched_from_its_saved_pointer() {
        let words = Words(vec![(0x10, 0x1800), (0x18, 0x7000), (0x20, 0x1004)]);
        assert_eq!(stack(0x1000, 0x10, 0).suspended_at(&words), Ok(0x1800 - BELOW));
        assert_eq!(stack(0x1000, 0x20, 0).suspended_at(&words), Ok(0x1000), "not below the stack");
        assert_eq!(stack(0x1000, 0x18, 0).suspended_at(&words), Ok(0x1000), "never ran: all of it");
        assert_eq!(stack(0x1000, 0, 0).suspended_at(&words), Ok(0x1000));
        assert!(stack(0x1000, 0x28, 0).suspended_at(&words).is_err());
    }

    #[test]
    fn only_used_slots_count() {
        let slot = |version: u32, low: u64| {
            let mut bytes = vec![0; size_of::<Slot>()];
            bytes[..4].copy_from_slice(&version.to_le_bytes());
            bytes[8..16].copy_from_slice(&low.to_le_bytes());
            bytes[16..24].copy_from_slice(&0x2000u64.to_le_bytes());
            bytes
        };
        let found = Stack { low: 0x1000, high: 0x2000, saved: 0, resumer: 0 };
        assert_eq!(used(&slot(2, 0x1000)), Some(found));
        assert_eq!(used(&slot(6, 0x1000)), Some(found));
        for (version, low) in [(0, 0x1000), (1, 0x1000), (3, 0x1000), (2, 0x2000)] {
            assert_eq!(used(&slot(version, low)), None);
        }
    }
}
