//! Which processes a command works on.

use crate::error::Error;
use crate::sys::proc;

/// What the user named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selection {
    /// `--pid N…`: each must be there.
    Pids(Vec<i32>),
    /// `--name COMM`: every process of that name.
    Name(String),
    /// `--all`: every process with the runtime in it.
    All,
}

impl Selection {
    /// Whether processes that do not fit are skipped rather than refused.
    #[must_use]
    pub fn skips(&self) -> bool {
        !matches!(self, Self::Pids(_))
    }

    /// The processes, each once.
    ///
    /// # Errors
    /// When `/proc` cannot be read, or no process has that name.
    pub fn pids(&self) -> Result<Vec<i32>, Error> {
        let own = std::process::id().cast_signed();
        let all = || proc::all_pids().map_err(|e| Error::Io { what: "cannot list /proc".into(), source: e });
        match self {
            Self::Pids(pids) => {
                let mut seen = Vec::new();
                pids.iter().for_each(|pid| {
                    if !seen.contains(pid) {
                        seen.push(*pid);
                    }
                });
                Ok(seen)
            }
            Self::Name(name) => {
                // The kernel keeps 15 bytes of a name.
                let bytes = name.as_bytes();
                let comm = String::from_utf8_lossy(&bytes[..bytes.len().min(15)]);
                let is_named = |pid: &i32| {
                    *pid != own && proc::facts(*pid).is_ok_and(|f| f.comm == comm && f.state != 'Z')
                };
                let pids: Vec<i32> = all()?.into_iter().filter(is_named).collect();
                if pids.is_empty() { Err(Error::NoProcessNamed { name: name.clone() }) } else { Ok(pids) }
            }
            Self::All => Ok(all()?
                .into_iter()
                .filter(|&pid| {
                    pid != own && proc::maps(pid).is_ok_and(|m| m.contains(suture_abi::RUNTIME_SONAME))
                })
                .collect()),
        }
    }
}
