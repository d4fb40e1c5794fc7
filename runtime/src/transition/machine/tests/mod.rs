//! The machine against a plain model, in random sequences and in the conformance scenarios.
//!
//! [`model`] says what is to happen. It knows nothing of the books: it keeps explicit stacks, lists what a
//! phase has to do when the phase begins, and moves threads by names of functions. [`process`] is a process
//! made of values that the machine drives through its books. [`lab`] does the same to both and compares
//! after every step.

mod lab;
mod model;
mod process;
mod random;
mod regressions;
mod scenarios;

use std::fmt::{Display, Formatter, Result};

/// Functions there are.
const FUNCS: usize = 4;

/// The callbacks in the order of [`State::has`].
const CALLBACKS: [&str; 4] = ["pre_patch", "post_patch", "pre_unpatch", "post_unpatch"];
const PRE_PATCH: usize = 0;
const POST_PATCH: usize = 1;
const PRE_UNPATCH: usize = 2;
const POST_UNPATCH: usize = 3;

const ENOENT: u32 = 2;
const EBUSY: u32 = 16;
const EINVAL: u32 = 22;
const ECANCELED: u32 = 125;

/// A state as its author wrote it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct State {
    id: u64,
    is_shadow: bool,
    block_disable: bool,
    /// Which callbacks it has.
    has: [bool; 4],
    has_dtor: bool,
    /// What its `pre_patch` fails with, 0 = not.
    fails: u32,
}

/// A patch as its author wrote it.
#[derive(Clone, Debug)]
struct Patch {
    name: char,
    replace: bool,
    funcs: Vec<usize>,
    states: Vec<State>,
}

/// What a thread is in, or gets to when it calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Code {
    Old(usize),
    New(char, usize),
    /// A part of a patch that one of its functions has left to by a jump.
    Part(char),
}

impl Display for Code {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        match self {
            Code::Old(func) => write!(f, "old{func}"),
            Code::New(patch, func) => write!(f, "{patch}{func}"),
            Code::Part(patch) => write!(f, "{patch}"),
        }
    }
}

/// The thread of the program that runs callbacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Host {
    /// There is none.
    Away,
    /// Each callback has returned when it is asked for.
    Quick,
    /// Each callback runs until it is told to return.
    Slow,
}
