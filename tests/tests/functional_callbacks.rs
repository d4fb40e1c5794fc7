//! Callbacks of states: which run, in which order, and what undoes them.

use suture_tests::callbacks::{KINDS, PLAIN, Patch, begin, both, down, events, lines, start, up};
use suture_tests::command::{apply, disable, get, run, set};
use suture_tests::report::{self, await_end};
use suture_tests::target::Options;
use suture_tests::{Lab, Target};

#[test]
fn callbacks_run_around_the_change_in_every_kind_of_process() {
    for kind in KINDS {
        let lab = Lab::new();
        let mut target = start(&lab, kind);
        let pid = target.pid();
        let a = Patch { states: &[(10, "0"), (11, "SUTURE_IS_SHADOW")], ..PLAIN }.make(&lab);
        for _ in 0..3 {
            apply(&a, pid).expect(0);
            assert_eq!(target.ask("alpha 1"), "alpha 1 = 1001", "{kind:?}");
            // Before: the old function is seen; after: the new one.
            let notes =
                "notes pre_patch(a,10):11 pre_patch(a,11):11 post_patch(a,10):1001 post_patch(a,11):1001";
            assert_eq!(target.ask("notes"), notes, "{kind:?}");
            assert_eq!(get("a/last_callback", pid), "post_patch(11) returned");
            disable("a", pid).expect(0);
            assert_eq!(target.ask("alpha 1"), "alpha 1 = 11", "{kind:?}");
            let notes = "notes pre_unpatch(a,10):1001 pre_unpatch(a,11):1001 post_unpatch(a,10):11 post_unpatch(a,11):11";
            assert_eq!(target.ask("notes"), notes, "{kind:?}");
            assert_eq!(target.entry("alpha"), target.file_entry("alpha"));
        }
        let first = up("a", &["pre_patch a,10", "pre_patch a,11"], &["post_patch a,10", "post_patch a,11"]);
        let last = ["post_unpatch a,10", "post_unpatch a,11"];
        let second = down("a", &["pre_unpatch a,10", "pre_unpatch a,11"], &last);
        let found: Vec<String> = events(pid).into_iter().filter(|e| !e.starts_with("dtor")).collect();
        let once = [first, second].concat();
        assert_eq!(found, [once.clone(), once.clone(), once].concat(), "{kind:?}");
        assert!(target.finish().success());
    }
}

#[test]
fn a_failing_pre_patch_takes_everything_back() {
    for kind in KINDS {
        let lab = Lab::new();
        let mut target = start(&lab, kind);
        let pid = target.pid();
        let failing = Patch {
            states: &[(8, "0"), (9, "0"), (10, "0"), (11, "0")],
            before: "if (id == 10 && level != 4) return (int)-level;",
            ..PLAIN
        };
        let a = failing.make(&lab);
        assert_eq!(target.ask("level 19"), "level 19");
        let (errno, message) = run(&["apply", &a.to_string_lossy()], pid).refusal();
        assert_eq!(errno, "ENODEV", "{message}");
        assert!(message.contains("pre_patch(10) failed: ENODEV (No such device"), "{message}");
        let expected = [
            "enable a",
            "init+ a",
            "pre_patch a,8",
            "pre_patch a,9",
            "pre_patch a,10=19",
            "fail a",
            "cancel a",
            "completing- a",
            "post_unpatch a,8",
            "post_unpatch a,9",
            "done- a",
            "gone a",
        ];
        assert_eq!(events(pid), lines(&expected), "in array order, and nothing for 10 and 11: {kind:?}");
        assert_eq!(target.ask("alpha 1"), "alpha 1 = 11");
        assert_eq!(target.entry("alpha"), target.file_entry("alpha"));
        assert_eq!(report::patches(pid), [""; 0]);
        // Afterwards it is as if it had never been.
        assert_eq!(target.ask("level 4"), "level 4");
        apply(&a, pid).expect(0);
        assert_eq!(target.ask("alpha 1"), "alpha 1 = 1001");
        disable("a", pid).expect(0);
        assert!(target.finish().success());
    }
}

#[test]
fn a_replace_keeps_adds_and_drops_states() {
    both(|lab, mut target| {
        let pid = target.pid();
        let a = Patch { states: &[(10, "0"), (11, "0"), (12, "0")], ..PLAIN }.make(lab);
        let r = Patch {
            name: "r",
            plus: 2000,
            states: &[(11, "0"), (13, "0"), (14, "0")],
            replace: true,
            ..PLAIN
        };
        apply(&a, pid).expect(0);
        let before = events(pid).len();
        apply(&r.make(lab), pid).expect(0);
        let begun = ["pre_patch r,13", "pre_patch r,14", "pre_unpatch a,10", "pre_unpatch a,12"];
        let ended = ["post_unpatch a,10", "post_unpatch a,12", "post_patch r,13", "post_patch r,14"];
        assert_eq!(events(pid)[before..], [up("r", &begun, &ended), lines(&["gone a"])].concat());
        assert_eq!(target.ask("alpha 1"), "alpha 1 = 2001");
        assert_eq!(get("r/states/11/holders", pid), "r");
        let before = events(pid).len();
        disable("r", pid).expect(0);
        let begun = ["pre_unpatch r,11", "pre_unpatch r,13", "pre_unpatch r,14"];
        let ended = ["post_unpatch r,11", "post_unpatch r,13", "post_unpatch r,14"];
        assert_eq!(events(pid)[before..], down("r", &begun, &ended), "what it took over is its own to undo");
    });
}

#[test]
fn a_shared_state_comes_with_the_first_and_goes_with_the_last() {
    both(|lab, target| {
        let pid = target.pid();
        let a = Patch { states: &[(10, "0")], ..PLAIN }.make(lab);
        let b = Patch { name: "b", functions: &["beta"], states: &[(10, "0")], ..PLAIN }.make(lab);
        apply(&a, pid).expect(0);
        apply(&b, pid).expect(0);
        assert_eq!(get("a/states/10/holders", pid), "a b");
        disable("a", pid).expect(0);
        disable("b", pid).expect(0);
        let expected = [
            up("a", &["pre_patch a,10"], &["post_patch a,10"]),
            up("b", &[], &[]),
            down("a", &[], &[]),
            down("b", &["pre_unpatch b,10"], &["post_unpatch b,10"]),
        ];
        assert_eq!(events(pid), expected.concat());
    });
}

#[test]
fn of_two_replaced_holders_the_newest_cleans_up_once() {
    both(|lab, target| {
        let pid = target.pid();
        let a = Patch { states: &[(10, "0")], ..PLAIN }.make(lab);
        let b = Patch { name: "b", functions: &["beta"], states: &[(10, "0")], ..PLAIN }.make(lab);
        let r = Patch { name: "r", functions: &["alpha"], replace: true, ..PLAIN }.make(lab);
        apply(&a, pid).expect(0);
        apply(&b, pid).expect(0);
        let before = events(pid).len();
        apply(&r, pid).expect(0);
        let gone = lines(&["gone a", "gone b"]);
        assert_eq!(
            events(pid)[before..],
            [up("r", &["pre_unpatch b,10"], &["post_unpatch b,10"]), gone].concat()
        );
    });
}

#[test]
fn data_of_the_program_is_changed_handed_on_and_restored() {
    both(|lab, mut target| {
        let pid = target.pid();
        let after = ["level = 15;", "level = 4;", ""];
        let a = Patch { functions: &["alpha"], states: &[(1, "0")], after, replace: true, ..PLAIN };
        let b = Patch { name: "b", ..a.clone() };
        apply(&a.make(lab), pid).expect(0);
        assert_eq!(target.ask("level"), "level 15");
        apply(&b.make(lab), pid).expect(0);
        assert_eq!(target.ask("level"), "level 15", "taken over, untouched");
        assert_eq!(report::patches(pid), ["b"]);
        disable("b", pid).expect(0);
        assert_eq!(target.ask("level"), "level 4");
        let expected = [
            up("a", &["pre_patch a,1"], &["post_patch a,1"]),
            up("b", &[], &[]),
            lines(&["gone a"]),
            down("b", &["pre_unpatch b,1"], &["post_unpatch b,1"]),
        ];
        assert_eq!(events(pid), expected.concat());
    });
}

#[test]
fn a_reversed_enable_undoes_what_came_before() {
    both(|lab, mut target| {
        let pid = target.pid();
        let a =
            Patch { functions: &["alpha", "blocker"], plus: 1000, states: &[(10, "0")], ..PLAIN }.make(lab);
        assert_eq!(target.ask("enter"), "inside");
        begin(&a, pid);
        assert_eq!(target.ask("alpha 1"), "alpha 1 = 1001", "the main thread has moved");
        assert_eq!((get("a/enabled", pid), get("a/transition", pid)), ("1".into(), "1".into()));
        assert!(get("a/pending", pid).contains("blocker"), "{}", get("a/pending", pid));
        set("a/enabled", "0", pid);
        await_end(pid);
        let expected = [
            "enable a",
            "init+ a",
            "pre_patch a,10",
            "start+ a",
            "rev- a",
            "start- a",
            "completing- a",
            "post_unpatch a,10",
            "done- a",
            "gone a",
        ];
        assert_eq!(events(pid), lines(&expected), "the thread never left");
        assert_eq!(target.ask("alpha 1"), "alpha 1 = 11");
        assert_eq!(target.ask("leave"), "left 1");
    });
}

#[test]
fn a_reversed_disable_runs_post_patch_again() {
    both(|lab, mut target| {
        let pid = target.pid();
        let a =
            Patch { functions: &["alpha", "blocker"], plus: 1000, states: &[(10, "0")], ..PLAIN }.make(lab);
        apply(&a, pid).expect(0);
        assert_eq!(target.ask("enter"), "inside");
        let before = events(pid).len();
        set("a/enabled", "0", pid);
        assert_eq!((get("a/enabled", pid), get("a/transition", pid)), ("0".into(), "1".into()));
        assert_eq!(run(&["set", "a/enabled", "0"], pid).refusal().0, "EINVAL", "it is 0 already");
        set("a/enabled", "1", pid);
        await_end(pid);
        let expected = [
            "init- a",
            "pre_unpatch a,10",
            "start- a",
            "rev+ a",
            "start+ a",
            "completing+ a",
            "post_patch a,10",
            "done+ a",
        ];
        assert_eq!(events(pid)[before..], lines(&expected), "without pre_patch");
        assert_eq!((get("a/enabled", pid), get("a/transition", pid)), ("1".into(), "0".into()));
        assert_eq!(target.ask("leave"), "left 1000");
        assert_eq!(target.ask("alpha 1"), "alpha 1 = 1001");
    });
}

#[test]
fn a_reversed_replace_brings_the_old_states_back() {
    both(|lab, mut target| {
        let pid = target.pid();
        let a = Patch { states: &[(10, "0")], ..PLAIN }.make(lab);
        let r = Patch { name: "r", functions: &["blocker"], states: &[(11, "0")], replace: true, ..PLAIN }
            .make(lab);
        apply(&a, pid).expect(0);
        assert_eq!(target.ask("enter"), "inside");
        let before = events(pid).len();
        begin(&r, pid);
        assert_eq!(target.ask("alpha 1"), "alpha 1 = 11", "a's function is on its way out");
        run(&["reverse", "r"], pid).expect(0);
        await_end(pid);
        let expected = [
            "enable r",
            "init+ r",
            "pre_patch r,11",
            "pre_unpatch a,10",
            "start+ r",
            "rev- r",
            "start- r",
            "completing- r",
            "post_patch a,10",
            "post_unpatch r,11",
            "done- r",
            "gone r",
        ];
        assert_eq!(events(pid)[before..], lines(&expected));
        assert_eq!(report::patches(pid), ["a"]);
        assert_eq!(target.ask("alpha 1"), "alpha 1 = 1001");
        assert_eq!(target.ask("leave"), "left 1");
    });
}

#[test]
fn a_forced_enable_runs_its_callbacks() {
    both(|lab, mut target| {
        let pid = target.pid();
        let a =
            Patch { functions: &["alpha", "blocker"], plus: 1000, states: &[(10, "0")], ..PLAIN }.make(lab);
        assert_eq!(target.ask("enter"), "inside");
        begin(&a, pid);
        set("a/force", "1", pid);
        await_end(pid);
        let found: Vec<String> = events(pid).into_iter().filter(|e| !e.starts_with("forced")).collect();
        assert_eq!(found, up("a", &["pre_patch a,10"], &["post_patch a,10"]));
        assert_eq!(target.ask("leave"), "left 1", "old code is never taken away");
        disable("a", pid).expect(0);
        assert_eq!(target.ask("alpha 1"), "alpha 1 = 11");
    });
}

#[test]
fn a_state_that_blocks_disable_forbids_to_turn_round_as_well() {
    both(|lab, mut target| {
        let pid = target.pid();
        let held = [(10, "SUTURE_BLOCK_DISABLE")];
        let a = Patch { functions: &["alpha", "blocker"], states: &held, ..PLAIN }.make(lab);
        assert_eq!(target.ask("enter"), "inside");
        begin(&a, pid);
        for args in [&["disable", "a"][..], &["reverse", "a"], &["set", "a/enabled", "0"]] {
            let (errno, message) = run(args, pid).refusal();
            assert_eq!(errno, "EINVAL", "{message}");
            assert!(message.contains("does not support disable"), "{message}");
        }
        assert_eq!((get("a/enabled", pid), get("a/transition", pid)), ("1".into(), "1".into()));
        assert_eq!(target.ask("leave"), "left 1");
        await_end(pid);
        assert_eq!(events(pid), up("a", &["pre_patch a,10"], &["post_patch a,10"]));
    });
}

#[test]
fn one_transition_at_a_time_and_what_never_fits_is_said_first() {
    both(|lab, mut target| {
        let pid = target.pid();
        let a = Patch { functions: &["blocker"], states: &[(10, "SUTURE_BLOCK_DISABLE")], ..PLAIN }.make(lab);
        let b = Patch { name: "b", functions: &["beta"], states: &[(11, "0")], ..PLAIN }.make(lab);
        let r =
            Patch { name: "r", functions: &["beta"], states: &[(11, "0")], replace: true, ..PLAIN }.make(lab);
        let odd = Patch { name: "odd", functions: &["nosuch"], states: &[(11, "0")], ..PLAIN }.make(lab);
        let c = Patch { name: "c", states: &[(12, "0")], ..PLAIN }.make(lab);
        apply(&c, pid).expect(0);
        assert_eq!(target.ask("enter"), "inside");
        begin(&a, pid);
        let log = events(pid);
        assert_eq!(run(&["apply", &b.to_string_lossy()], pid).refusal().0, "EBUSY");
        assert_eq!(run(&["disable", "c"], pid).refusal().0, "EBUSY");
        let (errno, message) = run(&["apply", &r.to_string_lossy()], pid).refusal();
        assert_eq!((errno.as_str(), message.contains("not compatible")), ("EINVAL", true), "{message}");
        assert_eq!(run(&["apply", &odd.to_string_lossy()], pid).refusal().0, "EINVAL");
        assert_eq!(events(pid), log, "nothing has begun");
        assert_eq!(report::patches(pid), ["c", "a"]);
        assert_eq!(target.ask("leave"), "left 1");
        await_end(pid);
        assert_eq!(get("c/enabled", pid), "1");
    });
}

/// Soft limit of open files.
fn open_files(pid: i32) -> String {
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).expect("the process lives");
    let line = limits.lines().find(|l| l.starts_with("Max open files")).expect("a limit of open files");
    line.split_whitespace().nth(3).expect("a soft limit").to_owned()
}

#[test]
fn the_sample_raises_a_limit_while_it_is_in() {
    const RLIMIT_NOFILE: u32 = 7;
    let lab = Lab::new();
    let sample = lab.patch_file(&suture_tests::dist::root().join("samples/state-limit.c"), "state-limit");
    let start = |soft: u64, hard: u64| {
        let program = lab.compile_target("states.c", &[]);
        let limits = vec![(RLIMIT_NOFILE, (soft, hard))];
        Target::start(&program, &[], Options { limits, ..Options::default() })
    };
    let target = start(256, 1024);
    apply(&sample, target.pid()).expect(0);
    assert_eq!(open_files(target.pid()), "1024");
    disable("raise-limit", target.pid()).expect(0);
    assert_eq!(open_files(target.pid()), "256");

    // A newer one that takes over keeps the limit, and knows what to go back to.
    let sample_path = suture_tests::dist::root().join("samples/state-limit.c");
    let newer = std::fs::read_to_string(sample_path).expect("the sample");
    let newer = newer.replace("\"raise-limit\",", "\"raise-newer\", SUTURE_REPLACE_ALL,");
    let newer = lab.patch("newer", &newer);
    apply(&sample, target.pid()).expect(0);
    apply(&newer, target.pid()).expect(0);
    assert_eq!(
        (open_files(target.pid()).as_str(), report::patches(target.pid())),
        ("1024", vec!["raise-newer".into()])
    );
    disable("raise-newer", target.pid()).expect(0);
    assert_eq!(open_files(target.pid()), "256");
    let full = start(256, 256);
    let (errno, message) = run(&["apply", &sample.to_string_lossy()], full.pid()).refusal();
    assert_eq!(errno, "EPERM", "{message}");
    assert!(message.contains("pre_patch(4711) failed"), "{message}");
    assert_eq!(report::patches(full.pid()), [""; 0]);
}
