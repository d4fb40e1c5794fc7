//! The one exported object: the status block.
//!
//! Runs anywhere; allocates nothing. The constructor fills it, afterwards only the worker writes to it
//! (and the doorbell entry to the words of the worker's life). Readers are outside the process and
//! follow the sequence lock of [`suture_abi::block`].
//!
//! # Safety
//!
//! Plain fields are reached through a raw pointer by their one writer, never through a reference that
//! could live while somebody else writes; the atomic fields are shared.
#![allow(unsafe_code)]

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use suture_abi::block::{Moved, Rows, RuntimeBlock};
use suture_abi::host::{Functions, Host};

/// Value of [`RuntimeBlock::channel_fd`] while there is no channel.
pub const NO_CHANNEL: u32 = u32::MAX;

/// The block with interior mutability, so that it can be a plain `static` in `.bss`.
#[repr(transparent)]
#[derive(Debug)]
pub struct BlockCell(UnsafeCell<RuntimeBlock>);

// SAFETY: fields that several threads touch are atomics; the others have one writer (constructor,
// then worker) and no reader inside the process other than that writer.
unsafe impl Sync for BlockCell {}

#[allow(clippy::declare_interior_mutable_const)] // used once, to fill the static
const NO_HOST: Host = Host {
    state: AtomicU32::new(0),
    mode: AtomicU32::new(0),
    tid: AtomicU32::new(0),
    errno: AtomicU32::new(0),
    stack: AtomicU64::new(0),
    stack_len: AtomicU64::new(0),
    functions: Functions {
        errno_location: AtomicU64::new(0),
        attr_init: AtomicU64::new(0),
        attr_setstack: AtomicU64::new(0),
        attr_setdetachstate: AtomicU64::new(0),
        create: AtomicU64::new(0),
    },
    serial: AtomicU64::new(0),
    code: AtomicU64::new(0),
    args: [AtomicU64::new(0), AtomicU64::new(0)],
    result: AtomicU64::new(0),
    crash: AtomicU32::new(0),
    kind: AtomicU32::new(0),
    patch: AtomicU32::new(0),
    stack_tid: AtomicU32::new(0),
    subject: AtomicU64::new(0),
    since_ns: AtomicU64::new(0),
    resume: AtomicU64::new(0),
};

const NO_ROWS: Rows = Rows { addr: 0, count: 0, row_size: 0 };

/// The status block (`suture_runtime`).
// All zero, so that it lies in `.bss` and costs nothing until the constructor ran.
#[unsafe(export_name = "suture_runtime")]
pub static BLOCK: BlockCell = BlockCell(UnsafeCell::new(RuntimeBlock {
    magic: AtomicU64::new(0),
    abi: 0,
    size: 0,
    version: [0; 16],
    doorbell_entry: 0,
    membarrier_errno: 0,
    worker: AtomicU32::new(0),
    clone_errno: AtomicU32::new(0),
    channel_fd: AtomicU32::new(0),
    generation: AtomicU64::new(0),
    rows_seq: AtomicU32::new(0),
    worker_errno: AtomicU32::new(0),
    patches: NO_ROWS,
    sites: NO_ROWS,
    funcs: NO_ROWS,
    images: NO_ROWS,
    mappings: NO_ROWS,
    transition: NO_ROWS,
    states: NO_ROWS,
    ranges: NO_ROWS,
    recipes: NO_ROWS,
    late_epoch: AtomicU64::new(0),
    records: 0,
    stand_in: 0,
    slow_path: 0,
    self_look: 0,
    path_start: 0,
    path_end: 0,
    tick_ms: AtomicU32::new(0),
    attempts: AtomicU32::new(0),
    waits_for: AtomicU32::new(0),
    ended: AtomicU32::new(0),
    ended_how: AtomicU32::new(0),
    event_count: AtomicU64::new(0),
    events: core::ptr::null(),
    hooking_off: AtomicU32::new(0),
    host_entry: 0,
    host_abandon: 0,
    host: NO_HOST,
    moved: Moved {
        by_worker: AtomicU64::new(0),
        by_command: AtomicU64::new(0),
        by_themselves: AtomicU64::new(0),
    },
    stacks: 0,
    own: 0,
    shadow: 0,
    spare: [0; 2],
}));

impl BlockCell {
    /// Where the block is, for the one writer of its plain fields.
    pub fn as_ptr(&self) -> *mut RuntimeBlock {
        self.0.get()
    }

    /// The worker's life.
    pub fn worker(&self) -> &AtomicU32 {
        // SAFETY: the pointer comes from a static and the field is an atomic.
        unsafe { &(*self.0.get()).worker }
    }

    /// Descriptor number of the channel.
    pub fn channel_fd(&self) -> &AtomicU32 {
        // SAFETY: as `worker`.
        unsafe { &(*self.0.get()).channel_fd }
    }

    /// Why the last worker has no channel.
    pub fn worker_errno(&self) -> &AtomicU32 {
        // SAFETY: as `worker`.
        unsafe { &(*self.0.get()).worker_errno }
    }

    /// Not 0 while new patches are refused. Written by the command.
    pub fn hooking_off(&self) -> &AtomicU32 {
        // SAFETY: as `worker`.
        unsafe { &(*self.0.get()).hooking_off }
    }

    /// Length of a tick in milliseconds. Written by the command.
    pub fn tick_ms(&self) -> &AtomicU32 {
        // SAFETY: as `worker`.
        unsafe { &(*self.0.get()).tick_ms }
    }

    /// Failed attempts to complete the transition.
    pub fn attempts(&self) -> &AtomicU32 {
        // SAFETY: as `worker`.
        unsafe { &(*self.0.get()).attempts }
    }

    /// How many threads were moved, and by whom.
    pub fn moved(&self) -> &Moved {
        // SAFETY: as `worker`; all its fields are atomics.
        unsafe { &(*self.0.get()).moved }
    }

    /// Nobody was moved yet.
    pub fn forget_moved(&self) {
        let Moved { by_worker, by_command, by_themselves } = self.moved();
        for count in [by_worker, by_command, by_themselves] {
            count.store(0, Ordering::Relaxed);
        }
    }

    /// What the transition waits for.
    pub fn waits_for(&self) -> &AtomicU32 {
        // SAFETY: as `worker`.
        unsafe { &(*self.0.get()).waits_for }
    }

    /// The last transition that ended, and how.
    pub fn ended(&self) -> (u32, u32) {
        // SAFETY: as `worker`.
        let (ended, ended_how) = unsafe { (&(*self.0.get()).ended, &(*self.0.get()).ended_how) };
        (ended.load(Ordering::Acquire), ended_how.load(Ordering::Relaxed))
    }

    /// Says how a transition ended.
    pub fn set_ended(&self, transition: u32, how: u32) {
        // SAFETY: as `worker`.
        let (ended, ended_how) = unsafe { (&(*self.0.get()).ended, &(*self.0.get()).ended_how) };
        ended_how.store(how, Ordering::Relaxed);
        ended.store(transition, Ordering::Release);
    }

    /// The host and its work.
    pub fn host(&self) -> &Host {
        // SAFETY: as `worker`; all its fields are atomics.
        unsafe { &(*self.0.get()).host }
    }

    /// Objects that were patched when they came, and that went. Written by loading threads.
    pub fn late_epoch(&self) -> &AtomicU64 {
        // SAFETY: as `worker`.
        unsafe { &(*self.0.get()).late_epoch }
    }

    /// Number of changes of the books.
    pub fn generation(&self) -> &AtomicU64 {
        // SAFETY: as `worker`.
        unsafe { &(*self.0.get()).generation }
    }
}
