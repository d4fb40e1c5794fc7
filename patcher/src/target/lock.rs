//! One command at a time per process.
//!
//! Two commands that plan from the same books would each arm the other's sites. The lock is an
//! abstract socket name made of the process's identity: the kernel takes it back when its owner dies,
//! and nothing is left in any file system. Commands in different network namespaces do not see each
//! other's; for them the channel's lock and the books' generation remain.

use super::{Target, inside};
use crate::error::Error;
use crate::sys::time::{Backoff, Deadline};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::time::Duration;

/// How long another command is waited for.
const PATIENCE: Duration = Duration::from_secs(30);

/// The lock, held until dropped.
#[derive(Debug)]
pub struct Exclusive(#[expect(dead_code, reason = "held, not used")] UnixListener);

impl Exclusive {
    /// Waits for its turn.
    ///
    /// # Errors
    /// [`Error::Busy`] when another command does not finish, [`Error::Vanished`] when the process
    /// ends meanwhile, [`Error::FromCallback`] when it could never be its turn.
    pub fn take(target: &Target) -> Result<Self, Error> {
        inside::refuse(target)?;
        let deadline = Deadline::after(PATIENCE);
        let mut backoff = Backoff::default();
        let name = format!("suture-{}-{}", target.pid(), target.facts.start_time);
        loop {
            let address = SocketAddr::from_abstract_name(&name);
            if let Ok(listener) = address.and_then(|a| UnixListener::bind_addr(&a)) {
                return Ok(Self(listener));
            }
            target.still_there()?;
            if deadline.passed() {
                return Err(Error::Busy { pid: target.pid() });
            }
            backoff.pause();
        }
    }
}
