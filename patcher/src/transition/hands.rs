//! What a command holds of a process while it follows a transition.

use super::late::Late;
use crate::error::Error;
use crate::host::guard::Guard;
use crate::target::Target;
use suture_elf::Addr;

/// Threads that were asked to stop and have not yet, and the host.
#[derive(Debug, Default)]
pub struct Hands<'t> {
    /// See [`Late`].
    pub late: Late,
    guard: Option<Guard<'t>>,
}

impl<'t> Hands<'t> {
    /// Is with the host, if there is one, from now on: before anything that may give it work.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn guard(&mut self, target: &'t Target, block: Addr) -> Result<&mut Guard<'t>, Error> {
        let current = match self.guard.take() {
            Some(guard) if guard.is_current()? => guard,
            other => {
                drop(other);
                Guard::new(target, block)?
            }
        };
        Ok(self.guard.insert(current))
    }

    /// Is with nobody any more. A host that was borrowed is an ordinary thread again when it has left, and may be
    /// the one that is needed next.
    pub fn leave_host(&mut self) {
        self.guard = None;
        self.late.let_all_go();
    }

    /// Lets everybody go who can be, and passes on what happened to the host.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn attend(&mut self) -> Result<(), Error> {
        self.late.let_go();
        match self.guard.take() {
            Some(mut guard) if guard.is_current()? => {
                guard.pass_events()?;
                self.guard = Some(guard);
            }
            // A borrowed thread has been sent back to its own work.
            _ => {}
        }
        Ok(())
    }
}
