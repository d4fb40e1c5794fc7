//! Sites: all or none of a patch's, and what becomes of them under probes and breakpoints.

use suture_tests::command::{apply, disable};
use suture_tests::lab::replacing_all;
use suture_tests::poll::until_true;
use suture_tests::sys::Uprobe;
use suture_tests::{Lab, Snapshot, code, report};

#[test]
fn one_function_that_cannot_be_patched_keeps_all_as_they_are() {
    let lab = Lab::new();
    let mut target = lab.start_several();
    let before = Snapshot::of(target.pid());
    let patch = lab.patch("mixed", &replacing_all("mixed", &["alpha", "beta", "tiny", "gamma"]));
    apply(&patch, target.pid()).expect_refused(&["tiny"]);
    Snapshot::of(target.pid()).assert_untouched(&before);
    assert_eq!(target.ask("all 1"), "all 11 21 31");
    let good = lab.patch("good", &replacing_all("good", &["alpha", "beta", "gamma"]));
    apply(&good, target.pid()).expect(0);
    assert_eq!(target.ask("all 1"), "all 1001 1002 1003");
}

#[test]
fn a_breakpoint_on_a_site_is_found_by_status() {
    let lab = Lab::new();
    let mut target = lab.start_several();
    let patch = lab.value_patch("fix", 100);
    apply(&patch, target.pid()).expect(0);
    assert_eq!(report::sites(target.pid(), "fix"), ["armed"]);
    let entry = code::address(target.pid(), target.program(), "value");
    let armed = code::read(target.pid(), entry, 1);

    code::write(target.pid(), entry, &[0xcc]);
    assert_eq!(report::sites(target.pid(), "fix"), ["foreign"]);
    assert_eq!(report::status(target.pid())["sites_lost"], 1);
    // What is put there is left there: the patch goes all the same, and says so.
    let disabled = report::disable("fix", target.pid());
    assert_eq!(disabled["left"], 1, "{disabled:#}");
    assert_eq!(code::read(target.pid(), entry, 1), [0xcc]);

    // The debugger takes its breakpoint away and puts back what it found: our jump, which leads to
    // the old function now.
    code::write(target.pid(), entry, &armed);
    assert_eq!(target.call(1), 2);
    apply(&patch, target.pid()).expect(0);
    assert_eq!(target.call(1), 101);
    disable("fix", target.pid()).expect(0);
    assert_eq!(target.entry("value"), target.file_entry("value"));
}

#[test]
fn a_breakpoint_where_the_jump_should_go_is_refused() {
    let lab = Lab::new();
    let mut target = lab.start_several();
    let patch = lab.value_patch("fix", 100);
    let entry = code::address(target.pid(), target.program(), "value");
    let original = code::read(target.pid(), entry, 1);
    code::write(target.pid(), entry, &[0xcc]);
    let before = Snapshot::of(target.pid());
    apply(&patch, target.pid()).expect_refused(&["value"]);
    Snapshot::of(target.pid()).assert_untouched(&before);
    code::write(target.pid(), entry, &original);
    apply(&patch, target.pid()).expect(0);
    assert_eq!(target.call(1), 101);
}

#[test]
fn a_kernel_probe_on_a_site_is_found_by_status() {
    let lab = Lab::new();
    let mut target = lab.start_several();
    let patch = lab.value_patch("fix", 100);
    apply(&patch, target.pid()).expect(0);
    let offset = code::file_offset(target.program(), "value");
    let probe = Uprobe::place(target.pid(), target.program(), offset).expect("a uprobe: CONFIG_UPROBES");
    assert_eq!(report::sites(target.pid(), "fix"), ["foreign"]);
    // The kernel steps over the file's instruction, not ours: the old function runs.
    assert_eq!(target.call(1), 2);
    drop(probe);
    // The kernel takes its byte away a little after the descriptor is closed.
    let entry = code::address(target.pid(), target.program(), "value");
    until_true("the probe to go", || code::read(target.pid(), entry, 1) != [0xcc]);
    // And it puts the file's first byte back, in front of the rest of our jump. Nothing can keep it
    // from that; the next command that changes something must mend the torn bytes.
    assert_ne!(report::sites(target.pid(), "fix"), ["armed"]);
    assert_eq!(report::status(target.pid())["sites_lost"], 1);
    disable("fix", target.pid()).expect(0);
    assert_eq!(target.entry("value"), target.file_entry("value"));
    assert_eq!(target.call(1), 2);
    apply(&patch, target.pid()).expect(0);
    assert_eq!(target.call(1), 101);
}
