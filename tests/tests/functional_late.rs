//! Libraries that are loaded, unloaded and loaded again while a patch of them is enabled.

use std::path::PathBuf;
use std::process::Command;
use suture_tests::command::{apply, disable, suture};
use suture_tests::plugins::{Plugins, build};
use suture_tests::target::Options;
use suture_tests::{Lab, Target, need, poll, report};

#[test]
fn every_mapping_of_a_file_is_patched_by_itself() {
    Plugins::both(|mut p| {
        p.copy("twin.so");
        p.copy("fourth.so");
        let patch = p.patch("a", 1000, "");
        p.apply(&patch);
        assert!(!p.patched("a"));
        p.load(0, "plugin.so");
        p.load(1, "twin.so");
        let space = format!("space 2 {}", p.file.display());
        assert_eq!(p.target.ask(&space), "space 2 0");
        for place in [0, 1, 2] {
            assert_eq!(p.values(place), (1001, 1001), "place {place}");
        }
        assert_eq!(p.status("a")["late"].as_array().map(Vec::len), Some(3), "{:#}", p.status("a"));
        // There is no room for a fourth: it is loaded and left alone, and status says so.
        p.load(3, "fourth.so");
        assert_eq!(p.values(3), (2, 2));
        p.unload(3);
        // What goes makes room, in any order.
        p.unload(0);
        assert_eq!((p.values(1), p.values(2)), ((1001, 1001), (1001, 1001)));
        p.load(3, "fourth.so");
        assert_eq!(p.values(3), (1001, 1001));
        p.disable("a");
        for (place, birth) in [(1, 1001), (2, 1001), (3, 1001)] {
            assert_eq!(p.values(place), (2, birth), "place {place}");
        }
        for place in [1, 2, 3] {
            p.unload(place);
        }
        p.load(0, "plugin.so");
        assert_eq!(p.values(0), (2, 2), "nobody waits for it any more");
    });
}

#[test]
fn patches_stack_on_what_came_late_and_are_replaced() {
    Plugins::both(|mut p| {
        p.copy("twin.so");
        let (a, b) = (p.patch("a", 1000, ""), p.patch("b", 2000, ""));
        let r = p.patch("r", 3000, ", SUTURE_REPLACE_ALL");
        p.apply(&a);
        p.load(0, "plugin.so");
        p.apply(&b);
        assert_eq!(p.values(0), (2001, 1001));
        assert!(p.patched("a") && p.patched("b"), "{:#} {:#}", p.status("a"), p.status("b"));
        p.unload(0);
        assert!(!p.patched("a") && !p.patched("b"));
        p.load(0, "plugin.so");
        assert_eq!(p.values(0), (2001, 2001));
        p.disable("b");
        assert_eq!(p.values(0), (1001, 2001));
        p.apply(&r);
        assert_eq!(p.values(0), (3001, 2001));
        p.unload(0);
        p.load(0, "plugin.so");
        assert_eq!(p.values(0), (3001, 3001));
        p.disable("r");
        assert_eq!(p.values(0), (2, 3001));
        // A replace that knows nothing of the library takes it back, on every mapping.
        p.apply(&a);
        p.unload(0);
        p.load(0, "plugin.so");
        p.load(1, "twin.so");
        let other = p.lab.patch(
            "e",
            "#include <suture.h>\nstatic long new_wait(void) { return 7; }\n\
             SUTURE_PATCH(\"e\", SUTURE_OBJECT(SUTURE_MAIN, SUTURE_FUNC(\"wait_here\", new_wait)), SUTURE_REPLACE_ALL);\n",
        );
        p.apply(&other);
        assert_eq!((p.values(0), p.values(1)), ((2, 1001), (2, 1001)));
        p.unload(0);
        p.load(0, "plugin.so");
        assert_eq!(p.values(0), (2, 2));
        p.disable("e");
        p.unload(1);
        p.unload(0);
        // And with a library that is there from the start: it comes back patched.
        p.load(0, "plugin.so");
        p.apply(&a);
        assert_eq!(p.values(0), (1001, 2));
        p.unload(0);
        assert!(!p.patched("a"));
        p.load(0, "plugin.so");
        assert_eq!(p.values(0), (1001, 1001));
        assert!(p.patched("a"));
        p.disable("a");
        assert_eq!(p.values(0), (2, 1001));
    });
}

/// A patch of the program's `wait_here` and of the library's `answer`.
fn of_both(p: &Plugins) -> PathBuf {
    p.lab.patch(
        "both",
        "#include <suture.h>\n\
         static long new_wait(void) { return 7; }\n\
         static long new_answer(long n) { return n + 1000; }\n\
         SUTURE_PATCH(\"both\", SUTURE_OBJECT(SUTURE_MAIN, SUTURE_FUNC(\"wait_here\", new_wait)),\n\
         SUTURE_OBJECT(\"plugin.so\", SUTURE_FUNC(\"answer\", new_answer)));\n",
    )
}

#[test]
fn a_library_that_comes_in_a_transition_has_both_sides() {
    Plugins::both(|mut p| {
        assert_eq!(p.target.ask("park"), "park 0");
        let pid = p.target.pid();
        poll::until_true("the thread to be parked", || suture_tests::snapshot::threads(pid).len() == 2);
        let patch = of_both(&p);
        p.apply_with(&patch, &["--timeout", "1"]).expect(3);
        // The main thread has moved; the parked one stands in old code and has not.
        p.load(0, "plugin.so");
        assert_eq!(p.values(0), (1001, 1001));
        assert_eq!(p.target.ask("unpark"), "unpark 2", "old code calls old code");
        let wait = suture(&["wait", "both", "--pid", &p.target.pid_text(), "--timeout", "30"]);
        wait.expect(0);
        assert_eq!(p.values(0), (1001, 1001));
        p.disable("both");
        assert_eq!(p.values(0), (2, 1001));
    });
}

#[test]
fn the_old_function_of_a_library_that_comes_is_callable() {
    Plugins::both(|mut p| {
        p.copy("twin.so");
        let patch = p.lab.patch(
            "old",
            "#include <suture.h>\n\
             SUTURE_OLD(long, old_answer, (long n));\n\
             static long new_answer(long n) { return old_answer(n) + 1000; }\n\
             SUTURE_PATCH(\"old\", SUTURE_OBJECT(\"plugin.so\", SUTURE_FUNC_OLD(\"answer\", new_answer, old_answer)));\n",
        );
        p.apply(&patch);
        for _ in 0..3 {
            p.load(0, "plugin.so");
            assert_eq!(p.values(0), (1002, 1002));
            p.unload(0);
        }
        // The pointer leads into one mapping: another one is not patched while that is there.
        p.load(0, "plugin.so");
        p.load(1, "twin.so");
        assert_eq!((p.values(0), p.values(1)), ((1002, 1002), (2, 2)));
        p.disable("old");
        assert_eq!(p.values(0), (2, 1002));
    });
}

#[test]
fn a_program_that_may_not_change_its_code_loads_its_library_unpatched() {
    let mut p = Plugins::start("plugin.so", Options { mdwe: true, ..Options::default() });
    let patch = p.patch("a", 1000, "");
    p.apply(&patch);
    p.load(0, "plugin.so");
    assert_eq!(p.values(0), (2, 2));
    assert!(!p.patched("a"));
    let error = &p.status("a")["late"][0]["error"];
    assert_eq!((&error["patch"], &error["errno"]), (&"a".into(), &"EACCES".into()), "{error:#}");
    p.disable("a");
    assert_eq!(p.values(0), (2, 2));
}

#[test]
fn an_interpreter_imports_a_library_after_the_patch() {
    need("python3", "python3");
    let script = "\
import sys
print('ready', flush=True)
for line in sys.stdin:
    import sqlite3
    row, = sqlite3.connect(':memory:').execute('select sqlite_version()')
    print(sqlite3.sqlite_version, *row, flush=True)
";
    for preload in [true, false] {
        let lab = Lab::new();
        let mut python = Command::new("/usr/bin/python3");
        python.args(["-c", script]).stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
        let options = Options { preload, ..Options::default() };
        let mut target = Target::spawn(python, "/usr/bin/python3".as_ref(), options);
        assert_eq!(target.line(), "ready");
        let patch = lab.patch(
            "sqlite",
            "#include <suture.h>\nstatic const char *version(void) { return \"9.9.9\"; }\n\
             SUTURE_PATCH(\"sqlite\", SUTURE_OBJECT(\"libsqlite3.so.0\", SUTURE_FUNC(\"sqlite3_libversion\", version)));\n",
        );
        let check = suture(&["check", &patch.to_string_lossy(), "--pid", &target.pid_text()]);
        let check = check.expect(0).stdout.clone();
        assert!(
            check.contains("libsqlite3.so.0: not loaded; its functions are patched when it is"),
            "{check}"
        );
        let applied = report::apply(&patch, target.pid());
        assert_eq!(applied["objects_awaited"][0], "libsqlite3.so.0", "{applied:#}");
        // The extension asks while it is imported, the library itself at each call.
        assert_eq!(target.ask("version"), "9.9.9 9.9.9");
        disable("sqlite", target.pid()).expect(0);
        let answer = target.ask("version");
        assert!(answer.starts_with("9.9.9 3."), "{answer}");
    }
}

/// The process runs a file that an upgrade has replaced: what is patched is what is mapped, and the new one is another
/// build when it comes.
#[test]
fn a_library_that_was_replaced_on_disk_is_patched_as_it_is_mapped() {
    Plugins::both(|mut p| {
        p.load(0, "plugin.so");
        assert_eq!(p.values(0), (2, 2));
        let newer = p.lab.path("newer.so");
        build(&newer, "-O1");
        std::fs::rename(&newer, &p.file).expect("the upgrade");
        // It finds the library's own data where the mapped file has it.
        let patch = p.lab.patch(
            "a",
            "#include <suture.h>\nSUTURE_EXTERN long hits;\nSUTURE_EXTERN long twice(long n);\n\
             static long new_answer(long n) { return 1000 * ++hits + twice(n); }\n\
             SUTURE_PATCH(\"a\", SUTURE_OBJECT(\"plugin.so\", SUTURE_FUNC(\"answer\", new_answer)));\n",
        );
        apply(&patch, p.target.pid()).expect(0);
        assert_eq!(p.values(0).0, 1002);
        assert_eq!(p.values(0).0, 2002);
        p.unload(0);
        p.load(0, "plugin.so");
        assert_eq!(p.values(0), (2, 2), "another build: left as it is");
        assert!(!p.patched("a"));
        let error = &p.status("a")["late"][0]["error"];
        assert_eq!(
            (&error["patch"], &error["errno"]),
            (&"a".into(), &"EINVAL".into()),
            "{:#}",
            p.status("a")
        );
        p.disable("a");
        assert_eq!(p.values(0), (2, 2));
    });
}
