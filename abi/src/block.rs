//! The runtime's status block and the rows it points to.
//!
//! `libsuture.so` exports one [`RuntimeBlock`]. The command reads it with `process_vm_readv`; no code
//! runs in the target for that. Rows are published as immutable arrays: the worker builds new ones
//! beside the old, stores `rows_seq` odd, the pointers, `rows_seq` even. A reader copies
//! `rows_seq`, block, arrays, `rows_seq` again and starts over unless both reads were equal and
//! even. A process forked in the middle of a publication keeps an odd number for ever; with no
//! living worker its reader takes the pointers as they are, since each of them always names a
//! complete array (old or new).

use crate::event::Event;
use crate::host::Host;
use core::sync::atomic::{AtomicU32, AtomicU64};

/// First bytes of [`RuntimeBlock`]: "SUTRRUN\0", little endian.
pub const BLOCK_MAGIC: u64 = 0x004e_5552_5254_5553;

/// What the command needs to know of the runtime.
#[repr(C)]
#[derive(Debug)]
pub struct RuntimeBlock {
    /// [`BLOCK_MAGIC`], 0 until the constructor ran.
    pub magic: AtomicU64,
    /// [`crate::ABI_VERSION`].
    pub abi: u32,
    /// `size_of::<RuntimeBlock>()`.
    pub size: u32,
    /// Version of the runtime, NUL padded.
    pub version: [u8; 16],
    /// Address of the doorbell entry ([`crate::doorbell`]).
    pub doorbell_entry: u64,
    /// Result of the constructor's membarrier registration: 0 or a positive errno.
    pub membarrier_errno: u32,
    /// The worker's life: 0 none, `u32::MAX` being made, else its thread id in the target's own
    /// pid namespace. Claimed by compare-and-swap in the doorbell entry, filled by
    /// `CLONE_CHILD_SETTID`, cleared and futex-woken by the kernel when the worker is off its stack
    /// (`CLONE_CHILD_CLEARTID`). A forked child inherits its parent's value without the thread: the
    /// command that finds no such thread in the process (or `u32::MAX` for longer than a clone takes)
    /// writes 0 from outside before it rings.
    pub worker: AtomicU32,
    /// 0 or the positive errno of the last raw clone that failed.
    pub clone_errno: AtomicU32,
    /// Descriptor number of the channel in the worker's table, −1 while there is none.
    pub channel_fd: AtomicU32,
    /// Counts changes of the books. A plan is made against one value.
    pub generation: AtomicU64,
    /// Sequence lock of the row pointers; odd while they change.
    pub rows_seq: AtomicU32,
    /// 0 or the positive errno with which the last worker could not make its channel.
    pub worker_errno: AtomicU32,
    /// Patches in list order (oldest first).
    pub patches: Rows,
    /// Redirect sites of the process, in order of their ids.
    pub sites: Rows,
    /// Functions of all listed patches, by patch, in descriptor order.
    pub funcs: Rows,
    /// Patch images that are mapped (enabled, or left after disable).
    pub images: Rows,
    /// Mappings made by the runtime that are still there.
    pub mappings: Rows,
    /// The transition that is going on: no row or one ([`TransitionRow`]).
    pub transition: Rows,
    /// States of the listed patches, by patch, in descriptor order ([`StateRow`]).
    pub states: Rows,
    /// Code of the functions of listed patches, old and new ([`RangeRow`]).
    pub ranges: Rows,
    /// Objects that may come and go ([`crate::late::RecipeRow`]).
    pub recipes: Rows,
    /// Counts objects that were patched when they came, and those that went. What is searched in a transition is
    /// known for one value.
    pub late_epoch: AtomicU64,
    /// Address of the directory of thread records ([`crate::dispatch`]): [`crate::dispatch::CHUNKS`]
    /// addresses of chunks, 0 = none.
    pub records: u64,
    /// Address of the chunk that stands in for those that do not exist, or 0. Its records say nothing.
    pub stand_in: u64,
    /// Address a dispatcher goes to when its thread's chunk does not exist.
    pub slow_path: u64,
    /// Address a dispatcher goes to when its thread is to look at its own stack.
    pub self_look: u64,
    /// First address of the runtime's code that is on the way into a redirected function.
    pub path_start: u64,
    /// Address after it.
    pub path_end: u64,
    /// Length of a tick in milliseconds, the time between two attempts to complete a transition. Set by
    /// the constructor, written by the command.
    pub tick_ms: AtomicU32,
    /// Failed attempts to complete the transition that is going on.
    pub attempts: AtomicU32,
    /// What the transition waits for: 0 or one of the `WAITS_*`.
    pub waits_for: AtomicU32,
    /// Number of the last transition that ended.
    pub ended: AtomicU32,
    /// How it ended: 0 = at its goal, `ENDED_REVERSED`, else the positive errno that cancelled it.
    pub ended_how: AtomicU32,
    /// Number of events taken so far; the last may still be being written.
    pub event_count: AtomicU64,
    /// Address of the ring: [`crate::event::EVENT_RING_LEN`] × [`Event`].
    pub events: *const Event,
    /// 1 = new patches are refused with `EBUSY` (`suture set hooking 0`).
    pub hooking_off: AtomicU32,
    /// Where a thread goes that is to become the host ([`crate::host`]).
    pub host_entry: u64,
    /// Where a host goes on whose callback has crashed.
    pub host_abandon: u64,
    /// The host and its work.
    pub host: Host,
    /// Threads moved since the last transition began.
    pub moved: Moved,
    /// Address of the table of registered stacks ([`crate::stacks::Stacks`]).
    pub stacks: u64,
    /// Address of the list of the runtime's own memory ([`OwnMemory`]).
    pub own: u64,
    /// Address of the lists of shadow variables ([`crate::shadow`]).
    pub shadow: u64,
    /// Must be 0; room for later.
    pub spare: [u64; 2],
}

/// Pieces that [`OwnMemory`] has room for.
pub const OWN_PIECES: usize = 64;

/// Memory in which the runtime keeps addresses of code: the library itself, chunks of its arena.
#[repr(C)]
#[derive(Debug)]
pub struct OwnMemory {
    /// Pieces that are noted.
    pub count: AtomicU64,
    /// The pieces.
    pub pieces: [Piece; OWN_PIECES],
}

/// A piece of memory.
#[repr(C)]
#[derive(Debug)]
pub struct Piece {
    /// First address.
    pub start: AtomicU64,
    /// Length.
    pub len: AtomicU64,
}

/// How threads came to the other side: who found them clear. Figures for people; nothing depends on them.
#[repr(C)]
#[derive(Debug)]
pub struct Moved {
    /// The worker, by a clean scan. Written by the worker.
    pub by_worker: AtomicU64,
    /// The command, by any of its means. Written by the worker.
    pub by_command: AtomicU64,
    /// Themselves, on the way into a function. Written by the threads.
    pub by_themselves: AtomicU64,
}

/// [`RuntimeBlock::waits_for`]: threads that cannot be switched yet.
pub const WAITS_THREADS: u32 = 1;
/// [`RuntimeBlock::waits_for`]: a real thread of the program to run a callback on.
pub const WAITS_HOST: u32 = 2;
/// [`RuntimeBlock::waits_for`]: a callback that is running.
pub const WAITS_CALLBACK: u32 = 3;

/// [`RuntimeBlock::ended_how`]: the transition was reversed and ended where it had begun.
pub const ENDED_REVERSED: u32 = u32::MAX;

/// An array of rows in the target's memory.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Rows {
    /// Address of the first row, or 0.
    pub addr: u64,
    /// Number of rows.
    pub count: u32,
    /// Size of one row.
    pub row_size: u32,
}

/// Prepared: mapped and registered, sites perhaps armed; its functions are on no stack yet.
pub const PATCH_PREPARED: u32 = 1;
/// Its functions are on the stacks of their sites.
pub const PATCH_ENABLED: u32 = 2;
/// Its functions were taken off the stacks; listed until its transition is done.
pub const PATCH_LEAVING: u32 = 3;

/// [`PatchRow::flags`]: takes the place of all patches enabled before.
pub const PATCH_REPLACE: u32 = 1;
/// [`PatchRow::flags`]: threads were forced over while they may have been in its code: its image is
/// never unmapped.
pub const PATCH_FORCED: u32 = 2;
/// [`PatchRow::flags`]: applied to a program that shows signs of making stacks of its own.
pub const PATCH_OWN_STACKS: u32 = 4;
/// [`PatchRow::flags`]: its functions are always reached through their stubs: that was asked for, or threads were
/// forced over while it was there.
pub const PATCH_STUBS_ONLY: u32 = 8;

/// A listed patch.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct PatchRow {
    /// Number of the patch in this process, from 1, never reused.
    pub id: u32,
    /// [`PATCH_PREPARED`], [`PATCH_ENABLED`] or [`PATCH_LEAVING`].
    pub state: u32,
    /// Name, NUL padded.
    pub name: [u8; 56],
    /// `CLOCK_REALTIME` in nanoseconds of the last change of state.
    pub time_ns: u64,
    /// Address of the command's description of the patch.
    pub description: u64,
    /// Its length.
    pub description_len: u64,
    /// Id of the image, or 0.
    pub image: u32,
    /// Number of functions.
    pub func_count: u32,
    /// `PATCH_REPLACE` and others.
    pub flags: u32,
    /// Must be 0.
    pub reserved: u32,
}

/// A patch is being enabled.
pub const PATCHING: u32 = 1;
/// A patch is being disabled.
pub const UNPATCHING: u32 = 2;

/// Initialised; callbacks that come before the first thread may switch.
pub const PHASE_INIT: u32 = 1;
/// Started: threads move, one by one.
pub const PHASE_RUNNING: u32 = 2;
/// Every thread is there; callbacks that come after.
pub const PHASE_COMPLETING: u32 = 3;

/// [`TransitionRow::flags`]: all threads were moved without being looked at.
pub const TRANSITION_FORCED: u32 = 1;
/// [`TransitionRow::flags`]: it failed before any thread moved.
pub const TRANSITION_CANCELLED: u32 = 2;

/// The transition that is going on.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TransitionRow {
    /// Number of the transition in this process, from 1, never reused: the side of switched threads.
    pub id: u32,
    /// [`PatchRow::id`].
    pub patch: u32,
    /// What it was begun as: [`PATCHING`] or [`UNPATCHING`].
    pub begun: u32,
    /// Where it is going now: [`PATCHING`] or [`UNPATCHING`]. Differs from `begun` after a reverse.
    pub target: u32,
    /// `PHASE_*`.
    pub phase: u32,
    /// `TRANSITION_*`.
    pub flags: u32,
    /// Callbacks of this phase that have run.
    pub callbacks_done: u32,
    /// Positive errno with which it was cancelled, or 0.
    pub error: u32,
    /// `CLOCK_REALTIME` in nanoseconds when it was begun.
    pub since_ns: u64,
}

impl TransitionRow {
    /// Whether threads are to reach the switched side (else to leave it).
    #[must_use]
    pub const fn to_switched(&self) -> bool {
        self.begun == self.target
    }
}

/// [`StateRow::marks`]: the transition that is going on brings the state, and its `pre_patch` succeeded
/// (or there is none).
pub const STATE_INTRODUCED: u32 = 1;
/// [`StateRow::marks`]: its `pre_patch` failed in the transition that is going on.
pub const STATE_FAILED: u32 = 2;
/// [`StateRow::marks`]: the transition that is going on takes the state away, and its `pre_unpatch` ran
/// (or there is none).
pub const STATE_UNPATCHING: u32 = 4;

/// A state of a listed patch.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateRow {
    /// [`PatchRow::id`].
    pub patch: u32,
    /// `STATE_*` marks.
    pub marks: u32,
    /// What the plan said.
    pub plan: crate::batch::State,
}

/// Code of a function of a listed patch.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RangeRow {
    /// [`PatchRow::id`].
    pub patch: u32,
    /// [`SiteRow::id`].
    pub site: u32,
    /// `RANGE_*` of [`crate::batch`].
    pub kind: u32,
    /// Must be 0.
    pub reserved: u32,
    /// First address.
    pub start: u64,
    /// Address after the last byte.
    pub end: u64,
}

/// Registered, bytes as in the file.
pub const SITE_UNARMED: u32 = 1;
/// The arming store was made.
pub const SITE_ARMED: u32 = 2;
/// Armed before, bytes restored since. Stub and copy stay and are used again.
pub const SITE_RETIRED: u32 = 3;

/// A redirect site. See [`crate::batch::Site`] for the fields it was made from.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct SiteRow {
    /// Number of the site in this process, from 1, never reused.
    pub id: u32,
    /// [`SITE_UNARMED`], [`SITE_ARMED`] or [`SITE_RETIRED`], as of the last operation.
    pub state: u32,
    /// Number of functions on the site's stack (0 = slot on the copy).
    pub depth: u32,
    /// The hook it serves, or 0.
    pub hook: u32,
    /// What the plan said.
    pub plan: crate::batch::Site,
    /// 0 = the jump at the site leads to its stub. Else the function it may lead to instead, past stub and slot; the
    /// slot leads there, too.
    pub direct: u64,
}

/// A function of a listed patch, or a hook of the runtime.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct FuncRow {
    /// [`PatchRow::id`], 0 for hooks.
    pub patch: u32,
    /// [`SiteRow::id`].
    pub site: u32,
    /// What the plan said (`site` in it is meaningless here).
    pub plan: crate::batch::Func,
}

/// The patch of this image was disabled; its memory stays until no thread can return into it.
pub const IMAGE_LEFT: u32 = 1;
/// Threads were forced out of it: never unmapped.
pub const IMAGE_PINNED: u32 = 2;
/// It stays for now: its code is on a stack.
pub const IMAGE_ON_STACK: u32 = 4;
/// It stays for now: memory of the program holds an address in it.
pub const IMAGE_POINTED_AT: u32 = 8;
/// It stays for now: a thread ran whenever it was looked at, or its stack cannot be read for certain.
pub const IMAGE_UNSURE: u32 = 16;
/// It stays for now: there is more memory than is searched for addresses in it.
pub const IMAGE_UNSEARCHED: u32 = 32;
/// All reasons for which an image stays for now.
pub const IMAGE_STAYS: u32 = IMAGE_ON_STACK | IMAGE_POINTED_AT | IMAGE_UNSURE | IMAGE_UNSEARCHED;

/// A mapped patch image.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ImageRow {
    /// Number of the image, from 1, never reused.
    pub id: u32,
    /// [`PatchRow::id`] it came with.
    pub patch: u32,
    /// `IMAGE_*`.
    pub flags: u32,
    /// Must be 0.
    pub reserved: u32,
    /// What the plan said (`object` in it is meaningless here).
    pub plan: crate::batch::Image,
    /// Address of the object's link map that answers for the image.
    pub link_map: u64,
}

/// A mapping made for a batch.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct MappingRow {
    /// [`PatchRow::id`] of the batch it came with, 0 = hooks only.
    pub patch: u32,
    /// `ROLE_*` of [`crate::batch`].
    pub role: u32,
    /// Address.
    pub addr: u64,
    /// Length.
    pub len: u64,
    /// `PROT_*` it has for good.
    pub prot: u32,
    /// Must be 0.
    pub reserved: u32,
}

const _: () = {
    assert!(size_of::<PatchRow>() == 104);
    assert!(size_of::<SiteRow>() == 152);
    assert!(size_of::<FuncRow>() == 48);
    assert!(size_of::<ImageRow>() == 112);
    assert!(size_of::<MappingRow>() == 32);
    assert!(size_of::<TransitionRow>() == 40);
    assert!(size_of::<StateRow>() == 80);
    assert!(size_of::<RangeRow>() == 32);
    assert!(core::mem::offset_of!(RuntimeBlock, worker) == 44);
    assert!(core::mem::offset_of!(RuntimeBlock, clone_errno) == 48);
    assert!(size_of::<RuntimeBlock>().is_multiple_of(8));
};
