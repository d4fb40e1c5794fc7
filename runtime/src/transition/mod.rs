//! The per-thread consistency transition.
//!
//! Every thread moves from old to new code (or back) by itself, at a moment when no function of the patch
//! is on its stack. Nobody is stopped for it.
//!
//! ```text
//! entry → stub → slot ─┬─ no transition:  the function on top, or the copy
//!                      └─ transition:     dispatcher: record of this thread → one side or the other
//! ```
//!
//! | module | what |
//! |---|---|
//! | [`searched`] | which addresses must not be on a stack (pure) |
//! | [`ends`] | where stacks end |
//! | [`look`] | a look at a blocked thread that does not touch it |
//! | [`own`] | a thread's look at its own stack, in a dispatcher |
//! | [`settle`] | moving threads, and knowing when all are there |
//! | [`machine`] | the phases: callbacks, start, attempts, completion |
//!
//! Records and their protocol: [`crate::record`]. Births: [`crate::birth`]. The changes of the books:
//! [`crate::books`].
//!
//! # Why no thread ever mixes old and new
//!
//! *Before the first look* all sites are armed, all slots lead to dispatchers, and a core-serialising
//! barrier has passed. So whoever enters a function of the transition from then on counts a pass first;
//! whoever was inside before has it on the stack (or stands in a stub or copy, whose addresses are searched
//! too).
//!
//! *A thread that is not switched* is led to the old side by every dispatcher, whatever others do.
//!
//! *A switch* is one compare-and-swap on the thread's own word, from what was read before the look. It
//! succeeds only if the thread passed no dispatcher since. It is in none of the searched functions then:
//! it was not at the look, and it cannot have come in without a pass.
//!
//! *The end*: when every thread is at the goal, and every newborn starts there ([`settle`]), slots flip to
//! the goal's function. For each thread the dispatcher already led there: nothing changes for it. A thread
//! that is inside a dispatcher decides by the choice it has loaded, which agrees.
//!
//! *Turning round* is the same with the other goal. Sides are changed by the worker, and by a thread on its own
//! record, in a dispatcher or before it runs its first code; always from the word that was read before the
//! look, and never by a thread while the worker closes.
//!
//! What this cannot see: code of the program that jumps into the middle of a function by itself, and
//! pointers to *new* functions that new code has stored and old code calls later.

pub mod ends;
pub mod look;
pub mod machine;
pub mod own;
pub mod searched;
pub mod settle;
