//! A look at a thread of this process, from beside it.
//!
//! Nothing is touched: the thread is not stopped, not woken, gets no signal. Runs on the worker.
//!
//! # Order
//!
//! 1. run count; 2. the record's word; 3. where the thread is blocked (`syscall`); 4. its stack, from there
//!    to its proven end; 5. run count again.
//!
//! The run count rises when a thread is put *on* a processor. So an unchanged count, read first and last,
//! proves that the thread was off the processor from before 2 until after 4: what was read belongs
//! together. (Read after 3, the first count could already contain a wake-up between the two, and the
//! thread could run during 4 unnoticed.)
//!
//! "Clear" stays true until the thread passes a dispatcher, however long the answer takes: only that way
//! can it come into a searched function. Whoever acts on it does so by compare-and-swap on the word of 2.
//!
//! What is not plainly clear is left to the command, which can walk stacks exactly and read registers.

use super::ends::{self, StackEnds};
use super::own;
use crate::held::NAME;
use crate::record::DIRECTORY;
use crate::stacks;
use crate::sys::fd::Fd;
use crate::sys::task::{PAGE_WORDS, SMALL, TaskDir, copy_some, read_small};
use crate::sys::{EINVAL, ENOENT, ESRCH, Errno, thread};
use core::sync::atomic::Ordering;
use suture_scan::proc::{Runs, Stat, Syscall, seccomp};
use suture_scan::{End, Hit, Ranges, Scanner, Step};

/// What a look says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Clear of everything searched; the record's word from before.
    Clear(u64),
    /// It runs, or may run unseen.
    Running,
    /// Not clear, or not to be proven so from here: the first address of searched code that was found, or 0.
    Unclear(u64),
    /// It is gone.
    Gone,
}

/// Looks at threads.
#[derive(Debug)]
pub struct Lookout {
    dir: TaskDir,
    ends: StackEnds,
    runs: Runs,
    own: u32,
    /// Number of the process, and of its main thread.
    pid: u32,
}

impl Lookout {
    /// Opens the task directory and finds out whether the kernel counts runs.
    pub fn open() -> Result<Self, Errno> {
        let ends = StackEnds::known();
        let dir = TaskDir::open()?;
        let own = thread::gettid();
        let mut buffer = [0; SMALL];
        // The directory may be that of another namespace, with other numbers.
        let file = dir.file(own, "schedstat")?;
        let runs = Runs::by(read_small(&file, &mut buffer)?);
        Ok(Lookout { dir, ends, runs, own, pid: thread::getpid() })
    }

    /// Calls `each` with every thread of the program that one reading of the directory shows.
    pub fn read(&self, mut each: impl FnMut(u32) -> Result<(), Errno>) -> Result<(), Errno> {
        self.dir.read(|tid| if tid == self.own { Ok(()) } else { each(tid) })
    }

    /// `ESRCH`: the thread is gone. `EINVAL`: nothing says, as where the groups of a thread take up all that was read.
    fn runs(&self, file: &Fd) -> Result<u64, Errno> {
        let mut buffer = [0; SMALL];
        self.runs.of(read_small(file, &mut buffer)?).ok_or(EINVAL)
    }

    /// Looks at one thread.
    pub fn look(&self, tid: u32, ranges: &Ranges<'_>) -> Result<Verdict, Errno> {
        let counter = match self.dir.file(tid, self.runs.file()) {
            Err(ENOENT) => return Ok(Verdict::Gone),
            other => other?,
        };
        let before = match self.runs(&counter) {
            Err(ESRCH) => return Ok(Verdict::Gone),
            other => other?,
        };
        let seen = DIRECTORY.ensure(tid)?.load(Ordering::Acquire);
        let line = match self.dir.file(tid, "syscall") {
            Err(ENOENT) => return Ok(Verdict::Gone),
            other => other?,
        };
        let mut buffer = [0; SMALL];
        let line = match read_small(&line, &mut buffer) {
            Err(ESRCH) => return Ok(Verdict::Gone),
            other => Syscall::parse(other?).ok_or(EINVAL)?,
        };
        let (sp, pc) = match line {
            Syscall::Blocked { sp: 0, pc: 0, .. } | Syscall::Elsewhere { sp: 0, pc: 0 } => {
                return Ok(if self.never_runs(tid)? { Verdict::Clear(seen) } else { Verdict::Unclear(0) });
            }
            Syscall::Blocked { sp, pc, .. } if !line.shares_itself() => (sp, pc),
            // In a fault, stopped or frozen: registers matter that cannot be seen from here.
            Syscall::Elsewhere { .. } => return Ok(Verdict::Unclear(0)),
            _ => return Ok(Verdict::Running),
        };
        let found = match ranges.find(pc) {
            Some(_) => Err(pc),
            None => self.stack_is_clear(tid, sp, ranges),
        };
        let clear = found.is_ok() && !stacks::any() && own::is_complete();
        if self.runs(&counter) != Ok(before) {
            return Ok(Verdict::Running);
        }
        Ok(if clear { Verdict::Clear(seen) } else { Verdict::Unclear(found.err().unwrap_or(0)) })
    }

    /// Whether a thread is under no system call filters, as far as can be seen from here.
    pub fn is_unfiltered(&self, tid: u32) -> bool {
        let mut buffer = [0; SMALL];
        let status =
            self.dir.file(tid, "status").and_then(|file| read_small(&file, &mut buffer).map(seccomp));
        status == Ok(Some(0))
    }

    /// A thread with neither stack nor code: one that the kernel made for itself, or a dead one that is
    /// still listed (a main thread that called `pthread_exit`).
    fn never_runs(&self, tid: u32) -> Result<bool, Errno> {
        let mut buffer = [0; SMALL];
        let stat = Stat::parse(read_small(&self.dir.file(tid, "stat")?, &mut buffer)?);
        Ok(stat.is_some_and(|s| s.is_kernel_made() || s.is_dead()))
    }

    /// An error is the first word in searched code, or 0.
    fn stack_is_clear(&self, tid: u32, sp: u64, ranges: &Ranges<'_>) -> Result<(), u64> {
        let (pid, main_end) = (self.pid, self.ends.main);
        if tid == pid && main_end > sp && scan(pid, sp, End::Address(main_end), ranges).is_ok() {
            return Ok(());
        }
        // Also for the main thread: after a fork it is the thread that called it, on that thread's stack.
        let end = scan(pid, sp, self.ends.block(tid), ranges)?;
        if self.ends.is_block(pid, end) { Ok(()) } else { Err(0) }
    }

    /// Name of a thread, NUL padded; empty if it cannot be read.
    pub fn name(&self, tid: u32) -> [u8; NAME] {
        let mut name = [0; NAME];
        let mut buffer = [0; SMALL];
        let read = self.dir.file(tid, "comm").and_then(|file| read_small(&file, &mut buffer));
        for (place, byte) in name.iter_mut().zip(read.unwrap_or_default()).filter(|(_, b)| **b != b'\n') {
            *place = *byte;
        }
        name
    }
}

/// Most pages of one stack that are looked at from here; the command walks deeper ones.
const MOST_PAGES: usize = 16 * 1024;

/// Where a stack ends that is clean, else the first word in searched code, or 0.
fn scan(pid: u32, sp: u64, end: End, ranges: &Ranges<'_>) -> Result<u64, u64> {
    let mut hits = [Hit::default(); 1];
    let mut scanner = Scanner::new(ranges, &mut hits, sp, end);
    let mut words = [0u64; PAGE_WORDS];
    for _ in 0..MOST_PAGES {
        // Page by page: behind the last one of a stack may lie one that nobody fills (userfaultfd), and whoever
        // reads it waits. A hole in the memory, or a guard: the end was not proven.
        let Ok(count) = copy_some(pid, scanner.next(), &mut words) else { break };
        let step = scanner.feed(words.get(..count).unwrap_or_default());
        if step == Step::Ended || count == 0 {
            break;
        }
    }
    let outcome = scanner.finish();
    ends::clean(&outcome).ok_or_else(|| {
        let mut word = [0];
        let found = hits.first().filter(|_| outcome.hits > 0);
        found.filter(|hit| copy_some(pid, hit.at, &mut word) == Ok(1)).map_or(0, |_| word[0])
    })
}
