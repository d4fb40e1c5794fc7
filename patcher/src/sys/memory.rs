//! The target's memory, read with `process_vm_readv` and written through `/proc/PID/mem`.
//!
//! # Safety
//! The kernel copies between processes; locally only buffers we own are touched.
#![allow(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use suture_elf::{Addr, Memory, MemoryError};

/// Memory of one process.
#[derive(Debug)]
pub struct ProcessMemory {
    pid: i32,
    /// `/proc/PID/mem`, for writes only: it goes past page protection, as a debugger's store does.
    file: File,
}

impl ProcessMemory {
    /// Opens the memory of a process.
    ///
    /// # Errors
    /// `EACCES`/`EPERM` without ptrace rights over the process, `ENOENT` when it is gone.
    pub fn open(pid: i32) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(format!("/proc/{pid}/mem"))?;
        Ok(Self { pid, file })
    }

    /// Writes `bytes` at `addr` whatever the page's protection is. A write of 1 byte, or of 8 bytes
    /// at an aligned address, is one store (measured; review of the redirect engine, finding 4).
    ///
    /// # Errors
    /// What the kernel says; `EIO` when nothing is mapped there or forced writes are switched off.
    pub fn write_forced(&self, addr: Addr, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, addr.0)
    }

    /// Writes `bytes` at `addr` where the program itself could write.
    ///
    /// # Errors
    /// `EFAULT` when the range is not writable, `ESRCH` when the process is gone.
    pub fn write(&self, addr: Addr, bytes: &[u8]) -> io::Result<()> {
        let local = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
        let remote =
            libc::iovec { iov_base: std::ptr::without_provenance_mut(addr.0 as usize), iov_len: bytes.len() };
        // SAFETY: `local` describes `bytes`, which the call only reads.
        let done = unsafe { libc::process_vm_writev(self.pid, &raw const local, 1, &raw const remote, 1, 0) };
        match usize::try_from(done) {
            Ok(n) if n == bytes.len() => Ok(()),
            Ok(_) => Err(io::Error::from_raw_os_error(libc::EFAULT)),
            Err(_) => Err(io::Error::last_os_error()),
        }
    }
}

impl Memory for ProcessMemory {
    fn read(&self, addr: Addr, buf: &mut [u8]) -> Result<(), MemoryError> {
        if buf.is_empty() {
            return Ok(());
        }
        let local = libc::iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: buf.len() };
        let remote =
            libc::iovec { iov_base: std::ptr::without_provenance_mut(addr.0 as usize), iov_len: buf.len() };
        // SAFETY: `local` describes `buf`, which is ours alone for the length of the call.
        let done = unsafe { libc::process_vm_readv(self.pid, &raw const local, 1, &raw const remote, 1, 0) };
        match usize::try_from(done) {
            Ok(n) if n == buf.len() => Ok(()),
            _ => Err(MemoryError { addr, len: buf.len() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_memory_reads_back() {
        let memory = ProcessMemory::open(std::process::id() as i32).unwrap();
        let word = 0x1234_5678_9abc_def0_u64;
        let addr = Addr(std::ptr::from_ref(&word).addr() as u64);
        assert_eq!(memory.read_u64(addr).unwrap(), word);
        memory.write(addr, &7u64.to_le_bytes()).unwrap();
        assert_eq!(memory.read_u64(addr).unwrap(), 7);
        memory.write_forced(addr, &9u64.to_le_bytes()).unwrap();
        assert_eq!(memory.read_u64(addr).unwrap(), 9);
        assert!(memory.read_u64(Addr(8)).is_err());
        assert_eq!(memory.write(Addr(8), &[1]).unwrap_err().raw_os_error(), Some(libc::EFAULT));
        std::hint::black_box(&word);
    }
}
