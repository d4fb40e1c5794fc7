//! A word that several threads change: the processor's, or loom's when a model runs.
//!
//! Protocols whose interleavings are checked by models take their words through [`Word`] and their fences from
//! here, so that the models run the code itself.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

#[cfg(not(all(test, loom)))]
pub use core::sync::atomic::fence;
#[cfg(all(test, loom))]
pub use loom::sync::atomic::fence;

/// An atomic word that holds a `T`. As the methods of the same names.
pub trait Word<T> {
    /// Loads it.
    fn load(&self, order: Ordering) -> T;
    /// Stores it.
    fn store(&self, value: T, order: Ordering);
    /// Stores `next` if it is `now`; gives what it was.
    ///
    /// # Errors
    /// When it is something else: that.
    fn compare_exchange(&self, now: T, next: T, done: Ordering, not: Ordering) -> Result<T, T>;
    /// Adds to it, wrapping; gives what it was.
    fn fetch_add(&self, value: T, order: Ordering) -> T;
}

macro_rules! word {
    ($($atomic:ty => $value:ty),*) => {$(
        impl Word<$value> for $atomic {
            #[inline]
            fn load(&self, order: Ordering) -> $value {
                <$atomic>::load(self, order)
            }

            #[inline]
            fn store(&self, value: $value, order: Ordering) {
                <$atomic>::store(self, value, order);
            }

            #[inline]
            fn compare_exchange(
                &self,
                now: $value,
                next: $value,
                done: Ordering,
                not: Ordering,
            ) -> Result<$value, $value> {
                <$atomic>::compare_exchange(self, now, next, done, not)
            }

            #[inline]
            fn fetch_add(&self, value: $value, order: Ordering) -> $value {
                <$atomic>::fetch_add(self, value, order)
            }
        }
    )*};
}

word!(AtomicU32 => u32, AtomicU64 => u64);
#[cfg(all(test, loom))]
word!(loom::sync::atomic::AtomicU32 => u32, loom::sync::atomic::AtomicU64 => u64);
