//! Split parts, against the symbols that stripped files lack.
//!
//! Each object is analysed without its symbols; the names in its unstripped twin (or in the debug
//! file of the distribution) say what belongs to whom.

mod common;

use common::build;
use iced_x86::{Decoder, DecoderOptions, Instruction, OpKind};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::ops::Range;
use std::path::Path;
use std::process::Command;
use suture_elf::{Frame, ObjectFile, SymbolKind, Vaddr};
use suture_redirect::{FunctionCode, ObjectAnalysis};

/// An object without symbols and its function symbols.
struct Twins {
    stripped: ObjectAnalysis,
    named: ObjectAnalysis,
    /// Name and range, from the unstripped twin.
    functions: Vec<(String, Range<Vaddr>)>,
}

fn functions(file: &ObjectFile) -> Vec<(String, Range<Vaddr>)> {
    let all = file.symbols().all().filter(|s| s.kind == SymbolKind::Func && s.size > 0);
    all.map(|s| (s.name.to_owned(), s.addr..s.addr + s.size)).collect()
}

fn twins(source: &str, extension: &str, flags: &[&str]) -> Twins {
    let path = build(source, extension, flags);
    let bare = path.with_extension("stripped");
    let done = Command::new("strip").arg("-s").arg("-o").arg(&bare).arg(&path).status().unwrap();
    assert!(done.success());
    let open = |path: &Path| ObjectAnalysis::new(&ObjectFile::open(path).unwrap());
    let (stripped, named) = (open(&bare), open(&path));
    let functions = functions(named.file());
    Twins { stripped, named, functions }
}

impl Twins {
    fn range(&self, name: &str) -> Range<Vaddr> {
        let found = self.functions.iter().find(|f| f.0 == name);
        found.unwrap_or_else(|| panic!("gcc made no {name}: {:?}", self.functions)).1.clone()
    }

    /// Names of the parts of a function, without symbols and with them.
    fn parts(&self, name: &str) -> Vec<String> {
        let name_of = |part: &Range<Vaddr>| {
            let found = self.functions.iter().find(|f| f.1.start == part.start);
            found.map_or_else(|| format!("{part:?}"), |f| f.0.clone())
        };
        let found = [&self.stripped, &self.named].map(|object| {
            let code = FunctionCode::of(object, self.range(name).start).unwrap();
            code.parts.iter().map(name_of).collect::<Vec<_>>()
        });
        assert_eq!(found[0], found[1], "{name}, stripped and with symbols");
        found[0].clone()
    }
}

const CALLEES: &str = "extern void leave(int) __attribute__((noreturn, cold));\n\
    extern int rare(int) __attribute__((cold));\nextern int common(int);\n";

#[test]
fn a_cold_part_that_comes_back_or_not() {
    let source = CALLEES.to_owned()
        + "int back(int x, int *p) { if (__builtin_expect(x > 9, 0)) p[rare(x)] = rare(x); return common(x) + p[2]; }\n\
           int never(int x, int *p) { if (x > 9) leave(x); p[1] = common(x); if (x < -9) leave(2 * x); return common(x); }\n\
           int at_once(int x) { if (__builtin_expect(x > 9, 0)) leave(rare(x)); return x + 1; }\n\
           int none(int x) { return common(x) + common(x + 1); }\n";
    let twins = twins(&source, "c", &["-O2"]);
    assert_eq!(twins.parts("back"), ["back.cold"]);
    assert_eq!(twins.parts("never"), ["never.cold"]);
    assert_eq!(twins.parts("at_once"), ["at_once.cold"]);
    assert!(twins.parts("none").is_empty());
}

/// Only a table of offsets, or of addresses, leads to the part.
#[test]
fn cold_cases_of_a_switch_and_of_a_computed_jump() {
    let mut cases = String::new();
    for i in 0..12 {
        let body = if i % 3 == 0 { format!("y = leave_{}(x);", i) } else { format!("y = common(x * {i});") };
        writeln!(cases, "case {i}: {body} break;").unwrap();
    }
    let leave: String =
        (0..12).step_by(3).map(|i| format!("extern int leave_{i}(int) __attribute__((cold));\n")).collect();
    let source = CALLEES.to_owned()
        + &leave
        + &format!(
            "int table(int x, int z) {{ int y = 0; switch (z) {{ {cases} }} return y + common(y); }}\n"
        )
        + "int computed(int *p, int x) { static void *const to[] = { &&a, &&b, &&c, &&d };\n\
           goto *to[*p++ & 3]; a: x += common(x); goto *to[*p++ & 3]; b: x ^= 7; goto *to[*p++ & 3];\n\
           c: rare(x); leave(x); d: return x; }\n";
    for flags in [&["-O2"][..], &["-O2", "-fno-omit-frame-pointer"]] {
        let twins = twins(&source, "c", flags);
        assert_eq!(twins.parts("table"), ["table.cold"], "{flags:?}");
        assert_eq!(twins.parts("computed"), ["computed.cold"], "{flags:?}");
    }
}

/// The table's address is taken in front of the loop, far from the jump.
#[test]
fn cold_cases_of_a_switch_in_a_loop() {
    let far: String = (0..20).map(|i| format!("x += common(x ^ {i});\n")).collect();
    let source = CALLEES.to_owned()
        + &format!(
            "int looped(int *p, int n, int x) {{ for (int i = 0; i < n; i++) {{ {far} switch (p[i]) {{"
        )
        + "case 0: x = common(x); break; case 1: x ^= common(x + 3); break; case 2: leave(x); case 3: x += common(i); break;\n\
           case 4: rare(x); leave(i); case 5: x -= common(i); break; case 6: x *= common(i); break; case 7: leave(3); } }\n\
           return x; }\n";
    let twins = twins(&source, "c", &["-O2"]);
    assert_eq!(twins.parts("looped"), ["looped.cold"]);
}

/// In a table of addresses only the cold label tells that its range belongs to the function.
#[test]
fn a_position_dependent_table_has_addresses() {
    let cases: String = (0..9)
        .map(|i| format!("case {i}: {} break;\n", if i == 4 { "leave(rare(x));" } else { "x = common(x);" }))
        .collect();
    let source = CALLEES.to_owned()
        + "__attribute__((noipa)) void leave(int x) { for (;;) __asm__ volatile(\"pause\" :: \"r\"(x)); }\n\
           __attribute__((noipa)) int rare(int x) { return x; }\n__attribute__((noipa)) int common(int x) { return x + 1; }\n"
        + &format!("int table(int x, int z) {{ switch (z) {{ {cases} }} return common(x); }}\n")
        + "int main(int n, char **v) { return common(table(n, v[0][0])) + common(n); }\n";
    let twins =
        twins(&source, "c", &["-O2", "-fno-pic", "-no-pie", "-nostdlib", "-Wl,-e,main", "-fno-ipa-ra"]);
    assert_eq!(twins.parts("table"), ["table.cold"]);
}

#[test]
fn exceptions_lead_into_parts() {
    let source = "extern int common(int); struct Guard { int x; ~Guard(); };\n\
        int cleanup(int x) { Guard g{x}; return common(x) + common(x + 1); }\n\
        int caught(int x) { try { Guard g{x}; return common(x); } catch (int &e) { return common(e); } }\n";
    let twins = twins(source, "cc", &["-O2"]);
    assert_eq!(twins.parts("_Z7cleanupi"), ["_Z7cleanupi.cold"]);
    assert_eq!(twins.parts("_Z6caughti"), ["_Z6caughti.cold"]);
}

/// gcc moves the rest of a function behind its quick exit away; the rest is entered by a jump that
/// looks like a tail call.
#[test]
fn a_rest_that_was_split_off_belongs_to_all_who_jump_there() {
    let source = CALLEES.to_owned()
        + "static int work(int *p) { if (!p) return 0; int s = 0; for (int i = 0; i < 100; i++) s += common(p[i]) * common(s); return s + common(s); }\n\
           int one(int *p) { return work(p); }\nint two(int *p) { p += 3; return work(p + 1); }\nint calls(int *p) { return 1 + common(*p); }\n";
    let twins = twins(&source, "c", &["-O2"]);
    let part = vec!["work.part.0".to_owned()];
    assert_eq!(twins.parts("one"), part);
    assert_eq!(twins.parts("two"), part);
    assert!(twins.parts("calls").is_empty());
}

/// A static function that is called somewhere is a function, also for one that only jumps to it; one
/// that nobody calls cannot be told from a part without symbols.
#[test]
fn a_tail_call_is_no_part_if_somebody_calls() {
    let source = CALLEES.to_owned()
        + "__attribute__((noinline)) static int callee(int *p) { return common(*p) * common(p[1]); }\n\
           __attribute__((noinline)) static int itself(int *p, int n) { return n ? common(itself(p + 1, n - 1)) : common(*p); }\n\
           int jumps(int *p) { return callee(p + 1); }\nint calls(int *p) { return 1 + callee(p); }\n\
           int enters(int *p) { return itself(p + 1, p[0]); }\n";
    let twins = twins(&source, "c", &["-O2", "-fno-ipa-cp", "-fno-partial-inlining", "-fno-ipa-sra"]);
    assert!(twins.parts("jumps").is_empty());
    assert!(twins.parts("calls").is_empty());
    // With symbols it is the function it is; without, only itself calls it.
    let code = |object| FunctionCode::of(object, twins.range("enters").start).unwrap();
    assert!(code(&twins.named).parts.is_empty());
    assert_eq!(code(&twins.stripped).parts, [twins.range("itself")]);
}

/// Two that nobody else calls are not functions because they call each other.
#[test]
fn callers_inside_do_not_count() {
    let source = common::function("f", "test %esi,%esi\nje a\njs b\nlea 2(%rsi),%rax\nret")
        + &local("a", "dec %esi\ncall b\nret")
        + &local("b", "dec %esi\ncall a\nret");
    assert_eq!(assembled(&source).1.parts.len(), 2);
    let source = source + &common::function("other", "push %rbx\ncall b\npop %rbx\nret");
    // Now `b` is a function, and `a` is called by it.
    assert_eq!(assembled(&source).1.parts.len(), 0);
}

/// A jump to nowhere in particular: what comes back from there is a part. So is what exceptions lead to.
#[test]
fn parts_that_only_come_back_or_are_landing_pads() {
    let made = ".type part,@function\npart:\n.cfi_startproc\n.cfi_def_cfa_offset 16\nmov $7,%eax\n";
    let computed = common::function(
        "f",
        "push %rbx\nlea (%rdi,%rsi),%rax\nxor $77,%rax\njmp *%rax\nback: pop %rbx\nret",
    );
    let (_, code) = assembled(&format!("{computed}{made}jmp back\n.cfi_endproc\n"));
    assert_eq!(code.parts.len(), 1);
    assert!(code.unresolved.is_some(), "and nobody knows where else it goes");
    let (_, code) = assembled(&format!("{computed}{made}ret\n.cfi_endproc\n"));
    assert_eq!(code.parts.len(), 0);

    let thrown = common::function("f", ".cfi_lsda 0x1b,table\npush %rbx\ncall *%rsi\nafter: pop %rbx\nret");
    let table = ".section .gcc_except_table,\"a\"\ntable: .byte 0x1b\n.long part-.\n.byte 0xff,1,4\n\
                 .uleb128 1,2,5,0\n.text\n";
    let (_, code) = assembled(&format!("{thrown}{made}hlt\n.cfi_endproc\n{table}"));
    assert_eq!(code.parts.len(), 1);
}

/// A nameless range in an assembled object.
fn local(name: &str, body: &str) -> String {
    format!(".p2align 4\n.type {name},@function\n{name}:\n.cfi_startproc\n{body}\n.cfi_endproc\n")
}

/// Assembles an object, strips it, and finds the code of `f`.
fn assembled(source: &str) -> (ObjectAnalysis, FunctionCode) {
    let file = ObjectFile::open(&build(source, "s", &["-nostdlib", "-s"])).unwrap();
    let entry = file.symbols().named("f").next().unwrap().addr;
    let object = ObjectAnalysis::new(&file);
    let code = FunctionCode::of(&object, entry).unwrap();
    (object, code)
}

/// Bytes inside another instruction that look like a call of the part do not make it a function.
#[test]
fn what_only_looks_like_a_call_proves_nothing() {
    let looks = "mov $0xe8,%al\n.byte 0x81,0xc0\n.long part-.-4\nret";
    let source = |middle: &str| {
        common::function("f", "test %esi,%esi\nje part\nlea 2(%rsi),%rax\nret")
            + &local("part", "mov $7,%eax\nmov $8,%ecx\nret")
            + &common::function("other", middle)
    };
    let parts = |middle: &str| assembled(&source(middle)).1.parts.len();
    assert_eq!(parts(looks), 1);
    assert_eq!(parts("nop\n.byte 0x48,0xb8,0,0,0,0xe8\n.long part-.-4\nret"), 1);
    assert_eq!(parts("call part\nret"), 0);
}

/// Many functions of random shape: every cold part is found without symbols, and nothing else but
/// what nobody calls.
#[test]
fn random_functions_get_their_parts_back() {
    let mut state = 7u64;
    let mut random = move |n: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % n
    };
    let mut source = CALLEES.to_owned() + "extern int g[100];\n";
    let count = 150;
    for i in 0..count {
        writeln!(source, "__attribute__((noinline)) int f{i}(int x, int *p);").unwrap();
    }
    for i in 0..count {
        writeln!(source, "int f{i}(int x, int *p) {{ int y = g[{i} % 100];").unwrap();
        for _ in 0..=random(4) {
            let (other, n) = (random(count), random(50));
            let line = match random(6) {
                0 => format!("if (__builtin_expect(p[{n}] > x, 0)) y += rare(x + {n});"),
                1 => format!("if (p[{n}] > x) leave(y);"),
                2 => format!(
                    "switch (x) {{ case 1: y ^= rare(y); break; case 2: y = common(y + {n}); break; case 3: leave(y); case 4: y += {n}; break; case 5: y = f{other}(y, p); break; case 6: rare(y); }}"
                ),
                3 => format!(
                    "for (int i = 0; i < x; i++) if (__builtin_expect(p[i] == {n}, 0)) y += rare(i) * y; else y += common(i);"
                ),
                4 => format!("y += f{other}(y - 1, p + 1);"),
                _ => format!("g[{n}] = common(y);"),
            };
            writeln!(source, "{line}").unwrap();
        }
        let tail = format!("return f{}(y, p);", random(count));
        writeln!(source, "{} }}", if random(3) == 0 { &tail } else { "return y;" }).unwrap();
    }
    for flags in [&["-O2"][..], &["-Os"], &["-O3", "-fno-omit-frame-pointer", "-fcf-protection"]] {
        let twins = twins(&source, "c", flags);
        let mut found = 0;
        for i in 0..count {
            let name = format!("f{i}");
            let has = twins.functions.iter().any(|f| f.0 == format!("{name}.cold"));
            let expected: Vec<String> = has.then(|| format!("{name}.cold")).into_iter().collect();
            assert_eq!(twins.parts(&name), expected, "{flags:?}");
            found += expected.len();
        }
        assert!(found > 40 || flags == ["-Os"], "{flags:?}: only {found}");
    }
}

/// What an exhaustive look at an object says about jumps between unwind ranges.
struct Jumps {
    /// Ranges that something jumps into, with the sources, and whether it is behind their start.
    into: BTreeMap<Vaddr, BTreeSet<(Vaddr, bool)>>,
    called: BTreeSet<Vaddr>,
    named: BTreeSet<Vaddr>,
}

fn frames(object: &ObjectAnalysis) -> Vec<Frame> {
    let frames = object.frames();
    let plt = [".plt", ".plt.sec", ".plt.got"].iter().filter_map(|n| object.file().section(n));
    let plt: Vec<_> = plt.map(|(at, bytes)| at..at + bytes.len() as u64).collect();
    let all = (0..frames.len()).filter_map(|i| frames.get(i));
    all.filter(|f| !plt.iter().any(|p| p.contains(&f.start))).collect()
}

fn jumps(object: &ObjectAnalysis) -> Jumps {
    let all = frames(object);
    let starts: BTreeSet<Vaddr> = all.iter().map(|f| f.start).collect();
    let named = object.file().symbols().all().map(|s| s.addr).collect();
    let mut jumps = Jumps { into: BTreeMap::new(), called: BTreeSet::new(), named };
    for frame in &all {
        let bytes = object.file().bytes_at(frame.start, frame.end.0 - frame.start.0).unwrap();
        for insn in Decoder::with_ip(64, bytes, frame.start.0, DecoderOptions::NONE) {
            let Some(target) = target(&insn) else { continue };
            if insn.is_call_near() {
                jumps.called.insert(target);
            } else if !frame.contains(target)
                && let Some(other) = object.frames().at(target)
                && starts.contains(&other.start)
            {
                let sources = jumps.into.entry(other.start).or_default();
                sources.insert((frame.start, target != other.start));
            }
        }
    }
    jumps
}

fn target(insn: &Instruction) -> Option<Vaddr> {
    let near = (0..insn.op_count()).any(|i| insn.op_kind(i) == OpKind::NearBranch64);
    near.then(|| Vaddr(insn.near_branch_target()))
}

/// Debian's binaries: every jump into the middle of another range, and every range that starts with
/// a frame already made, belongs to some function.
#[test]
fn nothing_of_debians_binaries_is_overlooked() {
    for path in ["/usr/bin/redis-server", "/lib/x86_64-linux-gnu/libc.so.6", "/usr/sbin/nginx"] {
        let Ok(file) = ObjectFile::open(Path::new(path)) else {
            println!("not looked at: there is no {path}");
            continue;
        };
        let object = ObjectAnalysis::new(&file);
        let (all, jumps) = (frames(&object), jumps(&object));
        let fresh = |f: &Frame| object.frames().starts_like_a_function(f) != Some(false);
        let jumped = |at: Vaddr| jumps.into.get(&at).is_some_and(|e| e.iter().any(|(_, middle)| !middle));
        let known = |at: Vaddr| jumps.named.contains(&at) || jumps.called.contains(&at);
        let (mut parts, mut missing) = (BTreeSet::new(), Vec::new());
        for function in all.iter().filter(|f| known(f.start) || fresh(f) && !jumped(f.start)) {
            let Ok(code) = FunctionCode::of(&object, function.start) else { continue };
            let covered = |at: Vaddr| code.ranges().any(|r| r.contains(&at));
            for (start, sources) in &jumps.into {
                if sources.contains(&(function.start, true)) && !covered(*start) {
                    missing.push((function.start, *start));
                }
            }
            parts.extend(code.parts.iter().map(|p| p.start));
        }
        assert!(missing.is_empty(), "{path}: {missing:?}");
        // The return from a signal handler and the start of a thread are entered by the kernel.
        let by_kernel = if path.contains("libc.so") { 3 } else { 0 };
        let orphans = all.iter().filter(|f| !fresh(f) && !known(f.start) && !parts.contains(&f.start));
        let orphans: Vec<Vaddr> = orphans.map(|f| f.start).collect();
        assert!(orphans.len() <= by_kernel, "{path}: {orphans:?}");
        let nameless = |(at, e): &(&Vaddr, &BTreeSet<(Vaddr, bool)>)| !known(**at) && e.iter().any(|s| s.1);
        let middles = jumps.into.iter().filter(nameless).count();
        println!("{path}: {} parts, {middles} nameless ranges entered behind their start", parts.len());
    }
}

/// The C library's parts by the names in its debug file.
#[test]
fn parts_of_libc_by_the_names_of_its_debug_file() {
    let file = ObjectFile::open(Path::new("/lib/x86_64-linux-gnu/libc.so.6")).unwrap();
    let id = file.build_id().unwrap().to_string();
    let debug = format!("/usr/lib/debug/.build-id/{}/{}.debug", &id[..2], &id[2..]);
    let Ok(debug) = ObjectFile::open(Path::new(&debug)) else {
        return println!(
            "not looked at: the debug file of this libc ({debug}, package libc6-dbg) is not here"
        );
    };
    let object = ObjectAnalysis::new(&file);
    let functions = functions(&debug);
    let mut found = 0;
    for (name, part) in functions.iter().filter(|f| f.0.ends_with(".cold")) {
        let parent = name.strip_suffix(".cold").unwrap();
        let parents = functions.iter().filter(|f| f.0 == parent).map(|f| f.1.start);
        let has = |at: Vaddr| FunctionCode::of(&object, at).unwrap().parts.contains(part);
        assert!(parents.clone().any(has), "{name} of {:?}", parents.collect::<Vec<_>>());
        found += 1;
    }
    assert!(found > 50, "{found}");
    println!("{found} cold parts, all found");
}
