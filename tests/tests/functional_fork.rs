//! Patched processes fork; their children are patched like their parents, and can be changed alone.

use suture_tests::command::{apply, disable};
use suture_tests::{Lab, Target, report};

#[test]
fn children_of_a_patched_process_run_the_patch() {
    let lab = Lab::new();
    let mut target = lab.start("forks.c", &[]);
    let patch = lab.value_patch("fix", 100);
    assert_eq!(target.ask("child 1"), "child 1 = 2");
    apply(&patch, target.pid()).expect(0);
    assert_eq!(target.ask("child 1"), "child 1 = 101");
    assert_eq!(target.ask("vchild 3"), "vchild 3 status 3");
    disable("fix", target.pid()).expect(0);
    assert_eq!(target.ask("child 1"), "child 1 = 2");
}

#[test]
fn a_child_is_patched_and_unpatched_alone() {
    let lab = Lab::new();
    let mut target = lab.start("forks.c", &[]);
    let (fix, more) = (lab.value_patch("fix", 100), lab.value_patch("more", 200));
    apply(&fix, target.pid()).expect(0);
    let child = i32::try_from(Target::number(&target.ask("stay"), "stay")).expect("a process id");
    assert_eq!(target.ask("stayed 1"), "stayed 1 = 101");
    assert_eq!(report::patches(child), ["fix"], "the child knows what it inherited");

    apply(&more, child).expect(0);
    assert_eq!(target.ask("stayed 1"), "stayed 1 = 201");
    assert_eq!(target.call(1), 101);
    disable("fix", child).expect(0);
    disable("more", child).expect(0);
    assert_eq!(target.ask("stayed 1"), "stayed 1 = 2");
    assert_eq!(target.call(1), 101);
    assert_eq!(report::patches(child), [""; 0]);

    disable("fix", target.pid()).expect(0);
    apply(&fix, child).expect(0);
    assert_eq!(target.ask("stayed 1"), "stayed 1 = 101");
    assert_eq!(target.call(1), 2);
}

#[test]
fn processes_forked_while_patches_come_and_go_are_whole() {
    let lab = Lab::new();
    let mut target = lab.start("forks.c", &[]);
    let patch = lab.value_patch("fix", 100);
    for _ in 0..10 {
        target.tell("child 1");
        apply(&patch, target.pid()).expect(0);
        let answer = target.line();
        assert!(["child 1 = 2", "child 1 = 101"].contains(&answer.as_str()), "{answer}");
        target.tell("child 1");
        disable("fix", target.pid()).expect(0);
        let answer = target.line();
        assert!(["child 1 = 2", "child 1 = 101"].contains(&answer.as_str()), "{answer}");
    }
}
