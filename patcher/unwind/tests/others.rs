//! The same stacks as other unwinders see them: framehop, libgcc and gdb.

mod common;

use common::servers::{self, Server};
use common::{Stopped, Target, build, maps, threads, until, walk_bare};
use framehop::x86_64::{CacheX86_64, UnwindRegsX86_64, UnwinderX86_64};
use framehop::{ExplicitModuleSectionInfo, FrameAddress, Unwinder as _};
use std::collections::HashMap;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use suture_elf::{Addr, Base, Memory, ObjectFile};
use suture_unwind::{Unwinder, Walk};

type Framehop = UnwinderX86_64<Vec<u8>>;

/// The objects of a process for framehop.
fn framehop(pid: i32) -> Framehop {
    let mut unwinder = UnwinderX86_64::new();
    for region in maps(pid).regions.iter().filter(|r| r.offset == 0) {
        let Some(path) = region.path.as_deref().filter(|p| p.starts_with('/')) else { continue };
        let Ok(file) = ObjectFile::open(Path::new(path)) else { continue };
        let lowest = file.segments().iter().map(|s| s.addr.0 & !0xfff).min().unwrap();
        let base = Base(region.start - lowest);
        let end = file.segments().iter().map(|s| s.addr.0 + s.memsz).max().unwrap();
        let section =
            |name| file.section(name).map(|(at, bytes)| (at.0..at.0 + bytes.len() as u64, bytes.to_vec()));
        let (text_svma, text) = section(".text").unzip();
        let (eh_frame_svma, eh_frame) = section(".eh_frame").unzip();
        let (eh_frame_hdr_svma, eh_frame_hdr) = section(".eh_frame_hdr").unzip();
        let got_svma = section(".got").map(|s| s.0);
        let info = ExplicitModuleSectionInfo {
            text_svma,
            text,
            eh_frame_svma,
            eh_frame,
            eh_frame_hdr_svma,
            eh_frame_hdr,
            got_svma,
            ..ExplicitModuleSectionInfo::default()
        };
        unwinder.add_module(framehop::Module::new(path.to_owned(), base.0..base.0 + end, base.0, info));
    }
    unwinder
}

/// Addresses of the frames as framehop has them, and whether it says that the stack ended there.
fn framehop_walk(unwinder: &Framehop, at: &libc::user_regs_struct, memory: &dyn Memory) -> (Vec<u64>, bool) {
    let mut cache = CacheX86_64::new();
    let mut read = |addr| memory.read_u64(Addr(addr)).map_err(drop);
    let registers = UnwindRegsX86_64::new(at.rip, at.rsp, at.rbp);
    let mut frames = unwinder.iter_frames(at.rip, registers, &mut cache, &mut read);
    let mut found = Vec::new();
    loop {
        match frames.next() {
            Ok(Some(FrameAddress::InstructionPointer(at))) => found.push(at),
            Ok(Some(FrameAddress::ReturnAddress(at))) => found.push(at.get()),
            Ok(None) => return (found, true),
            Err(_) => return (found, false),
        }
        if found.len() > 1_000 {
            return (found, false);
        }
    }
}

fn addresses(walk: &Walk) -> Vec<u64> {
    walk.frames.iter().map(|f| f.pc).collect()
}

/// How walks compare with those of framehop.
#[derive(Debug, Default)]
struct Count {
    /// The same frames, and both say that the stack ends.
    same: usize,
    /// Framehop gave up before the end.
    shorter: usize,
    /// The same frames up to that of a signal, behind which framehop stopped or lost its way.
    signals: usize,
    /// Ours was refused.
    refused: usize,
    /// Frames of the same walks.
    frames: usize,
}

/// Blocked threads: framehop sees the same frames as far as it can follow them.
fn compare_with_framehop(server: &Server, looks: usize) -> Count {
    let mut count = Count::default();
    let end = Instant::now() + Duration::from_secs(60) + looks as u32 * Duration::from_millis(20);
    let mut known = HashMap::new();
    while count.same + count.shorter < looks && Instant::now() < end {
        for pid in server.pids() {
            let modules = common::modules(pid);
            let names: Vec<_> = modules.iter().map(|m| (m.name.clone(), m.base)).collect();
            // What a process has loaded seldom changes; framehop's copy of it is expensive.
            let (old, theirs) = known.entry(pid).or_insert_with(|| (names.clone(), framehop(pid)));
            if *old != names {
                (*old, *theirs) = (names, framehop(pid));
            }
            let mut ours = Unwinder::new(&modules, Vec::new());
            for tid in (0..4).flat_map(|_| threads(pid)) {
                compare_one(server, pid, tid, &mut ours, theirs, &mut count);
            }
        }
    }
    println!(
        "{}: {} stacks are the same ({} frames), framehop gave up in {} and at a signal in {}, ours \
         refused {}",
        server.name, count.same, count.frames, count.shorter, count.signals, count.refused
    );
    assert!(count.same + count.shorter >= looks, "{}: {count:?}", server.name);
    assert!(count.same > 2 * count.shorter, "{}: {count:?}", server.name);
    count
}

fn compare_one<M: AsRef<[suture_unwind::Module]>>(
    server: &Server,
    pid: i32,
    tid: i32,
    ours: &mut Unwinder<M>,
    theirs: &Framehop,
    count: &mut Count,
) {
    let Some(at) = common::blocked(pid, tid) else { return };
    let Some(stopped) = Stopped::stop(tid) else { return };
    if (stopped.raw.rsp, stopped.raw.rip) != (at.sp, at.pc) {
        return;
    }
    let memory = common::Remote(pid);
    let (found, ended) = framehop_walk(theirs, &stopped.raw, &memory);
    let Ok(walk) = ours.walk(stopped.registers, &memory) else {
        count.refused += 1;
        return;
    };
    let expected = addresses(&walk);
    if found == expected {
        count.same += 1;
        count.frames += found.len();
        assert!(ended, "{}: {found:x?}", server.name);
    } else {
        // The kernel's frame of a handler is described by expressions. It takes that for the end, or goes on
        // by what rbp holds, past the frames that were interrupted: what it says behind one says nothing.
        let shared = expected.iter().zip(&found).take_while(|(a, b)| a == b).count();
        let at_signal = shared > 0 && walk.frames[shared - 1].trampoline;
        // Elsewhere it gives up at what it does not know, and says so.
        assert!(at_signal || shared == found.len(), "{}: {found:x?} is not {expected:x?}", server.name);
        assert!(at_signal || !ended, "{}: {found:x?} ends before {expected:x?}", server.name);
        *if at_signal { &mut count.signals } else { &mut count.shorter } += 1;
    }
}

#[test]
fn framehop_sees_the_same_stacks_of_servers() {
    let looks = std::env::var("SUTURE_LOOKS").ok().and_then(|n| n.parse().ok()).unwrap_or(60);
    let all =
        [servers::redis, servers::nginx, servers::python, servers::mariadb, servers::postgres, servers::gdb];
    for start in all {
        if let Some(server) = start(true) {
            assert_eq!(compare_with_framehop(&server, looks).refused, 0, "{}", server.name);
        }
    }
}

/// A program that notes its own stack with libgcc's unwinder and waits at the end of it.
const NOTES: &str = "#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\n#include <unistd.h>\n#include <signal.h>\n#include <unwind.h>\n\
    static FILE *out;\nstatic _Unwind_Reason_Code note(struct _Unwind_Context *c, void *p) { fprintf(out, \"%lx \", (long)_Unwind_GetIP(c)); return _URC_NO_REASON; }\n\
    __attribute__((noipa)) int wait_here(int x) { _Unwind_Backtrace(note, 0); fclose(out); char c; return x + read(0, &c, 1); }\n\
    static int compare(const void *a, const void *b) { static int n; return ++n == 7 ? wait_here(n) : *(int *)a - *(int *)b; }\n\
    __attribute__((noipa)) int sorts(int n) { int a[] = { 5, 3, 9, 1, 2, 7, 8 }; qsort(a, 7, 4, compare); return a[n] + 1; }\n\
    static void handler(int s) { sorts(s); }\n\
    __attribute__((noipa)) int raises(int n) { char room[n * 16]; memset(room, n, n); raise(SIGUSR1); return room[1] + 1; }\n\
    int main(int n, char **v) { out = fopen(v[1], \"w\"); signal(SIGUSR1, handler); return raises(n) + 1; }\n";

const FLAGS: [&[&str]; 3] = [&["-O2"], &["-O2", "-fno-omit-frame-pointer"], &["-O0"]];

#[test]
fn libgcc_sees_the_same_stack() {
    for flags in FLAGS {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let notes = dir.path().join("notes");
        let program = build(NOTES, "c", &[flags, &["-fno-optimize-sibling-calls"]].concat());
        let target = Target::start(&program, &[notes.to_str().unwrap()]);
        let at = target.reading();
        let text = std::fs::read_to_string(&notes).unwrap();
        let noted: Vec<u64> = text.split_whitespace().map(|w| u64::from_str_radix(w, 16).unwrap()).collect();
        let modules = target.modules();
        let walk = walk_bare(&mut Unwinder::new(&modules, Vec::new()), at, &target.memory()).unwrap();
        // It ends with a frame without a place.
        let noted = noted.strip_suffix(&[0]).unwrap_or(&noted);
        // Ours starts in `read`, theirs in the call that took the notes; behind both is the caller.
        assert_eq!(addresses(&walk)[2..], noted[1..], "{flags:?}");
        assert!(walk.frames.iter().any(|f| f.trampoline) && noted.len() > 8);
    }
}

#[test]
fn gdb_sees_the_same_stack() {
    if Command::new("gdb").arg("--version").output().is_err() {
        return println!("not compared: gdb is not installed");
    }
    for flags in FLAGS {
        let program = build(NOTES, "c", &[flags, &["-fno-optimize-sibling-calls"]].concat());
        let target = Target::start(&program, &["/dev/null"]);
        let at = target.reading();
        let modules = target.modules();
        let walk = walk_bare(&mut Unwinder::new(&modules, Vec::new()), at, &target.memory()).unwrap();
        let mut command = Command::new("gdb");
        command.args([
            "-nx",
            "-batch",
            "-ex",
            "set backtrace past-main on",
            "-ex",
            "set backtrace past-entry on",
        ]);
        // Real frames only: gdb also shows inlined functions, and tail calls that it worked out.
        let script = "f = gdb.newest_frame()\nwhile f:\n  if f.type() in (gdb.NORMAL_FRAME, gdb.SIGTRAMP_FRAME): print('at %x' % f.pc())\n  f = f.older()\n";
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let file = dir.path().join("script.py");
        std::fs::write(&file, script).unwrap();
        command.arg("-p").arg(target.pid().to_string()).arg("-x").arg(&file);
        let out = command.output().unwrap();
        let text = String::from_utf8_lossy(&out.stdout);
        let found: Vec<u64> =
            text.lines().filter_map(|l| u64::from_str_radix(l.strip_prefix("at ")?, 16).ok()).collect();
        assert_eq!(found, addresses(&walk), "{flags:?}\n{text}\n{}", String::from_utf8_lossy(&out.stderr));
        until("gdb to let go", || common::blocked(target.pid(), target.pid()).filter(|b| *b == at));
    }
}
