//! Models of the protocols between the worker and the program's threads: every interleaving, up to a bound of
//! preemptions, and every value the memory model allows a load to give.
//!
//! The worker's steps are the code itself, on loom's words ([`crate::word`]). What is assembly or a system call
//! has a stand-in here: the dispatcher's locked add ([`pass`]), a reading of a file under `/proc`. Each model
//! has controls: the same with one part of the protocol left out, which must fail. They matter, because loom does
//! not see everything: it forgets a thread's load of a word for the next one's, so that a load and a swap behind it
//! hide the loads of others; and it takes all stores between two switches for one, so that a missing release
//! cannot be shown.

mod births;
mod events;
mod late;
mod looks;
mod own;
mod shared;
mod show;
mod unknown;

use loom::sync::atomic::AtomicU64;
use loom::sync::atomic::Ordering::{AcqRel, Relaxed};
use suture_abi::dispatch::side;

/// The transition.
const N: u32 = 7;

/// Explores a model. `LOOM_MAX_PREEMPTIONS` widens it.
fn check(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(builder.preemption_bound.unwrap_or(3));
    builder.check(model);
}

/// What a dispatcher does: counts the pass (a locked add: nothing before or after crosses it), then reads the
/// side.
fn pass(word: &AtomicU64) -> u32 {
    word.fetch_add(1 << 32, AcqRel);
    side(word.load(Relaxed))
}
