//! The control tree: `suture get` and `suture set`.

use serde_json::Value;
use suture_tests::command::{apply, disable, get, run, set, suture};
use suture_tests::lab::replacing;
use suture_tests::{Lab, Snapshot, Target, report};

fn two_functions(lab: &Lab) -> std::path::PathBuf {
    let text = "\
        #include <suture.h>\n\
        static long a(long n) { return n + 100; }\n\
        SUTURE_PATCH(\"fix\", SUTURE_OBJECT(SUTURE_MAIN, SUTURE_FUNC(\"alpha\", a), SUTURE_FUNC_AT(\"twin\", 2, a)),\n\
            SUTURE_OBJECT(\"libnone.so\", SUTURE_FUNC(\"nothing\", a)),\n\
            SUTURE_STATE(10, SUTURE_IS_SHADOW, 0, 0, 0, 0, 0));\n";
    lab.patch("fix", text)
}

#[test]
fn attributes_of_a_patch() {
    let lab = Lab::new();
    let target = lab.start_several();
    let pid = target.pid();
    apply(&two_functions(&lab), pid).expect(0);
    let listing = "\
rw  enabled  1
r-  transition  0
-w  force
r-  replace  0
r-  stack_order  1
r-  last_callback
r-  pending
d   states/
d   states/10/
r-  states/10/holders  fix
r-  states/10/is_shadow  1
r-  states/10/block_disable  0
r-  states/10/callbacks
d   main/
r-  main/patched  1
d   main/alpha,1/
d   main/twin,2/
d   libnone.so/
r-  libnone.so/patched  0
d   libnone.so/nothing,1/";
    assert_eq!(get("fix", pid), listing);
    assert_eq!(get("fix/", pid), listing);
    assert_eq!(get("fix/enabled", pid), "1");
    assert_eq!(get("fix/main/alpha,1", pid), "", "empty, as the kernel's");
    let found = report::details(&run(&["get", "fix/libnone.so/patched"], pid).json());
    assert_eq!((&found["value"], &found["access"]), (&Value::from("0"), &Value::from("read")), "{found:#}");

    let other = lab.patch("other", &replacing("other", "beta", "return n;"));
    apply(&other, pid).expect(0);
    assert_eq!(get("other/stack_order", pid), "2");
    disable("fix", pid).expect(0);
    assert_eq!(get("other/stack_order", pid), "1", "counted anew");
    assert_eq!(run(&["get", "fix/enabled"], pid).refusal().0, "ENOENT");
}

#[test]
fn what_cannot_be_read_or_written() {
    let lab = Lab::new();
    let target = lab.start_several();
    let pid = target.pid();
    apply(&two_functions(&lab), pid).expect(0);
    let before = Snapshot::of(pid);
    for (args, wanted) in [
        (&["get", "fix/force"][..], "EACCES"),
        (&["get", "fix/nothing"], "ENOENT"),
        (&["get", "nobody/enabled"], "ENOENT"),
        (&["set", "nobody/enabled", "0"], "ENOENT"),
        (&["set", "fix/nothing", "0"], "ENOENT"),
        (&["set", "fix/transition", "0"], "EACCES"),
        (&["set", "fix/replace", "1"], "EACCES"),
        (&["set", "fix/stack_order", "1"], "EACCES"),
        (&["set", "fix/main/patched", "0"], "EACCES"),
        (&["set", "fix/states/10/is_shadow", "0"], "EACCES"),
        (&["set", "fix", "0"], "EACCES"),
        (&["set", "fix/enabled", "maybe"], "EINVAL"),
        (&["set", "fix/enabled", "2"], "EINVAL"),
        (&["set", "fix/enabled", ""], "EINVAL"),
        (&["set", "fix/enabled", "1"], "EINVAL"),
        (&["set", "fix/force", "1"], "EINVAL"),
        (&["set", "fix/force", "x"], "EINVAL"),
        (&["set", "tick_ms", "0"], "EINVAL"),
        (&["set", "tick_ms", "fast"], "EINVAL"),
    ] {
        assert_eq!(run(args, pid).refusal().0, wanted, "{args:?}");
    }
    // No transition that could be forced, and none is asked for.
    set("fix/force", "0", pid);
    Snapshot::of(pid).assert_untouched(&before);
    assert_eq!(get("fix/enabled", pid), "1");
}

#[test]
fn a_patch_is_disabled_by_its_attribute() {
    let lab = Lab::new();
    let mut target = lab.start_several();
    let pid = target.pid();
    let patch = lab.value_patch("fix", 100);
    for off in ["0", "n", "off", "No"] {
        apply(&patch, pid).expect(0);
        assert_eq!(target.call(1), 101);
        let written = report::details(&run(&["set", "fix/enabled", off], pid).expect(0).json());
        assert_eq!(written["finished"], true, "nobody is in the way: {written:#}");
        assert_eq!(target.call(1), 2);
        assert_eq!(target.entry("value"), target.file_entry("value"));
        assert_eq!(report::patches(pid), [""; 0]);
        assert_eq!(
            run(&["set", "fix/enabled", "1"], pid).refusal().0,
            "ENOENT",
            "it is loaded anew, not enabled"
        );
    }
}

#[test]
fn hooking_can_be_switched_off_while_there_is_no_patch() {
    let lab = Lab::new();
    let mut target = lab.start_several();
    let pid = target.pid();
    let patch = lab.value_patch("fix", 100);
    assert_eq!(get("hooking", pid), "1");
    set("hooking", "0", pid);
    assert_eq!(get("hooking", pid), "0");
    let before = Snapshot::of(pid);
    let refused = run(&["apply", &patch.to_string_lossy()], pid);
    assert_eq!(refused.refusal().0, "EBUSY");
    apply(&patch, pid).expect_refused_with_hint(&["suture set hooking 1"]);
    Snapshot::of(pid).assert_untouched(&before);
    set("hooking", "on", pid);
    apply(&patch, pid).expect(0);
    assert_eq!(run(&["set", "hooking", "0"], pid).refusal().0, "EBUSY");
    assert_eq!((get("hooking", pid).as_str(), target.call(1)), ("1", 101));
}

#[test]
fn the_tick_can_be_set() {
    let lab = Lab::new();
    let target: Target = lab.start_several();
    assert_eq!(get("tick_ms", target.pid()), "1000");
    set("tick_ms", "20", target.pid());
    assert_eq!(get("tick_ms", target.pid()), "20");
    assert_eq!(report::status(target.pid())["tick_ms"], 20);
}

#[test]
fn several_processes_are_told_apart() {
    let lab = Lab::new();
    let (one, two) = (lab.start_several(), lab.start_several());
    let patch = lab.value_patch("fix", 100);
    apply(&patch, one.pid()).expect(0);
    let both = [one.pid_text(), two.pid_text()];
    let outcome = suture(&["get", "fix/enabled", "--pid", &both[0], &both[1]]);
    outcome.expect(4);
    assert!(outcome.stdout.contains(&format!("({}): 1", both[0])), "{}", outcome.stdout);
    assert!(outcome.stderr.contains(&format!("not enabled in process {}", both[1])), "{}", outcome.stderr);
}
