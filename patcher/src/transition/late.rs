//! Threads that were asked to stop and did not in time.
//!
//! They will stop later, and somebody has to be there to let them go. When the command ends the kernel does.

use crate::doorbell;
use crate::sys::ptrace::StoppedThread;
use crate::sys::time::Deadline;
use std::time::Duration;

/// Those threads.
#[derive(Debug, Default)]
pub struct Late(Vec<StoppedThread>);

impl Late {
    /// Notes a thread that has not stopped yet.
    pub fn push(&mut self, asked: StoppedThread) {
        self.0.push(asked);
    }

    /// Whether a thread is one of them.
    #[must_use]
    pub fn contains(&self, tid: i32) -> bool {
        self.0.iter().any(|asked| asked.tid() == tid)
    }

    /// Lets those go that have stopped since.
    pub fn let_go(&mut self) {
        self.let_go_until(Deadline::after(Duration::ZERO));
    }

    /// Waits a moment for all to stop, and lets them go: whoever is still asked cannot be borrowed by the same command.
    pub fn let_all_go(&mut self) {
        self.let_go_until(Deadline::after(Duration::from_millis(50)));
    }

    fn let_go_until(&mut self, deadline: Deadline) {
        self.0.retain_mut(|asked| match asked.await_stop(deadline) {
            Ok(false) => true,
            Ok(true) => {
                // When it cannot be hidden the thread is dead.
                let _ = doorbell::hide(asked);
                false
            }
            Err(_) => false,
        });
    }
}
