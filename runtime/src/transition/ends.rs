//! Where threads' stacks end.

use crate::arch::THREAD_ID;
use crate::sys::task::copy_some;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use suture_scan::{End, Outcome, StackEnd};

/// What proves the end of a stack in this process.
#[derive(Clone, Copy, Debug, Default)]
pub struct StackEnds {
    /// Address where the main thread's stack ends (`__libc_stack_end`), 0 = not known.
    pub main: u64,
    /// Offset of the thread id in a thread's header.
    pub thread_id: u32,
    /// Threads' headers are in a ring.
    pub linked: bool,
}

/// What the last batch said, kept for workers to come, and for threads that look at themselves.
static MAIN_STACK_END: AtomicU64 = AtomicU64::new(0);
/// As [`MAIN_STACK_END`].
static LINKED: AtomicU32 = AtomicU32::new(0);

impl StackEnds {
    /// What this process was told.
    pub fn known() -> Self {
        StackEnds {
            main: MAIN_STACK_END.load(Ordering::Relaxed),
            thread_id: THREAD_ID.load(Ordering::Relaxed),
            linked: LINKED.load(Ordering::Relaxed) != 0,
        }
    }

    /// Keeps them. None ever changes in the life of a program.
    pub fn keep(self) {
        MAIN_STACK_END.store(self.main, Ordering::Relaxed);
        THREAD_ID.store(self.thread_id, Ordering::Relaxed);
        LINKED.store(u32::from(self.linked), Ordering::Relaxed);
    }

    /// How the header of a thread is recognised, which lies above its frames.
    pub fn block(&self, tid: u32) -> End {
        let tid_offset = self.thread_id;
        match self.linked {
            false => End::ThreadBlock { tid, tid_offset },
            true => End::LinkedBlock { tid, tid_offset },
        }
    }

    /// Whether what was recognised is a header: in musl its neighbours in the ring say so. `pid` is this process's
    /// number.
    pub fn is_block(&self, pid: u32, at: u64) -> bool {
        const PREV: u64 = 0x10;
        const NEXT: u64 = 0x18;
        let word = |at: u64| {
            let mut word = [0];
            matches!(copy_some(pid, at, &mut word), Ok(1)).then_some(word[0])
        };
        let links = || {
            let (prev, next) = (word(at.wrapping_add(PREV))?, word(at.wrapping_add(NEXT))?);
            // A thread that was made is never alone in it.
            let alone = prev == at || next == at;
            let named = word(prev.wrapping_add(NEXT))? == at && word(next.wrapping_add(PREV))? == at;
            Some(!alone && named)
        };
        !self.linked || links().unwrap_or(false)
    }
}

/// Where a stack ends, if a scan found it clean.
pub fn clean(outcome: &Outcome) -> Option<u64> {
    match outcome.end {
        StackEnd::Proven(at) if outcome.is_clean() => Some(at),
        _ => None,
    }
}
