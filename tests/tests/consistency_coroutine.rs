//! Coroutines: frames of a thread that its registers do not lead to.

use std::path::PathBuf;
use suture_tests::command::suture;
use suture_tests::{Lab, Target, report};

/// A patch of both functions.
fn patch(lab: &Lab) -> PathBuf {
    lab.patch(
        "steps",
        "#include <suture.h>\n\
         SUTURE_EXTERN long step(void);\n\
         static long new_step(void) { return 100; }\n\
         static long new_slow(long n) { return n + step() + step(); }\n\
         SUTURE_PATCH(\"steps\", SUTURE_OBJECT(SUTURE_MAIN,\n\
             SUTURE_FUNC(\"step\", new_step), SUTURE_FUNC(\"slow\", new_slow)));\n",
    )
}

fn blockers(target: &Target) -> String {
    report::status(target.pid())["transition"].to_string()
}

/// Applies while the thread must not move, lets `slow` return, and waits for the end.
fn held_until_left(lab: &Lab, target: &mut Target, leave: &str) {
    let pid = target.pid_text();
    let patch = patch(lab).to_string_lossy().into_owned();
    suture(&["apply", &patch, "--pid", &pid, "--timeout", "2"]).expect(3);
    let why = blockers(target);
    assert!(why.contains("coroutine") || why.contains("slow"), "{why}");
    // All old, though the patch was there when it came back.
    assert_eq!(target.ask(leave), "slow 5 = 7");
    // What is left on its stack could still be live, as far as anybody can see.
    assert_eq!(target.ask("wipe"), "wiped");
    suture(&["wait", "steps", "--pid", &pid]).expect(0);
    assert_eq!(target.call(1), 2);
}

#[test]
fn a_coroutine_that_runs_hides_the_threads_own_frames() {
    let lab = Lab::new();
    for stack in ["own", "heap"] {
        let mut target = lab.start("coroutine.c", &[stack]);
        assert_eq!(target.ask("inside 5"), "inside");
        held_until_left(&lab, &mut target, "leave");
    }
}

#[test]
fn a_suspended_coroutine_on_the_threads_stack_is_noticed() {
    let lab = Lab::new();
    let mut target = lab.start("coroutine.c", &["own"]);
    assert_eq!(target.ask("suspend 5"), "suspended");
    held_until_left(&lab, &mut target, "resume");
}
