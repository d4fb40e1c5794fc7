//! One command on many processes at a time.
//!
//! Each process is handled by one thread from stop to detach (ptrace ties a tracee to a thread), which ends
//! with it: what it asked threads of the process to do, and they have not done, ends with it too.
//! Threads publish what they are doing as an immutable snapshot; whoever draws it just loads the
//! newest one.

use crate::error::Error;
use crate::target::books::Books;
use arc_swap::ArcSwap;
use crossbeam_channel::unbounded;
use std::sync::Arc;
use std::time::Duration;

/// Most processes worked on at the same time.
const PARALLEL: usize = 8;

/// How far a command is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Processes finished.
    pub done: usize,
    /// Processes in all.
    pub total: usize,
    /// What is going on in the processes at work: process id and step.
    pub at_work: Vec<(i32, &'static str)>,
}

/// Where a worker thread says what it is doing.
#[derive(Debug)]
pub struct Progress {
    newest: ArcSwap<Snapshot>,
}

impl Progress {
    fn new(total: usize) -> Self {
        Self { newest: ArcSwap::from_pointee(Snapshot { total, ..Snapshot::default() }) }
    }

    /// Says that `pid` is now at `step`.
    pub fn step(&self, pid: i32, step: &'static str) {
        self.change(|s| {
            s.at_work.retain(|(p, _)| *p != pid);
            s.at_work.push((pid, step));
        });
    }

    /// Says how far the transition of `pid` is.
    pub fn transition(&self, pid: i32, books: &Books) {
        if books.transition.is_some() {
            self.step(pid, "moving threads");
        }
    }

    fn finished(&self, pid: i32) {
        self.change(|s| {
            s.at_work.retain(|(p, _)| *p != pid);
            s.done += 1;
        });
    }

    fn change(&self, edit: impl Fn(&mut Snapshot)) {
        self.newest.rcu(|old| {
            let mut new = Snapshot::clone(old);
            edit(&mut new);
            new
        });
    }

    /// The newest snapshot.
    #[must_use]
    pub fn newest(&self) -> Arc<Snapshot> {
        self.newest.load_full()
    }
}

/// Runs `work` on every process and gives the results in the order of `pids`. `meanwhile` is done once
/// on this thread, then `draw` is called about 20 times a second while there is work.
pub fn on_each<T: Send>(
    pids: &[i32],
    work: impl Fn(i32, &Progress) -> Result<T, Error> + Sync,
    meanwhile: impl FnOnce(),
    mut draw: impl FnMut(&Snapshot),
) -> Vec<(i32, Result<T, Error>)> {
    let progress = Progress::new(pids.len());
    let (jobs, queue) = unbounded();
    let (results, done) = unbounded();
    for job in pids.iter().copied().enumerate() {
        // The queue cannot be closed: `queue` lives to the end of this function.
        let _ = jobs.send(job);
    }
    drop(jobs);
    let mut finished: Vec<(usize, i32, Result<T, Error>)> = std::thread::scope(|scope| {
        for _ in 0..pids.len().min(PARALLEL) {
            let (queue, results, work, progress) = (queue.clone(), results.clone(), &work, &progress);
            scope.spawn(move || {
                for (index, pid) in queue {
                    // This thread's end is near when there is only one process.
                    let result =
                        if pids.len() == 1 { work(pid, progress) } else { apart(|| work(pid, progress)) };
                    progress.finished(pid);
                    let _ = results.send((index, pid, result));
                }
            });
        }
        drop(results);
        meanwhile();
        let mut finished = Vec::new();
        loop {
            match done.recv_timeout(Duration::from_millis(50)) {
                Ok(result) => finished.push(result),
                Err(crossbeam_channel::RecvTimeoutError::Timeout) => draw(&progress.newest()),
                Err(crossbeam_channel::RecvTimeoutError::Disconnected) => return finished,
            }
        }
    });
    finished.sort_by_key(|(index, ..)| *index);
    finished.into_iter().map(|(_, pid, result)| (pid, result)).collect()
}

/// Runs something on a thread that ends with it.
fn apart<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    let done = std::thread::scope(|scope| scope.spawn(work).join());
    done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_the_order_of_the_processes() {
        let pids: Vec<i32> = (1..50).collect();
        let results = on_each(
            &pids,
            |pid, progress| {
                progress.step(pid, "work");
                if pid % 7 == 0 { Err(Error::NoProcess { pid }) } else { Ok(pid * 2) }
            },
            || {},
            |_| {},
        );
        assert_eq!(results.iter().map(|(p, _)| *p).collect::<Vec<_>>(), pids);
        assert!(results.iter().all(|(p, r)| r.is_err() == (p % 7 == 0)));
        assert!(results.iter().all(|(p, r)| r.as_ref().map_or(true, |n| *n == p * 2)));
    }

    #[test]
    fn snapshots_count_up_and_name_who_is_at_work() {
        let progress = Progress::new(2);
        progress.step(5, "a");
        progress.step(5, "b");
        progress.step(6, "a");
        assert_eq!(progress.newest().at_work, [(5, "b"), (6, "a")]);
        progress.finished(5);
        assert_eq!(*progress.newest(), Snapshot { done: 1, total: 2, at_work: vec![(6, "a")] });
    }
}
