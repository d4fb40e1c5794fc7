//! The runtime's block and the records of threads in a process that preloads the runtime.
//!
//! For what a test must arrange inside and no command offers: the length of a tick, a counter that is
//! about to wrap.

use crate::code;
use crate::dist::dist;
use std::collections::BTreeSet;
use std::mem::offset_of;
use suture_abi::BLOCK_SYMBOL;
use suture_abi::block::RuntimeBlock;
use suture_abi::dispatch::{CHUNKS, RECORDS_PER_CHUNK, Record};
use suture_elf::ObjectFile;

/// The block of one process.
#[derive(Clone, Copy, Debug)]
pub struct Block {
    pid: i32,
    addr: u64,
}

impl Block {
    /// Finds it.
    ///
    /// # Panics
    /// When the process does not preload the runtime.
    #[must_use]
    pub fn of(pid: i32) -> Self {
        let runtime = &dist().runtime;
        let object = ObjectFile::open(runtime).unwrap_or_else(|e| panic!("{e}"));
        let symbol = object.symbols().named(BLOCK_SYMBOL).next().expect("the runtime's block").addr.0;
        let maps = code::maps(pid);
        let is_runtime = |r: &&suture_elf::Region| r.offset == 0 && r.path.as_deref() == runtime.to_str();
        let base = maps.regions.iter().find(is_runtime);
        let base = base.unwrap_or_else(|| panic!("process {pid} does not preload the runtime"));
        Self { pid, addr: base.start + symbol }
    }

    fn word(self, addr: u64) -> u64 {
        let bytes = code::read(self.pid, addr, 8);
        u64::from_le_bytes(bytes.try_into().expect("eight bytes"))
    }

    /// Makes ticks this long from the next transition on.
    ///
    /// # Panics
    /// When the process is gone.
    pub fn set_tick_ms(self, length: u32) {
        let field = offset_of!(RuntimeBlock, tick_ms) as u64;
        code::write(self.pid, self.addr + field, &length.to_le_bytes());
    }

    /// Failed attempts to complete the transition that is going on.
    ///
    /// # Panics
    /// When the process is gone.
    #[must_use]
    pub fn attempts(self) -> u32 {
        self.word(self.addr + offset_of!(RuntimeBlock, attempts) as u64) as u32
    }

    /// Events written so far.
    ///
    /// # Panics
    /// When the process is gone.
    #[must_use]
    pub fn events(self) -> u64 {
        self.word(self.addr + offset_of!(RuntimeBlock, event_count) as u64)
    }

    /// Address of the record's word of a thread, by its number in the process's own namespace.
    fn record(self, tid: u32) -> Option<u64> {
        let directory = self.word(self.addr + offset_of!(RuntimeBlock, records) as u64);
        let chunk = self.word(directory + u64::from(tid / RECORDS_PER_CHUNK) * 8);
        let record = u64::from(tid % RECORDS_PER_CHUNK) * size_of::<Record>() as u64;
        (chunk != 0).then_some(chunk + record)
    }

    /// Bytes of the records of threads that there are. They come with the numbers that the kernel gives to threads, in
    /// chunks, and stay.
    ///
    /// # Panics
    /// When the process is gone.
    #[must_use]
    pub fn records_len(self) -> u64 {
        let directory = self.word(self.addr + offset_of!(RuntimeBlock, records) as u64);
        let entries = code::read(self.pid, directory, CHUNKS * 8);
        // One may stand in for many.
        let chunks: BTreeSet<&[u8]> = entries.chunks_exact(8).filter(|e| *e != [0; 8]).collect();
        chunks.len() as u64 * u64::from(RECORDS_PER_CHUNK) * size_of::<Record>() as u64
    }

    /// The record's word of a thread; `None` when there is no record yet.
    ///
    /// # Panics
    /// When the process is gone.
    #[must_use]
    pub fn record_word(self, tid: u32) -> Option<u64> {
        Some(self.word(self.record(tid)?))
    }

    /// Overwrites the count of passes of a thread, which must have a record.
    ///
    /// # Panics
    /// When it has none.
    pub fn set_passes(self, tid: u32, passes: u32) {
        let record = self.record(tid).unwrap_or_else(|| panic!("thread {tid} has no record"));
        code::write(self.pid, record + 4, &passes.to_le_bytes());
    }
}
