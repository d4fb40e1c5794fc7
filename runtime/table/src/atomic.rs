//! The atomics of the table: the processor's, or loom's when a model runs.
//!
//! Everything whose protocol is checked by a model takes its atomics from here and its memory through
//! [`crate::memory::Memory`].

#[cfg(not(loom))]
pub use core::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

#[cfg(loom)]
pub use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

/// Orders everything before the read-modify-write just made before everything after it, loads
/// included.
///
/// On x86-64 a locked instruction does that by itself and this is nothing but a barrier for the
/// compiler; `fence(SeqCst)` would add a 6 ns `mfence` to every free.
#[inline]
pub fn fence_after_rmw() {
    #[cfg(all(not(loom), target_arch = "x86_64"))]
    core::sync::atomic::compiler_fence(Ordering::SeqCst);
    #[cfg(any(loom, not(target_arch = "x86_64")))]
    fence(Ordering::SeqCst);
}
