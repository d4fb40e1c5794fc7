//! Bounded waiting for conditions that nothing announces.

use std::time::{Duration, Instant};

/// Longest wait for anything a healthy machine does at once. Generous, because CI shares processors.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Looks until `look` gives something.
///
/// # Panics
/// When it does not within [`PATIENCE`].
pub fn until<T>(what: &str, look: impl FnMut() -> Option<T>) -> T {
    until_or(look, || panic!("waited {PATIENCE:?} in vain for {what}"))
}

/// Looks until `look` gives something; what it gives else after [`PATIENCE`].
pub fn until_or<T>(mut look: impl FnMut() -> Option<T>, or: impl FnOnce() -> T) -> T {
    let started = Instant::now();
    let mut pause = Duration::from_micros(50);
    loop {
        if let Some(found) = look() {
            return found;
        }
        if started.elapsed() >= PATIENCE {
            return or();
        }
        std::thread::park_timeout(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

/// Looks until `look` is true.
///
/// # Panics
/// As [`until`].
pub fn until_true(what: &str, mut look: impl FnMut() -> bool) {
    until(what, || look().then_some(()));
}
