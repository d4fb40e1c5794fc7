//! The target's memory, as of one exec.
//!
//! `/proc/PID/mem` and `/proc/PID/maps` belong to the address space the process had when they were
//! opened, not to its number: after an exec they show nothing any more. Whatever is read and written
//! through one [`ProcessMemory`] is therefore of one program, and an address can never be used in
//! another program than the one it was read from.
//!
//! # Safety
//! The kernel copies between processes; locally only buffers we own are touched.
#![allow(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use suture_elf::{Addr, Memory, MemoryError};

/// Memory of one process, from its last exec to its next.
#[derive(Debug)]
pub struct ProcessMemory {
    /// Thread it was opened through.
    via: i32,
    mem: File,
    maps: File,
}

impl ProcessMemory {
    /// Opens the memory of the process that a thread belongs to.
    ///
    /// # Errors
    /// `EACCES`/`EPERM` without ptrace rights over the process, `ENOENT` when it is gone.
    pub fn open(via: i32) -> io::Result<Self> {
        let mem = OpenOptions::new().read(true).write(true).open(format!("/proc/{via}/mem"))?;
        let maps = File::open(format!("/proc/{via}/maps"))?;
        Ok(Self { via, mem, maps })
    }

    /// Whether a process still has this memory. False after its exec and its end.
    #[must_use]
    pub fn is_there(&self) -> bool {
        // A read from an address space that is gone is an end of file, at any address; in a living
        // one nothing is mapped at 0, which is an error.
        !matches!(self.mem.read_at(&mut [0], 0), Ok(0))
    }

    /// The memory map, in the format of `/proc/PID/maps`; empty when the memory is gone.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn maps(&self) -> io::Result<String> {
        let (mut file, mut text) = (&self.maps, Vec::new());
        file.rewind()?;
        file.read_to_end(&mut text)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    /// Writes `bytes` at `addr` whatever the page's protection is. A write of 1 byte, or of 8 bytes
    /// at an aligned address, is one store (measured; review of the redirect engine, finding 4).
    ///
    /// # Errors
    /// What the kernel says; `EIO` when nothing is mapped there or forced writes are switched off.
    pub fn write_forced(&self, addr: Addr, bytes: &[u8]) -> io::Result<()> {
        self.mem.write_all_at(bytes, addr.0)
    }

    /// Writes `bytes` at `addr` where the program itself could write.
    ///
    /// # Errors
    /// `EFAULT` when the range is not writable, `ESRCH` when the process is gone.
    pub fn write(&self, addr: Addr, bytes: &[u8]) -> io::Result<()> {
        match self.is_writable(addr, bytes.len()) {
            Ok(true) => match self.write_forced(addr, bytes) {
                // A filter that we run under may forbid such writes altogether.
                Err(e) if is_forbidden(&e) && self.is_there() => self.write_by_number(addr, bytes),
                done => done,
            },
            Ok(false) => Err(io::Error::from_raw_os_error(libc::EFAULT)),
            // Kernels before 6.11 cannot be asked. Their other way goes by the number of the process,
            // so a process that executes another program right now is written to by mistake.
            Err(e) if e.raw_os_error() == Some(libc::ENOTTY) && self.is_there() => {
                self.write_by_number(addr, bytes)
            }
            Err(e) => Err(e),
        }
    }

    /// Whether one writable mapping covers the range.
    fn is_writable(&self, addr: Addr, len: usize) -> io::Result<bool> {
        let mut query = MapQuery { flags: VMA_WRITABLE, addr: addr.0, ..MapQuery::default() };
        // SAFETY: the request reads and writes one structure of the size that it states.
        let done = unsafe { libc::ioctl(self.maps.as_raw_fd(), PROCMAP_QUERY, &raw mut query) };
        if done == 0 {
            return Ok(addr.0.checked_add(len as u64).is_some_and(|end| end <= query.vma_end));
        }
        match io::Error::last_os_error() {
            e if e.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            e => Err(e),
        }
    }

    fn write_by_number(&self, addr: Addr, bytes: &[u8]) -> io::Result<()> {
        let local = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
        let remote =
            libc::iovec { iov_base: std::ptr::without_provenance_mut(addr.0 as usize), iov_len: bytes.len() };
        // SAFETY: `local` describes `bytes`, which the call only reads.
        let done = unsafe { libc::process_vm_writev(self.via, &raw const local, 1, &raw const remote, 1, 0) };
        match usize::try_from(done) {
            Ok(n) if n == bytes.len() => Ok(()),
            Ok(_) => Err(io::Error::from_raw_os_error(libc::EFAULT)),
            Err(_) => Err(io::Error::last_os_error()),
        }
    }
}

/// Whether the error says that this way of writing is closed; another one may be open.
pub fn is_forbidden(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EIO | libc::EPERM | libc::EACCES))
}

/// `_IOWR('f', 17, struct procmap_query)` of `linux/fs.h`.
const PROCMAP_QUERY: libc::Ioctl = 0xc068_6611;
/// Only mappings with this right.
const VMA_WRITABLE: u64 = 2;

/// `struct procmap_query`.
#[repr(C)]
#[derive(Debug)]
struct MapQuery {
    size: u64,
    flags: u64,
    addr: u64,
    vma_start: u64,
    vma_end: u64,
    rest: [u64; 8],
}

impl Default for MapQuery {
    fn default() -> Self {
        Self { size: size_of::<Self>() as u64, flags: 0, addr: 0, vma_start: 0, vma_end: 0, rest: [0; 8] }
    }
}

const _: () = assert!(size_of::<MapQuery>() == 104);

impl Memory for ProcessMemory {
    fn read(&self, addr: Addr, buf: &mut [u8]) -> Result<(), MemoryError> {
        if buf.is_empty() {
            return Ok(());
        }
        self.mem.read_exact_at(buf, addr.0).map_err(|_| MemoryError { addr, len: buf.len() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> ProcessMemory {
        ProcessMemory::open(std::process::id().cast_signed()).unwrap()
    }

    /// Pages of this process with the given rights.
    fn pages(prot: i32, count: usize) -> u64 {
        // SAFETY: a fresh mapping of our own.
        let at = unsafe {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            libc::mmap(std::ptr::null_mut(), count * 4096, prot, flags, -1, 0)
        };
        assert_ne!(at, libc::MAP_FAILED);
        at.addr() as u64
    }

    #[test]
    fn only_forced_writes_go_past_the_protection() {
        let memory = own();
        let at = pages(libc::PROT_READ, 1);
        for write in [ProcessMemory::write, ProcessMemory::write_by_number] {
            assert!(write(&memory, Addr(at), b"no").is_err());
        }
        memory.write_forced(Addr(at), b"yes").unwrap();
        assert_eq!(memory.read_vec(Addr(at), 3).unwrap(), b"yes");
        let local = [0u8; 2];
        for write in [ProcessMemory::write, ProcessMemory::write_by_number] {
            write(&memory, Addr(local.as_ptr().addr() as u64), b"ab").unwrap();
        }
        assert_eq!(memory.read_vec(Addr(local.as_ptr().addr() as u64), 2).unwrap(), b"ab");
    }

    #[test]
    fn a_write_stops_before_the_end_of_what_is_writable() {
        let memory = own();
        let at = pages(libc::PROT_READ | libc::PROT_WRITE, 2);
        // SAFETY: the second of the two pages just mapped.
        let done = unsafe { libc::mprotect(std::ptr::without_provenance_mut(at as usize + 4096), 4096, 0) };
        assert_eq!(done, 0);
        memory.write(Addr(at + 4096 - 8), &[1; 8]).unwrap();
        assert!(memory.write(Addr(at + 4096 - 8), &[1; 9]).is_err());
    }

    #[test]
    fn an_exec_ends_the_memory_of_before() {
        use std::io::Write;
        let mut child = std::process::Command::new("/bin/sh");
        child.args(["-c", "read line; exec cat"]).stdin(std::process::Stdio::piped());
        let mut child = child.stdout(std::process::Stdio::piped()).spawn().unwrap();
        let pid = child.id().cast_signed();
        let exe = || std::fs::read_link(format!("/proc/{pid}/exe")).unwrap();
        // Not this program's, in the moment before the shell's own exec.
        while exe() == std::env::current_exe().unwrap() {
            std::thread::yield_now();
        }
        let (memory, shell) = (ProcessMemory::open(pid).unwrap(), exe());
        assert!(memory.is_there() && memory.maps().unwrap().contains("[stack]"));
        child.stdin.as_mut().unwrap().write_all(b"go\n").unwrap();
        while exe() == shell {
            std::thread::yield_now();
        }
        assert!(!memory.is_there());
        assert_eq!(memory.maps().unwrap(), "");
        assert!(memory.write(Addr(4096), &[0]).is_err());
        drop(child.stdin.take());
        child.wait().unwrap();
    }
}
