//! What a patch may do, one row per feature: each is built, linked into a running program, and run
//! there. The program prints nothing by itself; a row's result is what the new function returns.

mod common;

use common::{Host, compile, dir, have, host, patch};

/// The plainest program: exports nothing, and keeps everything its patches look for.
const HOST: &str = r#"
#include <stdio.h>
#include <string.h>
#include <errno.h>
__attribute__((noinline)) long target(long x) { __asm__ volatile("" : "+r"(x)); return x; }
int counter = 5;
const int table[2] = {11, 12};
int dup_data = 99;
static int hidden_counter = 6;
static __thread int hidden_per_thread = 50;
__thread int per_thread = 40;
static __attribute__((noinline)) int hidden_twice(int x)
{
    __asm__ volatile("" : "+r"(x));
    return 2 * x;
}
void host_start(void)
{
    hidden_counter += (int)target(0);
    hidden_per_thread += hidden_twice((int)target(0));
    per_thread += (int)target(0);
    errno = 0;
    volatile unsigned long n = strlen("warm up the lazy slot");
    (void)n;
}
"#;

/// One feature.
struct Row {
    name: &'static str,
    compiler: &'static str,
    host_source: &'static str,
    host: &'static [&'static str],
    flags: &'static [&'static str],
    env: &'static [(&'static str, &'static str)],
    /// Lines before `suture.h` is included, and after.
    before: &'static str,
    after: &'static str,
    body: &'static str,
    result: i64,
    /// Part of what the program prints.
    prints: &'static str,
}

const PIE: &[&str] = &["-fPIE", "-pie"];
const NOPIE: &[&str] = &["-fno-pie", "-no-pie"];
const STDIO: &str =
    "#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\n#include <errno.h>\n#include <unistd.h>";

/// A C patch whose new function is `long fixed(long x) { body }`.
fn row(name: &'static str, before: &'static str, body: &'static str, result: i64) -> Row {
    let (host, flags, env) = (PIE, &[][..], &[][..]);
    let (after, prints, host_source, compiler) = ("", "", HOST, "gcc");
    Row { name, compiler, host_source, host, flags, env, before, after, body, result, prints }
}

impl Row {
    fn host(self, host: &'static [&'static str]) -> Self {
        Self { host, ..self }
    }
    fn source(self, host_source: &'static str) -> Self {
        Self { host_source, ..self }
    }
    fn flags(self, flags: &'static [&'static str]) -> Self {
        Self { flags, ..self }
    }
    fn after(self, after: &'static str) -> Self {
        Self { after, ..self }
    }
    fn prints(self, prints: &'static str) -> Self {
        Self { prints, ..self }
    }
    fn compiler(self, compiler: &'static str) -> Self {
        Self { compiler, ..self }
    }

    fn run(&self) -> Result<(), String> {
        if !have(self.compiler) {
            eprintln!("skipped {}: no {}", self.name, self.compiler);
            return Ok(());
        }
        let cxx = self.compiler.ends_with("++");
        let program = host(
            &format!("host-{}", self.name),
            if cxx { "g++" } else { "gcc" },
            self.host_source,
            self.host,
        );
        let source = format!(
            "{}\n#include <suture.h>\n{}\nstatic long fixed(long x) {{ {} }}\n\
             SUTURE_PATCH(\"row\", SUTURE_OBJECT(SUTURE_MAIN, SUTURE_FUNC(\"target\", fixed)));\n",
            self.before, self.after, self.body,
        );
        let file = patch(&format!("patch-{}", self.name), self.compiler, &source, self.flags);
        let process = Host::start(&program, self.env);
        let plan = process.link(&file).map_err(|e| e.to_string())?;
        let (answer, output) = process.run(&plan, 7);
        if answer != format!("result {}", self.result) || !output.contains(self.prints) {
            return Err(format!("{answer}, printed {output:?}"));
        }
        Ok(())
    }
}

fn run(rows: &[Row]) {
    let failed = |row: &Row| row.run().err().map(|why| format!("{}: {why}", row.name));
    let failures: Vec<String> = rows.iter().filter_map(failed).collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
#[rustfmt::skip]
fn imports_from_libc() {
    run(&[
        row("plain", "", "return x * 100;", 700),
        row("printf", STDIO, "printf(\"hello %ld\\n\", x); return 1;", 1).prints("hello 7"),
        row("printf-nopie", STDIO, "printf(\"hello %ld\\n\", x); return 1;", 1).host(NOPIE).prints("hello 7"),
        row("stdout-bindnow", STDIO, "fputs(\"through\\n\", stdout); return 2;", 2).host(&["-pie", "-fPIE", "-Wl,-z,now"]).prints("through"),
        row("environ", STDIO, "return environ[0] != 0 && getenv(\"LD_LIBRARY_PATH\") != 0;", 1).flags(&["-D_GNU_SOURCE"]),
        row("malloc", STDIO, "char *p = malloc(100); strcpy(p, \"abc\"); long n = (long)strlen(p); free(p); return n;", 3),
        row("errno", STDIO, "close(-1); return errno == EBADF;", 1),
        row("ifunc-memcpy", STDIO, "char a[64], b[64]; memset(a, (int)x, 64); memcpy(b, a, x + 50); return b[56] + (memchr(b, 7, 64) == b);", 8)
            .flags(&["-fno-builtin"]),
        row("ifunc-pointer", STDIO, "size_t (*volatile f)(const char *) = strlen; return (long)f(\"12345\");", 5).flags(&["-fno-builtin"]),
        row("ifunc-unused", "#include <wchar.h>", "return (long)wcsnlen(L\"four\", 9) + (wmemchr(L\"ab\", L'b', 2) != 0);", 5).flags(&["-fno-builtin"]),
        row("default-version", "#include <pthread.h>", "extern int pthread_cond_init(); pthread_cond_t c = PTHREAD_COND_INITIALIZER; return pthread_cond_signal(&c);", 0),
        row("weak-undefined", "", "return nobody ? 1 : 42;", 42).after("SUTURE_EXTERN __attribute__((weak)) int nobody(void);"),
        row("bss", "", "zeros[99999] += (char)x; return zeros[99999] + zeros[5000] + ones[1];", 8)
            .after("static char zeros[100000]; static long ones[2] = {1, 1};"),
        row("dlsym", "#include <dlfcn.h>", "return dlsym(RTLD_DEFAULT, \"printf\") != 0;", 1).flags(&["-D_GNU_SOURCE"]),
    ]);
}

#[test]
#[rustfmt::skip]
fn function_addresses_are_the_programs() {
    const TAKES: &str = r#"
        #include <stdio.h>
        __attribute__((noinline)) long target(long x) { return x; }
        int (*address_of_puts)(const char *);
        void host_start(void) { address_of_puts = puts; }
    "#;
    const BODY: &str = "return address_of_puts == puts;";
    const AFTER: &str = "SUTURE_EXTERN int (*address_of_puts)(const char *);";
    run(&[
        // In a program that is not position independent the address is that of its own PLT entry.
        row("plt-address", STDIO, BODY, 1).source(TAKES).host(NOPIE).after(AFTER),
        row("plt-address-pie", STDIO, BODY, 1).source(TAKES).after(AFTER),
        // The program's copy of stdout is the one that libc uses as well.
        row("copied-variable", STDIO, "fputs(\"through\\n\", stdout); return address_of_stdout == &stdout;", 1)
            .source("#include <stdio.h>\n__attribute__((noinline)) long target(long x) { return x + (stdout == 0); }\nFILE **address_of_stdout = &stdout;")
            .host(NOPIE).after("SUTURE_EXTERN FILE **address_of_stdout;").prints("through"),
        row("plt-call", STDIO, "return puts(\"called\") >= 0;", 1).source(TAKES).host(NOPIE).prints("called"),
    ]);
}

#[test]
#[rustfmt::skip]
fn private_symbols_of_the_program() {
    run(&[
        row("private-function", "", "return hidden_twice((int)x);", 14).after("SUTURE_EXTERN int hidden_twice(int);"),
        row("private-data", "", "return ++hidden_counter;", 7).after("SUTURE_EXTERN int hidden_counter;"),
        row("private-data-nopie", "", "return ++hidden_counter;", 7).after("SUTURE_EXTERN int hidden_counter;").host(NOPIE),
        row("global-data", "", "return ++counter;", 6).after("SUTURE_EXTERN int counter;"),
        row("exported-data", "", "return ++counter;", 6).after("SUTURE_EXTERN int counter;").host(&["-rdynamic"]),
        row("addend", "", "return *entry;", 12).after("SUTURE_EXTERN const int table[2]; static const int *entry = &table[1];"),
        row("old-target", "", "return target(x) + 1;", 8).after("SUTURE_EXTERN long target(long);"),
        // libc has one for old programs, too.
        row("private-over-compat", "", "return step(x);", 10).after("SUTURE_EXTERN long step(long);")
            .source("static __attribute__((noinline, noclone)) long step(long x) { return x + 3; }\n__attribute__((noinline)) long target(long x) { return step(x + 1) + step(x); }"),
        row("own-hidden", "", "return dup_data;", 7).after("int dup_data = 7;"),
        row("own-weak", "", "return dup_data;", 99).after("SUTURE_EXTERN __attribute__((weak)) int dup_data; int dup_data = 7;"),
    ]);
}

#[test]
#[rustfmt::skip]
fn thread_local_variables() {
    const OWN: &str = "SUTURE_EXTERN __thread int per_thread;";
    const HIDDEN: &str = "SUTURE_EXTERN __thread int hidden_per_thread;";
    run(&[
        row("tls-gd", "", "return per_thread++;", 40).after(OWN).flags(&["-ftls-model=global-dynamic"]),
        row("tls-ie", "", "return per_thread++;", 40).after(OWN).flags(&["-ftls-model=initial-exec"]),
        row("tls-gnu2", "", "return per_thread++;", 40).after(OWN).flags(&["-mtls-dialect=gnu2"]),
        row("tls-gd-private", "", "return hidden_per_thread;", 50).after(HIDDEN).flags(&["-ftls-model=global-dynamic"]),
        row("tls-ie-private", "", "return hidden_per_thread;", 50).after(HIDDEN).flags(&["-ftls-model=initial-exec"]).host(NOPIE),
        row("tls-gnu2-private", "", "return hidden_per_thread;", 50).after(HIDDEN).flags(&["-mtls-dialect=gnu2"]),
        // libc's own errno, not through the function.
        row("tls-libc", STDIO, "close(-1); return errno_itself;", 9).after("SUTURE_EXTERN __thread int errno_itself __asm__(\"errno\");"),
    ]);
}

#[test]
#[rustfmt::skip]
fn compilers_linkers_and_options() {
    const BODY: &str = "static long total; total += x; printf(\"sum %ld\\n\", total); return names[total & 1][0] + hidden_twice(1);";
    const AFTER: &str = "SUTURE_EXTERN int hidden_twice(int); static const char *const names[2] = {\"even\", \"odd\"};";
    let build = |name, flags| row(name, STDIO, BODY, 113).after(AFTER).flags(flags).prints("sum 7");
    run(&[
        build("bfd", &["-fuse-ld=bfd"]),
        build("gold", &["-fuse-ld=gold"]),
        build("clang", &[]).compiler("clang"),
        build("relr", &["-Wl,-z,pack-relative-relocs"]),
        build("lto", &["-flto"]),
        build("static-libgcc", &["-static-libgcc"]),
        build("mcmodel-large", &["-mcmodel=large"]),
        build("mcmodel-medium", &["-mcmodel=medium"]),
        build("no-plt", &["-fno-plt"]),
        build("now", &["-Wl,-z,now"]),
        build("norelro", &["-Wl,-z,norelro"]),
        build("noseparate-code", &["-Wl,-z,noseparate-code"]),
        build("two-mib-pages", &["-Wl,-z,max-page-size=0x200000"]),
        build("sysv-hash", &["-Wl,--hash-style=sysv"]),
        build("stripped", &["-s"]),
        build("cf-protection", &["-fcf-protection"]),
        build("patchable", &["-fpatchable-function-entry=5,2"]),
        build("stack-protector", &["-fstack-protector-all"]),
        build("emit-relocs", &["-Wl,-q", "-g"]),
        build("bsymbolic", &["-Wl,-Bsymbolic"]),
        build("ubsan-trap", &["-fsanitize=undefined", "-fsanitize-undefined-trap-on-error"]),
        build("o0", &["-O0"]),
    ]);
}

#[test]
fn start_files_are_ignored() {
    let program = host("host-startfiles", "gcc", HOST, PIE);
    let source = "#include <suture.h>\nstatic long fixed(long x) { return x + 1; }\n\
                  SUTURE_PATCH(\"row\", SUTURE_OBJECT(SUTURE_MAIN, SUTURE_FUNC(\"target\", fixed)));";
    for (name, flags) in [("crt.so", &["-O2"][..]), ("crt-stripped.so", &["-s"])] {
        let flags = [&["-fPIC", "-shared"], flags].concat();
        let file = suture_elf::ObjectFile::open(&compile(name, "gcc", source, &flags)).unwrap();
        let process = Host::start(&program, &[]);
        let plan = process.link(&file).unwrap();
        assert_eq!(process.run(&plan, 7).0, "result 8", "{name}");
    }
}

#[test]
fn interposed_symbols_are_the_preloads() {
    let preload = compile(
        "libpreload.so",
        "gcc",
        "int puts(const char *s) { (void)s; return 4711; }",
        &["-shared", "-fPIC", "-nostdlib"],
    );
    let program = host("host-preload", "gcc", HOST, PIE);
    let source = "#include <stdio.h>\n#include <suture.h>\nstatic long fixed(long x) { return x + puts(\"\"); }\n\
                  SUTURE_PATCH(\"row\", SUTURE_OBJECT(SUTURE_MAIN, SUTURE_FUNC(\"target\", fixed)));";
    let file = patch("patch-preload", "gcc", source, &[]);
    let process = Host::start(&program, &[("LD_PRELOAD", preload.to_str().unwrap())]);
    let plan = process.link(&file).unwrap();
    assert_eq!(process.run(&plan, 7).0, "result 4718");
}

/// A library with two versions of one function, an IFUNC, a private function and a private counter.
fn library() -> &'static str {
    use std::sync::OnceLock;
    static BUILT: OnceLock<()> = OnceLock::new();
    BUILT.get_or_init(|| {
        std::fs::write(
            dir().join("lib.map"),
            "V1 { global: rate; };\nV2 { global: rate; chosen; price; lib_tls; } V1;\n",
        )
        .unwrap();
        let source = r#"
            __asm__(".symver rate_old,rate@V1\n.symver rate_new,rate@@V2");
            int rate_old(void) { return 1; }
            int rate_new(void) { return 2; }
            static int body_a(void) { return 77; }
            static void *pick(void) { return (void *)body_a; }
            int chosen(void) __attribute__((ifunc("pick")));
            static int stock = 30;
            __thread int lib_tls = 31;
            static __attribute__((noinline)) int take(int n) { stock -= n; return stock; }
            int price(int n) { return take(n); }
        "#;
        let map = format!("-Wl,--version-script={}", dir().join("lib.map").display());
        let flags = ["-O1", "-shared", "-fPIC", &map, "-Wl,-soname,librow.so.1", "-Wl,--build-id"];
        compile("librow.so.1", "gcc", source, &flags);
        let _ = std::os::unix::fs::symlink("librow.so.1", dir().join("librow.so"));
    });
    "librow.so.1"
}

/// A host that needs the library, or loads it later.
const LIBRARY_HOST: &str = r#"
#include <dlfcn.h>
#include <stdio.h>
__attribute__((noinline)) long target(long x) { return x; }
#ifdef LATE
void host_start(void) { if (!dlopen("librow.so.1", RTLD_NOW | RTLD_LOCAL)) puts(dlerror()); }
#else
int rate(void); int chosen(void); int price(int);
void host_start(void) { volatile int n = rate() + chosen() + price(0); (void)n; }
#endif
"#;

fn run_with_library(name: &str, late: bool, patch_source: &str) -> Result<i64, String> {
    let library = library();
    let at = format!("-L{}", dir().display());
    let host_flags: &[&str] = if late { &["-DLATE"] } else { &[&at, "-lrow"] };
    let program = host(&format!("host-{name}"), "gcc", LIBRARY_HOST, host_flags);
    let source = format!(
        "#include <suture.h>\n{patch_source}\nSUTURE_PATCH(\"row\", \
         SUTURE_OBJECT(\"{library}\", SUTURE_FUNC(\"price\", fixed)));"
    );
    let link = dir().join(library);
    let file = patch(&format!("patch-{name}"), "gcc", &source, &[link.to_str().unwrap()]);
    let process = Host::start(&program, &[]);
    let plan = process.link(&file).map_err(|e| e.to_string())?;
    let (answer, _) = process.run(&plan, 7);
    answer.strip_prefix("result ").and_then(|n| n.parse().ok()).ok_or(answer)
}

#[test]
fn libraries_loaded_at_start_and_later() {
    let cases = [
        ("default-rate", "SUTURE_EXTERN int rate(void);", "rate()", 2),
        ("old-rate", "SUTURE_EXTERN int rate_1(void); __asm__(\".symver rate_1,rate@V1\");", "rate_1()", 1),
        ("ifunc", "SUTURE_EXTERN int chosen(void);", "chosen()", 77),
        ("private", "SUTURE_EXTERN int take(int);", "take((int)x)", 23),
        ("tls", "SUTURE_EXTERN __thread int lib_tls;", "lib_tls", 31),
    ];
    let mut failures = Vec::new();
    for late in [false, true] {
        for (name, declaration, value, expected) in cases {
            let source = format!("{declaration}\nstatic long fixed(long x) {{ return {value}; }}");
            let name = format!("{name}-{late}");
            let got = run_with_library(&name, late, &source);
            if got != Ok(expected) {
                failures.push(format!("{name}: {got:?}, expected {expected}"));
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn tls_of_a_library_loaded_later_has_no_fixed_place() {
    let source = "SUTURE_EXTERN __attribute__((tls_model(\"initial-exec\"))) __thread int lib_tls;\n\
                  static long fixed(long x) { return x + lib_tls; }";
    let refused = run_with_library("late-ie", true, source).unwrap_err();
    assert!(refused.contains("has no fixed place"), "{refused}");
    assert_eq!(run_with_library("early-ie", false, source), Ok(38));
}

#[test]
fn old_functions_stay_callable() {
    let program = host("host-old", "gcc", HOST, PIE);
    let source = "#include <suture.h>\nSUTURE_OLD(long, old_target, (long));\nSUTURE_POINTER(int, hits);\n\
         static long fixed(long x) { return old_target(x) + ++*hits; }\n\
         SUTURE_PATCH(\"row\", SUTURE_OBJECT(SUTURE_MAIN, SUTURE_FUNC_OLD(\"target\", fixed, old_target)),\n\
         SUTURE_SYMBOL(hits, SUTURE_MAIN, \"hidden_counter\", 0));";
    let file = patch("patch-old", "gcc", source, &[]);
    let process = Host::start(&program, &[]);
    let plan = process.link(&file).unwrap();
    assert_eq!(plan.old_refs.len(), 1);
    assert_eq!(process.run(&plan, 10).0, "result 17");
}

/// A program that loads `librow.so.1` later, and a patch of the program itself.
fn link_to_late_library(name: &str, declarations: &str, value: &str, extra: &str) -> String {
    library();
    let program = host(&format!("host-{name}"), "gcc", LIBRARY_HOST, &["-DLATE"]);
    let source = format!(
        "#include <suture.h>\n{declarations}\nstatic long fixed(long x) {{ return x + {value}; }}\n\
         SUTURE_PATCH(\"row\", SUTURE_OBJECT(SUTURE_MAIN, SUTURE_FUNC(\"target\", fixed)));"
    );
    let file = patch(&format!("patch-{name}"), "gcc", &source, &[extra]);
    let process = Host::start(&program, &[]);
    process.link(&file).map_or_else(|e| e.to_string(), |plan| format!("{:?}", plan.bound))
}

#[test]
fn nothing_is_bound_to_what_may_be_unloaded() {
    let said = link_to_late_library("can-go", "SUTURE_EXTERN int price(int);", "price(1)", "-lc");
    assert!(
        said.contains("`price` is only exported by librow.so.1, which the program loaded later"),
        "{said}"
    );
}

#[test]
fn a_version_the_process_lacks_is_named() {
    let newer = dir().join("newer");
    std::fs::create_dir_all(&newer).unwrap();
    std::fs::write(newer.join("map"), "V3 { global: rate; };\n").unwrap();
    let map = format!("-Wl,--version-script={}", newer.join("map").display());
    let flags = ["-shared", "-fPIC", &map, "-Wl,-soname,librow.so.1"];
    let linked_with = compile("newer/librow.so.1", "gcc", "int rate(void) { return 3; }", &flags);
    let source = "SUTURE_EXTERN int rate(void);\nstatic long fixed(long x) { return x + rate(); }";
    library();
    let at = format!("-L{}", dir().display());
    let program = host("host-newer", "gcc", LIBRARY_HOST, &[&at, "-lrow"]);
    let source = format!(
        "#include <suture.h>\n{source}\nSUTURE_PATCH(\"row\", SUTURE_OBJECT(SUTURE_MAIN, SUTURE_FUNC(\"target\", fixed)));"
    );
    let file = patch("patch-newer", "gcc", &source, &[linked_with.to_str().unwrap()]);
    let error = Host::start(&program, &[]).link(&file).unwrap_err().to_string();
    let expected = "`rate` is needed in version V3, the process has V1 (librow.so.1), V2 (librow.so.1)";
    assert!(error.contains(expected) || error.contains("V2 (librow.so.1), V1 (librow.so.1)"), "{error}");
}

#[test]
fn the_runtime_is_neither_bound_to_nor_patched() {
    let source = "int helper(int x) { return x; }\nint puts(const char *s) { return s != 0; }";
    let flags = ["-shared", "-fPIC", "-nostdlib", "-Wl,-soname,libsuture.so"];
    let runtime = compile("libsuture.so", "gcc", source, &flags);
    let program = host("host-runtime", "gcc", HOST, PIE);
    let process = Host::start(&program, &[("LD_PRELOAD", runtime.to_str().unwrap())]);
    let link = |name: &str, text: &str| {
        let source = format!("#include <stdio.h>\n#include <suture.h>\n{text}");
        process.link(&patch(name, "gcc", &source, &[]))
    };
    let main = "SUTURE_PATCH(\"row\", SUTURE_OBJECT(SUTURE_MAIN, SUTURE_FUNC(\"target\", fixed)));";
    let puts =
        link("patch-runtime-1", &format!("static long fixed(long x) {{ return x + puts(\"\"); }}\n{main}"));
    assert_eq!(puts.unwrap().bound[0].object.as_deref(), Some("libc.so.6"));
    let helper = "SUTURE_EXTERN int helper(int);\nstatic long fixed(long x) { return helper((int)x); }";
    let helper = link("patch-runtime-2", &format!("{helper}\n{main}")).unwrap_err().to_string();
    assert!(helper.contains("`helper` is neither exported"), "{helper}");
    let object = "SUTURE_PATCH(\"row\", SUTURE_OBJECT(\"libsuture.so\", SUTURE_FUNC(\"helper\", fixed)));";
    let object = link("patch-runtime-3", &format!("static long fixed(long x) {{ return x; }}\n{object}"));
    assert!(object.unwrap_err().to_string().contains("it is the runtime"));
}
