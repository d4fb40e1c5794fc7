//! The scoreboard: memory shared by the supervisor, the process under stress and its forked
//! children, so that figures outlive a crash.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, IntoRawFd as _, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use crate::call::Verdict;
use crate::error::{Error, Result};

/// Most cases a run can have.
pub const MAX_CASES: usize = 1024;

/// Counters of one case. Every thread adds, the supervisor reads after the end.
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub struct Score {
    /// Arming and disarming stores made by a direct store.
    pub direct: AtomicU64,
    /// Arming and disarming stores made by pwrite.
    pub pwrites: AtomicU64,
    /// Slot and side values stored.
    pub flips: AtomicU64,
    /// Calls that gave the old result.
    pub old: AtomicU64,
    /// Calls that gave the new result.
    pub new: AtomicU64,
    /// Signals whose handler called the victim.
    pub signals: AtomicU64,
    /// Forked children that called the victim.
    pub forks: AtomicU64,
    /// Wrong results and crashed children.
    pub wrong: AtomicU64,
    /// Times the store was the first touch of a page of a file.
    pub first: AtomicU64,
}

/// The shared page set.
#[repr(C)]
#[derive(Debug)]
pub struct Board {
    /// Index of the case the threads are busy with.
    pub current: AtomicU32,
    /// 1 once the unarmed victims gave the old result: later findings are due to the stores.
    pub baseline: AtomicU32,
    /// Fatal signal, with the instruction pointer and the address in the words behind it.
    pub fault_signal: AtomicU64,
    /// Instruction pointer at the fault.
    pub fault_ip: AtomicU64,
    /// Address the fault is about.
    pub fault_addr: AtomicU64,
    /// First wrong result: got, old, new, changed registers, case.
    pub wrong: [AtomicU64; 5],
    /// Wrong results of all cases.
    pub wrong_total: AtomicU64,
    /// Punned pages and the physical pages behind them.
    pub punned: [AtomicU64; 2],
    /// One row per case.
    pub scores: [Score; MAX_CASES],
}

impl Board {
    /// Books a verdict that is neither old nor new.
    pub fn book_wrong(&self, case: usize, verdict: Verdict) {
        self.scores[case].wrong.fetch_add(1, Relaxed);
        if self.wrong_total.fetch_add(1, Relaxed) != 0 {
            return;
        }
        if let Verdict::Wrong { got, old, new, registers } = verdict {
            let words = [got, old, new, u64::from(registers), case as u64];
            for (to, word) in self.wrong.iter().zip(words) {
                to.store(word, Relaxed);
            }
        }
    }

    /// Books a call that never came back: a forked child that died, a caller that hangs.
    pub fn book_lost_call(&self, case: usize) {
        self.scores[case].wrong.fetch_add(1, Relaxed);
        self.wrong_total.fetch_add(1, Relaxed);
    }
}

/// A mapping of a [`Board`] and the descriptor to hand on.
#[derive(Debug)]
pub struct SharedBoard {
    board: &'static Board,
    fd: OwnedFd,
}

impl SharedBoard {
    /// Makes a zeroed board. Its descriptor is inherited by children.
    pub fn create() -> Result<Self> {
        // SAFETY: the name is a NUL-terminated string.
        let fd = unsafe { libc::memfd_create(c"suture-stress board".as_ptr(), 0) };
        if fd < 0 {
            return Err(Error::last("create the scoreboard"));
        }
        // SAFETY: the descriptor was just made and belongs to nobody else.
        let file = unsafe { File::from_raw_fd(fd) };
        let sized = file.set_len(size_of::<Board>() as u64);
        sized.map_err(|source| Error::System { what: "size the scoreboard", source })?;
        Self::open(file.into_raw_fd())
    }

    /// Maps the board an inherited descriptor stands for.
    pub fn open(fd: RawFd) -> Result<Self> {
        // SAFETY: `create` made it, or the supervisor passed it to this process alone.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let (len, prot) = (size_of::<Board>(), libc::PROT_READ | libc::PROT_WRITE);
        // SAFETY: a new shared mapping at an address of the kernel's choice.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), len, prot, libc::MAP_SHARED, fd.as_raw_fd(), 0) };
        if at == libc::MAP_FAILED {
            let source = io::Error::last_os_error();
            return Err(Error::System { what: "map the scoreboard", source });
        }
        // SAFETY: the mapping is page-aligned, as long as a Board, never unmapped, and a Board is
        // made of atomics only, for which every bit pattern is a value.
        Ok(Self { board: unsafe { &*at.cast::<Board>() }, fd })
    }

    /// The board.
    pub fn get(&self) -> &'static Board {
        self.board
    }

    /// Number of the descriptor, valid in children too.
    pub fn raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}
