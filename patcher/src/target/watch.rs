//! Waiting for something in a process, without waiting for ever.

use super::{Target, condition};
use crate::error::Error;
use crate::sys::time::{Backoff, Deadline};
use std::time::{Duration, Instant};

/// How often the process itself is looked at.
const LOOK: Duration = Duration::from_millis(200);

/// A wait with a deadline that ends early when the process cannot go on: it ended, executed another
/// program, or was stopped or frozen meanwhile.
#[derive(Debug)]
pub struct Watch<'t> {
    target: &'t Target,
    deadline: Deadline,
    backoff: Backoff,
    looked: Instant,
}

impl<'t> Watch<'t> {
    /// Begins.
    #[must_use]
    pub fn new(target: &'t Target, deadline: Deadline) -> Self {
        Self { target, deadline, backoff: Backoff::default(), looked: Instant::now() }
    }

    /// Pauses; false when the deadline has passed.
    ///
    /// # Errors
    /// Why the process cannot go on.
    pub fn pause(&mut self) -> Result<bool, Error> {
        self.backoff.pause();
        self.look()?;
        Ok(!self.deadline.passed())
    }

    /// As [`Watch::pause`], for waits that have their own way to pause.
    ///
    /// # Errors
    /// Why the process cannot go on.
    pub fn look(&mut self) -> Result<bool, Error> {
        if self.looked.elapsed() > LOOK {
            self.target.still_there()?;
            condition::check_runs(self.target)?;
            self.looked = Instant::now();
        }
        Ok(!self.deadline.passed())
    }
}
