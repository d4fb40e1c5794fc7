//! Processes that were started without the runtime get it with their first patch.

use suture_tests::command::{apply, disable};
use suture_tests::target::Options;
use suture_tests::{Lab, Snapshot, Target, report};

fn unprepared() -> Options {
    Options { preload: false, ..Options::default() }
}

#[test]
fn the_first_patch_brings_the_runtime() {
    let lab = Lab::new();
    let patch = lab.value_patch("fix", 100);
    for (source, args) in [("threads.c", ["12", "2"].as_slice()), ("spin.c", &["0"]), ("mask.c", &["2"])] {
        let mut target = lab.start_with(source, args, unprepared());
        let before = Snapshot::of(target.pid());
        let applied = report::apply(&patch, target.pid());
        assert_eq!(applied["injected"], true, "{applied:#}");
        assert_eq!(target.call(1), 101, "{source}");
        Snapshot::of(target.pid()).assert_same_program(&before);
        disable("fix", target.pid()).expect(0);
        assert_eq!(target.call(1), 2, "{source}");
        assert_eq!(target.entry("value"), target.file_entry("value"), "{source}");
        let applied = report::apply(&patch, target.pid());
        assert_eq!(applied["injected"], false, "the runtime stays: {applied:#}");
        assert_eq!(target.call(1), 101, "{source}");
    }
}

#[test]
fn a_single_threaded_program_stays_one() {
    let lab = Lab::new();
    let patch = lab.value_patch("fix", 100);
    let mut target = lab.start_with("memory.c", &[], unprepared());
    apply(&patch, target.pid()).expect(0);
    assert_eq!(target.call(1), 101);
    assert_eq!(target.ask("single"), "single 1 threads 1");
}

#[test]
fn registers_survive_the_injection() {
    let lab = Lab::new();
    let patch = lab.value_patch("fix", 100);
    for _ in 0..5 {
        let mut target = lab.start_with("regs.c", &["2"], unprepared());
        apply(&patch, target.pid()).expect(0);
        assert_eq!(target.call(1), 101);
        let report = target.ask("report");
        assert_eq!(Target::number(&report, "wrong"), 0, "{report}");
    }
}
