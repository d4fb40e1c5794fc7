//! Programs to walk, and the truth about them: all registers of a thread stopped by ptrace.
#![allow(dead_code)]

pub mod servers;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use suture_elf::{Addr, Base, MapsSnapshot, Memory, MemoryError, ObjectFile};
use suture_unwind::{Module, Register, Registers, Unreliable, Unwinder, Walk};

/// How long anything is waited for.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until `look` gives something.
pub fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::yield_now();
    }
}

/// Compiles one source to a program (or what the flags say) and gives its path.
pub fn build(source: &str, extension: &str, flags: &[&str]) -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let stem = format!("unwind-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let (from, to) = (dir.join(format!("{stem}.{extension}")), dir.join(stem));
    fs::write(&from, source).unwrap();
    let mut command = match extension {
        "rs" => Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into())),
        "cc" => Command::new("g++"),
        _ => Command::new("gcc"),
    };
    let out = command.arg("-o").args([&to, &from]).args(flags).output().expect("a compiler");
    assert!(out.status.success(), "{}\n{source}", String::from_utf8_lossy(&out.stderr));
    fs::remove_file(from).unwrap();
    to
}

/// Memory of another process.
#[derive(Clone, Copy)]
pub struct Remote(pub i32);

impl Memory for Remote {
    fn read(&self, addr: Addr, buf: &mut [u8]) -> Result<(), MemoryError> {
        let local = libc::iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: buf.len() };
        let remote = libc::iovec { iov_base: addr.0 as *mut libc::c_void, iov_len: buf.len() };
        // SAFETY: `local` describes `buf`; the kernel checks `remote`.
        let n = unsafe { libc::process_vm_readv(self.0, &raw const local, 1, &raw const remote, 1, 0) };
        if n == buf.len() as isize { Ok(()) } else { Err(MemoryError { addr, len: buf.len() }) }
    }
}

/// A program that is killed when the test ends.
pub struct Target {
    child: Child,
}

impl Drop for Target {
    fn drop(&mut self) {
        self.kill();
    }
}

/// What `/proc` says of a thread in a system call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blocked {
    pub number: u64,
    pub sp: u64,
    pub pc: u64,
}

impl Target {
    pub fn start(program: &Path, args: &[&str]) -> Self {
        Self::start_in(program, args, Path::new("."))
    }

    pub fn start_in(program: &Path, args: &[&str], dir: &Path) -> Self {
        let mut command = Command::new(program);
        command.args(args).current_dir(dir);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        Self { child: command.spawn().unwrap() }
    }

    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    pub fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    pub fn memory(&self) -> Remote {
        Remote(self.pid())
    }

    pub fn maps(&self) -> MapsSnapshot {
        maps(self.pid())
    }

    pub fn modules(&self) -> Vec<Module> {
        modules(self.pid())
    }

    /// Waits until a thread sits in the system call.
    pub fn blocked(&self, tid: i32, number: u64) -> Blocked {
        let pid = self.pid();
        until("the system call", || blocked(pid, tid).filter(|b| b.number == number))
    }

    /// Waits until the main thread reads its input: where the programs of these tests wait.
    pub fn reading(&self) -> Blocked {
        self.blocked(self.pid(), libc::SYS_read as u64)
    }

    pub fn threads(&self) -> Vec<i32> {
        threads(self.pid())
    }

    /// Gives it something to read.
    pub fn feed(&mut self, bytes: &[u8]) {
        std::io::Write::write_all(self.child.stdin.as_mut().unwrap(), bytes).unwrap();
    }
}

/// Threads of a process, in the order of the kernel.
pub fn threads(pid: i32) -> Vec<i32> {
    let Ok(dir) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    dir.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok()).collect()
}

/// The system call a thread is in, if it is.
pub fn blocked(pid: i32, tid: i32) -> Option<Blocked> {
    let line = fs::read(format!("/proc/{pid}/task/{tid}/syscall")).ok()?;
    match suture_scan::proc::Syscall::parse(&line)? {
        suture_scan::proc::Syscall::Blocked { number, sp, pc, .. } => Some(Blocked { number, sp, pc }),
        _ => None,
    }
}

/// Nothing for a process that has ended: servers let children come and go.
pub fn maps(pid: i32) -> MapsSnapshot {
    MapsSnapshot::parse(&fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default()).unwrap()
}

fn maps_are_gone(pid: i32) -> bool {
    maps(pid).regions.is_empty()
}

/// Objects of a process: those with files, and the vdso.
pub fn modules(pid: i32) -> Vec<Module> {
    let maps = maps(pid);
    let first = maps.regions.iter().filter(|r| r.offset == 0);
    let with_files = first.filter_map(|r| {
        let path = r.path.clone().filter(|p| p.starts_with('/'))?;
        let file = ObjectFile::open(Path::new(&path)).ok()?;
        let lowest = file.segments().iter().map(|s| s.addr.0 & !0xfff).min()?;
        Some(Module::new(path, Base(r.start.wrapping_sub(lowest)), file))
    });
    let mut modules: Vec<Module> = with_files.collect();
    let vdso = maps.regions.iter().find(|r| r.path.as_deref() == Some("[vdso]"));
    if let Some(vdso) = vdso {
        let range = vdso.start..vdso.end;
        match Module::elf_in_memory("[vdso]".into(), range, &Remote(pid)) {
            Ok(vdso) => modules.push(vdso),
            Err(why) => assert!(maps_are_gone(pid), "{why}"),
        }
    }
    modules
}

/// A thread stopped by ptrace; let go when dropped.
pub struct Stopped {
    pub tid: i32,
    pub registers: Registers,
    pub raw: libc::user_regs_struct,
}

impl Stopped {
    /// Stops a thread. `None` when it is gone or does not stop (vfork, uninterruptible sleep).
    pub fn stop(tid: i32) -> Option<Self> {
        // SAFETY: plain requests; no memory is passed.
        unsafe {
            if libc::ptrace(libc::PTRACE_SEIZE, tid, 0, 0) != 0 {
                return None;
            }
            if libc::ptrace(libc::PTRACE_INTERRUPT, tid, 0, 0) != 0 {
                libc::ptrace(libc::PTRACE_DETACH, tid, 0, 0);
                return None;
            }
        }
        let mut status = 0;
        // SAFETY: a status word of this function.
        let got = unsafe { libc::waitpid(tid, &raw mut status, libc::__WALL) };
        if got != tid || !libc::WIFSTOPPED(status) {
            return None;
        }
        let raw = registers(tid)?;
        Some(Self { tid, registers: all(&raw), raw })
    }

    /// Lets it run one instruction. False when it ended or got a signal.
    pub fn step(&mut self) -> bool {
        let mut status = 0;
        // SAFETY: a traced thread, a status word of this function.
        let stopped = unsafe {
            libc::ptrace(libc::PTRACE_SINGLESTEP, self.tid, 0, 0) == 0
                && libc::waitpid(self.tid, &raw mut status, libc::__WALL) == self.tid
        };
        if !stopped || !libc::WIFSTOPPED(status) || libc::WSTOPSIG(status) != libc::SIGTRAP {
            return false;
        }
        let Some(raw) = registers(self.tid) else { return false };
        (self.raw, self.registers) = (raw, all(&raw));
        true
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        // SAFETY: plain request.
        unsafe { libc::ptrace(libc::PTRACE_DETACH, self.tid, 0, 0) };
    }
}

fn registers(tid: i32) -> Option<libc::user_regs_struct> {
    // SAFETY: an all-zero structure of integers is a valid one.
    let mut raw: libc::user_regs_struct = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes one such structure.
    let got = unsafe { libc::ptrace(libc::PTRACE_GETREGS, tid, 0, &raw mut raw) };
    (got == 0).then_some(raw)
}

/// All registers by their DWARF numbers.
fn all(r: &libc::user_regs_struct) -> Registers {
    let values = [
        r.rax, r.rdx, r.rcx, r.rbx, r.rsi, r.rdi, r.rbp, r.rsp, r.r8, r.r9, r.r10, r.r11, r.r12, r.r13,
        r.r14, r.r15, r.rip,
    ];
    values.iter().enumerate().fold(Registers::default(), |all, (i, v)| all.with(Register(i as u16), *v))
}

/// A walk with nothing but the stack pointer and the program counter.
pub fn walk_bare<M: AsRef<[Module]>>(
    unwinder: &mut Unwinder<M>,
    at: Blocked,
    memory: &dyn Memory,
) -> Result<Walk, Unreliable> {
    unwinder.walk(Registers::from_pc_sp(at.pc, at.sp), memory)
}

/// Compares walks with all registers and with two: the same frames at the same places.
pub fn assert_same(full: &Walk, bare: &Walk) {
    assert_eq!(full.bottom, bare.bottom);
    let key = |w: &Walk| w.frames.iter().map(|f| (f.pc, f.cfa, f.kind)).collect::<Vec<_>>();
    assert_eq!(key(full), key(bare));
}

/// Walks a blocked thread with two registers, then, stopped, with all: both must agree. Gives the walk.
pub fn walk_both(target: &Target, tid: i32, at: Blocked) -> Walk {
    let modules = target.modules();
    let memory = target.memory();
    let mut unwinder = Unwinder::new(&modules, Vec::new());
    let bare = walk_bare(&mut unwinder, at, &memory).unwrap_or_else(|why| panic!("{why}"));
    let stopped = Stopped::stop(tid).expect("a thread to stop");
    assert_eq!((stopped.registers.pc(), stopped.registers.sp()), (Some(at.pc), Some(at.sp)));
    let full = unwinder.walk(stopped.registers, &memory).unwrap_or_else(|why| panic!("{why}"));
    assert_same(&full, &bare);
    bare
}

/// Names of the functions on a stack, the innermost first, as far as symbols name them.
pub fn names(walk: &Walk, modules: &[Module]) -> Vec<String> {
    let exact = |f: &suture_unwind::Frame| f.kind != suture_unwind::FrameKind::Caller;
    let at = |f: &suture_unwind::Frame| if exact(f) { f.pc } else { f.pc - 1 };
    walk.frames.iter().map(|f| modules[f.module].symbol_at(at(f)).unwrap_or_default()).collect()
}
