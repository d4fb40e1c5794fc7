//! Stacks of every shape that compilers make: walked with two registers and with all, to the same end.

mod common;

use common::{Target, build, names, walk_both};
use suture_unwind::{Bottom, FrameKind};

const PRELUDE: &str = "#include <unistd.h>\n#include <stdlib.h>\n#include <string.h>\n#include <signal.h>\n\
    #include <pthread.h>\n#include <stdint.h>\n\
    __attribute__((noipa)) int wait_here(int x) { char c; x += read(0, &c, 1); return x + 1; }\n";

/// The flags distributions build with, and those that debuggers like.
const FLAGS: [&[&str]; 5] = [
    &["-O2"],
    &["-O2", "-fno-omit-frame-pointer", "-mno-omit-leaf-frame-pointer"],
    &["-O0"],
    &["-Os", "-fno-omit-frame-pointer"],
    &[
        "-O2",
        "-fstack-clash-protection",
        "-fstack-protector-strong",
        "-fcf-protection",
        "-fno-omit-frame-pointer",
    ],
];

fn run(source: &str, extension: &str, flags: &[&str]) -> (Target, Vec<String>, suture_unwind::Walk) {
    let program = build(
        &(PRELUDE.to_owned() + source),
        extension,
        &[flags, &["-pthread", "-fno-optimize-sibling-calls"]].concat(),
    );
    let target = Target::start(&program, &[]);
    let at = target.reading();
    let walk = walk_both(&target, target.pid(), at);
    let names = names(&walk, &target.modules());
    (target, names, walk)
}

/// Whether the names appear in this order, the innermost first.
fn in_order(found: &[String], wanted: &[&str]) -> bool {
    let mut found = found.iter();
    wanted.iter().all(|name| found.any(|f| f == name || f.starts_with(&format!("{name}("))))
}

#[test]
fn plain_frames_of_all_builds() {
    let source = "struct big { char c[200]; };\n\
        __attribute__((noipa)) int leaf(int a) { return wait_here(a) * 3; }\n\
        __attribute__((noipa)) int many(int a, int b, int c, int d, int e, int f, int g, int h, struct big i) {\n\
          return leaf(a + b + c + d + e + f + g + h) + i.c[7]; }\n\
        __attribute__((noipa)) int pushes(int a) { struct big i = { { 1 } }; int s = 0;\n\
          for (int k = 0; k < 2; k++) s += many(a, 2, 3, 4, 5, 6, k, 8, i) ^ many(a, k, 3, 4, 5, 6, 7, 9, i);\n\
          return s; }\n\
        __attribute__((noipa)) int large(int a) { char room[100000]; memset(room, a, sizeof room); return pushes(room[a]) + room[a + 1]; }\n\
        int main(int n, char **v) { return large(n); }\n";
    for flags in FLAGS {
        let (_target, names, walk) = run(source, "c", flags);
        assert!(
            in_order(&names, &["wait_here", "leaf", "many", "pushes", "large", "main"]),
            "{flags:?} {names:?}"
        );
        assert_eq!(walk.bottom, Bottom::ProcessStart);
        // The innermost frame is libc's and has no frame pointer; ours need heights if they have one.
        let computed = walk.frames.iter().filter(|f| f.by_height).count();
        let keeps = flags.contains(&"-fno-omit-frame-pointer") || *flags == ["-O0"];
        assert_eq!(computed > 0, keeps, "{flags:?} {walk:?}");
    }
}

#[test]
fn five_thousand_frames() {
    let source = "__attribute__((noipa)) int down(int n) { volatile char pad[17]; pad[n % 17] = n;\n\
        return n ? down(n - 1) + pad[1] : wait_here(n); }\nint main() { return down(5000); }\n";
    for flags in FLAGS {
        let (_target, names, walk) = run(source, "c", flags);
        assert_eq!(names.iter().filter(|n| *n == "down").count(), 5_001, "{flags:?}");
        assert!(walk.frames.len() > 5_004);
    }
}

#[test]
fn threads_end_at_their_start() {
    let source = "__attribute__((noipa)) void *work(void *p) { wait_here(1); return p; }\n\
        int main() { pthread_t t; pthread_create(&t, 0, work, 0); pthread_join(t, 0); return 0; }\n";
    for flags in FLAGS {
        let program = build(
            &(PRELUDE.to_owned() + source),
            "c",
            &[flags, &["-pthread", "-fno-optimize-sibling-calls"]].concat(),
        );
        let target = Target::start(&program, &[]);
        let tid = common::until("the thread", || target.threads().into_iter().find(|t| *t != target.pid()));
        let at = target.blocked(tid, libc::SYS_read as u64);
        let walk = walk_both(&target, tid, at);
        assert_eq!(walk.bottom, Bottom::ThreadStart, "{flags:?}");
        assert!(in_order(&names(&walk, &target.modules()), &["wait_here", "work"]));
        // The main thread waits in pthread_join.
        let at = target.blocked(target.pid(), libc::SYS_futex as u64);
        let main = walk_both(&target, target.pid(), at);
        assert_eq!(main.bottom, Bottom::ProcessStart);
    }
}

#[test]
fn a_handler_on_the_same_stack_and_on_another() {
    let source = "static void handler(int s) { wait_here(s); }\n\
        __attribute__((noipa)) int interrupted(int x) { volatile int y = x; kill(getpid(), SIGUSR1); return y + 1; }\n\
        __attribute__((noipa)) int spinning(volatile int *x) { alarm(1); while (!*x) ; return *x; }\n\
        int main(int n, char **v) {\n\
          struct sigaction a = { .sa_handler = handler, .sa_flags = n > 2 ? SA_ONSTACK : 0 };\n\
          static char room[1 << 16]; stack_t s = { .ss_sp = room, .ss_size = sizeof room }; sigaltstack(&s, 0);\n\
          sigaction(SIGUSR1, &a, 0); sigaction(SIGALRM, &a, 0); static volatile int x;\n\
          return v[1][0] == 'k' ? interrupted(n) : spinning(&x); }\n";
    for flags in FLAGS {
        let program = build(
            &(PRELUDE.to_owned() + source),
            "c",
            &[flags, &["-pthread", "-fno-optimize-sibling-calls"]].concat(),
        );
        for args in [&["k"][..], &["k", "alternate"], &["s"], &["s", "alternate"]] {
            let target = Target::start(&program, args);
            let at = target.reading();
            let walk = walk_both(&target, target.pid(), at);
            let names = names(&walk, &target.modules());
            let inner = if args[0] == "k" { "interrupted" } else { "spinning" };
            assert!(
                in_order(&names, &["wait_here", "handler", inner, "main"]),
                "{flags:?} {args:?} {names:?}"
            );
            assert_eq!(walk.bottom, Bottom::ProcessStart);
            let trampoline = walk.frames.iter().position(|f| f.trampoline).unwrap();
            let interrupted = walk.frames[trampoline + 1];
            assert_eq!(interrupted.kind, FrameKind::Interrupted);
            assert!(walk.frames.iter().filter(|f| f.kind == FrameKind::Interrupted).count() == 1);
            // Exact: the loop itself, not what is in front of it.
            if inner == "spinning" {
                assert_eq!(names[trampoline + 1], "spinning");
            }
            let ascending = interrupted.cfa > walk.frames[trampoline - 1].cfa;
            assert_eq!(ascending, args.len() == 1 || interrupted.cfa > at.sp, "{walk:?}");
        }
    }
}

#[test]
fn an_exception_in_flight() {
    let source = "struct Guard { int x; __attribute__((noinline)) ~Guard() { wait_here(x); } };\n\
        __attribute__((noipa)) int thrower(int n) { if (n) throw n; return 1; }\n\
        __attribute__((noipa)) int cleaned(int n) { Guard g{n}; return thrower(n) + thrower(n + 1); }\n\
        __attribute__((noipa)) int between(int n) { return cleaned(n) * 2; }\n\
        __attribute__((noipa)) int catcher(int n) { try { return between(n); } catch (int e) { return wait_here(e); } }\n\
        int main(int n, char **) { return catcher(n); }\n";
    for flags in FLAGS {
        let (_target, names, _) = run(source, "cc", flags);
        let order = ["wait_here", "Guard::~Guard", "cleaned", "between", "catcher", "main"];
        assert!(in_order(&names, &order), "{flags:?} {names:?}");
    }
}

/// The return address lies behind the function.
#[test]
fn a_call_as_the_last_instruction() {
    let source = "__attribute__((noipa, noreturn)) void forever(int x) { for (;;) wait_here(x); }\n\
        __attribute__((noipa, noreturn)) void last(int x) { forever(x); }\n\
        __attribute__((noipa)) int behind(int x) { return x * 7; }\n\
        int main(int n, char **v) { if (n > 5) return behind(n); last(n); }\n";
    for flags in FLAGS {
        let (_target, names, _) = run(source, "c", flags);
        assert!(in_order(&names, &["wait_here", "forever", "last", "main"]), "{flags:?} {names:?}");
    }
}

/// Switches, computed jumps and cold parts in functions with frame pointers: heights through tables.
#[test]
fn waiting_in_every_corner_of_a_function() {
    let mut cases = String::new();
    for i in 0..8 {
        let odd = if i % 2 == 0 { "pushes(x, 1, 2, 3, 4, 5, 6, 7, 8, 9);" } else { "wait_here(x);" };
        cases += &format!("case {i}: if (__builtin_expect(x == {i}00, 0)) cold(x); {odd} break;\n");
    }
    let source = format!(
        "__attribute__((noipa, cold)) int cold(int x) {{ return wait_here(x); }}\n\
         __attribute__((noipa)) int pushes(int a, int b, int c, int d, int e, int f, int g, int h, int i, int j) {{ return wait_here(a + b + c + d + e + f + g + h + i + j); }}\n\
         __attribute__((noipa)) int table(int x, int how) {{ switch (how) {{ {cases} }} return x + cold(x); }}\n\
         __attribute__((noipa)) int computed(int x, int how) {{\n\
           static void *const to[] = {{ &&a, &&b, &&c, &&d }}; goto *to[how & 3];\n\
           a: wait_here(x); goto *to[1]; b: pushes(x, 1, 2, 3, 4, 5, 6, 7, 8, 9); goto *to[how + 2 & 3];\n\
           c: cold(x); wait_here(x); goto *to[3]; d: return wait_here(x) + 1; }}\n\
         int main(int n, char **v) {{ int how = atoi(v[2]); return v[1][0] == 't' ? table(how * 100, how) : computed(n, how); }}\n"
    );
    for flags in FLAGS {
        let flags = [flags, &["-fno-optimize-sibling-calls"]].concat();
        let program = build(&(PRELUDE.to_owned() + &source), "c", &flags);
        for (which, function, count) in [("t", "table", 9), ("c", "computed", 4)] {
            for how in 0..count {
                let target = Target::start(&program, &[which, &how.to_string()]);
                let walk = walk_both(&target, target.pid(), target.reading());
                let names = names(&walk, &target.modules());
                let inside = |n: &String| n == function || n == &format!("{function}.cold");
                assert!(
                    names.iter().any(inside) && names.contains(&"main".to_owned()),
                    "{flags:?} {which}{how} {names:?}"
                );
            }
        }
    }
}

/// rustc's C `main` has no description in programs that abort on panic.
#[test]
fn rust_programs_end_at_their_start() {
    let source = "use std::io::Read;\n#[inline(never)]\nfn work(n: u8) -> u8 { let mut b = [n]; let _ = std::io::stdin().read(&mut b); b[0] + 1 }\n\
        fn main() { std::process::exit(i32::from(work(3))) }\n";
    for panic in ["unwind", "abort"] {
        for more in
            [&["-Cforce-frame-pointers=no"][..], &["-Cforce-frame-pointers=yes"], &["-Cstrip=symbols"]]
        {
            let panic = format!("panic={panic}");
            let flags = [&["-O", "--edition=2021", "-C", &panic][..], more].concat();
            let program = build(source, "rs", &flags);
            let target = Target::start(&program, &[]);
            let walk = walk_both(&target, target.pid(), target.reading());
            assert_eq!(walk.bottom, Bottom::ProcessStart, "{flags:?}");
            assert!(walk.frames.len() > 8);
        }
    }
}
