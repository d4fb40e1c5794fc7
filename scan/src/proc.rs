//! The lines of `/proc/PID/task/TID/` that a look at a thread needs.
//!
//! Bytes in, numbers out; what is not in the kernel's format gives `None`, which is to be taken as
//! "not now".

/// How often the thread was put on a processor: the third number of `schedstat`.
///
/// It rises when the thread gets the processor, so an unchanged count proves that the thread did not
/// run between the two readings, if it was off the processor at the first. Kernels without
/// `CONFIG_SCHED_INFO` have no such file, some have constant zeros: see [`switches`].
#[must_use]
pub fn run_count(schedstat: &[u8]) -> Option<u64> {
    let mut fields = fields(schedstat);
    let (_on, _waiting, count) = (fields.next()?, fields.next()?, fields.next()?);
    decimal(count)
}

/// Voluntary and forced context switches together, from `status`: stands in for [`run_count`] where
/// `schedstat` does not count. Any run ends in a switch or is still going on.
#[must_use]
pub fn switches(status: &[u8]) -> Option<u64> {
    let of = |name: &[u8]| {
        let mut lines = status.split(|&b| b == b'\n');
        let value = lines.find_map(|line| line.strip_prefix(name))?;
        decimal(fields(value).next()?)
    };
    Some(of(b"voluntary_ctxt_switches:")?.wrapping_add(of(b"nonvoluntary_ctxt_switches:")?))
}

/// What proves that a thread did not run between two readings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Runs {
    /// [`run_count`].
    Counted,
    /// [`switches`].
    Switches,
}

impl Runs {
    /// What this kernel counts, by the `schedstat` of a thread that runs: it was put on a processor at least once. A
    /// kernel that does not count (`CONFIG_SCHEDSTATS` is off, and delay accounting) says 0 of everybody.
    #[must_use]
    pub fn by(own_schedstat: &[u8]) -> Self {
        if run_count(own_schedstat).is_some_and(|count| count > 0) { Self::Counted } else { Self::Switches }
    }

    /// The thread's file that says it.
    #[must_use]
    pub fn file(self) -> &'static str {
        match self {
            Self::Counted => "schedstat",
            Self::Switches => "status",
        }
    }

    /// The count, from the text of that file.
    #[must_use]
    pub fn of(self, text: &[u8]) -> Option<u64> {
        match self {
            Self::Counted => run_count(text),
            Self::Switches => switches(text),
        }
    }
}

/// Whether a thread is under system call filters, from `status`: 0 = no, 1 = all but a few calls are forbidden,
/// 2 = filters. `None` where the line is missing: the kernel knows no filters, or only the beginning was read.
#[must_use]
pub fn seccomp(status: &[u8]) -> Option<u64> {
    let value = status.split(|&b| b == b'\n').find_map(|line| line.strip_prefix(b"Seccomp:"))?;
    decimal(fields(value).next()?)
}

/// The line of `syscall`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Syscall {
    /// On a processor, or waiting for one.
    Running,
    /// Off the processor outside any system call: in a page fault, stopped, or frozen. The program
    /// counter may be anywhere and more registers than these two matter. A thread that has exited has
    /// both zero.
    Elsewhere {
        /// Stack pointer.
        sp: u64,
        /// Program counter.
        pc: u64,
    },
    /// Blocked in a system call.
    Blocked {
        /// Its number.
        number: u64,
        /// Its arguments.
        args: [u64; 6],
        /// Stack pointer.
        sp: u64,
        /// Program counter: behind the instruction that made the call.
        pc: u64,
    },
}

impl Syscall {
    /// Reads the line.
    #[must_use]
    pub fn parse(line: &[u8]) -> Option<Self> {
        let mut fields = fields(line);
        let first = fields.next()?;
        if first == b"running" {
            return Some(Self::Running);
        }
        if first == b"-1" {
            let (sp, pc) = (hexadecimal(fields.next()?)?, hexadecimal(fields.next()?)?);
            return fields.next().is_none().then_some(Self::Elsewhere { sp, pc });
        }
        let number = decimal(first)?;
        let mut args = [0; 6];
        for arg in &mut args {
            *arg = hexadecimal(fields.next()?)?;
        }
        let (sp, pc) = (hexadecimal(fields.next()?)?, hexadecimal(fields.next()?)?);
        fields.next().is_none().then_some(Self::Blocked { number, args, sp, pc })
    }

    /// Whether the thread counts as running although it is blocked: in `vfork`, and in `clone` or
    /// `clone3`, which may be a vfork. Its child runs on its memory and its thread pointer, and the
    /// return address of `vfork` is in a register only.
    #[must_use]
    pub fn shares_itself(&self) -> bool {
        const CLONE: u64 = 56;
        const VFORK: u64 = 58;
        const CLONE3: u64 = 435;
        matches!(self, Self::Blocked { number: CLONE | VFORK | CLONE3, .. })
    }
}

/// What `stat` says of a thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// State letter: `R`, `S`, `D`, `T`, `t`, `Z`, `X`, `I`.
    pub state: u8,
    /// The kernel's flags of the task (`PF_*`).
    pub flags: u32,
}

impl Stat {
    /// Reads the line. The name in parentheses may hold anything, parentheses and spaces included.
    #[must_use]
    pub fn parse(line: &[u8]) -> Option<Self> {
        let behind = line.iter().rposition(|&b| b == b')')?.checked_add(1)?;
        let mut fields = fields(line.get(behind..)?);
        let &[state] = fields.next()? else { return None };
        // ppid, pgrp, session, tty_nr, tpgid, flags.
        let flags = decimal(fields.nth(5)?)?;
        Some(Self { state, flags: u32::try_from(flags).ok()? })
    }

    /// Made by the kernel for its own work in the process (io_uring): never runs user code.
    #[must_use]
    pub fn is_kernel_made(&self) -> bool {
        const PF_IO_WORKER: u32 = 0x10;
        const PF_USER_WORKER: u32 = 0x4000;
        self.flags & (PF_IO_WORKER | PF_USER_WORKER) != 0
    }

    /// Dead or dying: it will never run user code again.
    #[must_use]
    pub fn is_dead(&self) -> bool {
        matches!(self.state, b'Z' | b'X' | b'x')
    }
}

/// What stands between white space.
fn fields(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    line.split(u8::is_ascii_whitespace).filter(|f| !f.is_empty())
}

fn decimal(digits: &[u8]) -> Option<u64> {
    number(digits, 10)
}

fn hexadecimal(digits: &[u8]) -> Option<u64> {
    number(digits.strip_prefix(b"0x")?, 16)
}

fn number(digits: &[u8], base: u32) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0u64, |value, &digit| {
        let digit = char::from(digit).to_digit(base)?;
        value.checked_mul(u64::from(base))?.checked_add(u64::from(digit))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_kernels_lines_are_read() {
        assert_eq!(run_count(b"1293844 2938 17\n"), Some(17));
        assert_eq!(Syscall::parse(b"running\n"), Some(Syscall::Running));
        assert_eq!(
            Syscall::parse(b"-1 0x7ffd1000 0x401000\n"),
            Some(Syscall::Elsewhere { sp: 0x7ffd_1000, pc: 0x40_1000 })
        );
        assert_eq!(Syscall::parse(b"-1 0x0 0x0\n"), Some(Syscall::Elsewhere { sp: 0, pc: 0 }));
        let line = b"202 0x7f 0x189 0x0 0x0 0x0 0xffffffffffffffff 0x7ffd1000 0x7f0001\n";
        let blocked = Syscall::parse(line).unwrap();
        let args = [0x7f, 0x189, 0, 0, 0, u64::MAX];
        assert_eq!(blocked, Syscall::Blocked { number: 202, args, sp: 0x7ffd_1000, pc: 0x7f_0001 });
        assert!(!blocked.shares_itself());
        let vfork = Syscall::parse(b"58 0x1 0x2 0x3 0x4 0x5 0x6 0x7 0x8").unwrap();
        assert!(vfork.shares_itself());
    }

    #[test]
    fn a_name_may_look_like_the_rest_of_the_line() {
        let stat = b"123 (a) R 0) (b) S 1 123 123 0 -1 4210752 1 2 3\n";
        assert_eq!(Stat::parse(stat), Some(Stat { state: b'S', flags: 4_210_752 }));
        let worker = Stat::parse(b"9 (iou-sqp-9) S 1 9 9 0 -1 16448 0\n").unwrap();
        assert!(worker.is_kernel_made() && !worker.is_dead());
        let io_worker = Stat::parse(b"9 (iou-wrk-9) S 1 9 9 0 -1 4194384 0\n").unwrap();
        assert!(io_worker.is_kernel_made());
        assert!(Stat::parse(b"9 (x) Z 1 9 9 0 -1 4227084 0\n").unwrap().is_dead());
    }

    #[test]
    fn switches_are_added() {
        let status = b"Name:\tvoluntary_ctxt_switches:\t99\nThreads:\t1\nvoluntary_ctxt_switches:\t150\nnonvoluntary_ctxt_switches:\t545\n";
        assert_eq!(switches(status), Some(695));
        assert_eq!(switches(b"voluntary_ctxt_switches:\t150\n"), None);
    }

    #[test]
    fn filters_are_told_by_their_line() {
        let status =
            |mode: &str| format!("NoNewPrivs:\t1\nSeccomp:\t{mode}\nSeccomp_filters:\t3\n").into_bytes();
        assert_eq!(seccomp(&status("0")), Some(0));
        assert_eq!(seccomp(&status("2")), Some(2));
        assert_eq!(seccomp(&status("")), None);
        assert_eq!(seccomp(b"Groups:\t1 2 3"), None);
    }

    #[test]
    fn this_thread_is_read() {
        let read = |name: &str| std::fs::read(format!("/proc/thread-self/{name}")).unwrap();
        // It reads the file: the line is about that very system call.
        let line = Syscall::parse(&read("syscall"));
        assert!(matches!(line, Some(Syscall::Blocked { number: 0, .. })), "{line:?}");
        assert_eq!(Stat::parse(&read("stat")).unwrap().state, b'R');
        assert!(seccomp(&read("status")).is_some());
        let (count, of_status) = (run_count(&read("schedstat")).unwrap(), switches(&read("status")).unwrap());
        std::thread::sleep(std::time::Duration::from_millis(1));
        assert!(run_count(&read("schedstat")).unwrap() > count);
        assert!(switches(&read("status")).unwrap() > of_status);
    }

    #[test]
    fn what_is_not_the_kernels_is_refused() {
        for line in ["", "\n", "running2", "-1", "-1 0x1", "-1 1 2", "-1 0x1 0x2 0x3", "0 0x1", "x 0x1 0x2"] {
            assert_eq!(Syscall::parse(line.as_bytes()), None, "{line:?}");
        }
        assert_eq!(Syscall::parse(b"0 0x1 0x2 0x3 0x4 0x5 0x6 0x7 0x8 0x9"), None);
        assert_eq!(Syscall::parse(b"-1 0x10000000000000000 0x1"), None);
        for line in ["", "1 2", "1 2 x", "1 2 99999999999999999999"] {
            assert_eq!(run_count(line.as_bytes()), None, "{line:?}");
        }
        for line in ["", "1 (x", "1 (x)", "1 (x) S 1 2 3 4 5", "1 (x) SS 1 2 3 4 5 6", "1 (x) S 1 2 3 4 5 -6"]
        {
            assert_eq!(Stat::parse(line.as_bytes()), None, "{line:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(line in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = (run_count(&line), switches(&line), seccomp(&line), Syscall::parse(&line), Stat::parse(&line));
        }

        #[test]
        fn a_line_like_the_kernels_is_read_back(
            number in 0u64..500, args: [u64; 6], sp: u64, pc: u64, name in "[ -~]{0,15}", flags: u32, count: u64,
        ) {
            let words = args.iter().map(|a| format!("{a:#x} ")).collect::<String>();
            let line = format!("{number} {words}{sp:#x} {pc:#x}\n");
            prop_assert_eq!(Syscall::parse(line.as_bytes()), Some(Syscall::Blocked { number, args, sp, pc }));
            let line = format!("7 ({name}) D 1 2 3 -4 -5 {flags} 0 0\n");
            prop_assert_eq!(Stat::parse(line.as_bytes()), Some(Stat { state: b'D', flags }));
            prop_assert_eq!(run_count(format!("{sp} {pc} {count}\n").as_bytes()), Some(count));
        }

        /// Damage in one place gives another reading or none, never a panic.
        #[test]
        fn damaged_lines_are_harmless(at in 0usize..70, byte: u8) {
            for line in [&b"202 0x7f 0x189 0x0 0x0 0x0 0xffffffffffffffff 0x7ffd1000 0x7f0001\n"[..], b"1 (n) S 1 2 3 4 5 6"] {
                let mut line = line.to_vec();
                if let Some(place) = line.get_mut(at) {
                    *place = byte;
                }
                let _ = (Syscall::parse(&line), Stat::parse(&line), run_count(&line), switches(&line));
            }
        }
    }
}
