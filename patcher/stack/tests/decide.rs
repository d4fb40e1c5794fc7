//! Verdicts on threads of real programs, by the scan and by the walk.

#[path = "../../unwind/tests/common/mod.rs"]
mod common;
mod looks;

use common::{Blocked, Stopped, Target, build, until};
use looks::Facts;
use std::ops::Range;
use std::path::{Path, PathBuf};
use suture_elf::{Base, ObjectFile, Vaddr};
use suture_redirect::{FunctionCode, ObjectAnalysis};
use suture_scan::{Interval, Ranges, StackEnd};
use suture_stack::ends::OwnThread;
use suture_stack::scan::Scanned;
use suture_stack::{By, Doubt, Refusal};
use suture_unwind::{FrameKind, Module, Registers, Unwinder};

const PRELUDE: &str = "#define _GNU_SOURCE\n#include <unistd.h>\n#include <stdlib.h>\n#include <string.h>\n#include <signal.h>\n\
    #include <pthread.h>\n#include <ucontext.h>\n#include <sys/mman.h>\n#include <stdint.h>\n\
    __attribute__((noipa)) int wait_here(int x) { char c; x += read(0, &c, 1); return x + 1; }\n\
    __attribute__((noipa, cold)) int rare(int x) { return wait_here(x) * 2; }\n\
    __attribute__((noipa)) int other(int x) { return wait_here(x) * 3; }\n";

/// A program in which `f` is the function to be replaced.
struct Case {
    target: Target,
    program: PathBuf,
    facts: Facts,
    /// The code of `f` and of its parts.
    body: Range<u64>,
    parts: Vec<Range<u64>>,
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
        let facts = Facts::of(target.pid());
        let file = ObjectFile::open(&program).unwrap();
        let base = base_of(&facts.modules, &program);
        let entry = file.symbols().functions_named("f")[0].addr;
        let code = FunctionCode::of(&ObjectAnalysis::new(&file), entry).unwrap();
        let addresses = |r: &Range<Vaddr>| (base + r.start).0..(base + r.end).0;
        let (body, parts) = (addresses(&code.body), code.parts.iter().map(addresses).collect());
        Self { target, program, facts, body, parts }
    }

    fn main(&self) -> i32 {
        self.target.pid()
    }

    fn thread(&self) -> i32 {
        let pid = self.target.pid();
        until("the thread", || self.target.threads().into_iter().find(|t| *t != pid))
    }

    /// `f`, hooked at its entry, and its parts.
    fn searched(&self) -> Vec<Interval> {
        let body = Interval { first: self.body.start + 1, last: self.body.end };
        let parts = self.parts.iter().map(|r| Interval { first: r.start, last: r.end });
        let mut all: Vec<_> = parts.chain([body]).collect();
        all.sort_unstable();
        all
    }

    fn waits(&self, tid: i32) -> Blocked {
        self.target.blocked(tid, 0)
    }

    /// What a scan of a thread that waits for input comes to.
    fn scan(&self, tid: i32) -> Scanned {
        self.facts.scan(tid, self.waits(tid).sp, &self.searched())
    }

    /// The verdict on it.
    fn check(&self, tid: i32) -> Result<By, Refusal> {
        self.facts.check(tid, self.waits(tid), &self.searched())
    }

    fn address(&self, name: &str) -> u64 {
        let file = ObjectFile::open(&self.program).unwrap();
        (base_of(&self.facts.modules, &self.program) + file.symbols().functions_named(name)[0].addr).0
    }
}

fn base_of(modules: &[Module], path: &Path) -> Base {
    modules.iter().find(|m| Path::new(&m.name) == path).unwrap().base
}

/// A frame of the code is on the stack.
fn is_live(verdict: &Result<By, Refusal>, code: &Range<u64>) -> bool {
    matches!(verdict, Err(Refusal::OnStack { pc, .. }) if code.start < *pc && *pc <= code.end)
}

fn is_walked(verdict: &Result<By, Refusal>) -> bool {
    matches!(verdict, Ok(By::Cfi | By::Height))
}

const PLAIN: &str = "__attribute__((noipa)) int f(int x) { if (__builtin_expect(x == 7, 0)) return rare(x) + rare(x + 1); return wait_here(x) + 1; }\n\
    static void *work(void *p) { return (void *)(intptr_t)((p ? f : other)(3) + 1); }\n\
    int main(int n, char **v) { pthread_t t; switch (v[1][0]) {\n\
      case 'f': return f(n) + 1; case 'c': return f(7) + 1; case 'o': return other(n) + 1;\n\
      case 't': pthread_create(&t, 0, work, v); pthread_join(t, 0); return 0;\n\
      case 'u': pthread_create(&t, 0, work, 0); pthread_join(t, 0); return 0; } return 0; }\n";

#[test]
fn live_in_the_body_in_a_part_and_not_at_all() {
    let case = Case::start(PLAIN, &["f"]);
    let verdict = case.check(case.main());
    assert!(is_live(&verdict, &case.body), "{verdict:?}");
    let case = Case::start(PLAIN, &["c"]);
    let verdict = case.check(case.main());
    assert!(case.parts.iter().any(|part| is_live(&verdict, part)), "{verdict:?}");
    let case = Case::start(PLAIN, &["o"]);
    assert_eq!(case.check(case.main()), Ok(By::Scan));
}

#[test]
fn threads_are_scanned_to_their_control_block() {
    for (arg, live) in [("t", true), ("u", false)] {
        let case = Case::start(PLAIN, &[arg]);
        let tid = case.thread();
        let scan = case.scan(tid);
        assert!(matches!(scan.outcome.end, StackEnd::Proven(_)), "{scan:?}");
        let verdict = case.check(tid);
        assert_eq!(is_live(&verdict, &case.body), live, "{verdict:?}");
        assert_eq!(verdict == Ok(By::Scan), !live, "{verdict:?}");
        // Another thread's number does not fit: the end is not proven.
        let wrong = OwnThread { tid: 1, main: false, block: None };
        assert_eq!(case.facts.layout.end_of(wrong, case.waits(tid).sp, &case.target.memory()), None);
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
    let split = case.target.maps().region_at(case.waits(tid).sp).unwrap().end;
    assert_eq!(case.scan(tid).outcome.seen, 1);
    let behind = case.facts.scan(tid, split, &case.searched());
    assert_eq!(behind.outcome.seen, 1, "the frame lies behind the split");
    assert!(matches!(behind.outcome.end, StackEnd::Proven(_)) && is_live(&case.check(tid), &case.body));
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
        let scan = case.scan(case.main());
        assert!(matches!(scan.outcome.end, StackEnd::Proven(_)), "the trap: {scan:?}");
        assert_eq!(scan.outcome.seen, 0, "the trap: {scan:?}");
        assert!(scan.outcome.signal_frame.is_some());
        let verdict = case.check(case.main());
        assert!(if live { is_live(&verdict, &case.body) } else { is_walked(&verdict) }, "{verdict:?}");
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
    let at = case.waits(case.main());
    for hooked in [true, false] {
        let searched = [Interval { first: entry + u64::from(hooked), last: entry + 4 }];
        let scan = case.facts.scan(case.main(), at.sp, &searched);
        assert_eq!(scan.outcome.seen > 0, !hooked, "{scan:?}");
        let verdict = case.facts.check(case.main(), at, &searched);
        match verdict {
            Err(Refusal::OnStack { pc, .. }) => assert!(!hooked && pc == entry),
            clear => assert!(hooked && is_walked(&clear), "{clear:?}"),
        }
    }
}

/// The call is the last instruction of `f`: the return address is its end, and the next function's start.
#[test]
fn a_return_address_at_the_end() {
    let source = "__attribute__((noipa, noreturn)) void forever(int x) { for (;;) wait_here(x); }\n\
        __attribute__((noipa, noreturn, aligned(1))) void f(int x) { forever(x); }\n\
        int main(int n, char **v) { f(n); }\n";
    let case = Case::start(source, &[]);
    assert_eq!(case.scan(case.main()).outcome.seen, 1);
    let verdict = case.check(case.main());
    let Err(Refusal::OnStack { pc, .. }) = verdict else { panic!("{verdict:?}") };
    assert_eq!(pc, case.body.end);
    // What begins there, without a hook, is not what the thread returns to: it would wait for ever.
    let next = [Interval { first: pc, last: pc + 0x20 }];
    let at = case.waits(case.main());
    assert!(case.facts.scan(case.main(), at.sp, &next).outcome.seen > 0, "as a word it may be");
    let verdict = case.facts.check(case.main(), at, &next);
    assert!(is_walked(&verdict), "{verdict:?}");
}

#[test]
fn a_coroutine_is_not_the_threads_own_stack() {
    let source = "static ucontext_t back, up; static void body(int n) { wait_here(n); swapcontext(&up, &back); }\n\
        __attribute__((noipa)) int f(int n) { swapcontext(&back, &up); return n; }\n\
        int main(int n, char **v) { char room[1 << 15]; getcontext(&up); up.uc_stack.ss_sp = room; up.uc_stack.ss_size = sizeof room;\n\
          makecontext(&up, (void (*)(void))body, 1, n); return f(n) + room[n] + 1; }\n";
    // The coroutine's stack is inside the thread's: the scan reaches the true end, above `f`'s frame.
    let case = Case::start(source, &[]);
    let scan = case.scan(case.main());
    assert!(matches!(scan.outcome.end, StackEnd::Proven(_)) && scan.outcome.seen == 0, "{scan:?}");
    assert_eq!(case.check(case.main()), Err(Refusal::Unreliable(Doubt::Coroutine)));
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
    let at = case.waits(case.main());
    let walk = Unwinder::new(&case.facts.modules, Vec::new())
        .walk(Registers::from_pc_sp(at.pc, at.sp), &case.target.memory())
        .unwrap();
    let of_f = |f: &suture_unwind::Frame| f.kind == FrameKind::Caller && case.body.contains(&(f.pc - 1));
    assert!(!walk.frames.iter().any(of_f), "the trap");
    assert_eq!(case.check(case.main()), Err(Refusal::Unreliable(Doubt::Inside)));
    // Searching for something that the coroutine is not in: its stack is no obstacle.
    let rare = [Interval { first: case.address("rare") + 1, last: case.address("rare") + 8 }];
    let verdict = case.facts.check(case.main(), at, &rare);
    assert!(is_walked(&verdict), "{verdict:?}");
}

/// A thread that returns into the runtime's code.
#[test]
fn the_runtimes_code_is_never_clear() {
    let case = Case::start(PLAIN, &["o"]);
    let (at, other) = (case.waits(case.main()), case.address("other"));
    // As if `other` were a stub.
    let arena = other..other + 64;
    let searched = [Interval { first: arena.start, last: arena.end }];
    let ranges = Ranges::new(&searched).unwrap();
    let mut unwinder = Unwinder::new(&case.facts.modules, vec![0x1000..0x1001, arena]);
    let verdict = case.facts.check_with(&mut unwinder, case.main(), at, ranges);
    assert!(matches!(verdict, Err(Refusal::Unreliable(Doubt::Walk(_)))), "{verdict:?}");
    let inside = Blocked { pc: other, ..at };
    let verdict = case.facts.check_with(&mut unwinder, case.main(), inside, ranges);
    assert_eq!(verdict, Err(Refusal::OnStack { pc: other, frames: vec![other] }));
}
