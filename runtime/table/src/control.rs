//! Parts of the protocol that a model can leave out, to show that it notices.
//!
//! Outside of models nothing can be left out, and asking costs nothing.

/// A part of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// A commit compares the bucket's word with the one before the scan.
    CommitCompares,
    /// An insertion adds its marks before it commits.
    Marks,
    /// A cleaning that was disturbed leaves all marks.
    Disturbed,
    /// One cleans at a time.
    Claim,
    /// A lookup looks at the bucket's word again.
    LookAgain,
    /// A move freezes the old bucket first.
    Freeze,
    /// A reader who comes to a bucket that nothing has moved into looks below.
    LookBelow,
    /// The cell of a bucket that moves is closed.
    Close,
    /// A constructor that failed makes its variable leave.
    FailureLeaves,
    /// A variable is not visible while its constructor runs.
    Building,
    /// A guard is counted.
    Count,
}

/// Whether the model that runs goes without it.
#[cfg(not(loom))]
#[inline(always)]
pub const fn is_left_out(_: Part) -> bool {
    false
}

/// Whether the model that runs goes without it.
#[cfg(loom)]
pub fn is_left_out(part: Part) -> bool {
    LEFT_OUT.get() == Some(part)
}

#[cfg(loom)]
std::thread_local! {
    /// Of the model's thread: loom runs all threads of a model on one.
    pub static LEFT_OUT: std::cell::Cell<Option<Part>> = const { std::cell::Cell::new(None) };
}
