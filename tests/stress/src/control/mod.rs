//! Negative controls: the same harness with one rule broken, which it must notice.

mod store;

use std::time::Duration;

use crate::board::Board;
use crate::error::{Error, Result};

/// A rule to break.
#[derive(Clone, Copy, Debug)]
pub struct Control {
    /// Its name.
    pub name: &'static str,
    /// What is broken.
    pub about: &'static str,
    work: fn(&'static Board, usize) -> Result<()>,
}

/// How long a broken rule may go unnoticed.
const TIME: Duration = Duration::from_secs(15);

/// Every control.
pub const CONTROLS: &[Control] = &[
    Control {
        name: "naive-copy",
        about: "five bytes copied one by one over a prologue of three instructions",
        work: store::naive_copy,
    },
    Control {
        name: "int3-mask",
        about: "breakpoint protocol while a thread blocks all signals",
        work: store::int3_mask,
    },
    Control {
        name: "split-store",
        about: "the two bytes of class S stored one after the other, the second first",
        work: store::split_store,
    },
];

impl Control {
    /// The control of this name.
    pub fn named(name: &str) -> Result<&'static Self> {
        CONTROLS.iter().find(|c| c.name == name).ok_or_else(|| Error::Unknown(name.to_owned()))
    }

    /// Runs it in this process. Coming back means that nothing was noticed, or that a wrong result
    /// is on the board.
    pub fn work(&self, board: &'static Board, threads: usize) -> Result<()> {
        (self.work)(board, threads)
    }

    /// After which time a process counts as hung.
    pub fn limit(&self) -> Duration {
        TIME * 2 + Duration::from_secs(15)
    }
}
