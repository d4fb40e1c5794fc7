//! What looks at threads came to, and by which means.

use super::look::Why;
use serde::Serialize;

/// Looks of a command at threads that were off the goal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Looks {
    /// Clear: no word of the stack leads into searched code.
    pub scan: u64,
    /// Clear: walked with call frame information alone.
    pub cfi: u64,
    /// Clear: walked, and the height of at least one frame was computed from its code.
    pub height: u64,
    /// Clear: held for an instant, with all registers known.
    pub ptrace: u64,
    /// Without a stack: made by the kernel for itself, or dead.
    pub no_stack: u64,
    /// Not clear: searched code is on the stack.
    pub on_stack: u64,
    /// Not clear: the stack cannot be read for certain.
    pub unreliable: u64,
    /// Nothing: the thread ran meanwhile.
    pub running: u64,
}

impl Looks {
    /// Counts a thread that was not found clear.
    pub fn count_held(&mut self, why: &Why) {
        match why {
            Why::OnStack { .. } => self.on_stack += 1,
            Why::Unreliable(_) => self.unreliable += 1,
            Why::Running | Why::Stopped => self.running += 1,
        }
    }

    /// Adds other looks.
    pub fn add(&mut self, other: Self) {
        let Self { scan, cfi, height, ptrace, no_stack, on_stack, unreliable, running } = other;
        self.scan += scan;
        self.cfi += cfi;
        self.height += height;
        self.ptrace += ptrace;
        self.no_stack += no_stack;
        self.on_stack += on_stack;
        self.unreliable += unreliable;
        self.running += running;
    }
}

/// How threads came to the other side in a transition, whoever commanded it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct MovedBy {
    /// Found clear by the worker in the process.
    pub worker: u64,
    /// Found clear from outside.
    pub command: u64,
    /// Found themselves clear.
    pub themselves: u64,
}

impl From<[u64; 3]> for MovedBy {
    fn from([worker, command, themselves]: [u64; 3]) -> Self {
        Self { worker, command, themselves }
    }
}
