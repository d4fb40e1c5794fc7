//! A word that several threads change: the processor's, or loom's when a model runs.
//!
//! Protocols whose interleavings are checked by models take their words, and the fences that go with them, through
//! [`Word`], so that the models run the code itself.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

/// An atomic word that holds a `T`. As the methods and functions of the same names.
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
    /// Orders what comes before and after it on such words.
    fn fence(order: Ordering);
}

macro_rules! word {
    ($($atomic:ty => $value:ty, $fence:path);*) => {$(
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

            #[inline]
            fn fence(order: Ordering) {
                $fence(order);
            }
        }
    )*};
}

word!(AtomicU32 => u32, fence; AtomicU64 => u64, fence);
#[cfg(test)]
word!(
    loom::sync::atomic::AtomicU32 => u32, loom::sync::atomic::fence;
    loom::sync::atomic::AtomicU64 => u64, loom::sync::atomic::fence
);
