//! Descriptors. They live in the worker's own table only.
#![allow(unsafe_code)]

use super::raw::syscall;
use super::{EACCES, EINVAL, Errno, nr};
use core::ffi::CStr;

/// A descriptor of the worker's table, closed on drop.
#[derive(Debug)]
pub struct Fd(u32);

impl Fd {
    /// Owns a number that a system call has just given.
    pub(super) fn from_raw(number: u32) -> Self {
        Fd(number)
    }

    /// The number, as it appears under `/proc/PID/task/WORKER/fd`.
    pub fn number(&self) -> u32 {
        self.0
    }
}

impl Drop for Fd {
    fn drop(&mut self) {
        // SAFETY: closes a number this value owns; the program's table is another one.
        let _ = unsafe { syscall(nr::CLOSE, [u64::from(self.0), 0, 0, 0, 0, 0]) };
    }
}

/// Closes every descriptor of the calling thread's table.
///
/// # Safety
///
/// The table must be the worker's private one and no [`Fd`] may exist.
pub unsafe fn close_all() -> Result<(), Errno> {
    // SAFETY: no memory is touched; whose table it is is the caller's promise.
    unsafe { syscall(nr::CLOSE_RANGE, [0, u64::from(u32::MAX), 0, 0, 0, 0]) }.map(drop)
}

const MFD_CLOEXEC: u64 = 1;
const MFD_ALLOW_SEALING: u64 = 2;
const MFD_NOEXEC_SEAL: u64 = 8;
const MFD_EXEC: u64 = 16;

/// What the pages of a memfd are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemfdUse {
    /// Shared data.
    Data,
    /// Code that will be mapped executable.
    Code,
}

/// Makes an empty memfd that can be sealed.
///
/// Kernels before 6.3 do not know the flags about execution and answer `EINVAL`; there neither is needed.
/// Where `vm.memfd_noexec` is 2 the kernel refuses the one for code with `EACCES` and makes memfds that
/// cannot be executed; they can be mapped executable all the same.
pub fn memfd_create(name: &CStr, purpose: MemfdUse) -> Result<Fd, Errno> {
    let base = MFD_CLOEXEC | MFD_ALLOW_SEALING;
    let exec = match purpose {
        MemfdUse::Data => MFD_NOEXEC_SEAL,
        MemfdUse::Code => MFD_EXEC,
    };
    let make = |flags: u64| {
        // SAFETY: the name is a NUL-terminated string that outlives the call.
        unsafe { syscall(nr::MEMFD_CREATE, [name.as_ptr().addr() as u64, flags, 0, 0, 0, 0]) }
    };
    match make(base | exec) {
        Err(EINVAL | EACCES) => make(base),
        other => other,
    }
    .map(|number| Fd(number as u32))
}

/// `struct stat` as far as it is looked at.
#[repr(C)]
struct Stat {
    head: [u64; 6],
    size: i64,
    tail: [u64; 11],
}

/// Size of an open file.
pub fn size(fd: &Fd) -> Result<u64, Errno> {
    let mut stat = Stat { head: [0; 6], size: 0, tail: [0; 11] };
    let place = (&raw mut stat).expose_provenance() as u64;
    // SAFETY: the kernel writes one `struct stat` (144 bytes) into `stat`, which is that long.
    unsafe { syscall(nr::FSTAT, [u64::from(fd.0), place, 0, 0, 0, 0]) }?;
    Ok(u64::try_from(stat.size).unwrap_or(0))
}

const _: () = assert!(size_of::<Stat>() == 144);

const F_ADD_SEALS: u64 = 1033;
const F_SEAL_SHRINK: u64 = 2;

/// Forbids for ever that the file becomes shorter.
pub fn seal_shrink(fd: &Fd) -> Result<(), Errno> {
    // SAFETY: touches no memory.
    unsafe { syscall(nr::FCNTL, [u64::from(fd.0), F_ADD_SEALS, F_SEAL_SHRINK, 0, 0, 0]) }.map(drop)
}

const LOCK_EX: u64 = 2;
const LOCK_NB: u64 = 4;
const LOCK_UN: u64 = 8;

/// Tries to lock the file for this open of it. `Ok(false)`: somebody else holds it.
pub fn try_lock(fd: &Fd) -> Result<bool, Errno> {
    // SAFETY: touches no memory.
    match unsafe { syscall(nr::FLOCK, [u64::from(fd.0), LOCK_EX | LOCK_NB, 0, 0, 0, 0]) } {
        Ok(_) => Ok(true),
        Err(super::EAGAIN) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// Gives the lock back.
pub fn unlock(fd: &Fd) -> Result<(), Errno> {
    // SAFETY: touches no memory.
    unsafe { syscall(nr::FLOCK, [u64::from(fd.0), LOCK_UN, 0, 0, 0, 0]) }.map(drop)
}
