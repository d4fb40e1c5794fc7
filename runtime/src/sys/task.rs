//! The process's own threads, through `/proc/self/task`, and their memory.
//!
//! Runs on the worker, in its own descriptor table. A process without `/proc`, or whose files belong to
//! root since it dropped its privileges, cannot read these; the command then reads them from outside.
#![allow(unsafe_code)]

use super::fd::Fd;
use super::mem::PAGE;
use super::raw::syscall;
use super::{EINVAL, Errno, nr};
use core::ffi::CStr;

const AT_FDCWD: u64 = -100i64 as u64;
const O_DIRECTORY: u64 = 0o200_000;
const O_CLOEXEC: u64 = 0o2_000_000;

fn openat(dir: u64, path: &CStr, flags: u64) -> Result<Fd, Errno> {
    // SAFETY: the path is a NUL-terminated string that outlives the call.
    unsafe { syscall(nr::OPENAT, [dir, path.as_ptr().addr() as u64, flags | O_CLOEXEC, 0, 0, 0]) }
        .map(|number| Fd::from_raw(number as u32))
}

/// The open task directory.
#[derive(Debug)]
pub struct TaskDir(Fd);

/// `struct linux_dirent64` up to the name.
const NAME_OFFSET: usize = 19;

impl TaskDir {
    /// Opens it.
    pub fn open() -> Result<Self, Errno> {
        openat(AT_FDCWD, c"/proc/self/task", O_DIRECTORY).map(TaskDir)
    }

    /// Calls `each` with every thread id the directory shows. One reading is not a snapshot: threads that
    /// come and go can make it miss one that stays.
    pub fn read(&self, mut each: impl FnMut(u32) -> Result<(), Errno>) -> Result<(), Errno> {
        let fd = u64::from(self.0.number());
        // SAFETY: moves the position of a descriptor of ours.
        unsafe { syscall(nr::LSEEK, [fd, 0, 0, 0, 0, 0]) }?;
        // Large enough for about 500 entries: most programs are read in one piece.
        let mut buffer = [0u64; 1536];
        loop {
            let (place, len) = (buffer.as_mut_ptr().expose_provenance() as u64, size_of_val(&buffer) as u64);
            // SAFETY: the kernel writes at most `len` bytes to `buffer`.
            let filled = unsafe { syscall(nr::GETDENTS64, [fd, place, len, 0, 0, 0]) }? as usize;
            if filled == 0 {
                return Ok(());
            }
            // SAFETY: integers seen as their bytes.
            let bytes = unsafe { core::slice::from_raw_parts(buffer.as_ptr().cast::<u8>(), len as usize) };
            let mut entries = bytes.get(..filled).unwrap_or_default();
            while let Some((name, rest)) = next_entry(entries) {
                if let Some(tid) = number(name) {
                    each(tid)?;
                }
                entries = rest;
            }
        }
    }

    /// Opens a file of a thread: `name` is `schedstat`, `syscall` or `stat`.
    pub fn file(&self, tid: u32, name: &str) -> Result<Fd, Errno> {
        let mut path = [0u8; 32];
        let mut digits = [0u8; 10];
        let mut count = 0usize;
        let mut left = tid;
        for place in &mut digits {
            *place = b'0'.wrapping_add((left % 10) as u8);
            left /= 10;
            count = count.wrapping_add(1);
            if left == 0 {
                break;
            }
        }
        let digits = digits.iter().take(count).rev();
        let text = digits.copied().chain([b'/']).chain(name.bytes());
        // The last byte stays 0.
        for (place, byte) in path.iter_mut().zip(text) {
            *place = byte;
        }
        let path = CStr::from_bytes_until_nul(&path).map_err(|_| EINVAL)?;
        openat(u64::from(self.0.number()), path, 0)
    }
}

fn next_entry(entries: &[u8]) -> Option<(&[u8], &[u8])> {
    let &[low, high] = entries.get(16..18)? else { return None };
    let len = usize::from(u16::from_le_bytes([low, high]));
    let entry = entries.get(..len)?;
    // An entry of no length would be looked at for ever.
    let rest = entries.get(len.max(NAME_OFFSET)..)?;
    let name = entry.get(NAME_OFFSET..)?.split(|b| *b == 0).next()?;
    Some((name, rest))
}

fn number(name: &[u8]) -> Option<u32> {
    if name.is_empty() {
        return None;
    }
    name.iter().try_fold(0u32, |value, digit| {
        let digit = char::from(*digit).to_digit(10)?;
        value.checked_mul(10)?.checked_add(digit)
    })
}

/// Size of a buffer for [`read_small`]: `status`, the longest of the files, is about 1500 bytes long.
pub const SMALL: usize = 2048;

/// Reads a small file from its start; gives what is in it.
pub fn read_small<'b>(fd: &Fd, buffer: &'b mut [u8; SMALL]) -> Result<&'b [u8], Errno> {
    let number = u64::from(fd.number());
    let (place, len) = (buffer.as_mut_ptr().expose_provenance() as u64, buffer.len() as u64);
    // SAFETY: the kernel writes at most `len` bytes to `buffer`.
    let got = unsafe { syscall(nr::PREAD64, [number, place, len, 0, 0, 0]) }?;
    buffer.get(..got as usize).ok_or(EINVAL)
}

#[repr(C)]
struct Iovec {
    base: u64,
    len: u64,
}

/// Words of a page.
pub const PAGE_WORDS: usize = (PAGE / 8) as usize;

/// Copies memory of this process that may be gone at any moment, from `addr` (a multiple of 8), not beyond the
/// end of its page; gives how many words were copied. `pid` is this process's number.
pub fn copy_some(pid: u32, addr: u64, words: &mut [u64]) -> Result<usize, Errno> {
    let page_end = (addr | (PAGE - 1)).wrapping_add(1);
    let len = (size_of_val(words) as u64).min(page_end.wrapping_sub(addr));
    let local = Iovec { base: words.as_mut_ptr().expose_provenance() as u64, len };
    let remote = Iovec { base: addr, len };
    let (local, remote) =
        ((&raw const local).expose_provenance() as u64, (&raw const remote).expose_provenance() as u64);
    let pid = u64::from(pid);
    // SAFETY: the kernel reads the structures, which outlive the call, and writes `len` bytes to `words`, which
    // is at least that long; what it reads of ours it checks.
    unsafe { syscall(nr::PROCESS_VM_READV, [pid, local, 1, remote, 1, 0]) }.map(|got| (got / 8) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::thread;

    #[test]
    fn this_process_is_read() {
        let dir = TaskDir::open().unwrap();
        let own = thread::gettid();
        for _ in 0..2 {
            let mut tids = Vec::new();
            dir.read(|tid| {
                tids.push(tid);
                Ok(())
            })
            .unwrap();
            assert!(tids.contains(&own), "{own} in {tids:?}");
        }
        let mut buffer = [0; SMALL];
        let file = dir.file(own, "schedstat").unwrap();
        let first = suture_scan::proc::run_count(read_small(&file, &mut buffer).unwrap());
        std::thread::sleep(std::time::Duration::from_millis(1));
        let second = suture_scan::proc::run_count(read_small(&file, &mut buffer).unwrap());
        assert!(first.is_some() && first < second);
        assert_eq!(dir.file(0, "stat").unwrap_err(), crate::sys::ENOENT);
    }

    #[test]
    fn memory_is_copied_as_far_as_it_is_there() {
        let mut words = [1; PAGE_WORDS];
        let page = super::super::mem::map_anywhere(2 * PAGE).unwrap();
        // SAFETY: the last of the pages mapped above.
        unsafe { super::super::mem::unmap(page + PAGE, PAGE) }.unwrap();
        let place = page + 8;
        // SAFETY: inside the page that is left.
        unsafe { (place as *mut u64).write(7) };
        let pid = thread::getpid();
        assert_eq!(copy_some(pid, place, &mut words), Ok(511));
        assert_eq!((words[..2].to_vec(), words[511]), (vec![7, 0], 1));
        assert_eq!(copy_some(pid, place, &mut words[..1]), Ok(1));
        assert_eq!(copy_some(pid, page + PAGE, &mut words), Err(super::super::EFAULT));
    }
}
