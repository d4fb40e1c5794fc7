//! Whatever a thread has in registers, flags, its red zone and errno survives every apply.

use suture_tests::command::{apply, disable};
use suture_tests::{Lab, Target, poll, repeat};

#[test]
fn registers_survive_every_apply() {
    let lab = Lab::new();
    let mut target = lab.start("regs.c", &["4"]);
    let patch = lab.value_patch("fix", 100);
    let cycles = repeat(100, 1000);
    for cycle in 0..cycles {
        apply(&patch, target.pid()).expect(0);
        assert_eq!(target.call(1), 101, "cycle {cycle}");
        disable("fix", target.pid()).expect(0);
        assert_eq!(target.call(1), 2, "cycle {cycle}");
    }
    let rounds = |target: &mut Target| Target::number(&target.ask("report"), "rounds");
    let so_far = rounds(&mut target);
    poll::until_true("every thread to compare once more", || rounds(&mut target) > so_far + 8);
    let report = target.ask("report");
    assert_eq!(Target::number(&report, "wrong"), 0, "{report}");
}

#[test]
fn registers_of_the_only_thread_that_can_be_borrowed_survive() {
    // One thread that spins with loaded registers; the other waits for commands, and is borrowed
    // first, so that both kinds are hit over the cycles.
    let lab = Lab::new();
    let mut target = lab.start("regs.c", &["1"]);
    let patch = lab.value_patch("fix", 100);
    for _ in 0..repeat(20, 300) {
        apply(&patch, target.pid()).expect(0);
        disable("fix", target.pid()).expect(0);
    }
    let report = target.ask("report");
    assert_eq!(Target::number(&report, "wrong"), 0, "{report}");
}
