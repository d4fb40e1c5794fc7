//! Coroutines: frames of a thread that its registers do not lead to, with and without registration.

use std::path::PathBuf;
use suture_tests::command::suture;
use suture_tests::dist::root;
use suture_tests::target::Options;
use suture_tests::{Lab, Target, repeat, report};

/// A patch of both functions.
fn patch(lab: &Lab) -> PathBuf {
    lab.patch(
        "steps",
        "#include <suture.h>\n\
         SUTURE_EXTERN long stride(void);\n\
         static long new_stride(void) { return 100; }\n\
         static long new_slow(long n) { return n + stride() + stride(); }\n\
         SUTURE_PATCH(\"steps\", SUTURE_OBJECT(SUTURE_MAIN,\n\
             SUTURE_FUNC(\"stride\", new_stride), SUTURE_FUNC(\"slow\", new_slow)));\n",
    )
}

fn start(lab: &Lab, args: &[&str]) -> Target {
    let include = root().join("include");
    let program = lab.compile_target("coroutine.c", &["-I", &include.to_string_lossy()]);
    Target::start(&program, args, Options::default())
}

fn blockers(target: &Target) -> String {
    report::status(target.pid())["transition"]["blockers"].to_string()
}

/// Applies while the thread must not move, and says why it did not.
fn held(lab: &Lab, target: &Target) -> String {
    let patch = patch(lab).to_string_lossy().into_owned();
    suture(&["apply", &patch, "--pid", &target.pid_text(), "--timeout", "2"]).expect(3);
    blockers(target)
}

fn wait(target: &mut Target) {
    suture(&["wait", "steps", "--pid", &target.pid_text()]).expect(0);
    // All new: 5 + 100 + 100, and the new function does not suspend itself.
    assert_eq!(target.ask("suspend 5"), "slow 5 = 205");
    assert_eq!(target.line(), "suspended");
}

/// All old, though the patch was there when it came back.
const OLD: &str = "slow 5 = 7";

#[test]
fn a_coroutine_that_runs_hides_the_threads_own_frames() {
    let lab = Lab::new();
    for stack in ["own", "heap"] {
        let mut target = start(&lab, &[stack]);
        assert_eq!(target.ask("inside 5"), "inside");
        let why = held(&lab, &target);
        assert!(why.contains("coroutine"), "{why}");
        assert_eq!(target.ask("leave"), OLD);
        // What is left on its stack could still be live, as far as anybody can see.
        assert_eq!(target.ask("wipe"), "wiped");
        wait(&mut target);
    }
}

#[test]
fn a_suspended_coroutine_is_noticed_wherever_its_stack_is() {
    let lab = Lab::new();
    for stack in ["own", "heap"] {
        let mut target = start(&lab, &[stack]);
        assert_eq!(target.ask("suspend 5"), "suspended");
        let why = held(&lab, &target);
        let expected = if stack == "own" { "a suspended coroutine" } else { "a stack that nobody knows" };
        assert!(why.contains(expected), "{why}");
        assert_eq!(target.ask("resume"), OLD);
        assert_eq!(target.ask("wipe"), "wiped");
        wait(&mut target);
    }
}

#[test]
fn a_registered_coroutine_holds_while_it_is_inside_and_no_longer() {
    let lab = Lab::new();
    for stack in ["own", "heap"] {
        let mut target = start(&lab, &[stack, "registered"]);
        assert_eq!(target.ask("suspend 5"), "suspended");
        let why = held(&lab, &target);
        assert!(why.contains("slow (suspended on a registered stack)"), "{why}");
        assert_eq!(target.ask("resume"), OLD);
        // Nothing is wiped: old return addresses below its stack pointer do not count.
        wait(&mut target);
    }
}

#[test]
fn frames_under_a_registered_coroutine_that_runs_are_found() {
    let lab = Lab::new();
    for stack in ["own", "heap"] {
        let mut target = start(&lab, &[stack, "registered"]);
        assert_eq!(target.ask("inside 5"), "inside");
        let why = held(&lab, &target);
        assert!(why.contains("slow (suspended on its own stack)"), "{why}");
        assert_eq!(target.ask("leave"), OLD);
        wait(&mut target);
    }
}

#[test]
fn registered_coroutines_elsewhere_hold_nothing_up() {
    let lab = Lab::new();
    for stack in ["own", "heap"] {
        let mut target = start(&lab, &[stack, "registered"]);
        assert_eq!(target.ask("idle"), "idle");
        let applied = report::apply(&patch(&lab), target.pid());
        assert_eq!(applied["finished"], true, "{applied:#}");
        assert_eq!(applied["own_stacks"]["contexts"], 0, "known ones are not counted: {applied:#}");
        let moved = &applied["moved_by"];
        assert_eq!((&moved["worker"], &moved["themselves"]), (&0.into(), &0.into()), "{applied:#}");
        assert_eq!(target.ask("roam"), "roaming");
        // It waits on the coroutine's stack meanwhile.
        let disabled = report::disable("steps", target.pid());
        assert_eq!(disabled["finished"], true, "{disabled:#}");
        assert_eq!(target.ask("back"), "back");
    }
}

#[test]
fn a_program_that_only_could_make_coroutines_is_not_searched_again_and_again() {
    let lab = Lab::new();
    let target = start(&lab, &["heap"]);
    let applied = report::apply(&patch(&lab), target.pid());
    let stacks = &applied["own_stacks"];
    assert_eq!(stacks["guarded"], false, "{applied:#}");
    assert!(stacks["searched"].as_u64() > Some(0), "{applied:#}");
    assert!(stacks["signs"][0].as_str().is_some_and(|s| s.contains("makecontext")), "{applied:#}");
}

/// Threads that looked at themselves leave on their stacks whatever the look had in its registers. The program then must
/// not look as if it had coroutines: threads' own stacks are given back to the C library and used again.
#[test]
fn looks_of_threads_at_themselves_leave_no_sign_of_a_coroutine() {
    let lab = Lab::new();
    let program = lab.compile_target("short_lived.c", &["-pthread"]);
    let target = Target::start(&program, &[], Options::default());
    let patch = lab.patch(
        "work",
        "#include <suture.h>\n\
         static long new_work(long n) { return n + 2; }\n\
         SUTURE_PATCH(\"work\", SUTURE_OBJECT(SUTURE_MAIN, SUTURE_FUNC(\"work\", new_work)));\n",
    );
    let mut themselves = 0;
    for _ in 0..repeat(12, 200) {
        let applied = report::apply(&patch, target.pid());
        let stacks = &applied["own_stacks"];
        assert!(!stacks["signs"].as_array().expect("signs").is_empty(), "{stacks}");
        assert_eq!((&stacks["contexts"], &stacks["guarded"]), (&0.into(), &false.into()), "{applied:#}");
        themselves += applied["moved_by"]["themselves"].as_u64().expect("a number");
        let disabled = report::disable("work", target.pid());
        assert_eq!(disabled["finished"], true, "{disabled:#}");
    }
    assert!(themselves > 0, "no thread looked at itself");
}
