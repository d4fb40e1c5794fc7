//! Where threads' stacks end, and what a process's C library says of its threads.
//!
//! The end of a mapping is not the end of a stack: one page of it that was locked or kept from
//! `fork` splits it. What proves the end lies in the process: the loader publishes where the main
//! thread's stack begins, and above the frames of every other thread lies its control block.
//!
//! glibc's own description for thread debuggers (`libthread_db`) is exported data: where the thread id lies in
//! a thread's header. musl has none, but its `gettid` reads the id there. Dispatchers do the same.

use crate::scan::{Scanned, scan};
use iced_x86::{Decoder, DecoderOptions, Mnemonic, Register};
use std::ops::Range;
use suture_elf::{Addr, Memory, MemoryError};
use suture_scan::{End, Ranges, StackEnd};
use thiserror::Error;

/// `struct pthread`'s thread id in glibc: bits, count, offset.
pub const TID: &str = "_thread_db_pthread_tid";
/// Where the main thread's stack ends, published by glibc's loader.
pub const STACK_END: &str = "__libc_stack_end";
/// Where musl has its threads' ids.
pub const GETTID: &str = "gettid";

/// What dispatchers and looks at threads need to know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ThreadLayout {
    /// Offset of the thread id from `fs`.
    pub thread_id: u32,
    /// Where the main thread's stack ends ([`STACK_END`]), 0 = not known.
    pub main_stack_end: u64,
    /// Threads' headers are in a ring (musl), instead of naming themselves twice (glibc).
    pub linked: bool,
}

/// A C library whose threads cannot be told apart.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum LayoutError {
    /// What it says is not understood.
    #[error(
        "its C library does not say how its threads are numbered (glibc 2.34 or later, or musl, is needed)"
    )]
    Unknown,
    /// Its memory cannot be read.
    #[error(transparent)]
    Memory(#[from] MemoryError),
}

/// One thread, as its process sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnThread {
    /// Its number in the process's own pid namespace (the last one of `NSpid`).
    pub tid: u32,
    /// It is the thread that the process was started with.
    pub main: bool,
    /// Where its control block is, if that is known: the base of `fs` of a thread that is held.
    pub block: Option<u64>,
}

impl ThreadLayout {
    /// Asks the C library, whose symbols `defined` finds.
    ///
    /// # Errors
    /// When it says nothing that is understood.
    pub fn read(
        memory: &dyn Memory,
        defined: &dyn Fn(&str) -> Option<Addr>,
        main_stack_end: u64,
    ) -> Result<Self, LayoutError> {
        let read = |name: &str, len: usize| Some(memory.read_vec(defined(name)?, len));
        let (offset, linked) = match read(TID, 12) {
            Some(described) => (described_offset(&described?), false),
            None => (read(GETTID, 32).transpose()?.and_then(|code| offset_read_by(&code)), true),
        };
        let thread_id = offset.filter(|at| *at < 4096 && at % 4 == 0).ok_or(LayoutError::Unknown)?;
        Ok(Self { thread_id, main_stack_end, linked })
    }

    /// Scans a thread's own stack from an address to its proven end. What lies in `holes` is passed over.
    #[must_use]
    pub fn scan(
        &self,
        thread: OwnThread,
        from: u64,
        ranges: &Ranges<'_>,
        memory: &dyn Memory,
        holes: &[Range<u64>],
    ) -> Scanned {
        if thread.main && self.main_stack_end > from {
            let scanned = scan(from, End::Address(self.main_stack_end), ranges, memory, holes);
            if scanned.outcome.end != StackEnd::Unproven {
                return scanned;
            }
        }
        // Also for the main thread: after a fork it is the thread that called it, on that thread's stack.
        let (tid, tid_offset) = (thread.tid, self.thread_id);
        if !self.linked {
            return scan(from, End::ThreadBlock { tid, tid_offset }, ranges, memory, holes);
        }
        let mut scanned = scan(from, End::LinkedBlock { tid, tid_offset }, ranges, memory, holes);
        if let StackEnd::Proven(at) = scanned.outcome.end
            && !is_linked(memory, Addr(at))
        {
            scanned.outcome.end = StackEnd::Unproven;
        }
        scanned
    }

    /// Whether a scan from `from` may prove where the stack ends, if what lies up to `readable` is all that can be
    /// read without a gap.
    #[must_use]
    pub fn may_prove(&self, thread: OwnThread, from: u64, readable: u64) -> bool {
        let within = |end: u64| (from..readable).contains(&end);
        thread.main && within(self.main_stack_end.wrapping_sub(1)) || thread.block.is_none_or(within)
    }

    /// Where the stack ends that an address lies on, if it is this thread's.
    #[must_use]
    pub fn end_of(&self, thread: OwnThread, at: u64, memory: &dyn Memory) -> Option<u64> {
        match self.scan(thread, at & !7, &Ranges::default(), memory, &[]).outcome.end {
            StackEnd::Proven(end) => Some(end),
            StackEnd::Unproven => None,
        }
    }
}

/// Whether the header of a thread of musl is at an address: its neighbours in the ring say so.
fn is_linked(memory: &dyn Memory, at: Addr) -> bool {
    const PREV: u64 = 0x10;
    const NEXT: u64 = 0x18;
    let word = |at: Addr| memory.read_u64(at).unwrap_or(0);
    let (prev, next) = (word(at + PREV), word(at + NEXT));
    // A thread that was made is never alone in it.
    prev != at.0 && next != at.0 && word(Addr(prev) + NEXT) == at.0 && word(Addr(next) + PREV) == at.0
}

/// From the description for debuggers.
fn described_offset(bytes: &[u8]) -> Option<u32> {
    let (words, _) = bytes.as_chunks::<4>();
    match words {
        [bits, count, offset] if (u32::from_le_bytes(*bits), u32::from_le_bytes(*count)) == (32, 1) => {
            Some(u32::from_le_bytes(*offset))
        }
        _ => None,
    }
}

/// From code that gives the id: `mov r, fs:[0]; mov eax, [r + offset]; ret`.
fn offset_read_by(code: &[u8]) -> Option<u32> {
    let mut decoder = Decoder::new(64, code, DecoderOptions::NONE);
    let header = decoder.decode();
    let id = decoder.decode();
    let reads_header = header.mnemonic() == Mnemonic::Mov
        && header.memory_segment() == Register::FS
        && header.memory_base() == Register::None
        && header.memory_displacement64() == 0;
    let reads_id = id.mnemonic() == Mnemonic::Mov
        && id.op0_register() == Register::EAX
        && id.memory_base() == header.op0_register()
        && id.memory_index() == Register::None;
    let ends = decoder.decode().mnemonic() == Mnemonic::Ret;
    (reads_header && reads_id && ends).then(|| u32::try_from(id.memory_displacement64()).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_offset_is_read_from_code_of_the_known_shape_only() {
        // mov rax, fs:[0]; mov eax, [rax + 0x30]; ret
        let musl = [0x64, 0x48, 0x8b, 0x04, 0x25, 0, 0, 0, 0, 0x8b, 0x40, 0x30, 0xc3, 0xcc, 0xcc];
        assert_eq!(offset_read_by(&musl), Some(0x30));
        // mov eax, 186; syscall; ret
        assert_eq!(offset_read_by(&[0xb8, 0xba, 0, 0, 0, 0x0f, 0x05, 0xc3]), None);
        let other = [0x64, 0x48, 0x8b, 0x04, 0x25, 0x10, 0, 0, 0, 0x8b, 0x40, 0x30, 0xc3, 0xcc];
        assert_eq!(offset_read_by(&other), None, "not the header");
    }
}
