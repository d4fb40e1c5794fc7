//! System calls: the only place where the runtime talks to the kernel.
//!
//! Every wrapper may run on any thread and in a handler: no `errno`, no cancellation, no allocation.
//! Which calls exist at all is what a seccomp filter of the target must admit; the list is the table
//! [`CALLS`].
//!
//! # Safety
//!
//! [`raw`] holds the `syscall` instruction; the wrappers state what each call may do to memory.

pub mod fd;
pub mod mem;
pub mod raw;
pub mod task;
pub mod thread;

/// A positive errno.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errno(pub u32);

/// No such file, path or entry.
pub const ENOENT: Errno = Errno(2);
/// Interrupted by a signal.
pub const EINTR: Errno = Errno(4);
/// Permission denied.
pub const EACCES: Errno = Errno(13);
/// Bad address.
pub const EFAULT: Errno = Errno(14);
/// Target is busy.
pub const EBUSY: Errno = Errno(16);
/// Somebody else is there.
pub const EEXIST: Errno = Errno(17);
/// Invalid argument.
pub const EINVAL: Errno = Errno(22);
/// `ENOMEM`.
pub const ENOMEM: Errno = Errno(12);
/// No such process or thread.
pub const ESRCH: Errno = Errno(3);
/// Would block.
pub const EAGAIN: Errno = Errno(11);
/// Given up.
pub const ECANCELED: Errno = Errno(125);
/// Not allowed.
pub const EPERM: Errno = Errno(1);

/// Numbers of all system calls the runtime can make, doorbell entry included.
pub const CALLS: &[u32] = &[
    nr::CLOSE,
    nr::FSTAT,
    nr::MMAP,
    nr::MPROTECT,
    nr::MUNMAP,
    nr::RT_SIGACTION,
    nr::RT_SIGPROCMASK,
    nr::CLONE,
    nr::EXIT,
    nr::FCNTL,
    nr::FLOCK,
    nr::RT_SIGPENDING,
    nr::GETTID,
    nr::FUTEX,
    nr::RESTART_SYSCALL,
    nr::CLOCK_GETTIME,
    nr::MEMFD_CREATE,
    nr::MEMBARRIER,
    nr::CLOSE_RANGE,
    nr::MADVISE,
    nr::GETPID,
    nr::TGKILL,
];

/// Calls with which the worker looks at threads itself. Where a filter forbids them the command looks.
pub const LOOK_CALLS: &[u32] = &[nr::OPENAT, nr::GETDENTS64, nr::PREAD64, nr::LSEEK, nr::PROCESS_VM_READV];

/// Numbers of the x86-64 table.
pub mod nr {
    #![allow(missing_docs)] // the names are the kernel's
    pub const CLOSE: u32 = 3;
    pub const FSTAT: u32 = 5;
    pub const LSEEK: u32 = 8;
    pub const MMAP: u32 = 9;
    pub const MPROTECT: u32 = 10;
    pub const MUNMAP: u32 = 11;
    pub const RT_SIGACTION: u32 = 13;
    pub const RT_SIGPROCMASK: u32 = 14;
    pub const PREAD64: u32 = 17;
    pub const MADVISE: u32 = 28;
    pub const GETPID: u32 = 39;
    pub const CLONE: u32 = 56;
    pub const EXIT: u32 = 60;
    pub const FCNTL: u32 = 72;
    pub const FLOCK: u32 = 73;
    pub const RT_SIGPENDING: u32 = 127;
    pub const GETTID: u32 = 186;
    pub const FUTEX: u32 = 202;
    pub const GETDENTS64: u32 = 217;
    pub const RESTART_SYSCALL: u32 = 219;
    pub const CLOCK_GETTIME: u32 = 228;
    pub const TGKILL: u32 = 234;
    pub const OPENAT: u32 = 257;
    pub const PROCESS_VM_READV: u32 = 310;
    pub const MEMFD_CREATE: u32 = 319;
    pub const MEMBARRIER: u32 = 324;
    pub const CLOSE_RANGE: u32 = 436;
}
