//! The worker as a thread: whether it is there, and where `/proc` shows it.

use crate::sys::proc;

/// Whether the worker that a block names is in the process. A forked child inherits the number of its
/// parent's, without the thread, or the mark of one that was being made. (One that *is* being made has done
/// nothing yet.)
#[must_use]
pub fn is_there(pid: i32, worker: u32) -> bool {
    !matches!(worker, 0 | u32::MAX) && task_dir(pid, worker).is_some()
}

/// The worker's task directory. The worker knows its number in the target's own pid namespace only,
/// so where that is not ours the directory is searched by the last `NSpid` value.
pub fn task_dir(pid: i32, worker: u32) -> Option<String> {
    let namespace = |who: &str| std::fs::read_link(format!("/proc/{who}/ns/pid")).ok();
    if namespace("self") == namespace(&pid.to_string()) {
        let task = format!("/proc/{pid}/task/{worker}");
        return std::path::Path::new(&task).exists().then_some(task);
    }
    proc::threads(pid).ok()?.into_iter().map(|tid| format!("/proc/{pid}/task/{tid}")).find(|task| {
        let status = std::fs::read_to_string(format!("{task}/status")).unwrap_or_default();
        let own =
            status.lines().find_map(|l| l.strip_prefix("NSpid:")).and_then(|l| l.split_whitespace().last());
        own.and_then(|n| n.parse().ok()) == Some(worker)
    })
}
