//! What is refused, and in which words: one row per reason.

mod common;

use common::{Host, compile, dir, host, patch};
use suture_elf::ObjectFile;
use suture_link::{DescriptorError, PatchDescriptor, PatchFile};

const HOST: &str = r#"
#include <math.h>
__attribute__((noinline)) long target(long x) { __asm__ volatile("" : "+r"(x)); return x; }
__attribute__((noinline)) long other_target(long x) { __asm__ volatile("" : "+r"(x)); return x + 1; }
long twin(long) __attribute__((alias("target")));
int exported_data = 1;
static __attribute__((noinline)) int dup_alike(int x) { __asm__ volatile("" : "+r"(x)); return x; }
int call_dup(int x) { return dup_alike(x); }
"#;
const SECOND: &str = r#"
static __attribute__((noinline)) int dup_alike(int x) { __asm__ volatile("" : "+r"(x)); return x + 1; }
int call_dup2(int x) { return dup_alike(x); }
void split_up(void);
__asm__(".text\n.globl split_up.constprop.0\n.type split_up.constprop.0,@function\nsplit_up.constprop.0: ret\n.size split_up.constprop.0,1");
__thread int tls_counter;
"#;

struct Row {
    name: &'static str,
    compiler: &'static str,
    flags: &'static [&'static str],
    source: &'static str,
    says: &'static str,
}

/// An ordinary patch around some extra lines.
fn ordinary(extra: &str) -> String {
    format!(
        "#include <suture.h>\n{extra}\n#ifndef FIXED\n#define FIXED static long fixed(long x) {{ return x; }}\n#endif\n\
         FIXED\n#ifndef PATCH\n#define PATCH SUTURE_PATCH(\"row\", SUTURE_OBJECT(SUTURE_MAIN, SUTURE_FUNC(\"target\", fixed)));\n#endif\nPATCH\n"
    )
}

fn program() -> std::path::PathBuf {
    use std::sync::OnceLock;
    static HOST_PATH: OnceLock<std::path::PathBuf> = OnceLock::new();
    HOST_PATH
        .get_or_init(|| {
            let second = dir().join("second.c");
            std::fs::write(&second, SECOND).unwrap();
            host("host-refuse", "gcc", HOST, &["-rdynamic", second.to_str().unwrap()])
        })
        .clone()
}

#[test]
#[rustfmt::skip]
fn patches_that_are_refused() {
    let row = |name, source, says| Row { name, compiler: "gcc", flags: &[], source, says };
    let with = |flags, row: Row| Row { flags, ..row };
    let rows = [
        row("own-tls", "static __thread int mine; int *mine_at(void); int *mine_at(void) { return &mine; }", "thread-local variables of its own"),
        row("own-ifunc", "static int a(void) { return 1; } static void *pick(void) { return (void *)a; } \
             int choose(void) __attribute__((ifunc(\"pick\"))); int user(void); int user(void) { return choose(); }", "indirect function"),
        row("constructor", "__attribute__((constructor)) static void begin(void) { __asm__ volatile(\"\"); }", "has constructors (begin)"),
        row("destructor", "__attribute__((destructor)) static void end(void) { __asm__ volatile(\"\"); }", "has destructors (end)"),
        with(&["-fno-asynchronous-unwind-tables"], row("no-tables", "", "no unwind tables")),
        with(&["-Wl,--no-eh-frame-hdr"], row("no-table-header", "", "no unwind tables (.eh_frame_hdr)")),
        with(&["-z", "execstack"], row("exec-stack", "", "executable stack")),
        row("missing-symbol", "SUTURE_EXTERN int nobody_has_this(void);\n#define FIXED static long fixed(long x) { return nobody_has_this() + x; }",
            "`nobody_has_this` is neither exported by a loaded object nor a private symbol of a patched one"),
        row("similar-import", "SUTURE_EXTERN int dup_alik(int);\n#define FIXED static long fixed(long x) { return dup_alik((int)x); }", "did you mean `dup_alike`?"),
        row("similar-reference", "SUTURE_POINTER(int, p);\n#define PATCH SUTURE_PATCH(\"row\", SUTURE_OBJECT(SUTURE_MAIN, SUTURE_FUNC(\"target\", fixed)), SUTURE_SYMBOL(p, SUTURE_MAIN, \"exported_dta\", 0));", "has no symbol `exported_dta`; did you mean `exported_data`?"),
        // libc exports a `dup` of its own, which comes first: the private ones are called `dup_alike`.
        row("ambiguous", "SUTURE_EXTERN int dup_alike(int);\n#define FIXED static long fixed(long x) { return dup_alike((int)x); }", "`dup_alike` is ambiguous: position 1 in"),
        row("folded", "SUTURE_EXTERN void split_up(void);\n#define FIXED static long fixed(long x) { split_up(); return x; }", "took `split_up` apart"),
        row("preempted", "__attribute__((visibility(\"default\"))) int exported_data = 2;", "preempted: exported_data"),
        row("tls-as-plain", "SUTURE_EXTERN int tls_counter;\n#define FIXED static long fixed(long x) { return tls_counter + x; }", "is thread-local in"),
        row("plain-as-tls", "SUTURE_EXTERN __thread int exported_data;\n#define FIXED static long fixed(long x) { return exported_data + x; }", "is an ordinary symbol in"),
        row("unknown-function", "#define PATCH SUTURE_PATCH(\"row\", SUTURE_OBJECT(SUTURE_MAIN, SUTURE_FUNC(\"targett\", fixed)));", "has no function `targett`; did you mean `target`?"),
        row("not-a-function", "#define PATCH SUTURE_PATCH(\"row\", SUTURE_OBJECT(SUTURE_MAIN, SUTURE_FUNC(\"exported_data\", fixed)));", "is not a function"),
        row("ambiguous-function", "#define PATCH SUTURE_PATCH(\"row\", SUTURE_OBJECT(SUTURE_MAIN, SUTURE_FUNC(\"dup_alike\", fixed)));", "has 2 functions `dup_alike`: 1 at "),
        row("position", "#define PATCH SUTURE_PATCH(\"row\", SUTURE_OBJECT(SUTURE_MAIN, SUTURE_FUNC_AT(\"dup_alike\", 3, fixed)));", "has 2 function(s) `dup_alike`, so there is no position 3"),
        row("alias", "#define PATCH SUTURE_PATCH(\"row\", SUTURE_OBJECT(SUTURE_MAIN, SUTURE_FUNC(\"target\", fixed), SUTURE_FUNC(\"twin\", fixed)));", "are one function"),
        row("twice", "#define PATCH SUTURE_PATCH(\"row\", SUTURE_OBJECT(SUTURE_MAIN, SUTURE_FUNC(\"target\", fixed), SUTURE_FUNC(\"target\", fixed)));", "replaces `target` twice"),
        row("build-id", "#define PATCH SUTURE_PATCH(\"row\", SUTURE_OBJECT_ID(SUTURE_MAIN, \"00112233\", SUTURE_FUNC(\"target\", fixed)));", "the patch needs build-id 00112233, the process has "),
        row("expected-bytes", "SUTURE_POINTER(int, p);\n#define PATCH SUTURE_PATCH(\"row\", SUTURE_OBJECT(SUTURE_MAIN, SUTURE_FUNC(\"target\", fixed)), SUTURE_OFFSET(p, SUTURE_MAIN, 0, \"00454c46\"));", "has the bytes 7f454c46, the patch expects 00454c46"),
        row("reference-object", "SUTURE_POINTER(int, p);\n#define PATCH SUTURE_PATCH(\"row\", SUTURE_OBJECT(SUTURE_MAIN, SUTURE_FUNC(\"target\", fixed)), SUTURE_SYMBOL(p, \"libnone.so\", \"x\", 0));", "a reference names libnone.so, which is not loaded"),
        row("needs-loader", "#define PATCH SUTURE_PATCH(\"row\", SUTURE_WITH_LOADER, SUTURE_OBJECT(SUTURE_MAIN, SUTURE_FUNC(\"target\", fixed)));", "SUTURE_WITH_LOADER"),
        row("bad-name", "#define PATCH SUTURE_PATCH(\"a name\", SUTURE_OBJECT(SUTURE_MAIN, SUTURE_FUNC(\"target\", fixed)));", "the patch's name \"a name\" is not"),
        row("no-new-function", "#define PATCH SUTURE_PATCH(\"row\", SUTURE_OBJECT(SUTURE_MAIN, SUTURE_FUNC(\"target\", 0)));", "the new function for `target` is missing"),
        row("foreign-new-function", "SUTURE_EXTERN long other_target(long);\n#define PATCH SUTURE_PATCH(\"row\", SUTURE_OBJECT(SUTURE_MAIN, SUTURE_FUNC(\"target\", other_target)));", "refers to `other_target`, which the patch does not define"),
        row("data-as-function", "static long data = 5;\n#define PATCH SUTURE_PATCH(\"row\", SUTURE_OBJECT(SUTURE_MAIN, SUTURE_FUNC(\"target\", &data)));", "is not in executable memory"),
        row("state-twice", "#define PATCH SUTURE_PATCH(\"row\", SUTURE_STATE(4, 0, 0, 0, 0, 0, 0), SUTURE_STATE(4, 0, 0, 0, 0, 0, 0));", "state 4 stands in the patch twice"),
        row("state-flags", "#define PATCH SUTURE_PATCH(\"row\", SUTURE_STATE(4, 8, 0, 0, 0, 0, 0));", "the flags of state 4 has unknown bits 0x8"),
        row("bad-hex", "#define PATCH SUTURE_PATCH(\"row\", SUTURE_OBJECT_ID(SUTURE_MAIN, \"xyz\", SUTURE_FUNC(\"target\", fixed)));", "not hexadecimal"),
        row("empty", "#define PATCH static void *keep[] __attribute__((used)) = {(void *)fixed}; __attribute__((visibility(\"default\"))) struct suture_patch suture_patch = {SUTURE_ABI, sizeof(struct suture_patch), \"e\", 0, 0, 0, 0};", "replaces nothing"),
        row("no-descriptor", "#define PATCH static void *keep[] __attribute__((used)) = {(void *)fixed};", "no symbol `suture_patch` is exported"),
        row("abi", "#define PATCH static void *keep[] __attribute__((used)) = {(void *)fixed}; __attribute__((visibility(\"default\"))) struct suture_patch suture_patch = {9, 48, \"e\", 0, 0, 0, 0};", "descriptor version 9"),
        row("bare-function", "extern long bare(long);\n__asm__(\".text\\n.globl bare\\n.hidden bare\\n.type bare,@function\\nbare: mov %rdi,%rax\\n ret\\n.size bare,.-bare\");\n#define PATCH static void *keep[] __attribute__((used)) = {(void *)fixed}; SUTURE_PATCH(\"row\", SUTURE_OBJECT(SUTURE_MAIN, SUTURE_FUNC(\"target\", bare)));", "the new `target` has no unwind tables"),
        row("misaligned", "#define PATCH static const struct suture_object o[] = {{0, 0, (void *)((char *)&o + 1)}, {0, 0, 0}}; \
             static void *keep[] __attribute__((used)) = {(void *)fixed}; \
             __attribute__((visibility(\"default\"))) struct suture_patch suture_patch = {SUTURE_ABI, 48, \"e\", 0, o, 0, 0};", "not a multiple of 8"),
        row("number-as-pointer", "#define PATCH static const struct suture_object o[] = {{0, 0, (void *)8}, {0, 0, 0}}; \
             static void *keep[] __attribute__((used)) = {(void *)fixed}; \
             __attribute__((visibility(\"default\"))) struct suture_patch suture_patch = {SUTURE_ABI, 48, \"e\", 0, o, 0, 0};", "is the number 0x8 instead of an address"),
        Row { name: "static-constructor", compiler: "g++", flags: &[], source: "#include <string>\nstruct Begin { Begin(); }; Begin::Begin() { __asm__ volatile(\"\"); } Begin begin;", says: "has constructors" },
        with(&["-lm", "-Wl,--no-as-needed"], row("library-not-loaded",
            "SUTURE_EXTERN double lgamma(double);\n#define FIXED static long fixed(long x) { return (long)lgamma((double)x); }", "libm.so.6, which the process has not loaded")),
    ];
    let program = program();
    let process = Host::start(&program, &[]);
    let mut failures = Vec::new();
    for row in &rows {
        let file = patch(&format!("refuse-{}", row.name), row.compiler, &ordinary(row.source), row.flags);
        match process.link(&file) {
            Ok(_) => failures.push(format!("{}: was accepted", row.name)),
            Err(error) if error.to_string().contains(row.says) => {}
            Err(error) => failures.push(format!("{}: {error}", row.name)),
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// Tables as no macro writes them: null, dangling, foreign, without an end, filled twice.
#[test]
#[rustfmt::skip]
fn descriptors_that_make_no_sense_are_refused_by_field() {
    // `o`, `s` and `r` are the tables of objects, states and references.
    const OBJECTS: &str = "static const struct suture_func f[] = {{\"target\", (void *)fixed, 0, 0, 0}, {0, 0, 0, 0, 0}}; \
        static const struct suture_object o[] = {{0, 0, f}, {0, 0, 0}};";
    const STATES: &str = "static const struct suture_state s[] = {{0, 0, 0, {0, 0, 0, 0, 0}}};";
    const REFERENCES: &str = "static const struct suture_reference r[] = {{0, 0, 0, 0, 0, 0, 0, 0}};";
    let objects = |text: &'static str| [text, STATES, REFERENCES];
    let states = |text: &'static str| [OBJECTS, text, REFERENCES];
    let references = |text: &'static str| [OBJECTS, STATES, text];
    let rows = [
        ("objects-dangling", objects("static const struct suture_object o[] = {{0, 0, (void *)((char *)&suture_patch + 0x4000000)}, {0, 0, 0}};"),
            "the array of functions of the main executable points to 0x400"),
        ("objects-no-name", objects("static const struct suture_object o[] = {{\"\", 0, (void *)fixed}, {0, 0, 0}};"), "the name of object 1 is missing"),
        ("objects-name-no-text", objects("static const struct suture_object o[] = {{\"\\xff\\xfe\", 0, (void *)fixed}, {0, 0, 0}};"), "the name of object 1 is no text"),
        ("objects-no-functions", objects("static const struct suture_object o[] = {{\"libx.so\", 0, 0}, {0, 0, 0}};"), "the array of functions of libx.so is missing"),
        ("objects-twice", objects("static const struct suture_func f[] = {{\"target\", (void *)fixed, 0, 0, 0}, {0, 0, 0, 0, 0}}; \
            static const struct suture_object o[] = {{0, 0, f}, {0, 0, f}, {0, 0, 0}};"), "stands in the patch twice; put its functions together"),
        ("functions-no-name", objects("static const struct suture_func f[] = {{0, (void *)fixed, 0, 0, 0}, {0, 0, 0, 0, 0}}; \
            static const struct suture_object o[] = {{0, 0, f}, {0, 0, 0}};"), "the name of function 1 of the main executable is missing"),
        ("functions-huge", objects("static const struct suture_func f[80000] = {[0 ... 79999] = {\"target\", (void *)fixed, 0, 0, 0}}; \
            static const struct suture_object o[] = {{0, 0, f}, {0, 0, 0}};"), "the array of functions of the main executable does not end"),
        ("functions-few-bytes", objects("static const struct suture_func f[] = {{0, (void *)fixed, 0, 0x1000, \"4154\"}, {0, 0, 0, 0, 0}}; \
            static const struct suture_object o[] = {{0, \"00ff\", f}, {0, 0, 0}};"), "fewer than four"),
        ("functions-no-build-id", objects("static const struct suture_func f[] = {{0, (void *)fixed, 0, 0x1000, \"41544154\"}, {0, 0, 0, 0, 0}}; \
            static const struct suture_object o[] = {{0, 0, f}, {0, 0, 0}};"), "holds for one build only"),
        ("states-data", states("static long data = 1; static const struct suture_state s[] = {{4, 0, 0, {(void *)&data, 0, 0, 0, 0}}, {0, 0, 0, {0, 0, 0, 0, 0}}};"),
            "pre_patch of state 4 at 0x"),
        ("states-foreign", states("SUTURE_EXTERN long other_target(long); static const struct suture_state s[] = {{4, 0, 0, {0, 0, 0, 0, (void *)other_target}}, {0, 0, 0, {0, 0, 0, 0, 0}}};"),
            "shadow_dtor of state 4 refers to `other_target`"),
        ("states-no-id", states("static const struct suture_state s[] = {{0, 1, 0, {0, 0, 0, 0, 0}}, {0, 0, 0, {0, 0, 0, 0, 0}}};"), "the id of a state is 0"),
        ("states-reserved", states("static const struct suture_state s[] = {{4, 0, 7, {0, 0, 0, 0, 0}}, {0, 0, 0, {0, 0, 0, 0, 0}}};"), "`reserved` of state 4 is 7"),
        ("references-constant", references("static void *const slot __attribute__((section(\".rodata\"))) = 0; static const struct suture_reference r[] = {{(void **)&slot, 0, 0, 0, \"target\", 0, 0, 0}, {0, 0, 0, 0, 0, 0, 0, 0}};"),
            "the slot of reference 1 at 0x"),
        ("references-kind", references("static void *slot; static const struct suture_reference r[] = {{&slot, 7, 0, 0, \"target\", 0, 0, 0}, {0, 0, 0, 0, 0, 0, 0, 0}};"), "the kind of reference 1 is 7"),
        ("references-twice", references("static void *slot; static const struct suture_reference r[] = {{&slot, 0, 0, 0, \"target\", 0, 0, 0}, {&slot, 0, 0, 0, \"target\", 0, 0, 0}, {0, 0, 0, 0, 0, 0, 0, 0}};"),
            "which another reference fills already"),
        ("references-no-symbol", references("static void *slot; static const struct suture_reference r[] = {{&slot, 0, 0, 0, 0, 0, 0, 0}, {0, 0, 0, 0, 0, 0, 0, 0}};"), "the symbol of reference 1 is missing"),
    ];
    let process = Host::start(&program(), &[]);
    let mut failures = Vec::new();
    for (name, tables, says) in rows {
        let raw = format!(
            "#define PATCH static void *keep[] __attribute__((used)) = {{(void *)fixed}}; \
             extern __attribute__((visibility(\"default\"))) struct suture_patch suture_patch; {} \
             struct suture_patch suture_patch = {{SUTURE_ABI, sizeof(struct suture_patch), \"raw\", 0, o, s, r}};",
            tables.join(" ")
        );
        let file = patch(&format!("refuse-raw-{name}"), "gcc", &ordinary(&raw), &[]);
        match process.link(&file) {
            Ok(_) => failures.push(format!("{name}: was accepted")),
            Err(error) if error.to_string().contains(says) => {}
            Err(error) => failures.push(format!("{name}: {error}")),
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn files_that_are_no_patches_are_refused() {
    let process = Host::start(&program(), &[]);
    let pie = compile("refuse-pie", "gcc", "int main(void) { return 0; }", &["-pie", "-fPIE"]);
    let fixed = compile("refuse-exec", "gcc", "int main(void) { return 0; }", &["-no-pie"]);
    let text = ordinary(
        "SUTURE_EXTERN int exported_data;\n#define FIXED static long fixed(long x) { return exported_data + x; }",
    );
    let textrel = patch("refuse-textrel", "gcc", &text, &["-fno-pic", "-mcmodel=large", "-Wl,-z,notext"]);
    for (file, says) in [
        (ObjectFile::open(&pie).unwrap(), "link the patch with -shared"),
        (ObjectFile::open(&fixed).unwrap(), "it loads at a fixed address"),
        (textrel, "text relocations"),
        (ObjectFile::open(std::path::Path::new("/proc/self/exe")).unwrap(), "is an executable"),
    ] {
        let error = process.link(&file).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
}

#[test]
fn a_static_program_is_named() {
    let source = "#include <stdio.h>\nint main(void) { fputs(\"ready\\n\", stderr); return getchar(); }";
    let program = compile("host-static", "gcc", source, &["-static"]);
    let process = Host::start(&program, &[]);
    let error = process.view().unwrap_err().to_string();
    assert!(error.contains("statically linked"), "{error}");
}

#[test]
fn unknown_tags_and_segments_are_refused_not_skipped() {
    let file = patch("refuse-tag", "gcc", &ordinary(""), &[]);
    let bytes = file.data().to_vec();
    // The tag of DT_STRSZ becomes Android's packed relocations.
    let dynamic = file.program_header(2).unwrap();
    let mut packed = bytes.clone();
    let tags = (0..dynamic.filesz as usize / 16).map(|i| dynamic.offset as usize + i * 16);
    let at = tags.clone().find(|&at| bytes[at..at + 8] == 10u64.to_le_bytes()).unwrap();
    packed[at..at + 8].copy_from_slice(&0x6000_000fu64.to_le_bytes());
    let process = Host::start(&program(), &[]);
    let refused = |bytes: Vec<u8>| {
        process.link(&ObjectFile::from_bytes(bytes, "x".into()).unwrap()).unwrap_err().to_string()
    };
    assert!(refused(packed).contains("dynamic tag 0x6000000f"));
    // PT_GNU_STACK becomes a type of nobody; then a writable segment becomes executable.
    let headers = || (0..file.program_headers().len()).map(|i| 64 + i * 56);
    let kind = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    let mut unknown = bytes.clone();
    let stack = headers().find(|&at| kind(at) == 0x6474_e551).unwrap();
    unknown[stack..stack + 4].copy_from_slice(&0x6fff_1234u32.to_le_bytes());
    assert!(refused(unknown).contains("unknown type 0x6fff1234"));
    let mut writable = bytes.clone();
    let data = headers().find(|&at| kind(at) == 1 && bytes[at + 4] == 6).unwrap();
    writable[data + 4] = 7;
    assert!(refused(writable).contains("writable and executable"));
}

#[test]
fn an_endless_array_is_named() {
    let file = patch("refuse-endless", "gcc", &ordinary(""), &[]);
    let patch_file = PatchFile::new(&file).unwrap();
    let objects = patch_file.exported("suture_patch").unwrap().value + 24;
    // The pointer to the objects leads to the last word of a segment: nothing can end there.
    let data = file.segments().last().unwrap();
    let last = ((data.addr.0 + data.memsz) & !7) - 8;
    let mut bytes = file.data().to_vec();
    let entry = bytes.windows(16).position(|w| w[..8] == objects.to_le_bytes() && w[8] == 8).unwrap();
    bytes[entry + 16..entry + 24].copy_from_slice(&last.to_le_bytes());
    let file = ObjectFile::from_bytes(bytes, "endless".into()).unwrap();
    let error = PatchDescriptor::read(&PatchFile::new(&file).unwrap()).unwrap_err();
    assert_eq!(error, DescriptorError::Unterminated { array: "the array of objects".into() });
}
