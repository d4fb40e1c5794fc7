//! What a command works with besides the process.

use crate::target::books::Books;
use crate::view::Cache;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

/// How long a command waits for a transition, and what then.
#[derive(Clone, Copy, Debug)]
pub struct Wait {
    /// `None` = for ever.
    pub timeout: Option<Duration>,
    /// Turn the transition round when the time is over.
    pub reverse: bool,
    /// Do not wait at all.
    pub no_wait: bool,
    /// Wait for threads that cannot be moved at once; else only for callbacks.
    pub for_threads: bool,
}

/// What a command works with besides the process.
pub struct Context<'a> {
    /// Files that were opened before.
    pub cache: &'a Cache,
    /// Set by Ctrl-C.
    pub interrupted: &'a AtomicBool,
    /// How long to wait.
    pub wait: Wait,
    /// What is applied keeps its stubs: no entry leads straight to a new function.
    pub stubs_only: bool,
    /// Told of the books between two looks.
    pub progress: &'a dyn Fn(&Books),
}

impl std::fmt::Debug for Context<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Context").field("wait", &self.wait).finish_non_exhaustive()
    }
}
