//! A session: a living worker, an open channel, and the books as they are now.

use crate::channel::{self, Channel, Refusal, RequestError, Results};
use crate::doorbell::{self, Errand, Ring};
use crate::error::Error;
use crate::sys::proc;
use crate::sys::time::Deadline;
use crate::target::watch::Watch;
use crate::target::worker::task_dir;
use crate::target::{Target, books, runtime};
use std::mem::offset_of;
use std::time::Duration;
use suture_abi::block::RuntimeBlock;
use suture_abi::channel::{ALL_MAY_LOOK, MAY_LOOK, error, op};
use suture_elf::Addr;

/// How long getting a worker may take: the thread that is stopped may have to wait for a processor.
const START: Duration = Duration::from_secs(10);

/// A session with one target. Ends with [`Session::close`]; dropped without it (an error, Ctrl-C),
/// the worker notices the lost lock and rolls back what was not finished.
#[derive(Debug)]
pub struct Session<'t> {
    /// The process.
    pub target: &'t Target,
    /// Address of the runtime's block.
    pub block: Addr,
    /// What ringing the doorbell cost; `None` when there was a worker.
    pub ring: Option<Ring>,
    /// `MAY_*`: who may look at threads from inside in a transition.
    pub may: u64,
    channel: Channel,
}

impl<'t> Session<'t> {
    /// Opens the channel of the worker that a transition keeps, or rings for one.
    ///
    /// # Errors
    /// See [`doorbell::ring`] and [`Channel::open`].
    pub fn open(target: &'t Target) -> Result<Self, Error> {
        let block = runtime::block(target)?;
        let deadline = Deadline::after(START);
        let entry = books::doorbell(target, block)?;
        loop {
            let rung = match living_worker(target, block, Deadline::after(Duration::from_secs(3)))? {
                true => None,
                false => Some(ring(target, block, entry, deadline)?),
            };
            // A worker whose transition has just ended may leave before it is met.
            if let Some(channel) = Channel::open(target, block, deadline)? {
                // A worker has the filters of the thread that made it. They admit what it needs; whether they
                // admit looks at threads is not asked, the command can do that from outside.
                let mode = channel.worker().and_then(proc::seccomp_mode);
                let worker = if mode.is_some_and(|mode| mode != 0) { 0 } else { MAY_LOOK };
                let all = if target.is_known_unfiltered() { ALL_MAY_LOOK } else { 0 };
                let may = worker | all;
                return Ok(Self { target, block, ring: rung, may, channel });
            }
        }
    }

    /// Asks about every thread whether it may look at itself: worth it when some are not at the goal at once. True if
    /// all may, and did not before.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn let_all_look(&mut self) -> Result<bool, Error> {
        let new = self.may & ALL_MAY_LOOK == 0 && !self.target.is_filtered()?;
        if new {
            self.may |= ALL_MAY_LOOK;
        }
        Ok(new)
    }

    /// Makes one request.
    ///
    /// # Errors
    /// A refusal is returned as the inner `Err`, a lost worker as the outer.
    pub fn request(
        &mut self,
        op: u32,
        args: [u64; 4],
        payload: &[u8],
    ) -> Result<Result<Results, Refusal>, Error> {
        match self.channel.request(self.target, op, args, payload) {
            Ok(results) => Ok(Ok(results)),
            Err(RequestError::Refused(refusal)) => Ok(Err(refusal)),
            Err(RequestError::Lost(lost)) => Err(lost),
        }
    }

    /// Makes one request that has no reason to be refused.
    ///
    /// # Errors
    /// The refusal, put into words with `step`.
    pub fn expect(
        &mut self,
        step: &'static str,
        op: u32,
        args: [u64; 4],
        payload: &[u8],
    ) -> Result<Results, Error> {
        self.channel.request(self.target, op, args, payload).map_err(|e| explain(self.target, step, e))
    }

    /// Creates, fills and seals the code file of the next batch.
    ///
    /// # Errors
    /// When the worker cannot make it.
    pub fn code_file(&mut self, name: &str, content: &[u8]) -> Result<(), Error> {
        self.channel
            .code_file(self.target, name, content)
            .map_err(|e| explain(self.target, "the code file", e))
    }

    /// A core-serialising barrier on every processor that runs the program.
    ///
    /// # Errors
    /// When membarrier is not to be had.
    pub fn sync(&mut self) -> Result<(), Error> {
        self.expect("the barrier", op::SYNC, [0; 4], &[]).map(|_| ())
    }

    /// The worker's thread id, in our pid namespace.
    #[must_use]
    pub fn worker(&self) -> Option<i32> {
        self.channel.worker()
    }

    /// Ends the session and waits until the worker has left the process, unless a transition keeps it.
    ///
    /// # Errors
    /// When the worker does not leave in time.
    pub fn close(self) -> Result<(), Error> {
        if self.channel.close(self.target) {
            return Ok(());
        }
        let deadline = Deadline::after(Duration::from_secs(5));
        let mut watch = Watch::new(self.target, deadline);
        while living_worker(self.target, self.block, deadline)? {
            if !watch.pause()? {
                return Err(Error::Busy { pid: self.target.pid() });
            }
        }
        Ok(())
    }
}

/// Rings, with the errors of the ring before wiped off.
fn ring(target: &Target, block: Addr, entry: u64, deadline: Deadline) -> Result<Ring, Error> {
    let no_errors = [offset_of!(RuntimeBlock, clone_errno), offset_of!(RuntimeBlock, worker_errno)];
    doorbell::with_a_thread(|lift| {
        for field in no_errors {
            books::write_word(target, block, field, 0)?;
        }
        doorbell::ring(target, block, Errand { entry, lift }, deadline)
    })
}

/// Whether a worker lives in the target. Clears the trace of one that never did (in a process forked while
/// its parent had one), and waits for one that is being made.
fn living_worker(target: &Target, block: Addr, deadline: Deadline) -> Result<bool, Error> {
    let pid = target.pid();
    let mut watch = Watch::new(target, deadline);
    loop {
        let worker = books::word(target, block, offset_of!(RuntimeBlock, worker))?;
        let task = match worker {
            0 => return Ok(false),
            u32::MAX => None,
            worker => task_dir(pid, worker),
        };
        if task.as_deref().is_some_and(has_channel) {
            return Ok(true);
        }
        let late = !watch.pause()?;
        // The kernel clears the word when a worker ends, so a number without a thread was inherited by
        // fork; so was, after that long, the mark of a worker being made. Ended in this very instant
        // it is 0 now, and 0 is what is written.
        let made_now = worker == u32::MAX || task.is_some();
        if late || !made_now {
            books::write_word(target, block, offset_of!(RuntimeBlock, worker), 0)?;
            books::write_word(target, block, offset_of!(RuntimeBlock, channel_fd), u32::MAX)?;
            return Ok(false);
        }
    }
}

/// Whether a thread is a worker, and not one of the program's that got the number of a worker of the
/// process it was forked from.
fn has_channel(task: &str) -> bool {
    let files = std::fs::read_dir(format!("{task}/fd")).into_iter().flatten().flatten();
    files.into_iter().any(|file| channel::is_channel(&file.path()))
}

/// Puts a refusal of the worker into words.
pub fn explain(target: &Target, step: &'static str, error: RequestError) -> Error {
    match error {
        RequestError::Lost(lost) => lost,
        RequestError::Refused(refusal) => Error::Worker { pid: target.pid(), step, what: words(refusal) },
    }
}

/// A refusal in words.
#[must_use]
pub fn words(Refusal { code, errno, results }: Refusal) -> String {
    let os = std::io::Error::from_raw_os_error(errno);
    match code {
        error::MALFORMED => format!("the message is malformed at byte {}", results[0]),
        error::STALE => "the process's patches changed meanwhile".into(),
        error::MAP => format!("cannot map {} bytes at {:#x}: {os}", results[1], results[0]),
        error::PROTECT => format!("cannot protect {} bytes at {:#x}: {os}", results[1], results[0]),
        error::NO_MEMORY => "no memory is to be had in the process".into(),
        error::NO_ENTRY => format!("no entry {}", results[0]),
        error::BYTES => {
            format!("unexpected bytes {:#x} at {:#x} (site {})", results[2], results[1], results[0])
        }
        error::BARRIER => format!("membarrier failed: {os}"),
        error::STATE => format!("the patch is in state {}", results[0]),
        error::OBJECT => format!("object {} is not where it was", results[0]),
        error::UNKNOWN_OP => "the runtime does not know the operation".into(),
        error::DESCRIPTOR => format!("no descriptor is to be had: {os}"),
        error::IN_TRANSITION => format!("patch {} is in transition", results[0]),
        error::BLOCKED => format!("state {} of patch {} has block_disable", results[1], results[0]),
        error::DIRECT => format!("site {} may lead past its stub", results[0]),
        error::CALLBACK => format!("a callback of state {} is running", results[1]),
        other => format!("error {other}"),
    }
}
