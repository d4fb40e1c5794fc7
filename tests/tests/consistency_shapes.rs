//! Stacks of many shapes: each holds a transition up exactly as long as a patched function is on it.

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;
use suture_tests::command::suture;
use suture_tests::dist::root;
use suture_tests::target::Options;
use suture_tests::{Lab, Target, need, report};

/// A patch of a function and of `g`.
fn patch(lab: &Lab, function: &str) -> PathBuf {
    lab.patch(
        "shape",
        &format!(
            "#include <suture.h>\n\
             SUTURE_EXTERN long g(void);\n\
             static long new_g(void) {{ return 100; }}\n\
             static long new_f(long n, void (*inside)(void)) {{ long a = g(); inside(); return n + a + g(); }}\n\
             SUTURE_PATCH(\"shape\", SUTURE_OBJECT(SUTURE_MAIN,\n\
                 SUTURE_FUNC(\"{function}\", new_f), SUTURE_FUNC(\"g\", new_g)));\n"
        ),
    )
}

fn start(program: &Path) -> Target {
    Target::start(program, &[], Options::default())
}

fn shapes(lab: &Lab, flags: &[&str]) -> Target {
    start(&lab.compile_target("shapes.c", flags))
}

fn blocker(target: &Target) -> Value {
    report::status(target.pid())["transition"]["blockers"][0].clone()
}

/// The shape holds for one reason, and nothing is mixed; once it is left the transition ends.
#[track_caller]
fn holds(lab: &Lab, target: &mut Target, shape: &str, function: &str, words: &[&str]) -> Value {
    let pid = target.pid_text();
    assert_eq!(target.ask(&format!("do {shape}")), "inside");
    let patch = patch(lab, function).to_string_lossy().into_owned();
    suture(&["apply", &patch, "--pid", &pid, "--timeout", "1"]).expect(3);
    let why = blocker(target);
    for word in words {
        assert!(why.to_string().contains(word), "{shape}: nothing about {word:?} in {why:#}");
    }
    assert_eq!(target.ask("leave"), format!("{shape} = 7"), "all old");
    suture(&["wait", "shape", "--pid", &pid]).expect(0);
    why
}

/// The shape does not hold, although it is there all the while. Gives the apply's figures.
#[track_caller]
fn lets_go(lab: &Lab, target: &mut Target, shape: &str) -> Value {
    assert_eq!(target.ask(&format!("do {shape}")), "inside");
    let applied = report::apply(&patch(lab, "f"), target.pid());
    assert_eq!(applied["finished"], true, "{shape}: {applied:#}");
    assert_eq!(target.ask("leave"), format!("{shape} = 0"));
    assert_eq!(target.ask("do plain"), "inside");
    assert_eq!(target.ask("leave"), "plain = 205", "all new");
    applied
}

/// `f` is on the stack, and the backtrace names the frames below it as well.
fn on_stack(lab: &Lab, flags: &[&str], shape: &str) -> Value {
    let why = holds(lab, &mut shapes(lab, flags), shape, "f", &["on-stack", "\"f\"", "stop_here"]);
    assert_eq!(why["function"], "f", "{why:#}");
    why
}

#[test]
fn a_function_is_found_however_it_was_compiled() {
    let lab = Lab::new();
    let frame_pointers = ["-O2", "-fno-omit-frame-pointer"];
    for flags in [&["-O2"][..], &["-O0"], &["-Os"], &["-O3"], &frame_pointers] {
        on_stack(&lab, flags, "plain");
    }
}

#[test]
fn frames_between_do_not_hide_it() {
    let lab = Lab::new();
    let frame_pointers = ["-fno-omit-frame-pointer"];
    let why = on_stack(&lab, &["-fno-optimize-sibling-calls"], "deep");
    let frames = why["backtrace"].as_array().map_or(0, Vec::len);
    assert!(frames > 5_000, "{frames} frames");
    on_stack(&lab, &[], "alloca");
    on_stack(&lab, &frame_pointers, "alloca");
    on_stack(&lab, &[], "signal");
    on_stack(&lab, &[], "altstack");
    // From the handler's frame up to the end of the stack its words are not met.
    on_stack(&lab, &[], "altstack-above");
}

#[test]
fn handlers_without_it_below_hold_nothing_up() {
    let lab = Lab::new();
    for shape in ["signal-only", "altstack-only"] {
        let applied = lets_go(&lab, &mut shapes(&lab, &[]), shape);
        // A signal frame may hide anything: it is walked.
        assert_eq!(applied["looks"]["cfi"], 1, "{shape}: {applied:#}");
    }
}

#[test]
fn old_return_addresses_hold_nothing_up() {
    let lab = Lab::new();
    for shape in ["ruins", "jumped"] {
        for flags in [&[][..], &["-fno-omit-frame-pointer"]] {
            let applied = lets_go(&lab, &mut shapes(&lab, flags), shape);
            let looks = &applied["looks"];
            let walked = looks["cfi"].as_u64().unwrap_or(0) + looks["height"].as_u64().unwrap_or(0);
            assert_eq!(walked, 1, "{shape} {flags:?}: not found by the scan? {applied:#}");
            assert_eq!(applied["moved_by"]["command"], 1, "{applied:#}");
            if !flags.is_empty() {
                assert_eq!(looks["height"], 1, "{applied:#}");
            }
        }
    }
}

#[test]
fn a_part_that_was_moved_away_counts() {
    let lab = Lab::new();
    let program = lab.compile_target("shapes.c", &["-freorder-blocks-and-partition"]);
    let symbols = Command::new("nm").arg(&program).output().expect("running nm").stdout;
    assert!(String::from_utf8_lossy(&symbols).contains(" split.cold"), "the compiler did not split it");
    // Two waits, so that one is in the middle of the part.
    let twice = |program: &Path| {
        let mut target = start(program);
        let pid = target.pid_text();
        assert_eq!(target.ask("do split"), "inside");
        let patch = patch(&lab, "split").to_string_lossy().into_owned();
        suture(&["apply", &patch, "--pid", &pid, "--timeout", "1"]).expect(3);
        assert_eq!(blocker(&target)["function"], "split");
        assert_eq!(target.ask("go on"), "inside");
        suture(&["wait", "shape", "--pid", &pid, "--timeout", "1"]).expect(3);
        assert_eq!(target.ask("leave"), "split = 7");
        suture(&["wait", "shape", "--pid", &pid]).expect(0);
    };
    twice(&program);
    // Exported, and without the symbols that name the part.
    let program = lab.compile_target("shapes.c", &["-freorder-blocks-and-partition", "-rdynamic", "-s"]);
    twice(&program);
}

#[test]
fn a_call_that_is_the_last_instruction_counts() {
    let lab = Lab::new();
    holds(&lab, &mut shapes(&lab, &[]), "last", "last", &["on-stack", "\"last\""]);
}

#[test]
fn code_without_frame_information_holds_only_above_it() {
    let lab = Lab::new();
    let mut target = shapes(&lab, &[]);
    holds(&lab, &mut target, "bare", "f", &["unreliable", "no call frame information", "bare"]);
    holds(&lab, &mut shapes(&lab, &[]), "made", "f", &["unreliable", "no object is loaded"]);
    for shape in ["bare-only", "made-only"] {
        let applied = lets_go(&lab, &mut shapes(&lab, &[]), shape);
        assert_eq!(applied["looks"]["cfi"], 0, "a scan is enough: {applied:#}");
    }
}

#[test]
fn an_exception_in_flight_leaves_frames_one_by_one() {
    let lab = Lab::new();
    let program = lab.compile_target("thrown.cpp", &[]);
    holds(&lab, &mut start(&program), "caught", "f", &["on-stack", "\"f\""]);
    let mut target = start(&program);
    assert_eq!(target.ask("do passed"), "inside");
    let applied = report::apply(&patch(&lab, "leaks"), target.pid());
    assert_eq!(applied["finished"], true, "{applied:#}");
    assert_eq!(target.ask("leave"), "passed = 0");
}

#[test]
fn a_cancelled_thread_leaves_frames_one_by_one() {
    let lab = Lab::new();
    for flags in [&[][..], &["-fexceptions"]] {
        holds(&lab, &mut shapes(&lab, flags), "cancelled", "f", &["on-stack", "\"f\""]);
        lets_go(&lab, &mut shapes(&lab, flags), "cancel-passed");
    }
}

#[test]
fn rust_holds_whatever_panics_do() {
    let lab = Lab::new();
    need("rustc", "rustc");
    for panic in ["panic=unwind", "panic=abort"] {
        let program = lab.path("shapes-rs");
        let source = root().join("tests/targets/shapes.rs");
        let compiler = Command::new("rustc")
            .args(["--edition", "2024", "-O", "-g", "-C", panic, "-o"])
            .args([&program, &source])
            .output();
        let said = compiler.expect("running rustc");
        assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
        let mut target = start(&program);
        holds(&lab, &mut target, "plain", "f", &["on-stack", "\"f\""]);
        assert_eq!(target.ask("do plain"), "inside");
        assert_eq!(target.ask("leave"), "plain = 205");
    }
}
