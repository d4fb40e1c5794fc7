//! Negative controls: the same harness with one rule broken, which it must notice. Each can also be
//! run *mended*, with only that rule kept; then nothing may be found.

mod compiled;
mod plan;
mod store;

use std::time::Duration;

use crate::board::Board;
use crate::engine::Options;
use crate::error::{Error, Result};
use crate::shape::Case;
use crate::store::Protocol;
use crate::world::{Text, World};

/// A rule to break.
#[derive(Clone, Copy, Debug)]
pub struct Control {
    /// Its name.
    pub name: &'static str,
    /// What is broken.
    pub about: &'static str,
    work: fn(&'static Board, Setting) -> Result<()>,
}

/// How a control is run.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// Threads that call.
    pub threads: usize,
    /// Whether the rule is kept after all.
    pub mended: bool,
    /// How long to go on while nothing is found.
    pub time: Duration,
}

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
    Control {
        name: "slot-first",
        about: "a slot that changes before the straight jump is back on its stub",
        work: store::slot_first,
    },
    Control {
        name: "two-halves",
        about: "a displacement that lies in two words, stored in two halves",
        work: store::two_halves,
    },
    Control {
        name: "stale-word",
        about: "a word planned before its padding got the jump, so that the store takes it back",
        work: plan::stale_word,
    },
    Control {
        name: "pad-in-word",
        about: "padding that the arming store writes and takes back together with the site",
        work: plan::pad_in_word,
    },
    Control {
        name: "loop-head",
        about: "a site behind a prologue at which a loop of the function arrives",
        work: plan::loop_head,
    },
    Control {
        name: "displaced-call",
        about: "a call moved into the copy: an exception cannot pass its return address",
        work: compiled::displaced_call,
    },
    Control {
        name: "ipa-ra",
        about: "a gcc -O2 caller that keeps a value in a register the new function destroys",
        work: compiled::ipa_ra,
    },
];

impl Control {
    /// The control of this name.
    pub fn named(name: &str) -> Result<&'static Self> {
        CONTROLS.iter().find(|c| c.name == name).ok_or_else(|| Error::Unknown(name.to_owned()))
    }

    /// Runs it in this process. Coming back means that nothing was noticed, or that a wrong result
    /// is on the board.
    pub fn work(&self, board: &'static Board, setting: Setting) -> Result<()> {
        (self.work)(board, setting)
    }
}

/// Options of a control: everything on, over at the first finding.
fn options(setting: Setting, broken: Protocol) -> Options {
    Options {
        threads: setting.threads,
        time: setting.time,
        seed: 7,
        protocol: if setting.mended { Protocol::OneStore } else { broken },
        signals: true,
        forks: true,
        mask: false,
        stop_on_wrong: true,
    }
}

/// A world of one case.
fn world_of(case: Case) -> Result<World> {
    World::of_cases(&[case], Text::Writable)
}
