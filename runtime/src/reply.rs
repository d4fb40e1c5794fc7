//! What the worker says to a request. Pure.

use crate::books::BooksError;
use crate::list::NoMemory;
use crate::sys::Errno;
use suture_abi::channel::error;

/// An answer, positive or not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reply {
    /// 0 or one of [`error`].
    pub error: u32,
    /// Kernel errno, or 0.
    pub errno: u32,
    /// Meaning depends on operation and error.
    pub results: [u64; 4],
}

impl Reply {
    /// Done, with up to two numbers.
    pub fn done(first: u64, second: u64) -> Self {
        Reply { results: [first, second, 0, 0], ..Reply::default() }
    }

    /// Refused.
    pub fn refused(error: u32) -> Self {
        Reply { error, ..Reply::default() }
    }

    /// With the kernel's reason.
    pub fn because(self, errno: Errno) -> Self {
        Reply { errno: errno.0, ..self }
    }

    /// With numbers.
    pub fn with(self, first: u64, second: u64, third: u64) -> Self {
        Reply { results: [first, second, third, 0], ..self }
    }
}

impl From<NoMemory> for Reply {
    fn from(_: NoMemory) -> Self {
        Reply::refused(error::NO_MEMORY)
    }
}

impl From<BooksError> for Reply {
    fn from(error: BooksError) -> Self {
        match error {
            BooksError::NoMemory => Reply::refused(error::NO_MEMORY),
            BooksError::NoEntry(id) => Reply::refused(error::NO_ENTRY).with(u64::from(id), 0, 0),
            BooksError::State(state) => Reply::refused(error::STATE).with(u64::from(state), 0, 0),
            BooksError::InTransition(patch) => {
                Reply::refused(error::IN_TRANSITION).with(u64::from(patch), 0, 0).because(crate::sys::EBUSY)
            }
            BooksError::Blocked(patch, state) => {
                Reply::refused(error::BLOCKED).with(u64::from(patch), state, 0).because(crate::sys::EINVAL)
            }
            BooksError::BadSite(index) => Reply::refused(error::MALFORMED).with(0, u64::from(index), 0),
        }
    }
}
