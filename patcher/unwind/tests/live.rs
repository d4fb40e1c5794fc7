//! Walks real stacks of programs that were not built for it.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use suture_elf::{Addr, Base, MapsSnapshot, Memory, MemoryError, ObjectFile};
use suture_unwind::{FrameKind, Module, Registers, Unreliable, Unwinder};

struct Remote(i32);

impl Memory for Remote {
    fn read(&self, addr: Addr, buf: &mut [u8]) -> Result<(), MemoryError> {
        let local = libc::iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: buf.len() };
        let remote = libc::iovec { iov_base: addr.0 as *mut libc::c_void, iov_len: buf.len() };
        // SAFETY: `local` describes `buf`.
        let n = unsafe { libc::process_vm_readv(self.0, &raw const local, 1, &raw const remote, 1, 0) };
        if n == buf.len() as isize { Ok(()) } else { Err(MemoryError { addr, len: buf.len() }) }
    }
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts a program and waits until its main thread sits in system call `nr`.
fn blocked_in(nr: &str, program: &str, args: &[&str]) -> (Killed, u64, u64) {
    let child =
        Killed(Command::new(program).args(args).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap());
    let path = format!("/proc/{}/syscall", child.0.id());
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let line = fs::read_to_string(&path).unwrap_or_default();
        let fields: Vec<&str> = line.split_whitespace().collect();
        if fields.len() == 9 && fields[0] == nr {
            let hex = |s: &str| u64::from_str_radix(s.trim_start_matches("0x"), 16).unwrap();
            return (child, hex(fields[7]), hex(fields[8]));
        }
        assert!(Instant::now() < deadline, "{program} never got into system call {nr}: {line}");
        std::thread::yield_now();
    }
}

fn modules(pid: u32) -> Vec<Module> {
    let maps = MapsSnapshot::parse(&fs::read_to_string(format!("/proc/{pid}/maps")).unwrap()).unwrap();
    let first = maps.regions.iter().filter(|r| r.offset == 0);
    first
        .filter_map(|r| {
            let path = r.path.clone().filter(|p| p.starts_with('/'))?;
            let file = ObjectFile::open(Path::new(&path)).ok()?;
            let lowest = file.segments().iter().map(|s| s.addr.0 & !0xfff).min()?;
            Some(Module::new(path, Base(r.start - lowest), file))
        })
        .collect()
}

#[test]
fn a_blocked_program_is_walked_to_its_start() {
    for (nr, program, args) in [("230", "/bin/sleep", &["60"][..]), ("0", "/bin/cat", &[])] {
        let (child, sp, pc) = blocked_in(nr, program, args);
        let modules = modules(child.0.id());
        let memory = Remote(child.0.id() as i32);
        let frames = Unwinder::new(&modules).walk(Registers::from_pc_sp(pc, sp), &memory).unwrap();
        assert!(frames.len() >= 4, "{program}: {frames:?}");
        assert_eq!(frames[0].kind, FrameKind::Innermost);
        assert!(frames[1..].iter().all(|f| f.kind == FrameKind::Caller));
        assert!(frames.windows(2).all(|w| w[0].cfa < w[1].cfa), "{program}: {frames:?}");
        // The last frame is _start, in the executable.
        let last = frames[frames.len() - 1].pc;
        let main = modules.iter().find(|m| m.range().contains(&last)).unwrap();
        assert!(main.name.ends_with(program.rsplit('/').next().unwrap()), "{program} ends in {}", main.name);
    }
}

#[test]
fn what_cannot_be_walked_is_refused_with_the_reason() {
    let (child, sp, pc) = blocked_in("0", "/bin/cat", &[]);
    let all = modules(child.0.id());
    let memory = Remote(child.0.id() as i32);
    let walk = |modules: &[Module], pc, sp| {
        Unwinder::new(modules).walk(Registers::from_pc_sp(pc, sp), &memory).unwrap_err()
    };
    assert_eq!(walk(&all, 16, sp), Unreliable::NoModule { pc: 16 });
    assert!(matches!(walk(&all, pc, 64), Unreliable::Memory { .. }));
    // Without the executable's tables the walk must not stop silently in the middle.
    let without: Vec<Module> = all.into_iter().filter(|m| !m.name.ends_with("cat")).collect();
    assert!(matches!(walk(&without, pc, sp), Unreliable::NoModule { .. }));
}
