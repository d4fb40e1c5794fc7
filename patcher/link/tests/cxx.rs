//! C++ patches, and exceptions through C ones: each is run in a program.

mod common;

use common::{Host, host, patch};

/// Catches, throws, and has classes; `DEEP` calls the new function through a frame with a destructor.
const HOST: &str = r#"
#include <cstdio>
#include <stdexcept>
#include <string>
#include <typeinfo>
#include <pthread.h>
struct Shape { virtual ~Shape() {} virtual int sides() const { return 0; } };
struct Square : Shape { int sides() const override { return 4; } };
struct Base { int code; virtual ~Base() {} };
struct Error : Base { Error(int c) { code = c; } };
extern "C" __attribute__((noinline)) long target(long x) { __asm__ volatile("" : "+r"(x)); return x; }
extern "C" __attribute__((noinline)) void thrower(int code) { throw Error(code); }
extern "C" Shape *make_square() { return new Square; }
inline int &shared_counter() { static int n = 100; return n; }
int use_counter() { return ++shared_counter(); }
static int destroyed;
struct Guard { ~Guard() { destroyed++; } };
static long (*call)(long);
static void *in_thread(void *) { Guard g; call(7); return nullptr; }
extern "C" void host_start() { if (target(0)) { delete make_square(); thrower(1); use_counter(); } }
extern "C" long host_call(long (*run)(long), long argument)
{
#ifdef THREAD
    call = run;
    pthread_t t;
    pthread_create(&t, nullptr, in_thread, nullptr);
    pthread_join(t, nullptr);
    return destroyed;
#endif
    try {
        Guard g;
        return run(argument);
    } catch (const Base &e) {
        return 1000 + e.code + destroyed;
    } catch (const std::exception &e) {
        std::printf("caught %s\n", e.what());
        return 2000 + destroyed;
    } catch (int i) {
        return 3000 + i;
    }
}
"#;

const CLASSES: &str = "#include <stdexcept>\n#include <string>\n#include <cstdio>\n\
    struct __attribute__((visibility(\"default\"))) Shape { virtual ~Shape(); virtual int sides() const; };\n\
    struct __attribute__((visibility(\"default\"))) Square : Shape { int sides() const override; };\n\
    struct __attribute__((visibility(\"default\"))) Base { int code; virtual ~Base() {} };\n\
    struct __attribute__((visibility(\"default\"))) Error : Base { Error(int c) { code = c; } };\n\
    extern \"C\" void thrower(int); extern \"C\" Shape *make_square();\n";

struct Row {
    name: &'static str,
    compiler: &'static str,
    host: &'static [&'static str],
    before: &'static str,
    body: &'static str,
    result: i64,
}

fn run(rows: &[Row]) {
    let mut failures = Vec::new();
    for row in rows {
        let cxx = row.compiler == "g++";
        let program = host(&format!("host-{}", row.name), "g++", HOST, row.host);
        let declarations = if cxx { CLASSES } else { "" };
        let source = format!(
            "{declarations}{}\n#include <suture.h>\nstatic long fixed(long x) {{ {} }}\n\
             SUTURE_PATCH(\"row\", SUTURE_OBJECT(SUTURE_MAIN, SUTURE_FUNC(\"target\", fixed)));\n",
            row.before, row.body,
        );
        let file = patch(&format!("patch-{}", row.name), row.compiler, &source, &[]);
        let process = Host::start(&program, &[]);
        match process.link(&file) {
            Err(error) => failures.push(format!("{}: {error}", row.name)),
            Ok(plan) => {
                let (answer, output) = process.run(&plan, 7);
                if answer != format!("result {}", row.result) {
                    failures.push(format!("{}: {answer} {output:?}", row.name));
                }
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

const INLINE: &str = "inline int &shared_counter() { static int n = 100; return n; }\nint use_counter();\n";

#[test]
#[rustfmt::skip]
fn cxx_rows() {
    const EXPORT: &[&str] = &["-rdynamic"];
    const THREAD: &[&str] = &["-DTHREAD", "-pthread"];
    let cxx = |name, host, before, body, result| Row { name, compiler: "g++", host, before, body, result };
    let c = |name, host, before, body, result| Row { name, compiler: "gcc", host, before, body, result };
    run(&[
        cxx("throw-inside", &[], "", "try { throw std::runtime_error(\"in\"); } catch (const std::exception &) { return 5; } return x;", 5),
        cxx("throw-out", &[], "", "throw std::runtime_error(\"out\"); return x;", 2001),
        cxx("throw-out-int", &[], "", "throw 12; return x;", 3012),
        cxx("catch-theirs", &[], "", "try { thrower((int)x); } catch (const Base &e) { return e.code; } return 0;", 7),
        cxx("catch-theirs-exported", EXPORT, "", "try { thrower((int)x); } catch (const Base &e) { return e.code; } return 0;", 7),
        cxx("throw-theirs", &[], "", "throw Error(5); return x;", 1006),
        cxx("throw-theirs-exported", EXPORT, "", "throw Error(5); return x;", 1006),
        c("c-between", &[], "void thrower(int) __attribute__((visibility(\"default\")));", "thrower((int)x); return 1;", 1008),
        cxx("virtual-call", &[], "", "Shape *s = make_square(); long n = s->sides(); delete s; return n;", 4),
        cxx("dynamic-cast", EXPORT, "", "Shape *s = make_square(); long n = dynamic_cast<Square *>(s) != nullptr; delete s; return n;", 1),
        cxx("typeid", &[], "#include <typeinfo>\n", "Shape *s = make_square(); long n = typeid(*s) == typeid(Square); delete s; return n;", 1),
        cxx("string", &[], "", "std::string s(\"abc\"); s += std::to_string(x); return (long)s.size();", 4),
        cxx("local-static", &[], "", "static std::string *s = new std::string(\"once\"); return (long)s->size();", 4),
        // The static of an inline function is one object, exported by the program or not.
        cxx("inline-static", &[], INLINE, "++shared_counter(); return use_counter() + x * 0;", 102),
        cxx("inline-static-exported", EXPORT, INLINE, "++shared_counter(); return use_counter() + x * 0;", 102),
        c("pthread-exit", THREAD, "#include <pthread.h>", "pthread_exit(0); return x;", 1),
        c("pthread-cancel", THREAD, "#include <pthread.h>\n#include <unistd.h>", "pthread_cancel(pthread_self()); pause(); return x;", 1),
    ]);
}

/// Without unwind tables the program dies: that is what the rows above rest on.
#[test]
fn without_tables_a_throw_through_the_patch_ends_the_program() {
    let program = host("host-no-tables", "g++", HOST, &[]);
    let source = "void thrower(int) __attribute__((visibility(\"default\")));\n#include <suture.h>\n\
         static long fixed(long x) { thrower((int)x); return 1; }\n\
         SUTURE_PATCH(\"row\", SUTURE_OBJECT(SUTURE_MAIN, SUTURE_FUNC(\"target\", fixed)));\n";
    let file = patch("patch-no-tables", "gcc", source, &[]);
    let process = Host::start(&program, &[]);
    let mut plan = process.link(&file).unwrap();
    plan.image.eh_frame_hdr = 0;
    let (answer, _) = process.run(&plan, 7);
    assert!(answer.contains("signal"), "{answer}");
}

/// C++ functions are named as people read them, and misspelt ones are guessed at.
#[test]
fn readable_names_are_accepted_and_guessed_at() {
    let program = host("host-readable", "g++", HOST, &[]);
    let process = Host::start(&program, &[]);
    let link = |index: usize, name: &str| {
        let source = format!(
            "#include <suture.h>\nstatic int fixed(void *shape) {{ return shape != 0; }}\n\
             SUTURE_PATCH(\"row\", SUTURE_OBJECT(SUTURE_MAIN, SUTURE_FUNC(\"{name}\", fixed)));\n"
        );
        let file = patch(&format!("patch-readable-{index}"), "gcc", &source, &[]);
        process.link(&file).map(|plan| plan.funcs[0].name.clone()).map_err(|e| e.to_string())
    };
    for (index, name) in ["Square::sides", "Square::sides() const", "_ZNK6Square5sidesEv"].iter().enumerate()
    {
        assert_eq!(link(index, name), Ok("Square::sides() const".into()), "{name}");
    }
    let wrong = link(7, "Square::side").unwrap_err();
    assert!(wrong.contains("did you mean `Square::sides`?"), "{wrong}");
}
