//! The host: the thread of the program that runs program code of a patch.
//!
//! Callbacks and destructors may call the C library, so they need a thread that it knows. In a program
//! with several threads that is one made for it ([`OWN`]), in one with a single thread that thread itself
//! ([`BORROWED`]): a second one would make its C library lock for ever after. The command brings a thread
//! to [`crate::block::RuntimeBlock::host_entry`] at a point where it holds no lock of the C library; worker and
//! host then pass jobs through one word.
//!
//! ```text
//! NONE ─command─▶ COMING ─entry─▶ ARRIVED ─▶ IDLE ─worker─▶ GIVEN ─▶ RUNNING ─▶ DONE
//!   ▲                                          │  ▲                              │
//!   └────────── LEAVE ◀────────worker──────────┘  └───────────worker─────────────┘
//! ```
//!
//! Who writes [`Host::state`]: the worker from `NONE`, `COMING`, `IDLE` and `DONE`, the host from all others.
//! Every change is a compare-and-swap or made by the only one who may leave the state; stores release, loads
//! acquire, so the fields beside it belong to whoever's turn it is.

use core::sync::atomic::{AtomicU32, AtomicU64};

/// [`Host::state`]: nobody.
pub const NONE: u32 = 0;
/// [`Host::state`]: a thread is being sent.
pub const COMING: u32 = 1;
/// [`Host::state`]: it has arrived and gets ready (makes the thread, for [`OWN`]).
pub const ARRIVED: u32 = 2;
/// [`Host::state`]: waits for work.
pub const IDLE: u32 = 3;
/// [`Host::state`]: has work it has not taken yet.
pub const GIVEN: u32 = 4;
/// [`Host::state`]: is in program code.
pub const RUNNING: u32 = 5;
/// [`Host::state`]: is back from it.
pub const DONE: u32 = 6;
/// [`Host::state`]: is to go.
pub const LEAVE: u32 = 7;

/// [`Host::mode`]: the thread that comes makes a thread of its own for it.
pub const OWN: u32 = 1;
/// [`Host::mode`]: the thread that comes is the host.
pub const BORROWED: u32 = 2;

/// [`Host::crash`]: the host ended inside program code (`pthread_exit`, cancellation, or a fork that left it
/// behind).
pub const VANISHED: u32 = u32::MAX;

/// Functions of the C library the entry calls: addresses, as the program's own references would be bound.
#[repr(C)]
#[derive(Debug)]
pub struct Functions {
    /// `__errno_location`.
    pub errno_location: AtomicU64,
    /// `pthread_attr_init`; this and the rest are needed for [`OWN`] only.
    pub attr_init: AtomicU64,
    /// `pthread_attr_setstack`.
    pub attr_setstack: AtomicU64,
    /// `pthread_attr_setdetachstate`.
    pub attr_setdetachstate: AtomicU64,
    /// `pthread_create`.
    pub create: AtomicU64,
}

/// What worker, host and command tell each other.
#[repr(C)]
#[derive(Debug)]
pub struct Host {
    /// Whose turn it is: one of the constants above. Futex word, private to the process.
    pub state: AtomicU32,
    /// [`OWN`] or [`BORROWED`].
    pub mode: AtomicU32,
    /// Thread id of the host, 0 for none.
    pub tid: AtomicU32,
    /// Positive errno with which no thread could be made, or 0.
    pub errno: AtomicU32,
    /// Lowest address of the stack of a thread of its own.
    pub stack: AtomicU64,
    /// Its length.
    pub stack_len: AtomicU64,
    /// What is called of the C library.
    pub functions: Functions,
    /// Number of the job.
    pub serial: AtomicU64,
    /// Code to call.
    pub code: AtomicU64,
    /// Its arguments.
    pub args: [AtomicU64; 2],
    /// What it returned.
    pub result: AtomicU64,
    /// Signal with which it crashed ([`VANISHED`]: the thread ended in it), or 0.
    pub crash: AtomicU32,
    /// What kind of callback it is (a `word` of [`crate::event`]).
    pub kind: AtomicU32,
    /// Patch it belongs to.
    pub patch: AtomicU32,
    /// Thread id of the last host on that stack.
    pub stack_tid: AtomicU32,
    /// State it belongs to.
    pub subject: AtomicU64,
    /// `CLOCK_REALTIME` in nanoseconds when it was given.
    pub since_ns: AtomicU64,
    /// Stack pointer to which a host whose callback crashed goes back.
    pub resume: AtomicU64,
}
