//! Every instruction of running programs: a walk with two registers gives the frames that a walk with all
//! registers gives, or none.
//!
//! The program is run one instruction at a time. A walk with all registers follows the frame pointer
//! where the program keeps one; a walk with two computes heights from the code. They share nothing but
//! the call frame information of frames without a frame pointer.

mod common;

use common::{Blocked, Stopped, Target, build, walk_bare};
use std::collections::BTreeMap;
use std::fmt::Write;
use suture_unwind::{Unreliable, Unwinder};

/// Instructions that are looked at per program; `SUTURE_STEPS` makes it more.
fn steps() -> usize {
    std::env::var("SUTURE_STEPS").ok().and_then(|n| n.parse().ok()).unwrap_or(6_000)
}

/// What came of the walks.
#[derive(Debug, Default)]
struct Count {
    /// Both walked, and the same.
    same: usize,
    /// Of those, with a computed height.
    computed: usize,
    /// Refused with two registers, by reason.
    refused: BTreeMap<&'static str, usize>,
    /// Refused with all registers: hand-written code.
    neither: usize,
    /// Walked with all registers from inside the kernel's virtual object.
    vdso: usize,
}

fn reason(why: &Unreliable) -> &'static str {
    match why {
        Unreliable::NoHeight { why, .. } => match why {
            suture_unwind::NoHeight::Dynamic => "computed room",
            suture_unwind::NoHeight::Aligned => "aligned",
            suture_unwind::NoHeight::Conflict => "conflict",
            _ => "no way there",
        },
        Unreliable::UnknownRegister { .. } => "register",
        _ => "other",
    }
}

fn step_through(source: &str, extension: &str, flags: &[&str]) -> Count {
    let mut target = Target::start(&build(source, extension, flags), &[]);
    target.reading();
    let modules = target.modules();
    let memory = target.memory();
    let mut stopped = Stopped::stop(target.pid()).unwrap();
    target.feed(b"go");
    let mut full = Unwinder::new(&modules, Vec::new());
    let mut bare = Unwinder::new(&modules, Vec::new());
    let mut count = Count::default();
    for _ in 0..steps() {
        if !stopped.step() {
            break;
        }
        let at = Blocked { number: 0, sp: stopped.raw.rsp, pc: stopped.raw.rip };
        let truth = full.walk(stopped.registers, &memory);
        let vdso = |w: &suture_unwind::Walk| modules[w.frames[0].module].name == "[vdso]";
        count.vdso += usize::from(truth.as_ref().is_ok_and(vdso));
        match (truth, walk_bare(&mut bare, at, &memory)) {
            (Ok(truth), Ok(found)) => {
                let key = |w: &suture_unwind::Walk| {
                    w.frames.iter().map(|f| (f.pc, f.cfa, f.kind)).collect::<Vec<_>>()
                };
                assert_eq!(key(&truth), key(&found), "at {:#x} in {:?}", at.pc, target.pid());
                assert_eq!(truth.bottom, found.bottom);
                count.same += 1;
                count.computed += usize::from(found.frames.iter().any(|f| f.by_height));
            }
            (Ok(_), Err(why)) => {
                if reason(&why) == "no way there" || reason(&why) == "conflict" {
                    let m = modules.iter().find(|m| m.range().contains(&at.pc)).unwrap();
                    println!("{why} {} {:?} {:x}", m.name, m.symbol_at(at.pc), at.pc - m.base.0)
                }
                *count.refused.entry(reason(&why)).or_default() += 1
            }
            (Err(_), Ok(found)) => {
                panic!("only a walk with two registers succeeds at {:#x}: {found:x?}", at.pc)
            }
            (Err(_), Err(_)) => count.neither += 1,
        }
    }
    count
}

/// Functions of random shape that call each other, with everything that moves the stack pointer.
fn program(seed: u64) -> String {
    let mut state = seed;
    let mut random = move |n: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % n
    };
    let mut source = String::from(
        "#include <unistd.h>\n#include <string.h>\n#include <stdlib.h>\n#include <stdio.h>\n#include <alloca.h>\n\
         struct big { long l[9]; };\nstatic volatile long sink; static int budget = 3000;\n\
         __attribute__((noipa)) static int compare(const void *a, const void *b) { return *(const int *)a - *(const int *)b; }\n\
         __attribute__((noipa)) static long many(long a, long b, long c, long d, long e, long f, long g, long h, struct big i) { return a ^ b ^ c ^ d ^ e ^ f ^ g ^ h ^ i.l[3]; }\n\
         __attribute__((noipa, cold)) static long rare(long x) { return x * 3; }\n",
    );
    let count = 24;
    for i in 0..count {
        writeln!(source, "static long f{i}(long x, char *p) __attribute__((noipa));").unwrap();
    }
    for i in 0..count {
        writeln!(source, "static long f{i}(long x, char *p) {{ if (--budget < 0) return x;").unwrap();
        for _ in 0..=random(5) {
            let (other, n) = (random(count), random(40) + 1);
            let line = match random(9) {
                0 => {
                    format!("struct big b{n} = {{ {{ x, {n} }} }}; x += many(x, 1, 2, 3, 4, 5, 6, 7, b{n});")
                }
                1 => format!(
                    "switch (x & 7) {{ case 0: x += rare(x); break; case 1: x ^= many(x, x, 1, 2, 3, 4, 5, 6, (struct big) {{ {{ x }} }}); break; case 2: x -= {n}; break; case 3: x += f{other}(x, p); break; case 4: x *= 3; break; case 6: memset(p, x, 8); }}"
                ),
                2 => format!("if (__builtin_expect(x == {n}, 0)) {{ x += rare(x); return f{other}(x, p); }}"),
                3 => format!("for (int i = 0; i < {}; i++) x += f{other}(x + i, p);", random(3)),
                4 => format!(
                    "int a{n}[8] = {{ 5, {n}, 3, (int)x, 9, 1, 2, 8 }}; qsort(a{n}, 8, 4, compare); x += a{n}[2];"
                ),
                5 => format!("if (x & 1) {{ char *q = alloca(x & 63); q[0] = x; x += f{other}(x, q); }}"),
                6 => format!(
                    "char v{n}[{}]; memset(v{n}, x, sizeof v{n}); x += v{n}[{n} % 20] + f{other}(x, v{n});",
                    random(6000) + 30
                ),
                7 => format!(
                    "static void *const to{n}[] = {{ &&a{n}, &&b{n}, &&c{n} }}; goto *to{n}[(unsigned long)x % 3]; a{n}: x += rare(x); b{n}: x += many(x, 1, 2, 3, 4, 5, 6, 7, (struct big) {{ {{ 1 }} }}); c{n}: sink = x;"
                ),
                _ => format!("x += f{other}(x + {n}, p);"),
            };
            writeln!(source, "{line}").unwrap();
        }
        writeln!(source, "return x; }}").unwrap();
    }
    source += "int main() { char room[64], text[64]; read(0, room, 1); for (int i = 0; i < 500; i++) { budget = 60; sink += f0(i, room); snprintf(text, 64, \"%d %s\", i, room); } return 0; }\n";
    source
}

#[test]
fn programs_with_frame_pointers() {
    for (seed, optimise) in [(1, "-O2"), (2, "-O1"), (3, "-Os"), (4, "-O0"), (5, "-O3")] {
        let more = if seed % 2 == 0 { "-fstack-clash-protection" } else { "-fcf-protection" };
        let flags = [optimise, "-fno-omit-frame-pointer", "-mno-omit-leaf-frame-pointer", more];
        let count = step_through(&program(seed), "c", &flags);
        println!("seed {seed}, {flags:?}: {count:?}");
        let refused: usize = count.refused.values().sum();
        // Whoever asks for computed room gets it; anything else is rare.
        let other = refused - count.refused.get("computed room").copied().unwrap_or(0);
        assert!(count.computed * 10 > count.same && count.same > 50 * other, "{count:?}");
    }
}

#[test]
fn programs_without_frame_pointers() {
    for seed in [11, 12] {
        let count = step_through(&program(seed), "c", &["-O2", "-fomit-frame-pointer"]);
        println!("seed {seed}: {count:?}");
        assert!(count.same > count.refused.values().sum::<usize>(), "{count:?}");
    }
}

/// Exceptions: unwinding itself, landing pads, cold parts.
#[test]
fn programs_with_exceptions() {
    let source = "#include <unistd.h>\n#include <string>\n#include <vector>\n\
        struct Guard { int *x; ~Guard() { ++*x; } };\n\
        __attribute__((noipa)) static int thrower(int n) { if (n % 3 == 0) throw n; if (n % 5 == 0) throw std::string(\"five\"); return n; }\n\
        __attribute__((noipa)) static int between(int n, int *p) { Guard g{p}; std::vector<int> v(n % 7 + 1, n); return thrower(n) + v[0]; }\n\
        __attribute__((noipa)) static int catcher(int n) { int k = 0; try { k += between(n, &k); } catch (int e) { k += e; } catch (std::string &s) { k += s.size(); } return k; }\n\
        int main() { char c; int s = read(0, &c, 1); for (int i = 1; i < 100; i++) s += catcher(i); return s & 1; }\n";
    for flags in [&["-O2", "-fno-omit-frame-pointer"][..], &["-O2"]] {
        let count = step_through(source, "cc", flags);
        println!("{flags:?}: {count:?}");
        assert!(count.same > count.refused.values().sum::<usize>(), "{count:?}");
    }
}

/// Whose description lies in memory only.
#[test]
fn calls_into_the_vdso() {
    let source = "#include <time.h>\n#include <unistd.h>\n#include <sys/time.h>\n\
        int main() { char c; struct timespec t; struct timeval v; int s = read(0, &c, 1);\n\
        for (int i = 0; i < 60; i++) { clock_gettime(i & 1, &t); gettimeofday(&v, 0); s += t.tv_nsec + v.tv_usec; } return s & 1; }\n";
    let count = step_through(source, "c", &["-O2"]);
    println!("{count:?}");
    assert!(count.vdso > 300, "{count:?}");
}
