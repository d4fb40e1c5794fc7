//! The event ring: fixed binary records in the target, read from outside without stopping anything.
//!
//! Written by the worker, by the host while it runs a job, and by threads that ask for shadow variables. Record `n` lies at `ring[n % EVENT_RING_LEN]`;
//! its writer takes the number, stores `number = 0`, the fields, then `number = n + 1` (release). A reader
//! takes a record only if `number` is what it expects before and after the copy; one that was taken and is
//! not written yet is still to come.

/// Number of records in the ring.
pub const EVENT_RING_LEN: usize = 256;

/// One record.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Event {
    /// 1-based number of the event; 0 while it is being written.
    pub number: u64,
    /// `CLOCK_REALTIME` in nanoseconds.
    pub time_ns: u64,
    /// One of [`word`].
    pub word: u32,
    /// Thread id of the writer.
    pub tid: u32,
    /// Patch the event is about, or 0.
    pub patch: u32,
    /// Must be 0.
    pub reserved: u32,
    /// State id, site id or object index the event is about, or 0.
    pub subject: u64,
    /// Address, errno or another number that goes with the word.
    pub value: u64,
    /// Name of the patch, NUL padded, so that the log outlives the rows.
    pub name: [u8; 56],
}

/// Event words, in the notation of the conformance scenarios.
pub mod word {
    /// A patch is being enabled.
    pub const ENABLE: u32 = 1;
    /// Transition initialised, patching.
    pub const INIT_PATCH: u32 = 2;
    /// Transition started, patching.
    pub const START_PATCH: u32 = 3;
    /// Completing, patching.
    pub const COMPLETING_PATCH: u32 = 4;
    /// Done, patching.
    pub const DONE_PATCH: u32 = 5;
    /// Transition initialised, unpatching.
    pub const INIT_UNPATCH: u32 = 6;
    /// Transition started, unpatching.
    pub const START_UNPATCH: u32 = 7;
    /// Completing, unpatching.
    pub const COMPLETING_UNPATCH: u32 = 8;
    /// Done, unpatching.
    pub const DONE_UNPATCH: u32 = 9;
    /// The patch could not be enabled.
    pub const FAIL: u32 = 10;
    /// The started enable is being taken back.
    pub const CANCEL: u32 = 11;
    /// The patch's row is gone.
    pub const GONE: u32 = 12;
    /// A site's bytes are no longer ours (probe, madvise); `subject` = site id, `value` = address.
    pub const SITE_LOST: u32 = 13;
    /// A client died in mid-operation and the worker rolled back; `value` = sites left armed.
    pub const ROLLED_BACK: u32 = 14;
    /// Callback `pre_patch` returned; `subject` = state, `value` = its errno (positive) or 0.
    pub const PRE_PATCH: u32 = 15;
    /// Callback `post_patch` returned; `subject` = state.
    pub const POST_PATCH: u32 = 16;
    /// Callback `pre_unpatch` returned; `subject` = state.
    pub const PRE_UNPATCH: u32 = 17;
    /// Callback `post_unpatch` returned; `subject` = state.
    pub const POST_UNPATCH: u32 = 18;
    /// The destructor of a shadow variable ran; `subject` = state, `value` = object address.
    pub const DTOR: u32 = 19;
    /// Reversed from patching to unpatching.
    pub const REVERSE_TO_UNPATCH: u32 = 20;
    /// Reversed from unpatching to patching.
    pub const REVERSE_TO_PATCH: u32 = 21;
    /// The transition is stalled: threads are pending after 15 failed attempts. `value` = how many.
    pub const STALLED: u32 = 22;
    /// All pending threads were moved without a look; `value` = how many.
    pub const FORCED: u32 = 23;
    /// A library was loaded and patched before its own code ran; `subject` = object.
    pub const APPLY_OBJECT: u32 = 24;
    /// A library was unloaded; its functions are unhooked. `subject` = object.
    pub const REVERT_OBJECT: u32 = 25;
    /// A callback was ended by a signal; `subject` = state, `value` = the signal ([`crate::host::VANISHED`]: its
    /// thread ended in it).
    pub const CALLBACK_CRASHED: u32 = 26;
    /// A shadow variable was asked for and not made; `subject` = its id, `value` = why: `EEXIST` there was one,
    /// `EDEADLK` the thread is in its constructor or destructor, `ENOMEM`, else its constructor's errno.
    pub const SHADOW_REFUSED: u32 = 27;
    /// More shadow variables of a state were freed than have a [`DTOR`] each; `subject` = state, `value` = how
    /// many in all.
    pub const SHADOW_FREED: u32 = 28;
    /// A library was loaded that cannot be patched and was left as it is for every patch; `subject` = object,
    /// `value` = errno. About the patch that could not have it.
    pub const OBJECT_REFUSED: u32 = 29;

    /// The word of an event as scenarios spell it.
    #[must_use]
    pub const fn spelling(number: u32) -> &'static str {
        match number {
            ENABLE => "enable",
            INIT_PATCH => "init+",
            START_PATCH => "start+",
            COMPLETING_PATCH => "completing+",
            DONE_PATCH => "done+",
            INIT_UNPATCH => "init-",
            START_UNPATCH => "start-",
            COMPLETING_UNPATCH => "completing-",
            DONE_UNPATCH => "done-",
            FAIL => "fail",
            CANCEL => "cancel",
            GONE => "gone",
            SITE_LOST => "site-lost",
            ROLLED_BACK => "rolled-back",
            PRE_PATCH => "pre_patch",
            POST_PATCH => "post_patch",
            PRE_UNPATCH => "pre_unpatch",
            POST_UNPATCH => "post_unpatch",
            DTOR => "dtor",
            REVERSE_TO_UNPATCH => "rev-",
            REVERSE_TO_PATCH => "rev+",
            STALLED => "signal",
            FORCED => "forced",
            APPLY_OBJECT => "apply",
            REVERT_OBJECT => "revert",
            OBJECT_REFUSED => "object-refused",
            CALLBACK_CRASHED => "crashed",
            SHADOW_REFUSED => "shadow-refused",
            SHADOW_FREED => "shadow-freed",
            _ => "unknown",
        }
    }
}

const _: () = assert!(size_of::<Event>() == 104);
