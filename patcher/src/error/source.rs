//! What an error of the kernel means for the process it was met at.

use super::Error;
use crate::target::{Target, condition};
use std::io;
use suture_elf::MemoryError;

impl Error {
    /// A failed look at `/proc/PID`.
    #[must_use]
    pub fn from_proc(pid: i32, source: &io::Error) -> Self {
        match source.raw_os_error() {
            Some(libc::ENOENT | libc::ESRCH) => {
                if std::path::Path::new(&format!("/proc/{pid}/stat")).exists() {
                    Self::Vanished { pid }
                } else {
                    Self::NoProcess { pid }
                }
            }
            Some(libc::EACCES | libc::EPERM) => Self::not_permitted(pid),
            _ => Self::Io { what: format!("cannot look at process {pid}"), source: clone_io(source) },
        }
    }

    /// A failed read of the target's memory.
    #[must_use]
    pub fn from_memory(target: &Target, error: MemoryError) -> Self {
        let pid = target.pid();
        match target.still_there() {
            Err(gone) => gone,
            Ok(()) => Self::Unreadable { pid, what: error.to_string() },
        }
    }

    /// A failed ptrace request.
    #[must_use]
    pub fn from_ptrace(target: &Target, source: &io::Error) -> Self {
        let pid = target.pid();
        match crate::sys::proc::facts(pid) {
            Ok(facts) if facts.tracer != 0 => condition::traced(pid, facts.tracer),
            _ => Self::from_proc(pid, source),
        }
    }

    fn not_permitted(pid: i32) -> Self {
        let facts = crate::sys::proc::facts(pid).ok();
        let own = crate::sys::user::own();
        let scope = std::fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").unwrap_or_default();
        let why = match (&facts, scope.trim()) {
            (Some(f), _) if own != 0 && f.ruid == own && f.euid != own => {
                "it runs a set-user-ID program".to_owned()
            }
            (Some(f), _) if f.euid != own && own != 0 => "it belongs to another user".into(),
            (_, "1") => "kernel.yama.ptrace_scope is 1: only descendants may be traced".into(),
            (_, "2") => "kernel.yama.ptrace_scope is 2: only an administrator may trace".into(),
            (_, "3") => "kernel.yama.ptrace_scope is 3: nobody may trace".into(),
            _ => "the kernel refuses ptrace access (non-dumpable process, or missing CAP_SYS_PTRACE)".into(),
        };
        let owner = facts.map_or_else(|| "unknown".into(), |f| f.euid.to_string());
        Self::NotPermitted { pid, owner, why }
    }
}

fn clone_io(e: &io::Error) -> io::Error {
    e.raw_os_error().map_or_else(|| io::Error::other(e.to_string()), io::Error::from_raw_os_error)
}
