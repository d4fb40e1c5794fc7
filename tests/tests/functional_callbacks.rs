//! Callbacks of states: which run, in which order, and what undoes them.

use serde_json::Value;
use std::path::{Path, PathBuf};
use suture_tests::command::{Outcome, apply, disable, start as start_command, suture};
use suture_tests::target::Options;
use suture_tests::{Lab, Target, poll, report};

/// Kinds of process that callbacks run in.
#[derive(Clone, Copy, Debug)]
struct Kind {
    preload: bool,
    single: bool,
}

const KINDS: [Kind; 4] = [
    Kind { preload: true, single: false },
    Kind { preload: false, single: false },
    Kind { preload: true, single: true },
    Kind { preload: false, single: true },
];

fn start(lab: &Lab, kind: Kind) -> Target {
    let program = lab.compile_target("states.c", &[]);
    let args: &[&str] = if kind.single { &["single"] } else { &[] };
    Target::start(&program, args, Options { preload: kind.preload, ..Options::default() })
}

/// With a second thread, and short ticks.
fn start_threaded(lab: &Lab, preload: bool) -> Target {
    let target = start(lab, Kind { preload, single: false });
    suture(&["inject", "--pid", &target.pid_text()]).expect(0);
    suture(&["set", "tick_ms", "20", "--pid", &target.pid_text()]).expect(0);
    target
}

/// The preloaded and the injected runtime.
fn both(test: impl Fn(&Lab, Target)) {
    for preload in [true, false] {
        let lab = Lab::new();
        let target = start_threaded(&lab, preload);
        test(&lab, target);
    }
}

/// A patch with callbacks, all of which leave notes.
#[derive(Clone, Debug)]
struct Patch<'a> {
    name: &'a str,
    /// Functions of the program: `alpha` and `beta` return N + `plus`, `blocker` returns `plus`.
    functions: &'a [&'a str],
    plus: i64,
    /// States and their flags.
    states: &'a [(u64, &'a str)],
    replace: bool,
    /// Further statements of `pre_patch`, which may return; `id` is the state's.
    before: &'a str,
    /// Further statements of `post_patch`, `pre_unpatch`, `post_unpatch`.
    after: [&'a str; 3],
}

const PLAIN: Patch<'static> = Patch {
    name: "a",
    functions: &["alpha"],
    plus: 1000,
    states: &[],
    replace: false,
    before: "",
    after: [""; 3],
};

impl Patch<'_> {
    fn make(&self, lab: &Lab) -> PathBuf {
        let Self { name, plus, before, after: [post, unpre, unpost], .. } = self;
        let function = |f: &&str| {
            let new = if *f == "blocker" { "new_blocker" } else { "changed" };
            format!(", SUTURE_FUNC(\"{f}\", {new})")
        };
        let functions: String = self.functions.iter().map(function).collect();
        let state = |(id, flags): &(u64, &str)| {
            format!(", SUTURE_STATE({id}, {flags}, pre_patch, post_patch, pre_unpatch, post_unpatch, 0)")
        };
        let states: String = self.states.iter().map(state).collect();
        let replace = if self.replace { ", SUTURE_REPLACE_ALL" } else { "" };
        let callback = |kind: &str, name: &str, more: &str, end: &str| {
            format!(
                "__attribute__((unused)) static {kind} {name}(struct suture_patch *patch, struct suture_state *state)\n\
                 {{ unsigned long id = state->id; note(\"{name}\", patch->name, id); {more} {end} }}\n"
            )
        };
        let text = [
            "#include <signal.h>\n#include <stdio.h>\n#include <stdlib.h>\n#include <unistd.h>\n#include <suture.h>\n",
            "SUTURE_EXTERN void note(const char *what, const char *patch, unsigned long state);\n",
            "SUTURE_EXTERN void stand(void);\nSUTURE_EXTERN volatile long level;\n",
            &format!("__attribute__((unused)) static long changed(long n) {{ return n + {plus}; }}\n"),
            &format!("__attribute__((unused)) static long new_blocker(void) {{ stand(); return {plus}; }}\n"),
            &callback("int", "pre_patch", before, "return 0;"),
            &callback("void", "post_patch", post, ""),
            &callback("void", "pre_unpatch", unpre, ""),
            &callback("void", "post_unpatch", unpost, ""),
            &format!("SUTURE_PATCH(\"{name}\", SUTURE_OBJECT(SUTURE_MAIN{functions}){states}{replace});\n"),
        ];
        lab.patch(name, &text.concat())
    }
}

/// The event log: `word patch` or `word patch,state`, with `=errno` where there is one.
fn events(pid: i32) -> Vec<String> {
    let log = suture(&["log", "--json", "--pid", &pid.to_string()]).expect(0).json();
    let rows = log["events"].as_array().cloned().unwrap_or_default();
    let show = |row: &Value| {
        let word = row["event"].as_str().unwrap_or("?");
        let state = match row["subject"].as_u64() {
            Some(0) | None => String::new(),
            Some(id) => format!(",{id}"),
        };
        let errno = match row["value"].as_u64() {
            Some(value) if word == "pre_patch" && value != 0 => format!("={value}"),
            _ => String::new(),
        };
        format!("{word} {}{state}{errno}", row["patch"].as_str().unwrap_or("?"))
    };
    rows.iter().map(show).filter(|event| !event.starts_with("signal")).collect()
}

/// What must be in the log: words, those before `|` and after of one patch coming or going.
fn up(patch: &str, before: &[&str], after: &[&str]) -> Vec<String> {
    let own = |words: &[&str]| words.iter().map(|w| format!("{w} {patch}")).collect::<Vec<_>>();
    let plain = |words: &[&str]| words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>();
    [own(&["enable", "init+"]), plain(before), own(&["start+", "completing+"]), plain(after), own(&["done+"])]
        .concat()
}

fn down(patch: &str, before: &[&str], after: &[&str]) -> Vec<String> {
    let own = |words: &[&str]| words.iter().map(|w| format!("{w} {patch}")).collect::<Vec<_>>();
    let plain = |words: &[&str]| words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>();
    [own(&["init-"]), plain(before), own(&["start-", "completing-"]), plain(after), own(&["done-", "gone"])]
        .concat()
}

fn lines(words: &[&str]) -> Vec<String> {
    words.iter().map(|w| (*w).to_owned()).collect()
}

fn run(args: &[&str], pid: i32) -> Outcome {
    suture(&[args, &["--json", "--pid", &pid.to_string()]].concat())
}

/// errno and message of a refusal.
#[track_caller]
fn refusal(outcome: &Outcome) -> (String, String) {
    let document = outcome.expect(1).json();
    let error = &document["results"][0]["error"];
    let field = |name: &str| error[name].as_str().unwrap_or_else(|| panic!("{document:#}")).to_owned();
    (field("errno"), field("message"))
}

/// Begins to enable; the transition is left going on, held up by one thread.
#[track_caller]
fn begin(patch: &Path, pid: i32) {
    run(&["apply", &patch.to_string_lossy(), "--timeout", "0.01"], pid).expect(3);
    report::held_by_one(pid);
}

#[track_caller]
fn set(path: &str, value: &str, pid: i32) {
    run(&["set", path, value], pid).expect(0);
}

fn get(path: &str, pid: i32) -> String {
    let outcome = suture(&["get", path, "--pid", &pid.to_string()]);
    outcome.expect(0);
    outcome.stdout.trim_end().to_owned()
}

fn settled(pid: i32) {
    poll::until_true("the transition to end", || report::status(pid)["transition"].is_null());
}

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
        let (errno, message) = refusal(&run(&["apply", &a.to_string_lossy()], pid));
        assert_eq!(errno, "ENODEV", "{message}");
        assert!(message.contains("pre_patch(10) failed: No such device"), "{message}");
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
        settled(pid);
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
        assert_eq!(refusal(&run(&["set", "a/enabled", "0"], pid)).0, "EINVAL", "it is 0 already");
        set("a/enabled", "1", pid);
        settled(pid);
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
        settled(pid);
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
        settled(pid);
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
            let (errno, message) = refusal(&run(args, pid));
            assert_eq!(errno, "EINVAL", "{message}");
            assert!(message.contains("does not support disable"), "{message}");
        }
        assert_eq!((get("a/enabled", pid), get("a/transition", pid)), ("1".into(), "1".into()));
        assert_eq!(target.ask("leave"), "left 1");
        settled(pid);
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
        assert_eq!(refusal(&run(&["apply", &b.to_string_lossy()], pid)).0, "EBUSY");
        assert_eq!(refusal(&run(&["disable", "c"], pid)).0, "EBUSY");
        let (errno, message) = refusal(&run(&["apply", &r.to_string_lossy()], pid));
        assert_eq!((errno.as_str(), message.contains("not compatible")), ("EINVAL", true), "{message}");
        assert_eq!(refusal(&run(&["apply", &odd.to_string_lossy()], pid)).0, "EINVAL");
        assert_eq!(events(pid), log, "nothing has begun");
        assert_eq!(report::patches(pid), ["c", "a"]);
        assert_eq!(target.ask("leave"), "left 1");
        settled(pid);
        assert_eq!(get("c/enabled", pid), "1");
    });
}

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
        let (errno, message) = refusal(&run(&["apply", &a.make(&lab).to_string_lossy()], pid));
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
        assert_eq!(refusal(&run(&["reverse", "a"], pid)).0, "EBUSY");
        let b = Patch { name: "b", functions: &["beta"], ..PLAIN }.make(lab);
        assert_eq!(refusal(&run(&["apply", &b.to_string_lossy()], pid)).0, "EBUSY");
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
            assert_eq!(refusal(&run(args, pid)).0, "EBUSY", "{args:?}");
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
        settled(pid);
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
    let (errno, message) = refusal(&run(&["apply", &sample.to_string_lossy()], full.pid()));
    assert_eq!(errno, "EPERM", "{message}");
    assert!(message.contains("pre_patch(4711) failed"), "{message}");
    assert_eq!(report::patches(full.pid()), [""; 0]);
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
            let (errno, message) = refusal(&run(&["apply", &patch.to_string_lossy()], target.pid()));
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
