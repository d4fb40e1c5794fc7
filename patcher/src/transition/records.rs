//! The records of threads, read from outside.

use crate::target::Target;
use crate::target::books::Books;
use suture_abi::dispatch::{RECORDS_PER_CHUNK, Record};
use suture_elf::{Addr, Memory};

/// Where the records are.
#[derive(Clone, Copy, Debug)]
pub struct Records {
    directory: u64,
    stand_in: u64,
}

impl Records {
    /// As the block says.
    #[must_use]
    pub fn of(books: &Books) -> Self {
        Self { directory: books.records, stand_in: books.stand_in }
    }

    /// The word of a thread's record; `None` when it has none of its own yet, or cannot be read.
    #[must_use]
    pub fn word(&self, target: &Target, tid: u32) -> Option<u64> {
        let entry = u64::from(tid / RECORDS_PER_CHUNK) * 8;
        let chunk = target.memory.read_u64(Addr(self.directory + entry)).ok()?;
        if chunk == 0 || chunk == self.stand_in {
            return None;
        }
        let record = u64::from(tid % RECORDS_PER_CHUNK) * size_of::<Record>() as u64;
        target.memory.read_u64(Addr(chunk + record)).ok()
    }
}
