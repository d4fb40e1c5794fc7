//! Stacks that cannot be walked, each refused with its reason; and stacks that end elsewhere.

mod common;

use common::{Blocked, Stopped, Target, assert_same, build, names, until, walk_bare, walk_both};
use suture_elf::{Addr, Base, Memory};
use suture_unwind::{Bottom, Module, NoHeight, Register, Registers, StackCopy, Unreliable, Unwinder, Walk};

const PRELUDE: &str = "#define _GNU_SOURCE\n#include <unistd.h>\n#include <stdlib.h>\n#include <string.h>\n\
    #include <sys/mman.h>\n#include <ucontext.h>\n#include <alloca.h>\n\
    __attribute__((noipa)) int wait_here(int x) { char c; x += read(0, &c, 1); return x + 1; }\n";

const POINTERS: &[&str] = &["-O2", "-fno-omit-frame-pointer", "-fno-optimize-sibling-calls"];

fn start(source: &str, flags: &[&str], args: &[&str]) -> (Target, Blocked) {
    let target = Target::start(&build(&(PRELUDE.to_owned() + source), "c", flags), args);
    let at = target.reading();
    (target, at)
}

fn bare(target: &Target, at: Blocked) -> Result<Walk, Unreliable> {
    let modules = target.modules();
    walk_bare(&mut Unwinder::new(&modules, Vec::new()), at, &target.memory())
}

fn full(target: &Target) -> Result<Walk, Unreliable> {
    let modules = target.modules();
    let stopped = Stopped::stop(target.pid()).unwrap();
    Unwinder::new(&modules, Vec::new()).walk(stopped.registers, &target.memory())
}

/// Heights that depend on the run: refused with two registers, walked with all.
#[test]
fn heights_that_only_the_run_knows() {
    // It reads itself: `read` of the C library saves no frame pointer.
    let room = "__attribute__((noipa)) void use(void *p, int n) { memset(p, n, 3); }\n#define WAIT(n) (read(0, &n, 1) + n)\n";
    for (what, body, why) in [
        ("alloca", "use(alloca(n * 16), n); return WAIT(n) + 1;", NoHeight::Dynamic),
        ("a variable array", "char a[n * 3 + 7]; use(a, n); return WAIT(n) + a[1];", NoHeight::Dynamic),
        (
            "room of a constant size on one way only",
            "void *p = &n; if (n & 1) { p = alloca(48); use(p, n); } use(p, n); return WAIT(n) + 1;",
            NoHeight::Conflict,
        ),
        (
            "an aligned frame",
            "char a[64] __attribute__((aligned(64))); use(a, n); return WAIT(n) + a[1];",
            NoHeight::Aligned,
        ),
    ] {
        let source = format!(
            "{room}__attribute__((noipa)) int special(int n) {{ {body} }}\nint main(int n, char **v) {{ return special(n) + 1; }}\n"
        );
        let (target, at) = start(&source, POINTERS, &[]);
        let refused = bare(&target, at).expect_err(what);
        let expected = matches!(&refused, Unreliable::NoHeight { register, why: found, .. } if *found == why && *register == Register::RBP);
        assert!(expected, "{what}: {refused}");
        let walk = full(&target).unwrap_or_else(|why| panic!("{what}: {why}"));
        assert!(names(&walk, &target.modules()).contains(&"special".to_owned()), "{what}");
    }
}

/// After a way with room of a constant size, the other way's height is still known.
#[test]
fn ways_that_do_not_meet_are_told_apart() {
    let source = "__attribute__((noipa)) void use(void *p, int n) { memset(p, n, 3); }\n\
        __attribute__((noipa)) int special(int n) { if (n & 1) { use(alloca(48), n); return read(0, &n, 1) * 3; } return read(0, &n, 1) + 1; }\n\
        int main(int n, char **v) { return special(n) + 1; }\n";
    for args in [&[][..], &["x"]] {
        let (target, at) = start(source, POINTERS, args);
        assert_same(&full(&target).unwrap(), &bare(&target, at).unwrap());
    }
}

#[test]
fn assembly_without_descriptions_is_named() {
    let source = "__asm__(\".text\\n.globl by_hand\\n.type by_hand,@function\\nby_hand: push %rbx\\ncall wait_here\\npop %rbx\\nret\\n.size by_hand,.-by_hand\\n\");\n\
        int by_hand(int); int main(int n, char **v) { return by_hand(n) + 1; }\n";
    let (target, at) = start(source, &["-O2"], &[]);
    for refused in [bare(&target, at).unwrap_err(), full(&target).unwrap_err()] {
        let Unreliable::NoCfi { module, symbol, .. } = &refused else { panic!("{refused}") };
        assert!(module.contains("unwind-"), "{module}");
        assert_eq!(symbol.as_deref(), Some("by_hand"));
        assert!(refused.to_string().ends_with("(by_hand)"), "{refused}");
    }
}

#[test]
fn code_made_at_run_time_belongs_to_no_object() {
    let source = "int main(int n, char **v) {\n\
        unsigned char code[] = { 0x53, 0xff, 0xd6, 0x5b, 0xc3 };\n\
        void *p = mmap(0, 4096, 7, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0); memcpy(p, code, sizeof code);\n\
        return ((int (*)(int, void *))p)(n, wait_here) + 1; }\n";
    let (target, at) = start(source, &["-O2"], &[]);
    for refused in [bare(&target, at).unwrap_err(), full(&target).unwrap_err()] {
        let Unreliable::NoModule { pc } = refused else { panic!("{refused}") };
        assert_eq!(pc % 4096, 3, "behind the call");
    }
}

/// glibc's vfork keeps its return address in rdi only.
#[test]
fn the_parent_of_a_vfork_needs_a_register() {
    let source = "#include <sys/wait.h>\nint main(int n, char **v) { int s; int p = vfork(); if (p == 0) { wait_here(n); _exit(0); }\n\
        return waitpid(p, &s, 0) + 1; }\n";
    let program = build(&(PRELUDE.to_owned() + source), "c", &["-O2"]);
    let target = Target::start(&program, &[]);
    let at = target.blocked(target.pid(), libc::SYS_vfork as u64);
    let refused = bare(&target, at).unwrap_err();
    assert_eq!(refused, Unreliable::UnknownRegister { pc: at.pc, register: Register(5) });
    assert!(refused.to_string().contains("rdi"), "{refused}");
    let line = std::fs::read(format!("/proc/{}/syscall", target.pid())).unwrap();
    assert!(suture_scan::proc::Syscall::parse(&line).unwrap().shares_itself());
    // The child runs the program's code; it ends with its parent's input.
    let children = format!("/proc/{0}/task/{0}/children", target.pid());
    let child: i32 = std::fs::read_to_string(children).unwrap().trim().parse().unwrap();
    // SAFETY: a process that the target started.
    unsafe { libc::kill(child, libc::SIGKILL) };
}

#[test]
fn a_coroutine_ends_at_its_context() {
    let source = "static ucontext_t back, other;\n\
        static void body(int n) { wait_here(n); swapcontext(&other, &back); }\n\
        __attribute__((noipa)) int runs(int n) { swapcontext(&back, &other); return n; }\n\
        int main(int n, char **v) { static char heap[1 << 16]; char own[1 << 14]; char *room = n > 1 ? own : heap;\n\
          getcontext(&other); other.uc_stack.ss_sp = room; other.uc_stack.ss_size = n > 1 ? sizeof own : sizeof heap;\n\
          other.uc_link = v[1] && v[1][0] == 'l' ? &back : 0; makecontext(&other, (void (*)(void))body, 1, n); return runs(n) + 1; }\n";
    for flags in [&["-O2"][..], POINTERS] {
        for args in [&[][..], &["link"], &["none"]] {
            let (target, at) = start(source, flags, args);
            let walk = walk_both(&target, target.pid(), at);
            assert_eq!(walk.bottom, Bottom::Context, "{args:?}");
            let names = names(&walk, &target.modules());
            assert!(names.contains(&"body".to_owned()) && !names.contains(&"runs".to_owned()), "{names:?}");
        }
    }
}

const PLAIN: &str = "__attribute__((noipa)) int inner(int n) { return wait_here(n) + 1; }\n\
    __attribute__((noipa)) int outer(int n) { return inner(n) * 3; }\nint main(int n, char **v) { return outer(n) + 1; }\n";

fn copy(target: &Target, sp: u64) -> Vec<u8> {
    let maps = target.maps();
    let end = maps.region_at(sp).unwrap().end;
    target.memory().read_vec(Addr(sp), (end - sp) as usize).unwrap()
}

#[test]
fn the_runtimes_code_stops_a_walk() {
    let (target, at) = start(PLAIN, POINTERS, &[]);
    let modules = target.modules();
    let memory = target.memory();
    let walk = bare(&target, at).unwrap();
    let pc = |name: &str| {
        let at = names(&walk, &modules).iter().position(|n| n == name).unwrap();
        walk.frames[at].pc
    };
    let with = |arena: std::ops::Range<u64>| {
        walk_bare(&mut Unwinder::new(&modules, vec![0x1000..0x2000, arena]), at, &memory)
    };
    // A return address belongs to the call in front of it.
    let inner = pc("inner");
    assert_eq!(with(inner - 1..inner), Err(Unreliable::InRuntimeArena { pc: inner }));
    assert_eq!(with(inner - 9..inner + 9), Err(Unreliable::InRuntimeArena { pc: inner }));
    assert_eq!(with(inner..inner + 9), Ok(walk.clone()));
    // The program counter of the innermost frame is exact.
    assert_eq!(with(at.pc..at.pc + 1), Err(Unreliable::InRuntimeArena { pc: at.pc }));
    assert_eq!(with(at.pc - 1..at.pc), Ok(walk.clone()));
    // Outside all objects too.
    let mut unwinder = Unwinder::new(&modules, vec![0x1000..0x2000, 0x5000..0x5001]);
    let nowhere = unwinder.walk(Registers::from_pc_sp(0x1800, at.sp), &memory);
    assert_eq!(nowhere, Err(Unreliable::InRuntimeArena { pc: 0x1800 }));
}

/// An object that has no file is walked by what lies in memory.
#[test]
fn images_are_walked_from_memory() {
    let library = build(
        "extern int wait_here(int);\n__attribute__((noipa)) static int patched(int n) { return wait_here(n) * 2; }\n\
        int entry(int n) { return patched(n) + 1; }\n",
        "c",
        &["-O2", "-fno-omit-frame-pointer", "-shared", "-fPIC", "-nostartfiles"],
    );
    let source = "#include <dlfcn.h>\nint main(int n, char **v) { void *h = dlopen(v[1], RTLD_NOW); return ((int (*)(int))dlsym(h, \"entry\"))(n) + 1; }\n";
    let program = build(&(PRELUDE.to_owned() + source), "c", &["-O2", "-rdynamic"]);
    let target = Target::start(&program, &[library.to_str().unwrap()]);
    let at = target.reading();
    let all = target.modules();
    let memory = target.memory();
    let truth = walk_bare(&mut Unwinder::new(&all, Vec::new()), at, &memory).unwrap();
    let is_library = |m: &Module| Some(m.name.as_str()) == library.to_str();
    let (of_file, mut modules): (Vec<Module>, Vec<Module>) = all.into_iter().partition(is_library);
    let without = walk_bare(&mut Unwinder::new(&modules, Vec::new()), at, &memory).unwrap_err();
    assert!(matches!(without, Unreliable::NoModule { .. }), "{without}");

    let file = suture_elf::ObjectFile::open(&library).unwrap();
    let hdr = file.program_header(0x6474_e550).unwrap().addr;
    let base = of_file[0].base;
    let range = of_file[0].range();
    let image = Module::image_in_memory("patch".into(), base, &range, base + hdr, &target.maps(), &memory);
    modules.push(image.unwrap());
    let walk = walk_bare(&mut Unwinder::new(&modules, Vec::new()), at, &memory).unwrap();
    assert_same(&truth, &walk);
    assert!(walk.frames.iter().any(|f| f.by_height && modules[f.module].name == "patch"));
}

#[test]
fn a_damaged_stack_is_not_believed() {
    let (target, at) = start(PLAIN, POINTERS, &[]);
    let modules = target.modules();
    let mut unwinder = Unwinder::new(&modules, Vec::new());
    let stack = copy(&target, at.sp);
    let walk = walk_bare(&mut unwinder, at, &StackCopy::new(at.sp, &stack)).unwrap();
    assert_same(&walk, &bare(&target, at).unwrap());
    let outer = names(&walk, &modules).iter().position(|n| n == "inner").unwrap();
    let place = (walk.frames[outer].cfa - 8 - at.sp) as usize;
    let mut walk_with = |word: u64, place: usize| {
        let mut stack = stack.clone();
        stack[place..place + 8].copy_from_slice(&word.to_le_bytes());
        walk_bare(&mut unwinder, at, &StackCopy::new(at.sp, &stack)).unwrap_err()
    };
    // The return address into `outer`: one byte off, the function's start, anything.
    let pc = walk.frames[outer + 1].pc;
    assert_eq!(walk_with(pc + 1, place), Unreliable::NotACall { pc: pc + 1 });
    assert_eq!(walk_with(7, place), Unreliable::NoModule { pc: 7 });
    // The frame pointer that `inner` saved leads back to the same frame: round and round.
    let frame = at.sp + place as u64 - 8;
    assert!(matches!(walk_with(frame, place - 8), Unreliable::NotAscending { .. }));
    let nowhere = walk_with(0x1234_0000, place - 8);
    assert_eq!(nowhere, Unreliable::Memory { addr: 0x1234_0008 });
    // A copy that ends too early, and a limit that is too low.
    let short = walk_bare(&mut unwinder, at, &StackCopy::new(at.sp, &stack[..place])).unwrap_err();
    assert!(matches!(short, Unreliable::Memory { .. }), "{short}");
    let mut limited = Unwinder::new(&modules, Vec::new()).limit(3);
    let deep = walk_bare(&mut limited, at, &target.memory()).unwrap_err();
    assert_eq!(deep, Unreliable::TooDeep { limit: 3 });
}

#[test]
fn a_missing_object_is_not_passed_over() {
    let (target, at) = start(PLAIN, &["-O2"], &[]);
    let modules = target.modules();
    let of = |modules: &[Module]| {
        walk_bare(&mut Unwinder::new(modules, Vec::new()), at, &target.memory()).unwrap_err()
    };
    let without: Vec<Module> = modules.into_iter().filter(|m| !m.name.contains("libc.so")).collect();
    assert_eq!(of(&without), Unreliable::NoModule { pc: at.pc });
    assert_eq!(of(&[]), Unreliable::NoModule { pc: at.pc });
}

/// A bare `main` is believed only when the walk leads from it to the start of its program.
#[test]
fn a_bare_main_must_be_called_by_the_c_library() {
    let body = "push %rax\\ncall wait_here\\npop %rcx\\nret\\n";
    let main = format!(
        "__asm__(\".text\\n.globl main\\n.type main,@function\\nmain: {body}.size main,.-main\\n\");\n"
    );
    let (target, at) = start(&main, &["-O2"], &[]);
    let walk = walk_both(&target, target.pid(), at);
    assert_eq!(walk.bottom, Bottom::ProcessStart);
    // The same, but `main` is entered again from the program's own code.
    let again = format!(
        "{main}int main(int, char **); __attribute__((constructor, noipa)) void again(int n, char **v) {{ if (n > 1) n += main(n, v) + main(n, v); }}\n"
    );
    let (target, at) = start(&again, &["-O2"], &["again"]);
    let refused = bare(&target, at).unwrap_err();
    let Unreliable::NoCfi { symbol, .. } = &refused else { panic!("{refused}") };
    assert_eq!(symbol.as_deref(), Some("main"));
    // A height that is not known.
    let dynamic = main.replace("push %rax", "sub %rdi,%rsp\\nand $-16,%rsp");
    let (target, at) = start(&dynamic, &["-O2"], &[]);
    let refused = bare(&target, at).unwrap_err();
    assert!(
        matches!(refused, Unreliable::NoHeight { why: NoHeight::Dynamic | NoHeight::Aligned, .. }),
        "{refused}"
    );
}

/// What is wrong with the process's own end of the stack.
#[test]
fn a_stack_of_nothing_ends_nowhere() {
    let source = "#include <sched.h>\nstatic int child(void *p) { wait_here(1); return 0; }\n\
        int main(int n, char **v) { static char room[1 << 16]; int t = clone(child, room + sizeof room, CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD, 0);\n\
        for (;;) pause(); }\n";
    let program = build(&(PRELUDE.to_owned() + source), "c", POINTERS);
    let target = Target::start(&program, &[]);
    // A raw clone is a thread like any other, wherever its stack is.
    let tid = until("the clone", || target.threads().into_iter().find(|t| *t != target.pid()));
    let at = target.blocked(tid, libc::SYS_read as u64);
    assert_eq!(walk_both(&target, tid, at).bottom, Bottom::ThreadStart);
    let modules = vec![Module::new(
        "empty".into(),
        Base(0),
        suture_elf::ObjectFile::open("/proc/self/exe".as_ref()).unwrap(),
    )];
    let nowhere = Unwinder::new(&modules, Vec::new()).walk(Registers::default(), &target.memory());
    assert_eq!(nowhere, Err(Unreliable::UnknownRegister { pc: 0, register: Register::RA }));
}
