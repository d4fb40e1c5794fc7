//! Patches that hold addresses in a library which comes, goes and comes again elsewhere.

use std::path::PathBuf;
use suture_tests::command::apply;
use suture_tests::plugins::Plugins;
use suture_tests::target::Options;

/// A patch that uses all of the library that a patch can use: its private function, data and thread-local variable,
/// what it exports, a pointer by offset, and the old function. What `answer(1)` returns says that each is right.
fn user(p: &Plugins, name: &str) -> PathBuf {
    let text = format!(
        "#include <suture.h>\n\
         SUTURE_EXTERN long twice(long n);\n\
         SUTURE_EXTERN long helper(long n);\n\
         SUTURE_EXTERN long exported;\n\
         SUTURE_EXTERN __thread long per_thread;\n\
         SUTURE_POINTER(long, hits_at);\n\
         SUTURE_FUNCTION(long, helper_at, (long n));\n\
         SUTURE_OLD(long, old_answer, (long n));\n\
         static long *exported_at = &exported;\n\
         static long new_answer(long n)\n\
         {{\n\
             int same = helper_at == helper && *exported_at == exported && exported_at == &exported;\n\
             return old_answer(n) + 10 * twice(n) + 100 * helper(n) + 1000 * exported + 10000 * same\n\
                 + 100000 * per_thread++ + 10000000 * ++*hits_at;\n\
         }}\n\
         static long new_wait(void) {{ return hits_at ? *hits_at : -7; }}\n\
         SUTURE_PATCH(\"{name}\",\n\
             SUTURE_OBJECT(SUTURE_MAIN, SUTURE_FUNC(\"wait_here\", new_wait)),\n\
             SUTURE_OBJECT(\"plugin.so\", SUTURE_FUNC_OLD(\"answer\", new_answer, old_answer)),\n\
             SUTURE_SYMBOL(hits_at, \"plugin.so\", \"hits\", 0),\n\
             SUTURE_OFFSET(helper_at, \"plugin.so\", {}, \"{}\"));\n",
        helper(p).0,
        helper(p).1
    );
    p.lab.patch(name, &text)
}

/// Offset and first bytes of the library's `helper`.
fn helper(p: &Plugins) -> (u64, String) {
    let file = suture_elf::ObjectFile::open(&p.file).expect("the library");
    let symbol = file.symbols().named("helper").next().expect("its function");
    let bytes = file.bytes_at(symbol.addr, 4).expect("its code");
    (symbol.addr.0, bytes.iter().map(|b| format!("{b:02x}")).collect())
}

/// What the new `answer(1)` returns when it is called the `hits`th time in this life of the library, the `calls`th
/// time by the same thread.
fn expected(hits: i64, calls: i64) -> i64 {
    2 + 10 * 2 + 100 * 4 + 1000 * 5 + 10000 + 100_000 * (2 + calls) + 10_000_000 * hits
}

/// The library comes: its constructor is the first to call. The program's own new function sees its `hits`, -7 while
/// it is not there.
fn comes(p: &mut Plugins) {
    p.load(0, "plugin.so");
    assert_eq!(p.waited(), 1);
    assert_eq!(p.values(0), (expected(2, 2), expected(1, 1)));
    assert_eq!(p.values(0), (expected(3, 3), expected(1, 1)));
    assert_eq!(p.waited(), 3);
}

#[test]
fn addresses_in_a_library_follow_it() {
    Plugins::both(|mut p| {
        let patch = user(&p, "user");
        p.apply(&patch);
        assert_eq!(p.waited(), -7, "nobody is there");
        for _ in 0..3 {
            comes(&mut p);
            assert!(p.patched("user"));
            // The next time it lies elsewhere.
            p.drop_place(0);
            assert_eq!(p.waited(), -7, "it has gone");
        }
        comes(&mut p);
        p.disable("user");
        assert_eq!(p.values(0).0, 2);
        p.drop_place(0);
        p.load(0, "plugin.so");
        assert_eq!(p.values(0), (2, 2), "nobody waits for it any more");
    });
}

#[test]
fn addresses_in_a_library_that_was_there_follow_it_too() {
    Plugins::both(|mut p| {
        p.load(0, "plugin.so");
        assert_eq!(p.values(0), (2, 2));
        let patch = user(&p, "user");
        p.apply(&patch);
        assert_eq!(p.waited(), 0);
        assert_eq!(p.values(0).0, expected(1, 1));
        assert_eq!(p.waited(), 1);
        p.drop_place(0);
        assert_eq!(p.waited(), -7, "it has gone");
        comes(&mut p);
        p.drop_place(0);
        assert_eq!(p.waited(), -7, "it has gone again");
        comes(&mut p);
        p.disable("user");
        assert_eq!(p.values(0).0, 2);
    });
}

#[test]
fn words_are_about_one_mapping_and_empty_when_it_is_left_alone() {
    Plugins::both(|mut p| {
        p.copy("twin.so");
        let patch = user(&p, "user");
        p.apply(&patch);
        comes(&mut p);
        // A second mapping cannot have them: it stays as it is, and the first is not disturbed.
        p.load(1, "twin.so");
        assert_eq!(p.values(1), (2, 2));
        assert_eq!(p.values(0).0, expected(4, 4));
        assert_eq!(p.waited(), 4);
        p.unload(1);
        p.drop_place(0);
        assert_eq!(p.waited(), -7);
        // Whoever comes first has them.
        p.load(1, "twin.so");
        assert_eq!(p.values(1).1, expected(1, 1));
        p.unload(1);
        // Another patch cannot have the library, so this one has not got it either.
        let blind = p.patch("blind", 1000, "");
        apply(&blind, p.target.pid()).expect(0);
        p.load(0, "plugin.so");
        assert_eq!(p.values(0), (2, 2));
        assert_eq!(p.waited(), -7);
        assert_eq!(p.status("user")["late"][0]["error"]["patch"], "blind", "{:#}", p.status("user"));
    });
}

#[test]
fn a_weak_name_is_null_until_its_library_comes() {
    Plugins::both(|mut p| {
        let patch = p.lab.patch(
            "weak",
            "#include <suture.h>\n\
             SUTURE_EXTERN __attribute__((weak)) long helper(long n);\n\
             static long new_wait(void) { return helper ? helper(10) : -7; }\n\
             SUTURE_FUNCTION(long, helper_at, (long n));\n\
             SUTURE_PATCH(\"weak\", SUTURE_OBJECT(SUTURE_MAIN, SUTURE_FUNC(\"wait_here\", new_wait)),\n\
                 SUTURE_SYMBOL(helper_at, \"plugin.so\", \"helper\", 0));\n",
        );
        p.apply(&patch);
        for _ in 0..2 {
            assert_eq!(p.waited(), -7);
            p.load(0, "plugin.so");
            assert_eq!(p.waited(), 13);
            assert_eq!(p.values(0), (2, 2), "none of its functions is replaced");
            p.drop_place(0);
        }
        p.disable("weak");
    });
}

#[test]
fn what_cannot_be_found_in_the_file_is_refused() {
    let p = Plugins::start("plugin.so", Options::default());
    let refused = |name: &str, head: &str, body: &str, items: &str| {
        let text = format!(
            "#include <suture.h>\n{head}\nstatic long new_answer(long n) {{ {body} }}\n\
             SUTURE_PATCH(\"{name}\", SUTURE_OBJECT(\"plugin.so\", SUTURE_FUNC(\"answer\", new_answer)){items});\n"
        );
        p.apply_with(&p.lab.patch(name, &text), &[]).refusal()
    };
    let (errno, message) = refused("a", "SUTURE_EXTERN long twise(long n);", "return twise(n);", "");
    assert!(errno == "EINVAL" && message.contains("did you mean `twice`"), "{errno} {message}");
    let (errno, message) = refused("b", "SUTURE_EXTERN long indirect(long n);", "return indirect(n);", "");
    assert!(
        errno == "EINVAL" && message.contains("`indirect` of plugin.so is an indirect function"),
        "{message}"
    );
    let (_, message) = refused("c", "SUTURE_EXTERN long per_thread;", "return per_thread + n;", "");
    assert!(message.contains("is thread-local in plugin.so"), "{message}");
    let pointer = "SUTURE_POINTER(long, at);";
    let item = ", SUTURE_OFFSET(at, \"plugin.so\", 0x1000, \"0102030405060708\")";
    let (_, message) = refused("d", pointer, "return *at + n;", item);
    assert!(message.contains("0102030405060708"), "{message}");
    let (_, message) =
        refused("e", pointer, "return *at + n;", ", SUTURE_SYMBOL(at, \"plugin.so\", \"hitz\", 0)");
    assert!(message.contains("plugin.so has no symbol `hitz`") && message.contains("hits"), "{message}");
    let (_, message) =
        refused("f", pointer, "return *at + n;", ", SUTURE_SYMBOL(at, \"nosuch.so\", \"hits\", 0)");
    assert!(message.contains("nosuch.so, which is not loaded"), "{message}");
    assert_eq!(p.status("a"), serde_json::Value::Null);
}
