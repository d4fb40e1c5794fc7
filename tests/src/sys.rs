//! System calls that std does not have.
//!
//! # Safety
//!
//! Each wrapper passes only memory it owns for the length of the call, and checks the result.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

fn check(result: i64) -> io::Result<i64> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// The user the tests run as.
#[must_use]
pub fn effective_user() -> u32 {
    // SAFETY: no arguments, no memory.
    unsafe { libc::geteuid() }
}

/// Sends a signal.
///
/// # Panics
/// When there is no such process.
pub fn kill(pid: i32, signal: i32) {
    // SAFETY: no memory.
    let result = unsafe { libc::kill(pid, signal) };
    check(result.into()).unwrap_or_else(|e| panic!("cannot send signal {signal} to {pid}: {e}"));
}

/// Sends a signal to one thread.
///
/// # Panics
/// When it is gone.
pub fn signal_thread(pid: i32, tid: i32, signal: i32) {
    // SAFETY: tgkill takes no memory.
    let result = unsafe { libc::syscall(libc::SYS_tgkill, pid, tid, signal) };
    check(result).unwrap_or_else(|e| panic!("cannot signal {tid}: {e}"));
}

/// Ends a process if it is still there.
pub fn kill_if_there(pid: i32) {
    // SAFETY: no memory. It fails only when the process is gone.
    unsafe { libc::kill(pid, libc::SIGKILL) };
}

/// Whether a process ends within a time. It stays to be reaped.
///
/// # Panics
/// When it is not a process.
#[must_use]
pub fn ends_within(pid: i32, patience: Duration) -> bool {
    watch(pid).ends_within(patience)
}

/// Watches a process, which may be reaped meanwhile.
///
/// # Panics
/// When it is not a process.
#[must_use]
pub fn watch(pid: i32) -> Watch {
    // SAFETY: no memory; the result is checked before it is used as a descriptor.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = check(fd).unwrap_or_else(|e| panic!("cannot watch process {pid}: {e}"));
    // SAFETY: the descriptor was just made and nobody else has it.
    Watch(unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).unwrap_or(-1)) })
}

/// An eye on one process.
#[derive(Debug)]
pub struct Watch(OwnedFd);

impl Watch {
    /// Whether it ends within a time.
    #[must_use]
    pub fn ends_within(&self, patience: Duration) -> bool {
        let mut waiting = libc::pollfd { fd: self.0.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        let limit = i32::try_from(patience.as_millis()).unwrap_or(i32::MAX);
        // SAFETY: one pollfd, alive for the call.
        let ready = unsafe { libc::poll(&raw mut waiting, 1, limit) };
        ready == 1
    }
}

/// Makes the calling process die with its parent's thread, so that no target outlives its test.
///
/// # Errors
/// Never on Linux.
pub fn die_with_parent() -> io::Result<()> {
    // SAFETY: prctl with plain numbers.
    let result = unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    check(result.into()).map(|_| ())
}

/// Forbids the calling process, and whatever it executes, to make its memory writable and executable.
///
/// # Errors
/// When the kernel does not know that (before 6.3).
pub fn refuse_exec_gain() -> io::Result<()> {
    const PR_SET_MDWE: i32 = 65;
    const PR_MDWE_REFUSE_EXEC_GAIN: u64 = 1;
    // SAFETY: prctl with plain numbers.
    let result = unsafe { libc::prctl(PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN, 0, 0, 0) };
    check(result.into()).map(|_| ())
}

/// Which ways of writing into another process's code a filter closes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forbidden {
    /// Writes through `/proc/PID/mem`, as `proc_mem.force_override=never` does.
    Mem,
    /// Those, and `PTRACE_POKETEXT`.
    MemAndPoke,
}

/// Puts the calling process, and whatever it executes, under a filter. Writes to `/proc/PID/mem` are told
/// from those to files by their offset: no file is 4 GiB long, no code lies below that.
///
/// # Errors
/// When the kernel refuses it.
pub fn forbid(what: Forbidden) -> io::Result<()> {
    const NUMBER: u32 = 0;
    const FIRST: u32 = 16;
    const OFFSET_HIGH: u32 = 16 + 3 * 8 + 4;
    let step = |code: u32, k: u32, jt: u8, jf: u8| libc::sock_filter { code: code as u16, jt, jf, k };
    let load = |at: u32| step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, at, 0, 0);
    let equal = |k: u32, jt: u8, jf: u8| step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, k, jt, jf);
    let end = |k: u32| step(libc::BPF_RET | libc::BPF_K, k, 0, 0);
    // A request that nobody makes stands for "no request".
    let poke = if what == Forbidden::MemAndPoke { libc::PTRACE_POKETEXT } else { u32::MAX };
    let mut program = [
        load(NUMBER),
        equal(libc::SYS_pwrite64 as u32, 0, 2),
        load(OFFSET_HIGH),
        equal(0, 4, 3),
        equal(libc::SYS_ptrace as u32, 0, 3),
        load(FIRST),
        equal(poke, 0, 1),
        end(libc::SECCOMP_RET_ERRNO | libc::EIO as u32),
        end(libc::SECCOMP_RET_ALLOW),
    ];
    let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: plain numbers, and a program that lives for the call.
    let result =
        unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const filter, 0, 0) };
    check(result.into()).map(|_| ())
}

/// A resource limit, by number (`libc::RLIMIT_*`), as (soft, hard).
pub type Limit = (u64, u64);

/// Sets a limit of a process. 0 = the caller.
///
/// # Errors
/// When the kernel refuses it.
pub fn set_limit(pid: i32, resource: u32, limit: Limit) -> io::Result<()> {
    let new = libc::rlimit { rlim_cur: limit.0, rlim_max: limit.1 };
    // SAFETY: the structure lives for the call; a null old limit asks for nothing.
    let result = unsafe { libc::prlimit(pid, resource, &raw const new, std::ptr::null_mut()) };
    check(result.into()).map(|_| ())
}

/// Sets a limit of a process as its own user: another one needs a capability for it. `limit` is an option of
/// prlimit, for instance `--nproc=4096:4096`.
///
/// # Panics
/// When it cannot be set.
pub fn limit_as(user: u32, pid: i32, limit: &str) {
    crate::need("prlimit", "util-linux");
    let mut prlimit = std::process::Command::new("prlimit");
    prlimit.args(["--pid", &pid.to_string(), limit]);
    std::os::unix::process::CommandExt::uid(&mut prlimit, user);
    std::os::unix::process::CommandExt::gid(&mut prlimit, user);
    assert!(prlimit.status().expect("running prlimit").success());
}

/// Whether the tests have the capability to raise hard limits, which containers lack.
#[must_use]
pub fn may_raise_limits() -> bool {
    const CAP_SYS_RESOURCE: u64 = 24;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|l| l.strip_prefix("CapEff:"));
    let effective = effective.and_then(|caps| u64::from_str_radix(caps.trim(), 16).ok());
    effective.is_some_and(|caps| caps >> CAP_SYS_RESOURCE & 1 != 0)
}

/// A soft limit of a process that holds until it is lifted. The hard one stays, so that lifting
/// needs no capability that containers lack.
#[derive(Debug)]
pub struct SoftLimit {
    pid: i32,
    resource: u32,
    before: Limit,
}

impl SoftLimit {
    /// Lowers the limit.
    ///
    /// # Panics
    /// When the kernel refuses it.
    #[must_use]
    pub fn lower(pid: i32, resource: u32, soft: u64) -> Self {
        let before = limit(pid, resource);
        let done = set_limit(pid, resource, (soft, before.1));
        done.unwrap_or_else(|e| panic!("cannot limit process {pid}: {e}"));
        Self { pid, resource, before }
    }

    /// Puts the former limit back.
    ///
    /// # Panics
    /// When the kernel refuses it.
    pub fn lift(self) {
        let done = set_limit(self.pid, self.resource, self.before);
        done.unwrap_or_else(|e| panic!("cannot lift the limit of process {}: {e}", self.pid));
    }
}

/// A limit of a process, read in a way that needs no capability.
///
/// # Panics
/// When there is no such process.
#[must_use]
pub fn limit(pid: i32, resource: u32) -> Limit {
    let name = match resource {
        libc::RLIMIT_NOFILE => "Max open files",
        libc::RLIMIT_NPROC => "Max processes",
        libc::RLIMIT_AS => "Max address space",
        libc::RLIMIT_FSIZE => "Max file size",
        libc::RLIMIT_MEMLOCK => "Max locked memory",
        other => panic!("limit {other} has no name here"),
    };
    let text = std::fs::read_to_string(format!("/proc/{pid}/limits")).expect("limits");
    let line = text.lines().find_map(|l| l.strip_prefix(name)).expect("a line for the limit");
    let number = |word: &str| if word == "unlimited" { u64::MAX } else { word.parse().expect("a number") };
    let words: Vec<u64> = line.split_whitespace().take(2).map(number).collect();
    (words[0], words[1])
}

/// This thread as the tracer of another, which goes on running.
#[derive(Debug)]
pub struct Tracer {
    tid: i32,
}

impl Tracer {
    /// Attaches without stopping.
    ///
    /// # Panics
    /// When the kernel refuses it.
    #[must_use]
    pub fn seize(tid: i32) -> Self {
        // SAFETY: PTRACE_SEIZE takes no memory.
        let result = unsafe { libc::ptrace(libc::PTRACE_SEIZE, tid, 0, 0) };
        check(result).unwrap_or_else(|e| panic!("cannot trace {tid}: {e}"));
        Self { tid }
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        let mut status = 0;
        // SAFETY: numbers and one int; detaching needs a stopped tracee. All fail when it is gone.
        unsafe {
            libc::ptrace(libc::PTRACE_INTERRUPT, self.tid, 0, 0);
            libc::waitpid(self.tid, &raw mut status, libc::__WALL);
            libc::ptrace(libc::PTRACE_DETACH, self.tid, 0, 0);
        }
    }
}

/// A kernel probe on an instruction of a file; gone when dropped.
#[derive(Debug)]
pub struct Uprobe {
    _event: OwnedFd,
}

impl Uprobe {
    /// Puts a counting uprobe on `offset` of `file` in one process.
    ///
    /// # Errors
    /// When the kernel has no uprobes or refuses this one.
    pub fn place(pid: i32, file: &std::path::Path, offset: u64) -> io::Result<Self> {
        let kind = std::fs::read_to_string("/sys/bus/event_source/devices/uprobe/type")?;
        let kind: u32 = kind.trim().parse().map_err(io::Error::other)?;
        let path = std::ffi::CString::new(file.as_os_str().as_encoded_bytes())?;
        // perf_event_attr, version 1 (72 bytes): type, size, config, period, sample type, read
        // format, flags, wakeup, breakpoint type, path pointer, offset.
        let mut attr = [0u64; 9];
        attr[0] = u64::from(kind) | 72 << 32;
        attr[7] = path.as_ptr() as u64;
        attr[8] = offset;
        // SAFETY: the structure states its own size; it and the path live for the call.
        let fd = unsafe { libc::syscall(libc::SYS_perf_event_open, attr.as_ptr(), pid, -1, -1, 0) };
        let fd = i32::try_from(check(fd)?).map_err(io::Error::other)?;
        // SAFETY: the descriptor was just made and nobody else has it.
        Ok(Self { _event: unsafe { OwnedFd::from_raw_fd(fd) } })
    }
}
