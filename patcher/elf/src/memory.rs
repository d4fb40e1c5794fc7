//! Reading a process's memory, from wherever it comes.

use crate::{Addr, PAGE};
use std::cell::RefCell;
use std::collections::HashMap;
use thiserror::Error;

/// A read that could not be made.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("cannot read {len} bytes of the target at {addr}")]
pub struct MemoryError {
    /// First address of the read.
    pub addr: Addr,
    /// Bytes asked for.
    pub len: usize,
}

/// A source of target memory: `process_vm_readv`, a core file, or a test's byte array.
pub trait Memory {
    /// Fills `buf` with the bytes at `addr`, wholly or not at all.
    ///
    /// # Errors
    /// When any byte of the range cannot be read.
    fn read(&self, addr: Addr, buf: &mut [u8]) -> Result<(), MemoryError>;

    /// Reads one little-endian word.
    ///
    /// # Errors
    /// As [`Memory::read`].
    fn read_u64(&self, addr: Addr) -> Result<u64, MemoryError> {
        let mut word = [0; 8];
        self.read(addr, &mut word)?;
        Ok(u64::from_le_bytes(word))
    }

    /// Reads `len` bytes.
    ///
    /// # Errors
    /// As [`Memory::read`].
    fn read_vec(&self, addr: Addr, len: usize) -> Result<Vec<u8>, MemoryError> {
        let mut bytes = vec![0; len];
        self.read(addr, &mut bytes)?;
        Ok(bytes)
    }

    /// Reads a NUL-terminated string of at most `max` bytes; bytes that are not UTF-8 are replaced.
    ///
    /// # Errors
    /// When the memory ends before a NUL was found, or none is found within `max` bytes.
    fn read_cstr(&self, addr: Addr, max: usize) -> Result<String, MemoryError> {
        let fail = MemoryError { addr, len: max };
        let mut text = Vec::new();
        while text.len() < max {
            // Up to the next 64-byte boundary, so that a string at the end of a page is not overrun.
            let at = addr + text.len() as u64;
            let mut chunk = vec![0; (64 - (at.0 % 64) as usize).min(max - text.len())];
            self.read(at, &mut chunk).map_err(|_| fail.clone())?;
            if let Some(end) = chunk.iter().position(|&b| b == 0) {
                text.extend_from_slice(&chunk[..end]);
                return Ok(String::from_utf8_lossy(&text).into_owned());
            }
            text.extend_from_slice(&chunk);
        }
        Err(fail)
    }
}

/// Keeps every page that was read from another source, for as long as one look at something may take:
/// lists of small structures are read page by page instead of word by word, and as of one moment each.
pub struct Pages<'m> {
    from: &'m dyn Memory,
    pages: RefCell<HashMap<u64, Vec<u8>>>,
}

impl std::fmt::Debug for Pages<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pages").field("pages", &self.pages.borrow().len()).finish_non_exhaustive()
    }
}

impl<'m> Pages<'m> {
    /// Nothing is read yet.
    #[must_use]
    pub fn new(from: &'m dyn Memory) -> Self {
        Self { from, pages: RefCell::default() }
    }
}

impl Memory for Pages<'_> {
    fn read(&self, addr: Addr, buf: &mut [u8]) -> Result<(), MemoryError> {
        let fail = MemoryError { addr, len: buf.len() };
        let mut pages = self.pages.borrow_mut();
        let mut done = 0;
        while done < buf.len() {
            let at = addr.0.checked_add(done as u64).ok_or_else(|| fail.clone())?;
            let (page, offset) = (at & !(PAGE - 1), (at % PAGE) as usize);
            let bytes = match pages.entry(page) {
                std::collections::hash_map::Entry::Occupied(known) => known.into_mut(),
                std::collections::hash_map::Entry::Vacant(new) => {
                    let bytes = self.from.read_vec(Addr(page), PAGE as usize).map_err(|_| fail.clone())?;
                    new.insert(bytes)
                }
            };
            let length = (bytes.len() - offset).min(buf.len() - done);
            buf[done..done + length].copy_from_slice(&bytes[offset..offset + length]);
            done += length;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    /// Three pages whose bytes count up, the third unreadable.
    struct Counted(Cell<u32>);

    impl Memory for Counted {
        fn read(&self, addr: Addr, buf: &mut [u8]) -> Result<(), MemoryError> {
            self.0.set(self.0.get() + 1);
            if addr.0.saturating_add(buf.len() as u64) > 2 * PAGE {
                return Err(MemoryError { addr, len: buf.len() });
            }
            buf.iter_mut().zip(addr.0..).for_each(|(byte, at)| *byte = (at % 251) as u8);
            Ok(())
        }
    }

    #[test]
    fn each_page_is_read_once() {
        let memory = Counted(Cell::new(0));
        let pages = Pages::new(&memory);
        for at in [0, 100, 4090, 4096, 8000] {
            let direct = memory.read_vec(Addr(at), 12).unwrap();
            let before = memory.0.get();
            assert_eq!(pages.read_vec(Addr(at), 12).unwrap(), direct, "{at}");
            assert_eq!(pages.read_vec(Addr(at), 12).unwrap(), direct, "{at}");
            assert!(memory.0.get() <= before + 1);
        }
        assert_eq!(memory.0.get(), 5 + 2);
        let error = MemoryError { addr: Addr(8190), len: 12 };
        assert_eq!(pages.read_vec(Addr(8190), 12), Err(error));
        assert!(pages.read_vec(Addr(u64::MAX - 3), 12).is_err());
    }
}
