//! The way of other live patchers, as the baseline: every thread stopped by ptrace.

use crate::error::{Error, io};
use std::ptr::null_mut;
use std::time::{Duration, Instant};

/// Stops all threads of a process, changes nothing and lets them go. Returns how long the threads
/// were held, from the first request to stop to the last release.
///
/// # Errors
/// When a thread cannot be traced or ends meanwhile.
pub fn stop_all(pid: i32) -> Result<Duration, Error> {
    let tids = threads(pid)?;
    for &tid in &tids {
        ptrace(libc::PTRACE_SEIZE, tid)?;
    }
    let start = Instant::now();
    for &tid in &tids {
        ptrace(libc::PTRACE_INTERRUPT, tid)?;
    }
    for &tid in &tids {
        // SAFETY: `waitpid` accepts a null status; `tid` is a tracee of this thread.
        if unsafe { libc::waitpid(tid, null_mut(), libc::__WALL) } != tid {
            return Err(io("wait for a stopped thread")(std::io::Error::last_os_error()));
        }
    }
    for &tid in &tids {
        ptrace(libc::PTRACE_DETACH, tid)?;
    }
    Ok(start.elapsed())
}

fn threads(pid: i32) -> Result<Vec<i32>, Error> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/task")).map_err(io("list threads"))?;
    Ok(entries.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok()).collect())
}

fn ptrace(request: libc::c_uint, tid: i32) -> Result<(), Error> {
    // SAFETY: SEIZE, INTERRUPT and DETACH with null address and data touch no memory of this process.
    if unsafe { libc::ptrace(request, tid, null_mut::<libc::c_void>(), null_mut::<libc::c_void>()) } == 0 {
        return Ok(());
    }
    Err(io(format!("trace thread {tid}"))(std::io::Error::last_os_error()))
}
