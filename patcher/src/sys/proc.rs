//! What `/proc` says about a process and its threads.

use procfs::process::Process;
use std::fs;
use std::io;

/// Facts about a process that decide whether and how it can be worked on.
#[derive(Clone, Debug)]
pub struct ProcessFacts {
    /// Process id, in our pid namespace.
    pub pid: i32,
    /// `comm` of the process.
    pub comm: String,
    /// Start time in clock ticks since boot: with `pid` the identity of the process.
    pub start_time: u64,
    /// Effective user id.
    pub euid: u32,
    /// Tracer of the main thread, or 0.
    pub tracer: i32,
    /// Signals with handlers, as the kernel's bit set.
    pub caught: u64,
    /// State letter of the main thread.
    pub state: char,
    /// Threads.
    pub threads: u64,
    /// Seccomp mode: 0 off, 1 strict, 2 filter.
    pub seccomp: u32,
    /// Whether a user shadow stack is active.
    pub shadow_stack: bool,
}

/// Reads them.
///
/// # Errors
/// `ENOENT` when the process does not exist, `EACCES` when it is hidden from us.
pub fn facts(pid: i32) -> io::Result<ProcessFacts> {
    let process = Process::new(pid).map_err(io_error)?;
    let stat = process.stat().map_err(io_error)?;
    let status = process.status().map_err(io_error)?;
    let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let field = |name: &str| text.lines().find_map(|l| l.strip_prefix(name)).map(str::trim);
    Ok(ProcessFacts {
        pid,
        comm: stat.comm,
        start_time: stat.starttime,
        euid: status.euid,
        tracer: status.tracerpid,
        caught: status.sigcgt,
        state: stat.state,
        threads: status.threads,
        seccomp: status.seccomp.unwrap_or(0),
        shadow_stack: field("x86_Thread_features:").is_some_and(|f| f.contains("shstk")),
    })
}

fn io_error(error: procfs::ProcError) -> io::Error {
    match error {
        procfs::ProcError::PermissionDenied(_) => io::Error::from_raw_os_error(libc::EACCES),
        procfs::ProcError::NotFound(_) => io::Error::from_raw_os_error(libc::ENOENT),
        procfs::ProcError::Io(e, _) => e,
        other => io::Error::other(other.to_string()),
    }
}

/// `PF_IO_WORKER | PF_USER_WORKER`: threads the kernel made; they never run user code.
const KERNEL_MADE: u32 = 0x4010;

/// What a thread is doing, as far as it can be read without touching it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ThreadFacts {
    /// Thread id, in our pid namespace.
    pub tid: i32,
    /// State letter.
    pub state: char,
    /// Made by the kernel.
    pub kernel_made: bool,
    /// System call it is blocked in, if it is.
    pub syscall: Option<u64>,
}

/// Thread ids of a process, in the order of the directory.
///
/// # Errors
/// `ENOENT` when it is gone.
pub fn threads(pid: i32) -> io::Result<Vec<i32>> {
    let mut tids = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/task"))? {
        if let Some(tid) = entry?.file_name().to_str().and_then(|s| s.parse().ok()) {
            tids.push(tid);
        }
    }
    Ok(tids)
}

/// Looks at one thread; `None` when it is gone.
#[must_use]
pub fn thread_facts(pid: i32, tid: i32) -> Option<ThreadFacts> {
    let stat = fs::read_to_string(format!("/proc/{pid}/task/{tid}/stat")).ok()?;
    let rest = stat.get(stat.rfind(')')? + 2..)?;
    let mut fields = rest.split(' ');
    let state = fields.next()?.chars().next()?;
    let flags: u32 = fields.nth(5)?.parse().ok()?;
    let syscall = fs::read_to_string(format!("/proc/{pid}/task/{tid}/syscall")).ok();
    Some(ThreadFacts {
        tid,
        state,
        kernel_made: flags & KERNEL_MADE != 0,
        syscall: syscall.and_then(|line| line.split(' ').next()?.trim().parse().ok()),
    })
}

/// `/proc/PID/maps` as text.
///
/// # Errors
/// `EACCES` without ptrace rights, `ENOENT` when the process is gone.
pub fn maps(pid: i32) -> io::Result<String> {
    fs::read(format!("/proc/{pid}/maps")).map(|b| String::from_utf8_lossy(&b).into_owned())
}

/// The auxiliary vector, raw.
///
/// # Errors
/// As [`maps`].
pub fn auxv(pid: i32) -> io::Result<Vec<u8>> {
    fs::read(format!("/proc/{pid}/auxv"))
}

/// Soft limit of the stack (`None` = unlimited) and hard limit, in bytes.
///
/// # Errors
/// `EACCES` without rights, `ENOENT` when the process is gone.
pub fn stack_limits(pid: i32) -> io::Result<(Option<u64>, Option<u64>)> {
    let text = fs::read_to_string(format!("/proc/{pid}/limits"))?;
    let line = text.lines().find_map(|l| l.strip_prefix("Max stack size")).unwrap_or_default();
    let mut limits = line.split_whitespace().map(|v| v.parse().ok());
    Ok((limits.next().flatten(), limits.next().flatten()))
}

/// `vm.max_map_count`, or the kernel's default when it cannot be read.
#[must_use]
pub fn max_map_count() -> usize {
    fs::read_to_string("/proc/sys/vm/max_map_count")
        .ok()
        .and_then(|t| t.trim().parse().ok())
        .unwrap_or(65_530)
}

/// All process ids.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn all_pids() -> io::Result<Vec<i32>> {
    let mut pids: Vec<i32> =
        fs::read_dir("/proc")?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect();
    pids.sort_unstable();
    Ok(pids)
}
