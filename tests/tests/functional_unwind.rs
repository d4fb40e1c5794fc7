//! Exceptions, cancellation, thread exit and debuggers pass through patched functions.

use std::process::Command;
use suture_tests::command::{apply, disable};
use suture_tests::dist::root;
use suture_tests::lab::replacing_all;
use suture_tests::target::Options;
use suture_tests::{Lab, Target, need};

/// A C patch of `middle` with a cleanup that must run whatever way the function is left.
const C_MIDDLE: &str = "\
    #include <suture.h>\n\
    SUTURE_EXTERN int inner(int depth);\n\
    SUTURE_EXTERN int guards_left;\n\
    static void drop(int *guard) { (void)guard; --guards_left; }\n\
    static int patched_middle(int depth)\n\
    { __attribute__((cleanup(drop))) int guard = ++guards_left; return inner(depth) + 1000 + 0 * guard; }\n\
    SUTURE_PATCH(\"c-middle\", SUTURE_OBJECT(SUTURE_MAIN, SUTURE_FUNC(\"middle\", patched_middle)));\n";

fn start(lab: &Lab) -> Target {
    let program = lab.compile_target("cxx.cpp", &[]);
    Target::start(&program, &[], Options::default())
}

/// Leaves the functions in every way; the results of a call that returns differ by `plus`.
fn leave_in_every_way(target: &mut Target, plus: i64) {
    for _ in 0..3 {
        assert_eq!(target.ask("call 5"), format!("call 5 = {} guards 0", 106 + plus));
        assert_eq!(target.ask("call 0"), "call 0 caught depth 0 guards 0");
        assert_eq!(target.ask("cancel"), "cancel 1 guards 0");
        assert_eq!(target.ask("exit"), "exit 7 guards 0");
    }
}

#[test]
fn every_destructor_runs_through_a_patched_cxx_function() {
    let lab = Lab::new();
    let mut target = start(&lab);
    let patch = lab.patch_file(&root().join("samples/cxx-throw.cpp"), "cxx-throw");
    leave_in_every_way(&mut target, 10);
    apply(&patch, target.pid()).expect(0);
    leave_in_every_way(&mut target, 1000);
    // The patch itself throws, an exception class of the standard library.
    assert_eq!(target.ask("call -4"), "call -4 caught patched: depth -4 guards 0");
    disable("cxx-throw", target.pid()).expect(0);
    leave_in_every_way(&mut target, 10);
}

#[test]
fn every_destructor_runs_through_a_patched_c_function() {
    let lab = Lab::new();
    let mut target = start(&lab);
    let patch = lab.patch_with("c-middle", C_MIDDLE, &["-fexceptions"]);
    apply(&patch, target.pid()).expect(0);
    leave_in_every_way(&mut target, 1000);
    disable("c-middle", target.pid()).expect(0);
    leave_in_every_way(&mut target, 10);
}

#[test]
fn plain_c_without_exceptions_lets_them_pass() {
    let lab = Lab::new();
    let mut target = start(&lab);
    let text = "\
        #include <suture.h>\n\
        SUTURE_EXTERN int inner(int depth);\n\
        static int patched_middle(int depth) { return inner(depth) + 1000; }\n\
        SUTURE_PATCH(\"plain\", SUTURE_OBJECT(SUTURE_MAIN, SUTURE_FUNC(\"middle\", patched_middle)));\n";
    apply(&lab.patch("plain", text), target.pid()).expect(0);
    leave_in_every_way(&mut target, 1000);
}

#[test]
fn exceptions_pass_through_the_copy_of_the_old_function() {
    let lab = Lab::new();
    let mut target = start(&lab);
    let text = "\
        #include <suture.h>\n\
        SUTURE_OLD(int, old_middle, (int depth));\n\
        static int patched_middle(int depth) { return old_middle(depth) + 1000; }\n\
        SUTURE_PATCH(\"old\", SUTURE_OBJECT(SUTURE_MAIN, SUTURE_FUNC_OLD(\"middle\", patched_middle, old_middle)));\n";
    apply(&lab.patch("old", text), target.pid()).expect(0);
    leave_in_every_way(&mut target, 1010);
}

#[test]
fn a_program_without_an_unwinder_is_not_disturbed() {
    let lab = Lab::new();
    let mut target = lab.start_several();
    // Nothing is thrown here; the hooks that answer for patch images must not disturb a program that
    // has no unwinder loaded.
    let patch = lab.patch("three", &replacing_all("three", &["alpha", "beta", "gamma"]));
    apply(&patch, target.pid()).expect(0);
    assert_eq!(target.ask("all 1"), "all 1001 1002 1003");
}

#[test]
fn gdb_walks_through_a_patched_function() {
    need("gdb", "gdb");
    let lab = Lab::new();
    let mut target = lab.start("stay.c", &[]);
    let text = "\
        #include <suture.h>\n\
        SUTURE_EXTERN long hold(long n);\n\
        static __attribute__((noinline)) long patched_value(long n) { return hold(n) + 100; }\n\
        SUTURE_PATCH(\"stay\", SUTURE_OBJECT(SUTURE_MAIN, SUTURE_FUNC(\"value\", patched_value)));\n";
    apply(&lab.patch("stay", text), target.pid()).expect(0);
    assert_eq!(target.ask("enter 1"), "inside");
    let done = Command::new("gdb")
        .args([
            "--batch",
            "-nx",
            "-iex",
            "set debuginfod enabled off",
            "-p",
            &target.pid_text(),
            "-ex",
            "backtrace",
        ])
        .output()
        .expect("running gdb");
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    let frames: Vec<&str> = said.lines().filter(|l| l.starts_with('#')).collect();
    let at = |name: &str| frames.iter().position(|f| f.contains(&format!(" {name} (")));
    let path = ["hold", "patched_value", "outermost", "main"].map(at);
    assert!(path.iter().all(Option::is_some) && path.is_sorted(), "{path:?} in {said}");
    assert!(!said.contains("corrupt stack") && !said.contains("?? ()"), "{said}");
    assert_eq!(target.ask("leave"), "call 1 = 101", "gdb's look left the program as it was");
}
