//! What `/proc` says about a process and its threads.

use super::processor::Pinned;
use procfs::process::Process;
use std::fs;
use std::io::{self, Read};
use std::time::Duration;
use suture_scan::proc::seccomp;

/// Facts about a process that decide whether and how it can be worked on.
#[derive(Clone, Debug)]
pub struct ProcessFacts {
    /// Process id, in our pid namespace.
    pub pid: i32,
    /// `comm` of the process.
    pub comm: String,
    /// Start time in clock ticks since boot: with `pid` the identity of the process.
    pub start_time: u64,
    /// Process id of the parent, 0 when it is in a pid namespace that is not ours to see.
    pub parent: i32,
    /// Real user id.
    pub ruid: u32,
    /// Effective user id.
    pub euid: u32,
    /// Tracer of the main thread, or 0.
    pub tracer: i32,
    /// State letter of the main thread.
    pub state: char,
    /// A thread of the kernel.
    pub kernel: bool,
    /// Threads.
    pub threads: u64,
    /// Seccomp mode: 0 off, 1 strict, 2 filter.
    pub seccomp: u32,
    /// Whether a user shadow stack is active.
    pub shadow_stack: bool,
}

/// Reads them.
///
/// # Errors
/// `ENOENT` when the process does not exist, `EACCES` when it is hidden from us.
pub fn facts(pid: i32) -> io::Result<ProcessFacts> {
    let process = Process::new(pid).map_err(io_error)?;
    let stat = process.stat().map_err(io_error)?;
    let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
    // A parser of all of it takes longer than all else that is asked of a process here.
    let field = |name: &str| text.lines().find_map(|l| l.strip_prefix(name)).map(str::trim);
    let word =
        |name: &str, at: usize| field(name).and_then(|f| f.split_whitespace().nth(at)?.parse::<u32>().ok());
    let number = |name: &str, at: usize| {
        word(name, at).ok_or_else(|| io::Error::other(format!("no {name} in the status of {pid}")))
    };
    Ok(ProcessFacts {
        pid,
        comm: stat.comm,
        start_time: stat.starttime,
        parent: stat.ppid,
        ruid: number("Uid:", 0)?,
        euid: number("Uid:", 1)?,
        tracer: number("TracerPid:", 0)?.cast_signed(),
        state: stat.state,
        kernel: stat.flags & PF_KTHREAD != 0,
        threads: number("Threads:", 0)?.into(),
        seccomp: word("Seccomp:", 0).unwrap_or(0),
        shadow_stack: field("x86_Thread_features:").is_some_and(|f| f.contains("shstk")),
    })
}

fn io_error(error: procfs::ProcError) -> io::Error {
    match error {
        procfs::ProcError::PermissionDenied(_) => io::Error::from_raw_os_error(libc::EACCES),
        procfs::ProcError::NotFound(_) => io::Error::from_raw_os_error(libc::ENOENT),
        procfs::ProcError::Io(e, _) => e,
        other => io::Error::other(other.to_string()),
    }
}

const PF_KTHREAD: u32 = 0x20_0000;

/// `PF_IO_WORKER | PF_USER_WORKER`: threads the kernel made; they never run user code.
const KERNEL_MADE: u32 = 0x4010;

/// What a thread is doing, as far as it can be read without touching it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ThreadFacts {
    /// Thread id, in our pid namespace.
    pub tid: i32,
    /// State letter.
    pub state: char,
    /// Made by the kernel.
    pub kernel_made: bool,
    /// System call it is blocked in, if it is.
    pub call: Option<Blocked>,
}

/// Where a thread is blocked in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blocked {
    /// Number of the system call.
    pub nr: u64,
    /// Its arguments.
    pub args: [u64; 6],
    /// Stack pointer.
    pub sp: u64,
    /// Program counter: behind the `syscall` instruction.
    pub pc: u64,
}

impl Blocked {
    /// Reads `/proc/PID/task/TID/syscall`: `NR ARG×6 SP PC`, or `running`, or `-1 SP PC`.
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split_ascii_whitespace();
        let nr = words.next()?.parse().ok()?;
        let mut hex = || u64::from_str_radix(words.next()?.strip_prefix("0x")?, 16).ok();
        let mut args = [0; 6];
        for arg in &mut args {
            *arg = hex()?;
        }
        Some(Self { nr, args, sp: hex()?, pc: hex()? })
    }
}

/// clone, vfork, clone3.
const MAKES_CHILD: [u64; 3] = [56, 58, 435];

impl ThreadFacts {
    /// Whether it waits for a child that borrows its memory to execute or end. The kernel lets nobody
    /// stop it meanwhile.
    #[must_use]
    pub fn waits_for_vfork(&self) -> bool {
        self.state == 'D' && self.is_making_child()
    }

    /// Whether it is in a call that makes a child.
    #[must_use]
    pub fn is_making_child(&self) -> bool {
        self.call.is_some_and(|c| MAKES_CHILD.contains(&c.nr))
    }
}

/// Thread ids of a process, in the order of the directory.
///
/// # Errors
/// `ENOENT` when it is gone.
pub fn threads(pid: i32) -> io::Result<Vec<i32>> {
    let mut tids = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/task"))? {
        if let Some(tid) = entry?.file_name().to_str().and_then(|s| s.parse().ok()) {
            tids.push(tid);
        }
    }
    Ok(tids)
}

/// Looks at one thread; `None` when it is gone.
#[must_use]
pub fn thread_facts(pid: i32, tid: i32) -> Option<ThreadFacts> {
    let (state, flags) = state_and_flags(pid, tid)?;
    Some(ThreadFacts { tid, state, kernel_made: flags & KERNEL_MADE != 0, call: blocked(pid, tid) })
}

/// State letter of a thread; `None` when it is gone.
#[must_use]
pub fn state(pid: i32, tid: i32) -> Option<char> {
    state_and_flags(pid, tid).map(|(state, _)| state)
}

/// The parent of a process: 0 when it is in a pid namespace that is not ours to see; `None` when the process is gone
/// or hidden from us.
#[must_use]
pub fn parent(pid: i32) -> Option<i32> {
    stat_behind_name(&format!("/proc/{pid}/stat"))?.split(' ').nth(1)?.parse().ok()
}

fn state_and_flags(pid: i32, tid: i32) -> Option<(char, u32)> {
    let rest = stat_behind_name(&format!("/proc/{pid}/task/{tid}/stat"))?;
    let mut fields = rest.split(' ');
    Some((fields.next()?.chars().next()?, fields.nth(5)?.parse().ok()?))
}

/// The fields of a `stat` from the state on. The name in front of them may hold anything.
fn stat_behind_name(path: &str) -> Option<String> {
    let mut stat = fs::read_to_string(path).ok()?;
    let state = stat.rfind(')')? + 2;
    stat.is_char_boundary(state).then(|| stat.split_off(state))
}

/// The system call that a thread is blocked in; `None` when it runs, is gone, or is hidden from us.
#[must_use]
pub fn blocked(pid: i32, tid: i32) -> Option<Blocked> {
    let line = fs::read_to_string(format!("/proc/{pid}/task/{tid}/syscall")).ok()?;
    Blocked::parse(&line)
}

/// Seccomp mode of a thread: 0 off, 1 strict, 2 filter. `None` when it is gone, or the kernel knows no filters. Asked of
/// every thread of a process, hence the effort.
#[must_use]
pub fn seccomp_mode(tid: i32) -> Option<u32> {
    let mut file = fs::File::open(format!("/proc/{tid}/status")).ok()?;
    let (mut text, mut length) = (vec![0; 4096], 0);
    loop {
        let got = file.read(text.get_mut(length..)?).ok()?;
        length += got;
        let mode = seccomp(text.get(..length)?);
        if mode.is_some() || got == 0 {
            return mode.and_then(|mode| u32::try_from(mode).ok());
        }
        // The groups of a thread stand in front of it, and there may be 65 536 of them.
        text.resize(2 * (length + 1024), 0);
    }
}

/// Whether a thread was sent SIGKILL and has not died of it yet.
#[must_use]
pub fn is_killed(tid: i32) -> bool {
    let status = fs::read_to_string(format!("/proc/{tid}/status")).unwrap_or_default();
    let pending = status.lines().find_map(|l| l.strip_prefix("SigPnd:"));
    pending.and_then(|p| u64::from_str_radix(p.trim(), 16).ok()).is_some_and(|p| p & (1 << 8) != 0)
}

/// When a thread went to sleep, and how often it has done that.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sleep {
    /// Milliseconds at which it ran last, by the scheduler's clock of its processor.
    pub ran_at: f64,
    /// Voluntary switches so far.
    pub switches: u64,
}

/// Reads `/proc/PID/task/TID/sched`; `None` where the kernel does not show it.
#[must_use]
pub fn sleep(pid: i32, tid: i32) -> Option<Sleep> {
    parse_sleep(&fs::read_to_string(format!("/proc/{pid}/task/{tid}/sched")).ok()?)
}

/// How long a sleeping thread has not run.
///
/// The scheduler's clocks stand still while a processor is taken away by a hypervisor or by interrupts,
/// each for itself. So they are only compared on one processor, and the true time may be a little longer.
#[must_use]
pub fn slept(pid: i32, tid: i32, sleep: &Sleep) -> Option<Duration> {
    let _there = Pinned::to(last_processor(pid, tid)?).ok()?;
    // A thread's own line is as old as the last time the scheduler looked at it.
    std::thread::yield_now();
    let now = parse_sleep(&fs::read_to_string("/proc/thread-self/sched").ok()?)?.ran_at;
    Duration::try_from_secs_f64((now - sleep.ran_at) / 1e3).ok()
}

/// The processor that a thread ran on last.
fn last_processor(pid: i32, tid: i32) -> Option<usize> {
    stat_behind_name(&format!("/proc/{pid}/task/{tid}/stat"))?.split(' ').nth(36)?.parse().ok()
}

fn parse_sleep(text: &str) -> Option<Sleep> {
    let field = |name: &str| {
        let line = text.lines().find_map(|l| l.strip_prefix(name))?;
        line.trim_start().strip_prefix(':').map(str::trim)
    };
    Some(Sleep {
        ran_at: field("se.exec_start")?.parse().ok()?,
        switches: field("nr_voluntary_switches")?.parse().ok()?,
    })
}

/// `/proc/PID/maps` as text.
///
/// # Errors
/// `EACCES` without ptrace rights, `ENOENT` when the process is gone.
pub fn maps(pid: i32) -> io::Result<String> {
    fs::read(format!("/proc/{pid}/maps")).map(|b| String::from_utf8_lossy(&b).into_owned())
}

/// The auxiliary vector, raw.
///
/// # Errors
/// As [`maps`].
pub fn auxv(pid: i32) -> io::Result<Vec<u8>> {
    fs::read(format!("/proc/{pid}/auxv"))
}

/// A resource limit; `u64::MAX` = unlimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// What holds.
    pub soft: u64,
    /// Up to which the process itself may raise it.
    pub hard: u64,
}

/// The limit of that name in `/proc/PID/limits`; `None` when the process is gone or hidden from us. (prlimit
/// wants a capability to read those of another user.)
#[must_use]
pub fn limit(pid: i32, name: &str) -> Option<Limit> {
    let text = fs::read_to_string(format!("/proc/{pid}/limits")).ok()?;
    let mut words = text.lines().find_map(|l| l.strip_prefix(name))?.split_whitespace();
    let mut number = || match words.next()? {
        "unlimited" => Some(u64::MAX),
        number => number.parse().ok(),
    };
    Some(Limit { soft: number()?, hard: number()? })
}

/// `vm.max_map_count`, or the kernel's default when it cannot be read.
#[must_use]
pub fn max_map_count() -> usize {
    fs::read_to_string("/proc/sys/vm/max_map_count")
        .ok()
        .and_then(|t| t.trim().parse().ok())
        .unwrap_or(65_530)
}

/// All process ids.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn all_pids() -> io::Result<Vec<i32>> {
    let mut pids: Vec<i32> =
        fs::read_dir("/proc")?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect();
    pids.sort_unstable();
    Ok(pids)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_read() {
        let own = facts(std::process::id().cast_signed()).unwrap();
        let parent = std::os::unix::process::parent_id();
        assert_eq!((own.parent.cast_unsigned(), own.euid), (parent, crate::sys::user::own()));
        assert_eq!(super::parent(own.pid), Some(own.parent));
        assert_eq!((own.kernel, own.tracer, own.seccomp), (false, 0, seccomp_mode(own.pid).unwrap_or(0)));
        assert!(own.threads >= 1 && !own.comm.is_empty() && own.start_time > 0, "{own:?}");
        assert_eq!(facts(0).unwrap_err().raw_os_error(), Some(libc::ENOENT));
    }

    #[test]
    #[allow(unsafe_code)]
    fn filters_are_seen_behind_any_number_of_groups() {
        let check = || {
            // SAFETY: no arguments, no memory.
            let tid = unsafe { libc::gettid() };
            assert_eq!(seccomp_mode(tid), Some(0));
            let groups: Vec<u32> = (0..3000).map(|n| 4_000_000_000 + n).collect();
            // The bare call: of this thread alone.
            // SAFETY: as many numbers as it says.
            let done = unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) };
            assert_eq!(done, 0, "{}", io::Error::last_os_error());
            assert_eq!(seccomp_mode(tid), Some(0));
            const ALLOW: libc::sock_filter = libc::sock_filter { code: 6, jt: 0, jf: 0, k: 0x7fff_0000 };
            let mut allow = [ALLOW];
            let program = libc::sock_fprog { len: 1, filter: allow.as_mut_ptr() };
            // SAFETY: a program of one instruction, for this thread, which ends with the test.
            let done = unsafe { libc::syscall(libc::SYS_seccomp, 1, 0, &raw const program) };
            assert_eq!(done, 0, "{}", io::Error::last_os_error());
            assert_eq!(seccomp_mode(tid), Some(2));
        };
        std::thread::spawn(check).join().unwrap();
        assert_eq!(seccomp_mode(0), None);
    }

    #[test]
    fn a_blocked_call_is_read_with_its_place() {
        let line = "232 0x5 0x7ffc0 0x10 0xffffffff 0x0 0x8 0x7ffd00 0x7f12\n";
        let call = Blocked::parse(line).unwrap();
        assert_eq!((call.nr, call.args[3], call.sp, call.pc), (232, 0xffff_ffff, 0x7f_fd00, 0x7f12));
        assert_eq!(Blocked::parse("running\n"), None);
        assert_eq!(Blocked::parse("-1 0x7ffd00 0x7f12\n"), None);
        assert_eq!(Blocked::parse(""), None);
    }

    #[test]
    fn the_schedulers_lines_are_read_by_name() {
        let text = "cat (12, #threads: 1)\n---\nse.exec_start      :   5536209.462639\n\
                    nr_switches        :      3\nnr_voluntary_switches       :       2\n";
        assert_eq!(parse_sleep(text), Some(Sleep { ran_at: 5_536_209.462_639, switches: 2 }));
        assert_eq!(parse_sleep(""), None);
    }
}
