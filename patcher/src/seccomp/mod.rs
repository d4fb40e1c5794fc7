//! Whether the program's own system call filters let the runtime do its work.
//!
//! Threads inherit filters, and a refused call often kills the process. So the filters are read
//! before anything is done, and every call of the in-target path is run through them here.

pub mod bpf;

use crate::error::Error;
use crate::sys::ptrace::StoppedThread;
use crate::target::Target;
use bpf::{Data, Instruction};

/// A system call the in-target path makes, with the arguments filters like to look at.
const CALLS: [(&str, u32, [u64; 6]); 17] = [
    ("mmap", 9, [0, 4096, 3, 0x22, u64::MAX, 0]),
    ("mmap (executable)", 9, [0, 4096, 5, 0x10_0002, 3, 0]),
    ("mprotect", 10, [0, 4096, 1, 0, 0, 0]),
    ("munmap", 11, [0, 4096, 0, 0, 0, 0]),
    ("rt_sigaction", 13, [1, 0, 0, 8, 0, 0]),
    ("rt_sigprocmask", 14, [2, 0, 0, 8, 0, 0]),
    ("nanosleep", 35, [0; 6]),
    ("clone", 56, [0xd_0b00, 0, 0, 0, 0, 0]),
    ("exit", 60, [0; 6]),
    ("fcntl", 72, [0, 1034, 0, 0, 0, 0]),
    ("flock", 73, [0, 6, 0, 0, 0, 0]),
    ("rt_sigpending", 127, [0, 8, 0, 0, 0, 0]),
    ("gettid", 186, [0; 6]),
    ("futex", 202, [0; 6]),
    ("memfd_create", 319, [0, 3, 0, 0, 0, 0]),
    ("membarrier", 324, [32, 0, 0, 0, 0, 0]),
    ("close_range", 436, [0, 0xffff_ffff, 0, 0, 0, 0]),
];

/// Checks the filters of one thread, which is stopped for it.
///
/// # Errors
/// [`Error::Seccomp`] naming the first call that would not go through, or why the filters cannot be
/// read.
pub fn check(target: &Target, thread: &StoppedThread) -> Result<(), Error> {
    let pid = target.pid();
    let filters = thread.seccomp_filters().map_err(|source| Error::Io {
        what: format!("cannot read the seccomp filters of process {pid}"),
        source,
    })?;
    match refused(&filters) {
        None => Ok(()),
        Some(call) => Err(Error::Seccomp { pid, call: call.to_owned() }),
    }
}

fn refused(filters: &[Vec<Instruction>]) -> Option<&'static str> {
    let stopped = |nr, args| {
        let data = Data { nr, args };
        // A filter that cannot be followed is taken for a refusal.
        filters.iter().any(|filter| !bpf::run(filter, &data).is_ok_and(bpf::allows))
    };
    CALLS.iter().find(|(_, nr, args)| stopped(*nr, *args)).map(|(name, ..)| *name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_refused_call_is_named() {
        let allow_all = vec![Instruction { code: 6, jt: 0, jf: 0, k: 0x7fff_0000 }];
        let no_memfd = vec![
            Instruction { code: 0x20, jt: 0, jf: 0, k: 0 },
            Instruction { code: 0x15, jt: 0, jf: 1, k: 319 },
            Instruction { code: 6, jt: 0, jf: 0, k: 0x0005_0001 },
            Instruction { code: 6, jt: 0, jf: 0, k: 0x7fff_0000 },
        ];
        assert_eq!(refused(&[]), None);
        assert_eq!(refused(std::slice::from_ref(&allow_all)), None);
        assert_eq!(refused(&[allow_all, no_memfd]), Some("memfd_create"));
    }
}
