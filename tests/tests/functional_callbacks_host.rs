//! The thread that runs callbacks: whom it is borrowed from, callbacks that crash, block or take long, and commands that
//! they start.

use suture_tests::callbacks::{KINDS, PLAIN, Patch, both, events, lines, start, up};
use suture_tests::command::{apply, disable, get, run, start as start_command, suture};
use suture_tests::report::{self, await_end};
use suture_tests::target::Options;
use suture_tests::{Lab, Target, poll};

#[test]
fn a_callback_cannot_change_patches_of_its_own_process() {
    for kind in KINDS {
        let lab = Lab::new();
        let mut target = start(&lab, kind);
        let pid = target.pid();
        let command = &suture_tests::dist::dist().suture;
        let b = Patch { name: "b", functions: &["beta"], ..PLAIN }.make(&lab);
        let said = lab.path("said");
        let call = |args: &str| {
            let script = format!(
                "env -u LD_PRELOAD {} {args} --json --pid %d >> {} 2>&1; echo \\\"status $?\\\" >> {}",
                command.display(),
                said.display(),
                said.display()
            );
            format!(
                "{{ char c[2048]; snprintf(c, sizeof c, \"{script}\", (int)getpid()); (void)!system(c); }}"
            )
        };
        let before = format!("{}{}", call(&format!("apply {}", b.display())), call("disable a"));
        let post = format!("{}{}", call("set a/enabled 0"), call("get a/transition"));
        let a = Patch { states: &[(10, "0")], before: &before, after: [&post, "", ""], ..PLAIN }.make(&lab);
        apply(&a, pid).expect(0);
        let said = std::fs::read_to_string(&said).expect("the callbacks have run the command");
        assert_eq!(said.matches("\"errno\": \"EDEADLK\"").count(), 3, "{kind:?}: {said}");
        assert_eq!(said.matches("status 1").count(), 3, "{kind:?}: {said}");
        assert!(said.contains("status 0"), "looking is allowed: {said}");
        assert_eq!(events(pid), up("a", &["pre_patch a,10"], &["post_patch a,10"]), "{kind:?}");
        assert_eq!(report::patches(pid), ["a"]);
        assert_eq!(target.ask("alpha 1"), "alpha 1 = 1001");
    }
}

#[test]
fn a_callback_that_crashes_is_reported_and_contained() {
    for kind in KINDS {
        let lab = Lab::new();
        let mut target = start(&lab, kind);
        let pid = target.pid();
        let crash = "*(volatile int *)8 = 1;";
        let a = Patch { states: &[(9, "0"), (10, "0")], before: &format!("if (id == 10) {crash}"), ..PLAIN };
        let (errno, message) = run(&["apply", &a.make(&lab).to_string_lossy()], pid).refusal();
        assert_eq!(errno, "EFAULT", "{kind:?}: {message}");
        assert!(message.contains("pre_patch(10) was ended by signal 11"), "{kind:?}: {message}");
        let expected = [
            "enable a",
            "init+ a",
            "pre_patch a,9",
            "crashed a,10",
            "pre_patch a,10=14",
            "fail a",
            "cancel a",
            "completing- a",
            "post_unpatch a,9",
            "done- a",
            "gone a",
        ];
        assert_eq!(events(pid), lines(&expected), "{kind:?}");
        // One that nobody can take back goes on.
        let b = Patch { name: "b", states: &[(10, "0")], after: [crash, "", ""], ..PLAIN }.make(&lab);
        apply(&b, pid).expect(0);
        assert_eq!(get("b/last_callback", pid), "post_patch(10) was ended by signal 11", "{kind:?}");
        assert_eq!(target.ask("alpha 1"), "alpha 1 = 1001", "{kind:?}");
        disable("b", pid).expect(0);
        assert_eq!(target.ask("alpha 1"), "alpha 1 = 11", "{kind:?}");
        assert!(target.finish().success(), "{kind:?}");
    }
}

/// Nobody catches what a callback throws: the C++ library ends it there, and the program goes on.
#[test]
fn a_callback_that_throws_is_reported_and_contained() {
    for preload in [true, false] {
        let lab = Lab::new();
        let program = lab.compile_target("states.c", &["-Wl,--no-as-needed", "-lstdc++"]);
        let mut target = Target::start(&program, &[], Options { preload, ..Options::default() });
        let pid = target.pid();
        let text = "\
            #include <suture.h>\n\
            static long changed(long n) { return n + 1000; }\n\
            static int before(suture_patch *, suture_state *) { throw 7; }\n\
            SUTURE_PATCH(\"a\", SUTURE_OBJECT(SUTURE_MAIN, SUTURE_FUNC(\"alpha\", changed)),\n\
                SUTURE_STATE(10, 0, before, 0, 0, 0, 0));\n";
        let a = lab.patch_file(&lab.write("throws.cpp", text), "throws");
        let (errno, message) = run(&["apply", &a.to_string_lossy()], pid).refusal();
        assert_eq!(errno, "EFAULT", "preload {preload}: {message}");
        assert!(message.contains("pre_patch(10) was ended by signal 6"), "preload {preload}: {message}");
        assert_eq!(target.ask("alpha 1"), "alpha 1 = 11");
        // It has cost nothing but the enable: the next patch with callbacks is taken.
        let b = Patch { name: "b", states: &[(10, "0")], ..PLAIN }.make(&lab);
        apply(&b, pid).expect(0);
        assert_eq!(target.ask("alpha 1"), "alpha 1 = 1001");
        assert!(target.finish().success(), "preload {preload}");
    }
}

#[test]
fn a_callback_that_blocks_is_shown_and_waited_for() {
    both(|lab, mut target| {
        let pid = target.pid();
        let block = "while (level == 5) usleep(1000);";
        let a = Patch {
            states: &[(10, "0")],
            before: block,
            after: ["while (level == 6) usleep(1000);", "", ""],
            ..PLAIN
        };
        let a = a.make(lab);
        assert_eq!(target.ask("level 5"), "level 5");
        let applying = start_command(&["apply", &a.to_string_lossy(), "--pid", &target.pid_text()], None);
        let running = |callback: &str| {
            let path = "a/last_callback";
            poll::until_true("the callback to run", || {
                let shown = suture(&["get", path, "--pid", &pid.to_string()]);
                shown.stdout.trim_end() == format!("{callback}(10) is running")
            });
        };
        running("pre_patch");
        assert_eq!(target.ask("beta 1"), "beta 1 = 21", "the program goes on");
        assert_eq!(get("a/enabled", pid), "0", "nobody can run the new code yet");
        assert_eq!(run(&["reverse", "a"], pid).refusal().0, "EBUSY");
        let b = Patch { name: "b", functions: &["beta"], ..PLAIN }.make(lab);
        assert_eq!(run(&["apply", &b.to_string_lossy()], pid).refusal().0, "EBUSY");
        assert_ne!(
            target.entry("alpha"),
            target.file_entry("alpha"),
            "nobody takes a's entries for forgotten"
        );
        assert_eq!(target.ask("level 6"), "level 6");
        running("post_patch");
        assert_eq!(target.ask("alpha 1"), "alpha 1 = 1001");
        assert_eq!((get("a/enabled", pid), get("a/transition", pid)), ("1".into(), "1".into()));
        for args in [&["reverse", "a"][..], &["disable", "a"], &["set", "a/enabled", "0"], &["force", "a"]] {
            assert_eq!(run(args, pid).refusal().0, "EBUSY", "{args:?}");
        }
        assert_eq!(target.ask("level 4"), "level 4");
        applying.finish().expect(0);
        assert_eq!(events(pid), up("a", &["pre_patch a,10"], &["post_patch a,10"]));
    });
}

#[test]
fn a_write_waits_for_callbacks_and_not_for_threads() {
    both(|lab, mut target| {
        let pid = target.pid();
        let slow = "usleep(300000);";
        let functions = &["alpha", "blocker"];
        let a = Patch { functions, states: &[(10, "0")], after: ["", slow, slow], ..PLAIN }.make(lab);
        apply(&a, pid).expect(0);
        assert_eq!(target.ask("enter"), "inside");
        let before = events(pid).len();
        let written = report::details(&run(&["set", "a/enabled", "0"], pid).expect(0).json());
        assert_eq!(written["finished"], false, "{written:#}");
        assert_eq!(events(pid)[before..], lines(&["init- a", "pre_unpatch a,10", "start- a"]));
        assert_eq!(target.ask("leave"), "left 1000");
        await_end(pid);
        assert_eq!(target.ask("enter"), "inside");
        assert_eq!(target.ask("leave"), "left 1");
        apply(&a, pid).expect(0);
        let written = report::details(&run(&["set", "a/enabled", "0"], pid).expect(0).json());
        assert_eq!(written["finished"], true, "nobody is in the way, and callbacks take long: {written:#}");
        assert_eq!(report::patches(pid), [""; 0]);
    });
}

#[test]
fn slow_callbacks_are_waited_for_and_entries_are_restored() {
    for kind in KINDS {
        let lab = Lab::new();
        let mut target = start(&lab, kind);
        let pid = target.pid();
        // Longer than the command keeps the process to itself.
        let slow = "usleep(1200000);";
        let a = Patch { states: &[(10, "0")], before: slow, after: ["", "", slow], ..PLAIN }.make(&lab);
        apply(&a, pid).expect(0);
        assert_eq!(target.ask("alpha 1"), "alpha 1 = 1001", "{kind:?}");
        disable("a", pid).expect(0);
        assert_eq!(target.ask("alpha 1"), "alpha 1 = 11", "{kind:?}");
        assert_eq!(target.entry("alpha"), target.file_entry("alpha"), "{kind:?}");
        assert_eq!(report::patches(pid), [""; 0], "{kind:?}");
    }
}

/// Nobody is taken for callbacks from where the C library may be in the middle of something.
#[test]
fn without_a_thread_at_a_suitable_place_nothing_begins() {
    let text = "#include <suture.h>\n\
        static int check(struct suture_patch *p, struct suture_state *s) { (void)p, (void)s; return 0; }\n\
        SUTURE_PATCH(\"quiet\", SUTURE_STATE(7, 0, check, 0, 0, 0, 0));\n";
    for (place, why) in [("handler", "in a signal handler"), ("sort", "called by the C library")] {
        for preload in [true, false] {
            let lab = Lab::new();
            let program = lab.compile_target("deaf.c", &[]);
            let mut target = Target::start(&program, &[place], Options { preload, ..Options::default() });
            let patch = lab.patch("quiet", text);
            let (errno, message) = run(&["apply", &patch.to_string_lossy()], target.pid()).refusal();
            assert_eq!(errno, "EAGAIN", "{message}");
            assert!(message.contains(why), "{place}: {message}");
            assert!(report::patches(target.pid()).is_empty(), "{place}");
            assert_eq!(target.ask("out"), "out");
            apply(&patch, target.pid()).expect(0);
            disable("quiet", target.pid()).expect(0);
            assert!(target.finish().success());
        }
    }
}
