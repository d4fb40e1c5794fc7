//! Whether the program's own system call filters let the runtime do its work.
//!
//! Threads inherit filters, and a refused call often kills the process. So the filters are read
//! before anything is done, and every call of the in-target path is run through them here.

pub mod bpf;

use bpf::{Data, Instruction};

/// One filter.
pub type Filter = Vec<Instruction>;

/// A system call the in-target path makes, with the arguments filters like to look at.
const CALLS: [(&str, u32, [u64; 6]); 25] = [
    ("close", 3, [0; 6]),
    ("fstat", 5, [0; 6]),
    ("mmap", 9, [0, 4096, 3, 0x22, u64::MAX, 0]),
    ("mmap (executable)", 9, [0, 4096, 5, 0x10_0002, 3, 0]),
    ("mprotect", 10, [0, 4096, 1, 0, 0, 0]),
    ("munmap", 11, [0, 4096, 0, 0, 0, 0]),
    ("rt_sigaction", 13, [1, 0, 0, 8, 0, 0]),
    ("rt_sigprocmask", 14, [2, 0, 0, 8, 0, 0]),
    ("madvise", 28, [0, 4096, 4, 0, 0, 0]),
    ("nanosleep", 35, [0; 6]),
    ("getpid", 39, [0; 6]),
    ("clone", 56, [0xd_0b00, 0, 0, 0, 0, 0]),
    ("exit", 60, [0; 6]),
    ("restart_syscall", 219, [0; 6]),
    ("clock_gettime", 228, [1, 0, 0, 0, 0, 0]),
    ("fcntl", 72, [0, 1034, 0, 0, 0, 0]),
    ("flock", 73, [0, 6, 0, 0, 0, 0]),
    ("rt_sigpending", 127, [0, 8, 0, 0, 0, 0]),
    ("gettid", 186, [0; 6]),
    ("futex", 202, [0; 6]),
    ("tgkill", 234, [0; 6]),
    ("memfd_create", 319, [0, 0xb, 0, 0, 0, 0]),
    ("memfd_create (executable)", 319, [0, 0x13, 0, 0, 0, 0]),
    ("membarrier", 324, [32, 0, 0, 0, 0, 0]),
    ("close_range", 436, [0, 0xffff_ffff, 0, 0, 0, 0]),
];

/// The one call more where a limit on threads has to be put back.
const PUTS_BACK: (&str, u32, [u64; 6]) = ("prlimit64", 302, [0, 6, 0, 0, 0, 0]);

/// The first call that does not get through all of the filters.
#[must_use]
pub fn refused(filters: &[Filter], with_limit: bool) -> Option<&'static str> {
    let stopped = |nr, args| {
        let data = Data { nr, args };
        // A filter that cannot be followed is taken for a refusal.
        filters.iter().any(|filter| !bpf::run(filter, &data).is_ok_and(bpf::allows))
    };
    let more = with_limit.then_some(&PUTS_BACK);
    CALLS.iter().chain(more).find(|(_, nr, args)| stopped(*nr, *args)).map(|(name, ..)| *name)
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
        assert_eq!(refused(&[], true), None);
        assert_eq!(refused(std::slice::from_ref(&allow_all), true), None);
        assert_eq!(refused(&[allow_all, no_memfd], false), Some("memfd_create"));
    }

    #[test]
    fn the_call_that_puts_a_limit_back_is_only_asked_for_when_it_is_made() {
        let no_limits = vec![
            Instruction { code: 0x20, jt: 0, jf: 0, k: 0 },
            Instruction { code: 0x15, jt: 0, jf: 1, k: 302 },
            Instruction { code: 6, jt: 0, jf: 0, k: 0 },
            Instruction { code: 6, jt: 0, jf: 0, k: 0x7fff_0000 },
        ];
        assert_eq!(refused(std::slice::from_ref(&no_limits), false), None);
        assert_eq!(refused(&[no_limits], true), Some("prlimit64"));
    }

    #[test]
    fn every_call_of_the_runtime_is_asked_for() {
        let asked: Vec<u32> = CALLS.iter().map(|(_, nr, _)| *nr).collect();
        for call in suture_runtime::sys::CALLS {
            assert!(asked.contains(call), "nothing asks the filters for system call {call}");
        }
    }
}
