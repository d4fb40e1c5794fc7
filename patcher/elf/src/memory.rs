//! Reading a process's memory, from wherever it comes.

use crate::Addr;
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
