//! Verdicts on threads of real programs, by the scan and by the walk.

#[path = "../../unwind/tests/common/mod.rs"]
mod common;

use common::{Blocked, Stopped, Target, build, until, walk_bare};
use std::path::{Path, PathBuf};
use suture_elf::{Addr, Base, Memory, ObjectFile, Vaddr};
use suture_redirect::{FunctionCode, ObjectAnalysis};
use suture_scan::{End, StackEnd};
use suture_stack::ends::{Ends, read_stack};
use suture_stack::{Kind, RawScan, Searched, SearchedBuilder, Verdict, decide, examine};
use suture_unwind::{Bottom, Module, Unwinder};

const PRELUDE: &str = "#define _GNU_SOURCE\n#include <unistd.h>\n#include <stdlib.h>\n#include <string.h>\n#include <signal.h>\n\
    #include <pthread.h>\n#include <ucontext.h>\n#include <sys/mman.h>\n#include <stdint.h>\n\
    __attribute__((noipa)) int wait_here(int x) { char c; x += read(0, &c, 1); return x + 1; }\n\
    __attribute__((noipa, cold)) int rare(int x) { return wait_here(x) * 2; }\n\
    __attribute__((noipa)) int other(int x) { return wait_here(x) * 3; }\n";

/// A program in which `f` is the function to be replaced.
struct Case {
    target: Target,
    program: PathBuf,
    modules: Vec<Module>,
    searched: Searched,
    ends: Ends,
}

impl Case {
    fn start(source: &str, args: &[&str]) -> Self {
        let flags = ["-O2", "-pthread", "-fno-optimize-sibling-calls", "-fno-omit-frame-pointer"];
        let program = build(&(PRELUDE.to_owned() + source), "c", &flags);
        let target = Target::start(&program, args);
        // Loaded, and busy with what the test wants to see.
        until("the program to wait", || {
            target.threads().iter().find_map(|t| common::blocked(target.pid(), *t).filter(|b| b.number == 0))
        });
        let modules = target.modules();
        let file = ObjectFile::open(&program).unwrap();
        let object = ObjectAnalysis::new(&file);
        let base = base_of(&modules, &program);
        let mut builder = SearchedBuilder::new();
        let entry = file.symbols().functions_named("f")[0].addr;
        builder.original(1, base, &FunctionCode::of(&object, entry).unwrap());
        builder.markers(&modules);
        let libraries = ["/lib64/ld-linux-x86-64.so.2", "/lib/x86_64-linux-gnu/libc.so.6"];
        let files = libraries.map(|path| {
            let path = std::fs::canonicalize(path).unwrap();
            (base_of(&modules, &path), ObjectFile::open(&path).unwrap())
        });
        let ends = Ends::find(files.iter().map(|(base, file)| (*base, file)), &target.memory());
        assert!(ends.main.is_some() && ends.tid_offset.is_some(), "{ends:?}");
        Self { target, program, modules, searched: builder.build(), ends }
    }

    fn thread(&self) -> i32 {
        let pid = self.target.pid();
        until("the thread", || self.target.threads().into_iter().find(|t| *t != pid))
    }

    fn scan(&self, tid: i32, at: Blocked) -> RawScan {
        let end = self.ends.of_thread(self.target.pid() as u32, tid as u32);
        let stack = read_stack(&self.target.memory(), at.sp, end, 64 << 20);
        self.searched.scan(at.pc, at.sp, &stack, end)
    }

    fn walk(&self, at: Blocked) -> Verdict {
        let walk = walk_bare(&mut Unwinder::new(&self.modules, Vec::new()), at, &self.target.memory());
        examine(walk.as_ref(), &self.searched)
    }

    /// The verdicts on a thread that waits for input.
    fn both(&self, tid: i32) -> (RawScan, Verdict) {
        let at = self.target.blocked(tid, 0);
        (self.scan(tid, at), self.walk(at))
    }

    fn main(&self) -> (RawScan, Verdict) {
        self.both(self.target.pid())
    }

    fn address(&self, name: &str) -> u64 {
        let file = ObjectFile::open(&self.program).unwrap();
        (base_of(&self.modules, &self.program) + file.symbols().functions_named(name)[0].addr).0
    }
}

fn base_of(modules: &[Module], path: &Path) -> Base {
    modules.iter().find(|m| Path::new(&m.name) == path).unwrap().base
}

fn is_live(verdict: &Verdict, kind: Kind) -> bool {
    matches!(verdict, Verdict::OnStack { function: 1, kind: found, .. } if *found == kind)
}

const PLAIN: &str = "__attribute__((noipa)) int f(int x) { if (__builtin_expect(x == 7, 0)) return rare(x) + rare(x + 1); return wait_here(x) + 1; }\n\
    static void *work(void *p) { return (void *)(intptr_t)((p ? f : other)(3) + 1); }\n\
    int main(int n, char **v) { pthread_t t; switch (v[1][0]) {\n\
      case 'f': return f(n) + 1; case 'c': return f(7) + 1; case 'o': return other(n) + 1;\n\
      case 't': pthread_create(&t, 0, work, v); pthread_join(t, 0); return 0;\n\
      case 'u': pthread_create(&t, 0, work, 0); pthread_join(t, 0); return 0; } return 0; }\n";

#[test]
fn live_in_the_body_in_a_part_and_not_at_all() {
    let (scan, verdict) = Case::start(PLAIN, &["f"]).main();
    assert!(!scan.is_clean() && is_live(&verdict, Kind::Original), "{verdict}");
    let (scan, verdict) = Case::start(PLAIN, &["c"]).main();
    assert!(!scan.is_clean() && is_live(&verdict, Kind::Part), "{verdict}");
    let (scan, verdict) = Case::start(PLAIN, &["o"]).main();
    assert!(scan.is_clean(), "{scan:?}");
    assert_eq!(verdict, Verdict::Clear(Some(Bottom::ProcessStart)));
}

#[test]
fn threads_are_scanned_to_their_control_block() {
    for (arg, live) in [("t", true), ("u", false)] {
        let case = Case::start(PLAIN, &[arg]);
        let tid = case.thread();
        let (scan, verdict) = case.both(tid);
        assert!(matches!(scan.outcome.end, StackEnd::Proven(_)), "{scan:?}");
        assert_eq!(scan.is_clean(), !live, "{scan:?}");
        assert_eq!(verdict == Verdict::Clear(Some(Bottom::ThreadStart)), !live, "{verdict}");
        // Another thread's number does not fit: the end is not proven.
        let at = case.target.blocked(tid, 0);
        let wrong = End::ThreadBlock { tid: 1, tid_offset: case.ends.tid_offset.unwrap() };
        let stack = read_stack(&case.target.memory(), at.sp, wrong, 64 << 20);
        assert_eq!(case.searched.scan(at.pc, at.sp, &stack, wrong).outcome.end, StackEnd::Unproven);
    }
}

/// A page of the stack with a mapping of its own does not end the stack.
#[test]
fn a_split_mapping_does_not_hide_a_frame() {
    let source = "__attribute__((noipa)) int inner(char *p) { return wait_here(*p); }\n\
        __attribute__((noipa)) int splits(int x) { char room[20000]; memset(room, x, sizeof room);\n\
          char *page = (char *)((uintptr_t)(room + 8000) & ~4095ul); if (mlock(page, 4096) || madvise(page, 4096, 10)) abort(); return inner(room) + room[x]; }\n\
        __attribute__((noipa)) int f(int x) { return splits(x) + 1; }\n\
        static void *work(void *p) { f(3); return p; }\n\
        int main() { pthread_t t; pthread_create(&t, 0, work, 0); pthread_join(t, 0); return 0; }\n";
    let case = Case::start(source, &[]);
    let tid = case.thread();
    let at = case.target.blocked(tid, 0);
    let mapping = case.target.maps().region_at(at.sp).unwrap().clone();
    let (scan, verdict) = case.both(tid);
    assert_eq!(scan.outcome.seen, 1);
    assert!(scan.hits[0].at > mapping.end, "the frame lies behind the split");
    assert!(matches!(scan.outcome.end, StackEnd::Proven(_)) && is_live(&verdict, Kind::Original));
}

/// The alternate stack is an array in a frame above those that the signal interrupted: a scan from the
/// handler to the true end of the stack passes none of them.
#[test]
fn a_handler_on_a_stack_inside_the_stack() {
    let source = "static void handler(int s) { wait_here(s); }\n\
        __attribute__((noipa)) int deeper(int x) { char room[9000]; memset(room, x, sizeof room); raise(SIGUSR1); return room[x] + 1; }\n\
        __attribute__((noipa)) int f(int x) { return deeper(x) + 1; }\n\
        int main(int n, char **v) { char room[1 << 16]; stack_t s = { .ss_sp = room, .ss_size = sizeof room }; sigaltstack(&s, 0);\n\
          struct sigaction a = { .sa_handler = handler, .sa_flags = SA_ONSTACK }; sigaction(SIGUSR1, &a, 0);\n\
          return (n > 1 ? deeper(n) : f(n)) + room[n] + 1; }\n";
    for (args, live) in [(&[][..], true), (&["x"], false)] {
        let case = Case::start(source, args);
        let (scan, verdict) = case.main();
        assert!(matches!(scan.outcome.end, StackEnd::Proven(_)), "the trap: {scan:?}");
        assert!(scan.outcome.signal_frame.is_some());
        assert!(!scan.is_clean(), "a scan must not decide this");
        assert_eq!(is_live(&verdict, Kind::Original), live, "{verdict}");
        // The return address of the handler alone would do too.
        let marked = scan.hits.iter().flat_map(|h| case.searched.owners(h.range));
        assert!(marked.into_iter().any(|m| m.kind == Kind::SignalReturn));
    }
}

/// A signal stops a thread at the first instruction of `f`: at a hooked entry nothing old has run, in
/// code without a hook it has.
#[test]
fn interrupted_at_the_first_instruction() {
    let source = "__attribute__((noipa)) int f(int x) { return x + 1; }\n\
        static void handler(int s) { wait_here(s); }\n\
        int main(int n, char **v) { signal(SIGUSR1, handler); return f(wait_here(n)) + 1; }\n";
    let mut case = Case::start(source, &[]);
    let entry = case.address("f");
    let mut stopped = Stopped::stop(case.target.pid()).unwrap();
    case.target.feed(b"x");
    while stopped.raw.rip != entry {
        assert!(stopped.step());
    }
    // SAFETY: plain request; the signal is delivered before the next instruction.
    unsafe { libc::ptrace(libc::PTRACE_DETACH, stopped.tid, 0, libc::SIGUSR1) };
    let at = case.target.blocked(case.target.pid(), 0);
    let end = End::Address(case.ends.main.unwrap());
    let stack = read_stack(&case.target.memory(), at.sp, end, 1 << 20);
    for (kind, live) in [(Kind::Original, false), (Kind::New, true), (Kind::Part, true), (Kind::Copy, true)] {
        let mut builder = SearchedBuilder::new();
        builder.add(1, kind, entry..entry + 4);
        let searched = builder.build();
        let scan = searched.scan(at.pc, at.sp, &stack, end);
        assert_eq!(scan.outcome.seen > 0, live, "{kind:?} {scan:?}");
        let walk =
            walk_bare(&mut Unwinder::new(&case.modules, Vec::new()), at, &case.target.memory()).unwrap();
        assert!(walk.frames.iter().any(|f| f.pc == entry));
        assert_eq!(is_live(&examine(Ok(&walk), &searched), kind), live, "{kind:?}");
    }
}

/// The call is the last instruction of `f`: the return address is its end, and the next function's start.
#[test]
fn a_return_address_at_the_end() {
    let source = "__attribute__((noipa, noreturn)) void forever(int x) { for (;;) wait_here(x); }\n\
        __attribute__((noipa, noreturn, aligned(1))) void f(int x) { forever(x); }\n\
        int main(int n, char **v) { f(n); }\n";
    let case = Case::start(source, &[]);
    let (scan, verdict) = case.main();
    let Verdict::OnStack { pc, .. } = verdict else { panic!("{verdict}") };
    let file = ObjectFile::open(&case.program).unwrap();
    let f = file.symbols().functions_named("f")[0];
    assert_eq!(pc, (base_of(&case.modules, &case.program) + Vaddr(f.addr.0 + f.size)).0);
    assert_eq!(scan.outcome.seen, 1);
}

#[test]
fn a_coroutine_is_not_the_threads_own_stack() {
    let source = "static ucontext_t back, up; static void body(int n) { wait_here(n); swapcontext(&up, &back); }\n\
        __attribute__((noipa)) int f(int n) { swapcontext(&back, &up); return n; }\n\
        int main(int n, char **v) { char room[1 << 15]; getcontext(&up); up.uc_stack.ss_sp = room; up.uc_stack.ss_size = sizeof room;\n\
          makecontext(&up, (void (*)(void))body, 1, n); return f(n) + room[n] + 1; }\n";
    // The coroutine's stack is inside the thread's: the scan reaches the true end, above `f`'s frame.
    let case = Case::start(source, &[]);
    let (scan, verdict) = case.main();
    assert!(matches!(scan.outcome.end, StackEnd::Proven(_)));
    assert!(!scan.is_clean(), "{scan:?}");
    assert_eq!(verdict, Verdict::NotItsOwnStack(Bottom::Context));
}

/// Suspended inside `f`, on a stack that lies in a frame of the thread that goes on: a walk calls the words
/// of `f` stale.
#[test]
fn a_suspended_coroutine_inside_the_stack() {
    let source = "static ucontext_t back, up; __attribute__((noipa)) int f(int n) { swapcontext(&up, &back); return n + 1; }\n\
        static void body(int n) { f(n); swapcontext(&up, &back); }\n\
        __attribute__((noipa)) int goes_on(int n) { return wait_here(n) + 1; }\n\
        int main(int n, char **v) { char room[1 << 15]; getcontext(&up); up.uc_stack.ss_sp = room; up.uc_stack.ss_size = sizeof room;\n\
          makecontext(&up, (void (*)(void))body, 1, n); swapcontext(&back, &up); return goes_on(n) + room[n]; }\n";
    let case = Case::start(source, &[]);
    let (scan, walked) = case.main();
    assert_eq!(walked, Verdict::Clear(Some(Bottom::ProcessStart)), "the trap");
    let at = case.target.blocked(case.target.pid(), 0);
    let walk = || walk_bare(&mut Unwinder::new(&case.modules, Vec::new()), at, &case.target.memory());
    let verdict = decide(&scan, &case.searched, walk);
    let Verdict::HiddenStack { at: word } = verdict else { panic!("{verdict}") };
    assert!(word > at.sp);
    // Searching for something that the coroutine is not in: its stack is no obstacle.
    let mut builder = SearchedBuilder::new();
    builder.add(1, Kind::Original, case.address("rare")..case.address("rare") + 8);
    builder.markers(&case.modules);
    let searched = builder.build();
    let end = End::Address(case.ends.main.unwrap());
    let scan = searched.scan(at.pc, at.sp, &read_stack(&case.target.memory(), at.sp, end, 1 << 20), end);
    assert!(scan.context.is_some() && scan.searched.is_none());
    assert_eq!(decide(&scan, &searched, walk), Verdict::Clear(Some(Bottom::ProcessStart)));
}

/// A thread whose innermost frame is in the runtime's code, or that returns there.
#[test]
fn the_runtimes_code_is_never_clear() {
    let case = Case::start(PLAIN, &["o"]);
    let at = case.target.blocked(case.target.pid(), 0);
    let other = case.address("other");
    let mut builder = SearchedBuilder::new();
    // As if `other` were a stub.
    builder.runtime(other..other + 16);
    let searched = builder.build();
    let end = End::Address(case.ends.main.unwrap());
    let stack = read_stack(&case.target.memory(), at.sp, end, 1 << 20);
    assert!(!searched.scan(at.pc, at.sp, &stack, end).is_clean());
    let arena = other..other + 16;
    let walk =
        walk_bare(&mut Unwinder::new(&case.modules, vec![0x1000..0x1001, arena]), at, &case.target.memory());
    assert!(matches!(examine(walk.as_ref(), &searched), Verdict::Unreliable(_)));
    assert!(case.target.memory().read_u64(Addr(other)).is_ok());
}
