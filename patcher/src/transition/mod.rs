//! Following a transition from outside.
//!
//! The worker moves every thread it can see clear by itself. What it leaves is looked at here: threads whose
//! stack needs an exact walk, threads that run all the time (one short stop each), threads of a process
//! that cannot read its own `/proc` files. The worker alone changes sides; the command only says what it
//! found.

pub mod follow;
pub mod guard;
pub mod hands;
pub mod late;
pub mod look;
pub mod looks;
pub mod own_stacks;
pub mod progress;
pub mod records;
pub mod runs;
pub mod threads;
mod verdict;

pub use follow::{Ended, Followed, Patience, follow};
pub use hands::Hands;
pub use late::Late;
pub use look::{Blocker, Looker, Seen, Why};
pub use progress::{ThreadStatus, TransitionStatus};
