//! Suspended coroutines in real programs, and how often memory of ordinary servers looks like one.

#[path = "../../unwind/tests/common/mod.rs"]
mod common;

use common::servers;
use common::{Target, build, maps, modules, threads};
use std::fs::File;
use std::ops::Range;
use std::path::Path;
use std::time::Instant;
use suture_elf::{MapsSnapshot, ObjectFile};
use suture_scan::Interval;
use suture_stack::hidden::{Hidden, Search, search};
use suture_stack::hints::{self, Hint};
use suture_unwind::{Module, Unwinder};

/// Whole stacks: from the bottom of the mapping a stack pointer lies in to its end, neighbours of the same
/// stack included.
fn stacks(pid: i32, maps: &MapsSnapshot) -> Vec<Range<u64>> {
    let of_thread = |tid: i32| {
        let line = std::fs::read(format!("/proc/{pid}/task/{tid}/syscall")).ok()?;
        let sp = match suture_scan::proc::Syscall::parse(&line)? {
            suture_scan::proc::Syscall::Blocked { sp, .. }
            | suture_scan::proc::Syscall::Elsewhere { sp, .. } => sp,
            suture_scan::proc::Syscall::Running => return None,
        };
        maps.region_at(sp).map(|r| r.start..r.end)
    };
    threads(pid).into_iter().filter_map(of_thread).collect()
}

fn hidden(pid: i32, table: &[Interval], modules: &[Module], known: &[Range<u64>]) -> Hidden {
    let pages = File::open(format!("/proc/{pid}/pagemap")).unwrap();
    let memory = common::Remote(pid);
    let unwinder = Unwinder::new(modules, Vec::new());
    let follows_call = |addr| unwinder.follows_call(addr);
    let maps = maps(pid);
    search(&Search {
        maps: &maps,
        memory: &memory,
        pages: &pages,
        table,
        known,
        follows_call: &follows_call,
        most: 4 << 30,
    })
    .unwrap()
}

/// A coroutine that stops in the middle of `f`, and is resumed when there is input.
const COROUTINE: &str = "#include <ucontext.h>\n#include <unistd.h>\n#include <stdlib.h>\n#include <sys/mman.h>\n\
    static ucontext_t back, up;\n__attribute__((noipa)) int wait_here(int x) { char c; x += read(0, &c, 1); return x + 1; }\n\
    __attribute__((noipa)) int f(int n) { swapcontext(&up, &back); return n + 1; }\n\
    static void body(int n) { wait_here(f(n)); swapcontext(&up, &back); }\n\
    int main(int n, char **v) { char *room = v[1][0] == 'h' ? malloc(1 << 16) : mmap(0, 1 << 16, 3, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);\n\
      getcontext(&up); up.uc_stack.ss_sp = room; up.uc_stack.ss_size = 1 << 16;\n\
      makecontext(&up, (void (*)(void))body, 1, n); swapcontext(&back, &up); wait_here(n); swapcontext(&back, &up); return wait_here(n); }\n";

#[test]
fn a_suspended_coroutine_is_found() {
    for place in ["heap", "mapping"] {
        let program = build(COROUTINE, "c", &["-O2", "-fno-optimize-sibling-calls"]);
        let target = Target::start(&program, &[place]);
        target.reading();
        let modules = target.modules();
        let file = ObjectFile::open(&program).unwrap();
        let base = modules.iter().find(|m| Path::new(&m.name) == program).unwrap().base;
        let table = |name: &str| {
            let symbol = file.symbols().functions_named(name)[0];
            let start = (base + symbol.addr).0;
            [Interval { first: start + 1, last: start + symbol.size }]
        };
        let maps = target.maps();
        let known = stacks(target.pid(), &maps);
        assert_eq!(known.len(), 1);
        let found = hidden(target.pid(), &table("f"), &modules, &known);
        assert!(found.found > 0 && !found.is_clear(), "{place}: {found:?}");
        // On its stack. The context that `swapcontext` filled in is passed over: it may be an old one.
        let regions: Vec<_> =
            found.words.iter().map(|w| maps.region_at(w.at).unwrap().path.as_deref()).collect();
        let own = if place == "heap" { Some("[heap]") } else { None };
        assert!(regions.contains(&own), "{place}: {regions:?}");
        // Nothing is suspended in the function that waits now.
        let clear = hidden(target.pid(), &table("wait_here"), &modules, &known);
        assert!(clear.is_clear(), "{place}: {clear:?}");
        assert_eq!(hints::of(&file), [Hint::UserContexts]);
    }
}

#[test]
fn signs_of_stacks() {
    let of = |source: &str, flags: &[&str]| hints::of(&ObjectFile::open(&build(source, "c", flags)).unwrap());
    assert_eq!(of("int main() { return 0; }\n", &[]), []);
    assert_eq!(of("int main() { return 0; }\n", &["-fsplit-stack", "-fuse-ld=gold"]), [Hint::SplitStack]);
    let boost = "__attribute__((visibility(\"default\"))) void *jump_fcontext(void *a) { return a; } int main() { return jump_fcontext(0) != 0; }\n";
    assert_eq!(of(boost, &["-rdynamic"]), [Hint::BoostContext]);
    let go = "__asm__(\".section .note.go.buildid,\\\"a\\\",@note\\n.long 4,2,4\\n.asciz \\\"Go\\\"\\n.byte 0\\n.short 1\\n.balign 4\\n\");\nint main() { return 0; }\n";
    assert_eq!(of(go, &[]), [Hint::Go]);
    // The C library offers contexts and uses none.
    let libc = ObjectFile::open(Path::new("/lib/x86_64-linux-gnu/libc.so.6")).unwrap();
    assert_eq!(hints::of(&libc), []);
}

/// Servers without coroutines: what it costs to search them, and how many words look like return
/// addresses into any of their code.
#[test]
fn servers_are_searched() {
    for start in [servers::redis, servers::nginx, servers::python, servers::mariadb] {
        let Some(server) = start(true) else { continue };
        std::thread::sleep(std::time::Duration::from_millis(300));
        let pid = server.pids()[0];
        let modules = modules(pid);
        let maps = maps(pid);
        let known = stacks(pid, &maps);
        let code =
            maps.regions.iter().filter(|r| r.exec && r.path.as_deref().is_some_and(|p| p.starts_with('/')));
        let code: Vec<_> = code.map(|r| Interval { first: r.start, last: r.end }).collect();
        let all = hidden(pid, &code, &modules, &known);
        // A patch of one function, in the middle of the executable's code.
        let range = modules[0].range();
        let middle = range.start + (range.end - range.start) / 3;
        let start = Instant::now();
        let one = hidden(pid, &[Interval { first: middle, last: middle + 200 }], &modules, &known);
        let took = start.elapsed();
        println!(
            "{}: {} MiB in {:.3} s; {} words look like return addresses into any code, {} into one function",
            server.name,
            one.searched >> 20,
            took.as_secs_f64(),
            all.found,
            one.found
        );
        assert!(one.searched > 0 && !one.capped && one.searched.is_multiple_of(8));
        assert!(one.found <= all.found + 1);
    }
}
