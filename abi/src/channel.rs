//! The shared page through which the command talks to the worker.
//!
//! The worker creates a memfd in a descriptor table of its own, publishes its number in
//! [`crate::block::RuntimeBlock::channel_fd`], and the command opens
//! `/proc/PID/task/WORKER/fd/N`. Page 0 is the [`Header`]; request payloads start at
//! [`PAYLOAD_OFFSET`]. The memfd can grow but is sealed against shrinking, so that no `SIGBUS` can
//! be caused from outside.
//!
//! # First contact
//!
//! The memfd is empty when its number appears: the command sizes it, because a limit on file sizes
//! in the target must not matter. In this order the command
//!
//! 1. waits until `channel_fd` is a number (or `worker` is 0 again: see `clone_errno`,
//!    `worker_errno`) and opens it,
//! 2. takes `flock(LOCK_EX)` (blocking: the worker itself holds it for moments, another command for
//!    as long as it works), then reads `worker` and `channel_fd` again and starts over when they
//!    changed, since the worker of the client before may have left,
//! 3. makes it at least [`MIN_SIZE`] bytes long by `ftruncate`, if it is shorter, and maps it,
//! 4. makes its first request, [`op::HELLO`]. Magic and version are valid once it is answered.
//!
//! The worker looks for the size every so often (it starts with 20 µs, doubled up to 1 ms) and gives
//! up after two seconds without size or client.
//!
//! # Protocol
//!
//! One request at a time. The command fills `op`, `args` and the payload, then adds 1 to `request`
//! (release), then to `bell`, and wakes that. The worker sees `request != reply` (acquire), does the
//! work, fills `error`, `results`, then stores `reply = request` (release) and wakes it. `bell` and
//! `reply` are shared futexes. Who may touch what is decided by `request == reply` (command) or not (worker).
//!
//! # Who is there
//!
//! The command holds `flock(LOCK_EX)` on its own open of the memfd from before its first request;
//! the kernel drops it when the command dies. An idle worker tries the same lock now and then: when
//! it gets it, nobody is there, and the worker rolls back what was prepared. Then it exits, or, while a
//! transition is going on, waits for the next command and goes on with what it can do alone.

use core::sync::atomic::AtomicU32;

/// First bytes of [`Header`]: "SUTRCHN\0", little endian.
pub const CHANNEL_MAGIC: u64 = 0x004e_4843_5254_5553;

/// File offset of the payload.
pub const PAYLOAD_OFFSET: u64 = 4096;

/// Least size of the file at which the worker starts to serve.
pub const MIN_SIZE: u64 = 2 * PAYLOAD_OFFSET;

/// Page 0 of the channel.
#[repr(C)]
#[derive(Debug)]
pub struct Header {
    /// [`CHANNEL_MAGIC`]; written by the worker before its first answer.
    pub magic: u64,
    /// [`crate::ABI_VERSION`] of the runtime.
    pub abi: u32,
    /// Number of requests made. Written by the command only.
    pub request: AtomicU32,
    /// Number of requests answered. Written by the worker only.
    pub reply: AtomicU32,
    /// What the worker sleeps on: moved by whoever wants it to look, the command after `request`, a
    /// thread that ran a callback after its answer.
    pub bell: AtomicU32,
    /// Must be 0.
    pub reserved: u32,
    /// One of [`op`]. Command → worker.
    pub op: u32,
    /// Meaning depends on the operation. Command → worker.
    pub args: [u64; 4],
    /// Bytes of payload from [`PAYLOAD_OFFSET`]. Command → worker.
    pub payload_len: u64,
    /// 0, or one of [`error`]. Worker → command.
    pub error: u32,
    /// Kernel errno that goes with `error` (positive), or 0. Worker → command.
    pub errno: i32,
    /// Meaning depends on operation and error (which entry, which address). Worker → command.
    pub results: [u64; 4],
}

/// Operations.
pub mod op {
    /// `args`: – · `results`: generation, block address. Says hello and pins the books' generation.
    pub const HELLO: u32 = 1;
    /// Payload: NUL-terminated name. Creates an empty memfd with that name in the worker's table.
    /// `results[0]` = its descriptor number. The command opens it through `/proc`, sizes, fills and
    /// seals it. At most one is open; PREPARE, ABORT and BYE close it.
    pub const CODE_FILE: u32 = 2;
    /// Payload: a [`crate::batch::Header`] and its tables. Maps, fills and registers everything;
    /// slots hold the copies (old behaviour). `results[0]` = patch id (0 if the batch has none).
    /// All or nothing: on error everything mapped is unmapped again and the books are as before.
    pub const PREPARE: u32 = 3;
    /// membarrier(PRIVATE_EXPEDITED_SYNC_CORE) over the process.
    pub const SYNC: u32 = 4;
    /// `args[0]` = patch id (0: the prepared batch of hooks only), `args[1]` = `MAY_*`. Checks that
    /// every site of the batch is armed and begins the transition. Hooks flip at once. Answers as
    /// [`ADVANCE`].
    pub const ENABLE: u32 = 5;
    /// `args[0]` = patch id. Drops a patch that was prepared and never enabled. Sites of it must
    /// have got their bytes back before; those still armed are reported in `results[0]` and stay. If
    /// no byte was ever written for its new sites (none armed, none reported by `RETIRE`, padding
    /// untouched), they are forgotten and the arenas unmapped, else both stay.
    pub const ABORT: u32 = 6;
    /// `args[0]` = patch id, `args[1]` = `MAY_*`. Begins the transition that takes the patch off the
    /// stacks and off the list. Sites without a function keep their bytes until the command restores
    /// them. Answers as [`ADVANCE`].
    pub const DISABLE: u32 = 7;
    /// Payload: `u32` site ids. The command restored their bytes; the worker checks it and marks
    /// them retired. Sites whose bytes are not back are left armed; `results[0]` counts them.
    pub const RETIRE: u32 = 8;
    /// `args`: address, old 8 bytes, new 8 bytes, length (1 or 8). A store made inside, through
    /// mprotect, for kernels that forbid forced writes to `/proc/PID/mem`. Compares first. Only into the
    /// word or the padding of a registered site, else `NO_ENTRY`.
    pub const STORE: u32 = 9;
    /// The command is leaving. The worker exits unless a transition is going on: then `results[0]` = 1.
    pub const BYE: u32 = 10;
    /// `args[0]` = transition id, `args[1]` = `MAY_*`. Goes on with the transition as far as can be
    /// without help. `results[0]` = transition id; `results[1]` = `WAITS_*`; `results[2]` = threads that
    /// are not where they are to be; `results[3]` = phase. When no transition is going on (any more):
    /// `results[0]` = 0, then the number of the last one that ended and how it ended (`ended_how`).
    pub const ADVANCE: u32 = 11;
    /// `args[0]` = transition id, `args[1]` = [`crate::block::RuntimeBlock::late_epoch`] from before the threads
    /// were looked at (none is moved if it is another). Payload: [`super::Move`]s. Moves threads that were found clear of all
    /// searched code, if they passed no dispatcher since. `results[0]` = how many were moved.
    pub const MOVE: u32 = 12;
    /// `args[0]` = transition id. Payload: `u32` thread ids: one reading of the task directory, without
    /// threads the kernel made and the runtime's own, for a process that cannot read its own. Answers
    /// as [`ADVANCE`].
    pub const TASKS: u32 = 13;
    /// `args[0]` = patch id: the patch of the transition that is going on. Turns it round. Answers as
    /// [`ADVANCE`].
    pub const REVERSE: u32 = 14;
    /// `args[0]` = patch id, as [`REVERSE`]. Moves every thread without looking. Answers as [`ADVANCE`].
    pub const FORCE: u32 = 15;
    /// `args[0]` = generation of the books that were looked at. Payload: pairs of `u32`, the id of an image that
    /// was left and what was found: 0 = after its patch had gone every thread was seen outside of it, of all arenas
    /// and of the runtime, and nothing else refers to it; else the `IMAGE_*` that say why it stays. The former are
    /// unmapped. `results[0]` = images that are left. `STATE`: a transition or a host is there, or an image is in
    /// use or pinned.
    pub const DRAINED: u32 = 16;
    /// A thread is about to be sent to [`crate::block::RuntimeBlock::host_entry`]. `args[0]` = the mode of
    /// [`crate::host`]; payload: the addresses of [`crate::host::Functions`]. `args[0]` = 0: it is not
    /// sent after all.
    pub const HOST: u32 = 17;
    /// Marks every site whose jump may lead straight to the function on top of it
    /// ([`crate::block::SiteRow::direct`]); the command makes the stores afterwards. `results[0]` = sites that
    /// were marked by this. `STATE`: a transition is going on, or a batch is prepared.
    pub const DIRECT: u32 = 18;
    /// Payload: `u32` site ids. The command has made their jumps lead to the stubs again; the worker checks that,
    /// has every processor see it (as [`SYNC`]) and takes the marks away. `results[0]` = sites of which it is not
    /// so, which stay marked.
    pub const STUBS: u32 = 19;
}

/// `args[1]` of operations that go on with a transition: the worker may look at threads through
/// `/proc` itself (it is under no filters). It then finds out which threads may look at themselves.
pub const MAY_LOOK: u64 = 1;
/// With or without [`MAY_LOOK`]: no thread of the program is under filters, so all may look at themselves.
pub const ALL_MAY_LOOK: u64 = 2;

/// One thread that may change sides.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Move {
    /// Thread id in the target's own pid namespace.
    pub tid: u32,
    /// Must be 0.
    pub reserved: u32,
    /// The record's word as it was read before the thread was looked at.
    pub seen: u64,
}

/// Error codes of replies.
pub mod error {
    /// Done.
    pub const OK: u32 = 0;
    /// The message does not fit its own bounds; `results[0]` = offset of the offending field.
    pub const MALFORMED: u32 = 1;
    /// The books changed since the plan was made; plan again. `results[0]` = current generation.
    pub const STALE: u32 = 2;
    /// A mapping could not be made; `results[0]` = address, `results[1]` = length, errno set.
    /// `EEXIST` = somebody else took the place: plan again from fresh maps.
    pub const MAP: u32 = 3;
    /// Protection could not be set; as [`MAP`].
    pub const PROTECT: u32 = 4;
    /// The runtime's arenas are full and no memory is to be had.
    pub const NO_MEMORY: u32 = 5;
    /// No such patch or site id; `results[0]` = the id.
    pub const NO_ENTRY: u32 = 6;
    /// A site's live bytes are not what the operation needs; `results[0]` = site id,
    /// `results[1]` = address, `results[2]` = bytes found.
    pub const BYTES: u32 = 7;
    /// membarrier failed; errno set.
    pub const BARRIER: u32 = 8;
    /// The operation does not fit the state of the patch; `results[0]` = its state.
    pub const STATE: u32 = 9;
    /// An object of the plan is not where the plan found it; `results[0]` = its index.
    pub const OBJECT: u32 = 10;
    /// Operation unknown to this runtime.
    pub const UNKNOWN_OP: u32 = 11;
    /// A descriptor could not be made; errno set.
    pub const DESCRIPTOR: u32 = 12;
    /// Another transition is going on; `results[0]` = its patch.
    pub const IN_TRANSITION: u32 = 13;
    /// The patch has a state with `block_disable`, or replaces one that has; `results[0]` = the patch
    /// that has it, `results[1]` = the state.
    pub const BLOCKED: u32 = 14;
    /// No host can be prepared; errno set (`EBUSY`: there is one).
    pub const HOST: u32 = 16;
    /// A callback is running; `results[0]` = patch, `results[1]` = state.
    pub const CALLBACK: u32 = 15;
    /// The jump of a site may lead past its stub, where the operation needs the slot to decide; `results[0]` =
    /// site id.
    pub const DIRECT: u32 = 17;
}

const _: () = {
    assert!(size_of::<Header>() == 112);
    assert!(core::mem::offset_of!(Header, request) == 12);
    assert!(core::mem::offset_of!(Header, results) == 80);
    assert!(size_of::<Move>() == 16);
};
