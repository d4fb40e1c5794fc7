//! The checker's rules that need more than one function, or a process.

mod common;

use common::{Loaded, OwnMemory, arm, build, call, function, in_child, map, own_maps, set_slot};
use suture_elf::Region;
use suture_redirect::{
    Class, Classes, ExistingSite, Function, Options, PlanError, ProcessView, RedirectPlan, Refusal,
    plan_sites, split_parts,
};

fn only(classes: &str) -> Options {
    Options { classes: Classes::parse(classes).unwrap(), ..Options::default() }
}

fn refusal(result: Result<RedirectPlan, PlanError>) -> Refusal {
    match result {
        Err(PlanError::Refused(mut why)) => why.remove(0).1,
        Err(error) => panic!("{error}"),
        Ok(plan) => panic!("planned: {:?}", plan.sites),
    }
}

const FRAME: &str =
    "push %rbp\nmov %rsp,%rbp\npush %rbx\nmov %rdi,%rbx\nlea (%rbx,%rsi),%rax\npop %rbx\npop %rbp\nret";

/// Rule 1: a debugger's breakpoint in the bytes that a pun would use.
#[test]
fn live_bytes_must_be_the_files() {
    let loaded = Loaded::assembled(&(function("f", FRAME) + ".p2align 5\n"));
    let entry = loaded.address("f");
    for at in 0..5 {
        in_child(|| {
            let page = (entry & !0xfff) as *mut libc::c_void;
            let prot = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
            // SAFETY: a byte of the function, which this child never runs afterwards.
            unsafe {
                libc::mprotect(page, 0x1000, prot);
                ((entry + at) as *mut u8).write_volatile(0xcc);
            }
            match refusal(loaded.plan(&["f"], &only("J"))) {
                Refusal::Bytes { whose, .. } if whose.contains("breakpoint") => Ok(()),
                other => Err(format!("breakpoint at +{at}: {other}")),
            }
        })
        .unwrap();
    }
}

/// Rule 1: what another hooking tool left at the entry is named, and not built upon.
#[test]
fn other_peoples_jumps_are_not_built_upon() {
    let loaded = Loaded::assembled(&(function("f", FRAME) + ".p2align 5\n"));
    let entry = loaded.address("f");
    for (jump, what) in [
        (&[0xe9, 0x10, 0, 0, 0][..], "another hooking tool"),
        (&[0xff, 0x25, 0, 0, 0, 0], "another hooking tool"),
    ] {
        in_child(|| {
            let page = (entry & !0xfff) as *mut libc::c_void;
            let prot = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
            for (at, byte) in (entry..).zip(jump) {
                // SAFETY: bytes of the function, which this child never runs.
                unsafe {
                    libc::mprotect(page, 0x1000, prot);
                    (at as *mut u8).write_volatile(*byte);
                }
            }
            match refusal(loaded.plan(&["f"], &Options::default())) {
                Refusal::Bytes { whose, .. } if whose.contains(what) => Ok(()),
                other => Err(format!("{jump:x?}: {other}")),
            }
        })
        .unwrap();
    }
}

/// Addresses that are no function, or one that nobody may replace.
#[test]
fn what_is_no_ordinary_function_is_named() {
    let trampoline = ".text\n.p2align 4\n.globl back\n.type back,@function\nback:\n.cfi_startproc\n.cfi_signal_frame\n\
        mov $15,%rax\nsyscall\n.cfi_endproc\n.size back,.-back\n";
    let bare = ".globl bare\n.type bare,@function\nbare: mov %rdi,%rax\nret\n.p2align 4\n";
    let source = function("f", FRAME)
        + trampoline
        + bare
        + &function("caller", "jmp outside@PLT")
        + ".data\n.globl number\n.type number,@object\nnumber: .quad 5\n.size number,8\n";
    let path = build(&source, "s", &["-nostdlib", "-Wl,-z,lazy", "-Wl,--unresolved-symbols=ignore-all"]);
    // Never loaded: the import is nobody's.
    let file = suture_elf::ObjectFile::open(&path).unwrap();
    let object = suture_redirect::LoadedObject {
        analysis: suture_redirect::ObjectAnalysis::new(&file),
        base: suture_elf::Base(0x7f00_0000_0000),
    };
    let refused = |entry| {
        let request = suture_redirect::Request { object: 0, entry, name: "it".into(), replacement: None };
        let objects = std::slice::from_ref(&object);
        refusal(plan_sites(objects, &[request], &ProcessView::default(), &Options::default()))
    };
    let at = |name: &str| file.symbols().named(name).next().unwrap_or_else(|| panic!("no {name}")).addr;
    assert!(matches!(refused(at("number")), Refusal::NotCode(_)));
    assert_eq!(refused(at("bare")), Refusal::NoSize);
    assert_eq!(refused(at("f") + 1), Refusal::NoSize, "the middle of a function");
    assert!(matches!(refused(at("back")), Refusal::Nature { .. }), "the way out of a signal handler");
    let (plt, _) = file.section(".plt").expect("a call of an import");
    assert_eq!(refused(plt + 16), Refusal::PltStub);
}

/// Rule 5: an operand that the instruction reaches from where it is and its copy does not.
#[test]
fn operands_out_of_the_copys_reach_are_named() {
    let far = |name: &str, distance: &str| {
        function(name, &format!(".byte 0x48,0x8b,0x05\n.long {distance}\nadd %rsi,%rax\nret"))
    };
    let source = far("up", "0x7ffff000") + &far("down", "-0x7ffff000") + ".p2align 5\n";
    let loaded = Loaded::assembled(&source);
    let of = |name: &str| loaded.plan(&[name], &only("S"));
    // The arena lies on one side of the object; from there only one of the two can be reached.
    let out_of_reach: Vec<&str> = ["up", "down"]
        .into_iter()
        .filter(|name| of(name).is_err_and(|e| matches!(refusal(Err(e)), Refusal::CopyReach { .. })))
        .collect();
    assert_eq!(out_of_reach.len(), 1, "{out_of_reach:?}");
}

/// No hole in reach of the object: nothing is planned, and the object is named.
#[test]
fn without_room_nearby_nothing_is_planned() {
    let loaded = Loaded::assembled(&(function("f", FRAME) + ".p2align 5\n"));
    let base = loaded.object.base.0;
    let mut maps = own_maps();
    maps.regions = vec![
        Region { start: base - (4 << 30), end: base, ..Region::default() },
        Region { start: base, end: base + (4 << 30), ..Region::default() },
    ];
    let view = ProcessView { maps: Some(&maps), memory: Some(&OwnMemory), ..ProcessView::default() };
    let objects = std::slice::from_ref(&loaded.object);
    let none = plan_sites(objects, &[loaded.request("f")], &view, &only("PSA"));
    assert!(matches!(none, Err(PlanError::NoRoom { .. })), "{none:?}");
}

/// The bytes that a wide pun leaves alone may be arrived at, those it changes may not.
#[test]
fn arrivals_in_and_behind_a_wide_pun() {
    let with = |label: &str| {
        let body = format!(
            "mov %rdi,%rax\nadd %rsi,%rax\nadd $79,%rax\nadd $3,%rax\nret\n.set f_inner,f+{label}\n.local f_inner"
        );
        let jumps = function("f", &body) + ".skip 300,0x90\n" + &function("g", "mov $1,%eax\njmp f_inner");
        Loaded::assembled(&(jumps + ".p2align 12\n"))
    };
    let behind = with("3");
    let plan = behind.plan(&["f"], &only("W")).unwrap();
    assert_eq!((plan.sites[0].class, plan.sites[0].offset), (Class::W, 0));
    match refusal(with("1").plan(&["f"], &only("W"))) {
        Refusal::Arrival { .. } => {}
        other => panic!("{other}"),
    }
}

/// Where the first page it could lead to is in use, a wide pun takes another.
#[test]
fn a_wide_pun_avoids_what_is_mapped() {
    let body = "mov %rdi,%rax\npush %rbx\nmov %rsi,%rbx\nadd %rbx,%rax\npop %rbx\nret";
    let loaded = Loaded::assembled(&(function("f", body) + ".p2align 12\n"));
    let mut maps = own_maps();
    let mut pages = Vec::new();
    for _ in 0..3 {
        let view = ProcessView { maps: Some(&maps), memory: Some(&OwnMemory), ..ProcessView::default() };
        let request = [loaded.request("f")];
        let plan = plan_sites(std::slice::from_ref(&loaded.object), &request, &view, &only("W")).unwrap();
        let page = plan.sites[0].site.stub & !0xfff;
        assert!(!pages.contains(&page), "{page:#x} is in use");
        pages.push(page);
        maps.regions.push(Region { start: page, end: page + 0x1000, ..Region::default() });
        maps.regions.sort_by_key(|r| r.start);
    }
}

/// Rule 3: the branch comes from another function, as out of a `.cold` part or hand-written code.
#[test]
fn arrivals_behind_a_prologue_are_found_in_the_whole_object() {
    let plain = function("f", &FRAME.replacen("push %rbx", "1: push %rbx\n.globl f_inner\n", 1));
    let jumps = plain.replace(".globl f_inner", ".set f_inner,1b\n.local f_inner")
        + ".skip 300,0x90\n"
        + &function("g", "push %rbp\nmov %rsp,%rbp\njmp f_inner");
    let loaded = Loaded::assembled(&(jumps + ".p2align 12\n"));
    let analysis = &loaded.object.analysis;
    let f = Function::new(analysis, loaded.request("f").entry).unwrap();
    assert_eq!(f.name(), "f");
    // At the entry itself the branch does not matter.
    let plan = loaded.plan(&["f"], &only("J")).unwrap();
    assert_eq!(plan.sites[0].offset, 0);
    // The page of the pun at the entry is taken, so the planner has to look behind the prologue.
    let taken = plan.sites[0].site.stub & !0xfff;
    let mut maps = own_maps();
    maps.regions.push(Region { start: taken, end: taken + 0x1000, ..Region::default() });
    maps.regions.sort_by_key(|r| r.start);
    let view = ProcessView { maps: Some(&maps), memory: Some(&OwnMemory), ..ProcessView::default() };
    let next = plan_sites(std::slice::from_ref(&loaded.object), &[loaded.request("f")], &view, &only("J"));
    match next {
        // Behind `push rbp` nothing arrives; behind `mov` the branch does.
        Ok(plan) => assert_eq!(plan.sites[0].offset, 1),
        Err(why) => assert!(matches!(refusal(Err(why)), Refusal::Target { .. })),
    }
}

/// Rule 4, with what gcc itself makes of it: `leaf` leaves r-something alone, so its caller keeps a
/// value there.
#[test]
fn a_caller_that_relies_on_the_old_code_is_named() {
    let source = "static __attribute__((noinline)) int leaf(int x) { return x * 3; }\n\
        __attribute__((noinline)) int outer(int x) { return leaf(x) + 1; }\n\
        int work(int *p, int n) { int s = 0; for (int i = 0; i < n; i++) s += leaf(p[i]) ^ s; return s + n; }\n";
    let loaded = Loaded::open(&build(source, "c", &["-O2", "-fipa-ra", "-fcf-protection=none"]));
    let why = refusal(loaded.plan(&["leaf"], &Options::default()));
    let Refusal::LiveAcross { caller, .. } = &why else { panic!("{why}") };
    assert_eq!(caller, "work", "{why}");
    let cured = Loaded::open(&build(source, "c", &["-O2", "-fno-ipa-ra", "-fcf-protection=none"]));
    assert!(cured.plan(&["leaf"], &Options::default()).is_ok());
}

/// Rule 4 goes up: the middle function is called with a register kept that only the leaf's absence
/// of use permits.
#[test]
fn callers_of_callers_count() {
    let source = [
        function("leaf", "lea 1(%rsi),%rax\nret"),
        function("middle", "push %rbx\nmov %rsi,%rbx\ncall leaf\nadd $2,%rax\npop %rbx\nret"),
        function("top", "mov %rdx,%r9\ncall middle\nadd %r9,%rax\nret"),
        function("careful", "push %rdx\ncall middle\npop %r9\nadd %r9,%rax\nret"),
    ];
    let loaded = Loaded::assembled(&(source.concat() + ".p2align 12\n"));
    for name in ["leaf", "middle"] {
        let why = refusal(loaded.plan(&[name], &Options::default()));
        assert!(why.to_string().contains("its caller top keeps r9 across the call"), "{name}: {why}");
    }
    let without = [&source[0], &source[1], &source[3]].map(String::as_str).concat();
    let loaded = Loaded::assembled(&(without + ".p2align 12\n"));
    loaded.plan(&["leaf", "middle"], &Options::default()).unwrap_or_else(|e| panic!("{e}"));
}

/// Rule 6: sites of one plan and of earlier ones stay out of each other's bytes.
#[test]
fn sites_are_disjoint() {
    let many: String = (0..40)
        .map(|i| function(&format!("f{i}"), &format!("mov $0x1000{i:02},%eax\nadd %esi,%eax\nret")))
        .collect();
    let loaded = Loaded::assembled(&(many + ".p2align 12\n"));
    let names: Vec<String> = (0..40).map(|i| format!("f{i}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let (first, second) = names.split_at(20);
    let plan = loaded.plan(first, &Options::default()).unwrap();
    let existing: Vec<ExistingSite> =
        plan.sites.iter().enumerate().map(|(i, s)| ExistingSite { id: i as u32 + 1, site: s.site }).collect();
    let requests: Vec<_> = names.iter().map(|n| loaded.request(n)).collect();
    let maps = own_maps();
    let view = ProcessView { maps: Some(&maps), existing: &existing, ..ProcessView::default() };
    let both =
        plan_sites(std::slice::from_ref(&loaded.object), &requests, &view, &Options::default()).unwrap();
    assert_eq!(both.sites.len(), 40);
    assert!(
        both.sites[..20].iter().zip(1..).all(|(s, id)| s.site.id == id),
        "known entries keep their sites"
    );
    assert!(both.sites[20..].iter().all(|s| s.site.id == 0));
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    for site in both.sites.iter().map(|s| &s.site) {
        ranges.push((site.site, site.site + u64::from(site.window_len)));
        if site.pad_len > 0 {
            ranges.push((site.pad_addr, site.pad_addr + 5));
        }
    }
    ranges.sort_unstable();
    assert!(ranges.windows(2).all(|w| w[0].1 <= w[1].0), "{ranges:x?}");
    let mut slots: Vec<u64> = both.sites.iter().map(|s| s.site.slot).collect();
    slots.sort_unstable();
    slots.dedup();
    assert!(slots.len() >= 20 && second.len() == 20);
}

/// Rule 7: a page limit is a limit.
#[test]
fn pages_are_limited() {
    let loaded = Loaded::assembled(
        &(function("f", "mov %edi,%eax\nadd %esi,%eax\nadd $77,%eax\nret") + ".p2align 12\n"),
    );
    let options = Options { max_pun_pages: 0, ..only("J") };
    assert!(matches!(refusal(loaded.plan(&["f"], &options)), Refusal::TooManyPages { count: 1, limit: 0 }));
    let options = Options { max_map_count: 0, ..only("J") };
    assert!(matches!(refusal(loaded.plan(&["f"], &options)), Refusal::TooManyPages { .. }));
}

/// All or nothing, and every refused function is named.
#[test]
fn one_bad_function_refuses_the_plan() {
    let source = function("good", FRAME)
        + ".p2align 4\n"
        + &function("bad", "ret")
        + &function("worse", "call good\nret");
    let loaded = Loaded::assembled(&source);
    let why = loaded.plan(&["good", "bad", "worse"], &Options::default()).unwrap_err().to_string();
    assert_eq!(
        why.lines().map(|l| l.split(':').next().unwrap()).collect::<Vec<_>>(),
        ["cannot redirect bad", "cannot redirect worse"],
        "{why}"
    );
}

/// `.cold` parts have no symbol in stripped objects; they are found by following jumps.
#[test]
fn split_parts_are_found_by_control_flow() {
    let source = "extern void abort(void);\n__attribute__((cold,noinline)) void rare(int);\n\
        int hot(int x, int *p) { if (__builtin_expect(x > 1000, 0)) { rare(x); p[0] = x; rare(x + p[1]); abort(); } return x + p[2]; }\n\
        void rare(int x) { if (x == 77) abort(); }\n";
    let path = build(source, "c", &["-O2", "-s"]);
    let loaded = Loaded::open(&path);
    let function = Function::new(&loaded.object.analysis, loaded.request("hot").entry).unwrap();
    let parts = split_parts(&loaded.object.analysis, &function);
    assert_eq!(parts.len(), 1, "{parts:?}");
    assert!(parts[0].start.0 + 4 < function.entry().0 || parts[0].start > function.entry());
}

/// An exception passes through a function whose first instructions run in the copy, and through the
/// redirect of its caller.
#[test]
fn exceptions_pass_copies() {
    let source = "#include <stdexcept>\n\
        extern \"C\" long thrower(long a, long b) { if (a > b) throw std::runtime_error(\"x\"); return a + b; }\n\
        extern \"C\" long catcher(long a, long b) { try { return thrower(a, b); } catch (std::exception &) { return -1; } }\n";
    let loaded = Loaded::open(&build(source, "cc", &["-O2", "-fno-ipa-ra", "-fno-ipa-icf"]));
    for classes in ["PSAJ", "J"] {
        let plan = loaded.plan(&["thrower", "catcher"], &only(classes)).unwrap_or_else(|e| panic!("{e}"));
        in_child(|| {
            map(&plan);
            plan.sites.iter().for_each(arm);
            let catcher = loaded.address("catcher");
            let found = (call(catcher, 1, 2) as i64, call(catcher, 3, 2) as i64);
            if found == (3, -1) { Ok(()) } else { Err(format!("{found:?}")) }
        })
        .unwrap();
    }
}

/// The same slot value for all: what was planned works for a whole batch at once.
#[test]
fn a_batch_works_together() {
    let many: String = (0..60)
        .map(|i| function(&format!("f{i}"), &format!("push %rbx\nsub $0x20,%rsp\nmov %rdi,%rbx\nlea {i}(%rbx,%rsi),%rax\nadd $0x20,%rsp\npop %rbx\nret")))
        .collect();
    let loaded = Loaded::assembled(&(many + ".p2align 12\n"));
    let names: Vec<String> = (0..60).map(|i| format!("f{i}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let plan = loaded.plan(&names, &Options::default()).unwrap();
    in_child(|| {
        map(&plan);
        plan.sites.iter().for_each(arm);
        for (i, name) in names.iter().enumerate() {
            let at = loaded.address(name);
            if call(at, 10, 5) != 15 + i as u64 {
                return Err(format!("{name} on its copy"));
            }
            set_slot(&plan.sites[i].site, common::marker as *const () as u64);
            if call(at, 10, 5) != 5 {
                return Err(format!("{name} redirected"));
            }
        }
        Ok(())
    })
    .unwrap();
}
