//! Memory of the process.
#![allow(unsafe_code)]

use super::fd::Fd;
use super::raw::syscall;
use super::{EEXIST, EFAULT, Errno, nr};

pub use suture_abi::batch::{PROT_EXEC, PROT_READ, PROT_WRITE};

const MAP_SHARED: u64 = 0x01;
const MAP_PRIVATE: u64 = 0x02;
const MAP_ANONYMOUS: u64 = 0x20;
const MAP_NORESERVE: u64 = 0x4000;
const MAP_FIXED_NOREPLACE: u64 = 0x10_0000;
const NO_FD: u64 = u64::MAX;

/// Size of a page.
pub const PAGE: u64 = 4096;

/// Maps fresh zeroed memory anywhere.
pub fn map_anywhere(len: u64) -> Result<u64, Errno> {
    let prot = u64::from(PROT_READ | PROT_WRITE);
    // SAFETY: without MAP_FIXED no existing mapping is touched.
    unsafe { syscall(nr::MMAP, [0, len, prot, MAP_PRIVATE | MAP_ANONYMOUS, NO_FD, 0]) }
}

/// Maps fresh zeroed memory anywhere, most of which may never be touched. In small pages: the first touch of
/// a large one takes as long as zeroing it.
pub fn map_sparse(len: u64) -> Result<u64, Errno> {
    let prot = u64::from(PROT_READ | PROT_WRITE);
    let flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    // SAFETY: without MAP_FIXED no existing mapping is touched.
    let start = unsafe { syscall(nr::MMAP, [0, len, prot, flags, NO_FD, 0]) }?;
    // SAFETY: pages just mapped; the advice changes nothing they contain. Kernels without large pages
    // refuse it.
    let _ = unsafe { syscall(nr::MADVISE, [start, len, MADV_NOHUGEPAGE, 0, 0, 0]) };
    Ok(start)
}

/// Maps part of a file anywhere, shared.
pub fn map_shared(fd: &Fd, offset: u64, len: u64, prot: u32) -> Result<u64, Errno> {
    // SAFETY: without MAP_FIXED no existing mapping is touched.
    unsafe { syscall(nr::MMAP, [0, len, u64::from(prot), MAP_SHARED, u64::from(fd.number()), offset]) }
}

/// Maps private pages at exactly `addr`, of `file` (with the offset) or anonymous; `EEXIST` if
/// something is there.
///
/// Kernels before 4.17 take the flag as a hint and map elsewhere; that is undone and reported alike.
pub fn map_fixed(addr: u64, len: u64, prot: u32, file: Option<(&Fd, u64)>) -> Result<(), Errno> {
    let (flags, fd, offset) = match file {
        Some((fd, offset)) => (MAP_PRIVATE, u64::from(fd.number()), offset),
        None => (MAP_PRIVATE | MAP_ANONYMOUS, NO_FD, 0),
    };
    // SAFETY: MAP_FIXED_NOREPLACE does not touch existing mappings.
    let got =
        unsafe { syscall(nr::MMAP, [addr, len, u64::from(prot), flags | MAP_FIXED_NOREPLACE, fd, offset]) }?;
    if got == addr {
        return Ok(());
    }
    // SAFETY: these are the pages just mapped in the wrong place; nobody knows them.
    let _ = unsafe { unmap(got, len) };
    Err(EEXIST)
}

/// Unmaps pages.
///
/// # Safety
///
/// The pages must be the runtime's own and nothing may refer to them any more.
pub unsafe fn unmap(addr: u64, len: u64) -> Result<(), Errno> {
    // SAFETY: the caller's promise.
    unsafe { syscall(nr::MUNMAP, [addr, len, 0, 0, 0, 0]) }.map(drop)
}

const MADV_DONTNEED: u64 = 4;
const MADV_NOHUGEPAGE: u64 = 15;
const MADV_WIPEONFORK: u64 = 18;

/// Has a forked child find zeros in pages of the runtime. Kernels before 4.14 cannot.
pub fn wipe_on_fork(addr: u64, len: u64) {
    // SAFETY: changes nothing in this process.
    let _ = unsafe { syscall(nr::MADVISE, [addr, len, MADV_WIPEONFORK, 0, 0, 0]) };
}

/// Gives pages back to the kernel; the mapping stays and reads as zeros.
///
/// # Safety
///
/// The pages must be private, anonymous, the runtime's own, and nobody may need what is in them.
pub unsafe fn forget(addr: u64, len: u64) -> Result<(), Errno> {
    // SAFETY: the caller's promise.
    unsafe { syscall(nr::MADVISE, [addr, len, MADV_DONTNEED, 0, 0, 0]) }.map(drop)
}

/// Changes the protection of whole pages.
///
/// # Safety
///
/// Nobody may rely on a right that is taken away.
pub unsafe fn protect(addr: u64, len: u64, prot: u32) -> Result<(), Errno> {
    // SAFETY: the caller's promise.
    unsafe { syscall(nr::MPROTECT, [addr, len, u64::from(prot), 0, 0, 0]) }.map(drop)
}

/// Reads 8 bytes at any address, mapped or not.
///
/// The kernel is asked first whether it can read them: `rt_sigprocmask` copies its new mask before it
/// looks at `how`, so an impossible `how` makes it a pure read (`EFAULT` or `EINVAL`) by a call that
/// every filter admits. Memory that somebody unmaps between that and the load still faults; the
/// caller only asks for text and data of objects that were loaded a moment ago.
pub fn peek(addr: u64) -> Result<u64, Errno> {
    // A null mask is not read at all.
    if addr == 0 {
        return Err(EFAULT);
    }
    let impossible = u64::from(u32::MAX);
    // SAFETY: the call changes nothing because `how` is invalid.
    if unsafe { syscall(nr::RT_SIGPROCMASK, [impossible, addr, 0, 8, 0, 0]) } == Err(EFAULT) {
        return Err(EFAULT);
    }
    let place = core::ptr::with_exposed_provenance::<u64>(addr as usize);
    // SAFETY: the kernel has just read these 8 bytes for this thread. Volatile where it can be: other
    // threads and the command may write them.
    Ok(unsafe { if place.is_aligned() { place.read_volatile() } else { place.read_unaligned() } })
}
