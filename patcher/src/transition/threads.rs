//! The threads of a process, under both of their numbers.

use crate::error::Error;
use crate::sys::proc;
use crate::target::Target;
use std::fs;

/// A thread of the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Thread {
    /// Its number here, as `/proc` shows it.
    pub tid: i32,
    /// Its number in the process's own pid namespace: what its C library and the records know.
    pub own: u32,
}

/// One reading of the task directory. The worker, whose number is `worker` there, is left out.
///
/// # Errors
/// When the process is gone.
pub fn read(target: &Target, worker: u32) -> Result<Vec<Thread>, Error> {
    let pid = target.pid();
    let same = same_namespace(pid);
    let tids = proc::threads(pid).map_err(|e| Error::from_proc(pid, &e))?;
    let threads = tids.into_iter().filter_map(|tid| {
        let own = if same { u32::try_from(tid).ok()? } else { own_number(pid, tid)? };
        Some(Thread { tid, own })
    });
    Ok(threads.filter(|t| t.own != worker).collect())
}

fn same_namespace(pid: i32) -> bool {
    let of = |who: &str| fs::read_link(format!("/proc/{who}/ns/pid")).ok();
    of("self").is_some_and(|own| of(&pid.to_string()) == Some(own))
}

/// The last value of `NSpid`; `None` when the thread is gone.
fn own_number(pid: i32, tid: i32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/task/{tid}/status")).ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("NSpid:"))?;
    line.split_whitespace().last()?.parse().ok()
}

/// Name of a thread (`comm`).
#[must_use]
pub fn name(pid: i32, tid: i32) -> String {
    let comm = fs::read_to_string(format!("/proc/{pid}/task/{tid}/comm")).unwrap_or_default();
    comm.trim_end().to_owned()
}
