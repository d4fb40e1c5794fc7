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
    /// Number of events written so far.
    pub event_count: AtomicU64,
    /// Address of the ring: [`crate::event::EVENT_RING_LEN`] × [`Event`].
    pub events: *const Event,
    /// 1 = new patches are refused with `EBUSY` (`suture set hooking 0`).
    pub hooking_off: AtomicU32,
    /// Must be 0.
    pub reserved2: u32,
    /// Must be 0; room for later.
    pub spare: [u64; 8],
}

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

/// Prepared: mapped and registered, sites perhaps armed, slots on the copies.
pub const PATCH_PREPARED: u32 = 1;
/// Enabled: slots on the new functions.
pub const PATCH_ENABLED: u32 = 2;

/// A listed patch.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct PatchRow {
    /// Number of the patch in this process, from 1, never reused.
    pub id: u32,
    /// [`PATCH_PREPARED`] or [`PATCH_ENABLED`].
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

/// A mapped patch image.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ImageRow {
    /// Number of the image, from 1, never reused.
    pub id: u32,
    /// [`PatchRow::id`] it came with.
    pub patch: u32,
    /// 0 or [`IMAGE_LEFT`].
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
}

const _: () = {
    assert!(size_of::<PatchRow>() == 96);
    assert!(size_of::<SiteRow>() == 120);
    assert!(size_of::<FuncRow>() == 40);
    assert!(size_of::<ImageRow>() == 96);
    assert!(size_of::<MappingRow>() == 24);
    assert!(core::mem::offset_of!(RuntimeBlock, worker) == 44);
    assert!(core::mem::offset_of!(RuntimeBlock, clone_errno) == 48);
};
