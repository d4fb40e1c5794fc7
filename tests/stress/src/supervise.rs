//! The outer process: starts the process under stress, waits with a deadline, reads the scoreboard.

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::Path;
use std::process::{Child, Command, ExitStatus};
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use crate::board::{Board, SharedBoard};
use crate::error::{Error, Result};

/// How a process under stress ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// By itself, having found nothing.
    Clean,
    /// By itself, unable to make a step.
    Failed(i32),
    /// By a signal.
    Killed(i32),
    /// Not before the deadline.
    Hung,
}

/// A finished run.
#[derive(Debug)]
pub struct Outcome {
    /// How it ended.
    pub end: End,
    /// Its figures.
    pub board: SharedBoard,
}

impl Outcome {
    /// Whether the harness found anything.
    pub fn is_clean(&self) -> bool {
        self.end == End::Clean && self.board.get().wrong_total.load(Relaxed) == 0
    }

    /// Whether what was found is due to the stores: the unarmed victims had passed.
    pub fn caught(&self) -> bool {
        let board: &Board = self.board.get();
        let wrong = board.wrong_total.load(Relaxed) != 0;
        let ended = matches!(self.end, End::Killed(_) | End::Hung);
        board.baseline.load(Relaxed) == 1 && (wrong || ended)
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let board = self.board.get();
        match self.end {
            End::Clean => write!(f, "ended by itself")?,
            End::Failed(code) => write!(f, "ended with code {code}")?,
            End::Killed(signal) => write!(f, "killed by signal {signal}")?,
            End::Hung => write!(f, "did not end in time")?,
        }
        let fault = board.fault_signal.load(Relaxed);
        if fault != 0 {
            let (ip, addr) = (board.fault_ip.load(Relaxed), board.fault_addr.load(Relaxed));
            write!(f, ", signal {fault} at {ip:#x} on address {addr:#x}")?;
        }
        let total = board.wrong_total.load(Relaxed);
        if total != 0 {
            write!(f, ", {total} wrong")?;
        }
        let [got, old, new, registers, case] = [0, 1, 2, 3, 4].map(|i: usize| board.wrong[i].load(Relaxed));
        if old != 0 {
            write!(f, ", first in case {case}: got {got:#x}, old {old:#x}, new {new:#x}")?;
            write!(f, ", changed registers {registers:#x}")?;
        }
        Ok(())
    }
}

/// Starts `exe` as a worker with `arguments` and waits at most `limit` for its end.
pub fn supervise(exe: &Path, arguments: &[String], limit: Duration) -> Result<Outcome> {
    let board = SharedBoard::create()?;
    let mut command = Command::new(exe);
    command.arg("worker").arg("--board").arg(board.raw_fd().to_string()).args(arguments);
    // A group of its own: a forked child may hang when the worker has ended, and would go on for ever, with our
    // standard output open.
    let spawned = command.process_group(0).spawn();
    let mut child = spawned.map_err(|source| Error::System { what: "start a worker", source })?;
    let ended = wait(&mut child, limit)?;
    let end = match ended {
        None => End::Hung,
        Some(status) => match (status.code(), status.signal()) {
            (Some(0), _) => End::Clean,
            (Some(code), _) => End::Failed(code),
            (None, signal) => End::Killed(signal.unwrap_or(0)),
        },
    };
    Ok(Outcome { end, board })
}

/// Waits for the end of `child`, at most `limit`, and kills what is left of its group. `None`: it had not ended.
fn wait(child: &mut Child, limit: Duration) -> Result<Option<ExitStatus>> {
    let system = |what| move |source| Error::System { what, source };
    // SAFETY: plain system call on a child that was not waited for.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, child.id(), 0) };
    if fd < 0 {
        return Err(Error::last("watch a worker"));
    }
    // SAFETY: the descriptor was just made and belongs to nobody else.
    let pidfd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
    let mut poll = libc::pollfd { fd: pidfd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    let timeout = i32::try_from(limit.as_millis()).unwrap_or(i32::MAX);
    let ready = loop {
        // SAFETY: one pollfd, a local.
        let ready = unsafe { libc::poll(&raw mut poll, 1, timeout) };
        if ready >= 0 || io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
            break ready;
        }
    };
    // SAFETY: plain system call on the group of a child that was not waited for: the number is nobody else's.
    unsafe { libc::killpg(child.id().cast_signed(), libc::SIGKILL) };
    if ready > 0 {
        return Ok(Some(child.wait().map_err(system("wait for a worker"))?));
    }
    child.wait().map_err(system("wait for a killed worker"))?;
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;
    use std::time::Instant;

    /// A process that is gone, or has ended and waits for whoever inherited it.
    fn has_ended(pid: &str) -> bool {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit(") ").next().is_none_or(|rest| rest.is_empty() || rest.starts_with(['Z', 'X']))
    }

    /// A worker that leaves a child behind, and ends or hangs.
    fn leaves_a_child(and_then: &str, limit: Duration) -> (End, bool) {
        let folder = tempfile::tempdir().expect("a directory");
        let (worker, note) = (folder.path().join("worker"), folder.path().join("child"));
        let script = format!("#!/bin/sh\nsleep 600 &\necho $! > {}\n{and_then}\n", note.display());
        fs::write(&worker, script).expect("a script");
        fs::set_permissions(&worker, fs::Permissions::from_mode(0o755)).expect("an executable");
        let end = supervise(&worker, &[], limit).expect("a run").end;
        let child = fs::read_to_string(note).expect("the child's number").trim().to_owned();
        let deadline = Instant::now() + Duration::from_secs(10);
        while !has_ended(&child) && Instant::now() < deadline {
            std::thread::yield_now();
        }
        let ended = has_ended(&child);
        let _ = Command::new("kill").args(["-KILL", &child]).stderr(std::process::Stdio::null()).status();
        (end, ended)
    }

    #[test]
    fn what_a_worker_leaves_behind_ends_with_it() {
        assert_eq!(leaves_a_child("exit 0", Duration::from_secs(60)), (End::Clean, true));
        assert_eq!(leaves_a_child("exit 3", Duration::from_secs(60)), (End::Failed(3), true));
        assert_eq!(leaves_a_child("wait", Duration::from_secs(4)), (End::Hung, true));
    }
}
