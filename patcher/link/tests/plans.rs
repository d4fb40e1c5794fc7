//! The plan itself: its shape, where names are found, and what tools make of the image.

mod common;

use common::{Host, compile, dir, have, host, open_file, patch};
use serde::Serialize;
use std::process::Command;
use suture_abi::batch::{FIXUP_RESOLVER, MAPPING_ANON};
use suture_elf::{Addr, Base, ObjectFile, Vaddr};
use suture_link::{DebugFile, LinkOptions, LinkPlan, ProcessError, ProcessView, debug_elf};

const HOST: &str = r#"
#include <string.h>
__attribute__((noinline)) long target(long x) { __asm__ volatile("" : "+r"(x)); return x; }
static __attribute__((noinline)) long hidden(long x) { __asm__ volatile("" : "+r"(x)); return x * 3; }
static int stock = 4;
long use(long x) { return hidden(x) + stock++; }
"#;

/// What of a plan does not depend on this machine's addresses and library builds.
#[derive(Serialize)]
struct Shape<'a> {
    name: &'a str,
    mappings: Vec<String>,
    fixups: Vec<String>,
    bound: &'a [suture_link::relocate::BoundSymbol],
    objects: Vec<&'a str>,
    funcs: Vec<String>,
    old_refs: Vec<usize>,
    states: Vec<String>,
    absent: &'a [String],
    pinned: &'a [String],
}

fn shape(plan: &LinkPlan) -> Shape<'_> {
    let prot = |p: u32| [(1, 'r'), (2, 'w'), (4, 'x')].map(|(bit, c)| if p & bit != 0 { c } else { '-' });
    let mapping = |m: &suture_abi::batch::Mapping| {
        let kind = if m.kind == MAPPING_ANON { "empty" } else { "file" };
        let [now, later] = [m.prot, m.final_prot].map(|p| prot(p).iter().collect::<String>());
        format!("+{:#x} {kind} {now} then {later}", m.addr - plan.base.0)
    };
    let fixup = |f: &suture_abi::batch::Fixup| {
        let kind = ["address", "resolver", "value", "descriptor"][f.kind as usize];
        format!("{kind} in {}", plan.objects.get(f.object as usize).map_or("-", |o| o.name.as_str()))
    };
    Shape {
        name: &plan.name,
        mappings: plan.mappings.iter().map(mapping).collect(),
        fixups: plan.fixups.iter().map(fixup).collect(),
        bound: &plan.bound,
        objects: plan.objects.iter().map(|o| o.name.as_str()).collect(),
        funcs: plan.funcs.iter().map(|f| format!("{} in object {}", f.name, f.object)).collect(),
        old_refs: plan.old_refs.iter().map(|r| r.func).collect(),
        states: plan
            .states
            .iter()
            .map(|s| {
                assert!(plan.range().contains(&s.state.0), "what callbacks get lies in the image");
                format!("state {}, shadow {}, block {}", s.id, s.is_shadow, s.block_disable)
            })
            .collect(),
        absent: &plan.absent,
        pinned: &plan.pinned,
    }
}

#[test]
fn an_ordinary_plan_has_this_shape() {
    let source = r#"
        #include <stdio.h>
        #include <stdlib.h>
        #include <suture.h>
        SUTURE_OLD(long, old_target, (long));
        SUTURE_POINTER(int, stock_at);
        SUTURE_EXTERN long hidden(long);
        static void leave(void) {}
        static volatile char room[20000];
        static void done(struct suture_patch *p, struct suture_state *s) { (void)p; (void)s; }
        static long fixed(long x) { atexit(leave); room[x] = 1; printf("%d\n", ++*stock_at); return old_target(hidden(x)); }
        SUTURE_PATCH("shape",
            SUTURE_OBJECT(SUTURE_MAIN, SUTURE_FUNC_OLD("target", fixed, old_target)),
            SUTURE_OBJECT("libabsent.so.9", SUTURE_FUNC("never", fixed)),
            SUTURE_SYMBOL(stock_at, SUTURE_MAIN, "stock", 0),
            SUTURE_STATE(3, SUTURE_IS_SHADOW, 0, done, 0, 0, 0));
    "#;
    // -nostartfiles leaves out atexit's glibc wrapper, so the plain C function is used.
    let source = source.replace("atexit(leave)", "__cxa_atexit((void (*)(void *))leave, 0, 0)");
    let source = source.replace(
        "static void leave",
        "SUTURE_EXTERN int __cxa_atexit(void (*)(void *), void *, void *);\nstatic void leave",
    );
    let program = host("host-shape", "gcc", HOST, &[]);
    let process = Host::start(&program, &[]);
    let plan = process.link(&patch("patch-shape", "gcc", &source, &["-fuse-ld=bfd"])).unwrap();
    insta::assert_json_snapshot!(shape(&plan));
}

#[test]
fn the_image_has_a_place_of_its_own() {
    let source = "#include <suture.h>\nstatic long fixed(long x) { return x; }\n\
                  SUTURE_PATCH(\"p\", SUTURE_OBJECT(SUTURE_MAIN, SUTURE_FUNC(\"target\", fixed)));";
    for flags in [&["-pie", "-fPIE"][..], &["-no-pie"]] {
        let process = Host::start(&host(&format!("host-place-{}", flags.len()), "gcc", HOST, flags), &[]);
        let plan = process.link(&patch("patch-place", "gcc", source, &[])).unwrap();
        let maps = process.facts().maps;
        let main = plan.objects[0].base;
        let range = plan.range();
        let guard = 64 << 10;
        assert!(maps.is_free(&(range.start - guard..range.end + guard)), "{range:x?}");
        let start = main + plan.objects[0].file.segments()[0].addr;
        assert!(range.start.abs_diff(start.0) < 1 << 31, "{range:x?} is far from {main}");
        for mapping in &plan.mappings {
            assert_ne!(mapping.prot & 6, 6, "{mapping:x?}");
            assert_eq!(mapping.addr % 4096 + mapping.len % 4096 + mapping.offset % 4096, 0);
        }
        for fixup in &plan.fixups {
            let writable = plan
                .mappings
                .iter()
                .any(|m| m.prot & 2 != 0 && (m.addr..m.addr + m.len).contains(&fixup.place));
            assert!(writable, "{fixup:x?}");
        }
        let image = plan.image;
        let header = (image.phdr - image.base - 64) as usize;
        assert_eq!(&plan.blob[header..header + 4], b"\x7fELF");
    }
}

/// The body the loader chose is used where a slot shows it, and the resolver where none does.
#[test]
fn indirect_functions_follow_the_programs_slots() {
    let patch_of = |body: &str, name: &str| {
        let source = format!(
            "#include <string.h>\n#include <wchar.h>\n#include <suture.h>\nstatic long fixed(long x) {{ {body} }}\n\
             SUTURE_PATCH(\"p\", SUTURE_OBJECT(SUTURE_MAIN, SUTURE_FUNC(\"target\", fixed)));"
        );
        patch(name, "gcc", &source, &["-fno-builtin"])
    };
    let process = Host::start(&host("host-slots", "gcc", HOST, &["-Wl,-z,now"]), &[]);
    let resolvers = |plan: &LinkPlan| plan.fixups.iter().filter(|f| f.kind == FIXUP_RESOLVER).count();
    // libc itself calls memcpy through a slot; nobody calls wmemset.
    let bound =
        process.link(&patch_of("return (long)memcpy((void *)x, (void *)x, 0);", "patch-bound")).unwrap();
    assert_eq!(resolvers(&bound), 0, "{:?}", bound.bound);
    let unbound = patch_of("return (long)wcsncmp((void *)x, (void *)x, 0);", "patch-unbound");
    let unbound = process.link(&unbound).unwrap();
    let kinds: Vec<&str> = unbound.bound.iter().map(|b| b.kind).collect();
    assert!(resolvers(&unbound) == 1 || kinds == ["address"], "{:?}", unbound.bound);
    // Where both sources answer, they answer the same function.
    let view = process.view().unwrap();
    let libc = view.objects.iter().find(|o| o.name == "libc.so.6").unwrap();
    let fixup = bound.fixups[0];
    assert_eq!(bound.objects[fixup.object as usize].name, "libc.so.6");
    let body = view.symbol_at(bound.objects[fixup.object as usize].index, libc.base + Vaddr(fixup.addend));
    if let Some(body) = body {
        assert!(body.name.contains("mem"), "{body:?}");
    }
}

#[test]
fn functions_are_found_by_mangled_and_readable_names() {
    let source = "namespace shop { __attribute__((noinline)) long price(long x) { return x; }\n\
        __attribute__((noinline)) long price(int x) { return x; } struct Till { static long open(long); };\n\
        __attribute__((noinline)) long Till::open(long x) { return x; } }\n\
        extern \"C\" long use(long x) { return shop::price(x) + shop::price((int)x) + shop::Till::open(x); }";
    let process = Host::start(&host("host-names", "g++", source, &[]), &[]);
    let linked = |name: &str| {
        let source = format!(
            "#include <suture.h>\nstatic long fixed(long x) {{ return x; }}\n\
             SUTURE_PATCH(\"p\", SUTURE_OBJECT(SUTURE_MAIN, SUTURE_FUNC(\"{name}\", fixed)));"
        );
        process.link(&patch("patch-names", "gcc", &source, &[]))
    };
    for name in ["_ZN4shop5priceEl", "shop::price(long)"] {
        assert_eq!(linked(name).unwrap().funcs[0].name, "shop::price(long)", "{name}");
    }
    assert_eq!(linked("shop::Till::open").unwrap().funcs[0].symbol, "_ZN4shop4Till4openEl");
    let ambiguous = linked("shop::price").unwrap_err().to_string();
    assert!(ambiguous.contains("has 2 functions `shop::price`"), "{ambiguous}");
}

#[test]
fn an_indirect_function_is_replaced_in_its_chosen_body() {
    let source = "static __attribute__((noinline)) long body(long x) { __asm__ volatile(\"\"); return x; }\n\
        static void *pick(void) { return (void *)body; }\n\
        long chosen(long) __attribute__((ifunc(\"pick\")));\nlong use(long x) { return chosen(x); }\n\
        static void *pick2(void) { return (void *)body; }\nlong unused(long) __attribute__((ifunc(\"pick2\")));";
    let process = Host::start(&host("host-chosen", "gcc", source, &["-Wl,-z,now"]), &[]);
    let linked = |name: &str| {
        let source = format!(
            "#include <suture.h>\nstatic long fixed(long x) {{ return x; }}\n\
             SUTURE_PATCH(\"p\", SUTURE_OBJECT(SUTURE_MAIN, SUTURE_FUNC(\"{name}\", fixed)));"
        );
        process.link(&patch("patch-chosen", "gcc", &source, &[]))
    };
    let plan = linked("chosen").unwrap();
    assert_eq!(plan.funcs[0].symbol, "body");
    assert!(plan.funcs[0].old_size > 0);
    let error = linked("unused").unwrap_err().to_string();
    assert!(error.contains("no slot shows yet"), "{error}");
}

/// A stripped program whose symbols are in a debug file.
#[test]
fn private_symbols_come_from_debug_files() {
    let program = host("host-debug", "gcc", HOST, &["-g"]);
    let full = dir().join("host-debug.debug");
    let objcopy = |args: &[&str]| {
        let status = Command::new("objcopy").args(args).status().unwrap();
        assert!(status.success());
    };
    objcopy(&["--only-keep-debug", program.to_str().unwrap(), full.to_str().unwrap()]);
    objcopy(&["--strip-all", program.to_str().unwrap()]);
    let process = Host::start(&program, &[]);
    let source = "#include <suture.h>\nSUTURE_EXTERN long hidden(long);\nstatic long fixed(long x) { return hidden(x); }\n\
                  SUTURE_PATCH(\"p\", SUTURE_OBJECT(SUTURE_MAIN, SUTURE_FUNC(\"target\", fixed)));";
    let file = patch("patch-debug", "gcc", source, &[]);
    let stripped = process.link(&file).unwrap_err().to_string();
    assert!(stripped.contains("is stripped of the others"), "{stripped}");
    let view = process.view().unwrap();
    let debug = |object: &suture_link::LoadedObject| object.main.then(|| ObjectFile::open(&full).unwrap());
    let options = LinkOptions { debug_file: DebugFile(&debug), ..LinkOptions::default() };
    let plan = suture_link::link(&view, &file, &options).unwrap();
    assert_eq!(plan.funcs[0].symbol, "target");
    assert_eq!(process.run(&plan, 5).0, "result 15");
}

#[test]
fn a_file_that_was_replaced_on_disk_is_noticed() {
    let program = host("host-replaced", "gcc", HOST, &[]);
    let other = host("host-replacement", "gcc", &format!("{HOST}\nint changed;"), &[]);
    let process = Host::start(&program, &[]);
    let exe = program.to_str().unwrap().to_owned();
    let memory = common::ProcessMemory(process.id());
    let view = ProcessView::read(&memory, process.facts(), &|request| {
        if request.path == exe { ObjectFile::open(&other) } else { open_file(request) }
    });
    let error = view.unwrap_err();
    assert!(matches!(error, ProcessError::Replaced { .. }), "{error}");
    assert!(error.to_string().contains("was replaced on disk"), "{error}");
}

#[test]
fn namespaces_are_told_apart() {
    let source =
        "#include <stdio.h>\nlong island(long x) { return x; }\nvoid island_use(void) { puts(\"\"); }";
    compile("libisland.so", "gcc", source, &["-shared", "-fPIC", "-Wl,-soname,libisland.so", "-Wl,-z,lazy"]);
    let program = host(
        "host-island",
        "gcc",
        "#define _GNU_SOURCE\n#include <dlfcn.h>\n#include <stdio.h>\n__attribute__((noinline)) long target(long x) { return x; }\n\
         void host_start(void) { if (!dlmopen(LM_ID_NEWLM, \"libisland.so\", RTLD_NOW)) puts(dlerror()); }",
        &[],
    );
    let process = Host::start(&program, &[]);
    let view = process.view().unwrap();
    let island = view.objects_named(Some("libisland.so"))[0];
    assert_eq!(view.objects[island].namespace, 1);
    assert_eq!(view.objects_named(Some("libc.so.6")).len(), 2);
    let source = "#include <stdlib.h>\n#include <suture.h>\nstatic long fixed(long x) { return labs(x); }\n\
                  SUTURE_PATCH(\"p\", SUTURE_OBJECT(\"libisland.so\", SUTURE_FUNC(\"island\", fixed)));";
    let plan = process.link(&patch("patch-island", "gcc", source, &["-fno-builtin"])).unwrap();
    let libc = plan.objects.iter().find(|o| o.name == "libc.so.6").unwrap();
    assert_eq!(view.objects[libc.index].namespace, 1);
    assert_eq!(process.run(&plan, 7).0, "result 7");
}

/// gdb takes the addresses of the adjusted copy as they are.
#[test]
fn gdb_reads_the_adjusted_copy() {
    if !have("gdb") {
        return eprintln!("skipped: no gdb");
    }
    let source = "#include <suture.h>\nstatic __attribute__((noinline)) long fixed(long x) { return x; }\n\
                  SUTURE_PATCH(\"p\", SUTURE_OBJECT(SUTURE_MAIN, SUTURE_FUNC(\"target\", fixed)));";
    let file = patch("patch-gdb", "gcc", source, &["-g"]);
    let base = Base(0x7f12_3456_7000);
    let copy = debug_elf::adjusted(&file, base).unwrap();
    let path = dir().join("adjusted.elf");
    std::fs::write(&path, &copy).unwrap();
    let fixed = file.symbols().functions_named("fixed")[0].addr;
    let at: Addr = base + fixed;
    let mut gdb = Command::new("gdb");
    gdb.args(["-nx", "-batch", "-ex", &format!("info symbol {at}"), "-ex", "maint info sections"]).arg(&path);
    let said = gdb.output().unwrap();
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    assert!(said.contains("fixed in section .text"), "{said}");
    assert!(said.contains(".eh_frame"), "{said}");
    assert!(!said.contains(".debug_info"), "{said}");
}
