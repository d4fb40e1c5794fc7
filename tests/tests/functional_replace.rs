//! Atomic replace: one patch takes the place of all others in one transition.

use suture_tests::command::{apply, disable, suture};
use suture_tests::lab::{on_several, replacing};
use suture_tests::target::Options;
use suture_tests::{Lab, Target, report};

/// Text of a patch of `several.c`: each of `functions` returns N + `plus` + its position, and `items` are
/// further items of the patch.
fn text(name: &str, functions: &[&str], plus: i64, items: &str) -> String {
    let new = |i: usize| format!("static long new_{i}(long n) {{ return n + {}; }}\n", plus + i as i64);
    let definitions: String = (0..functions.len()).map(new).collect();
    let rows: String =
        functions.iter().enumerate().map(|(i, f)| format!(", SUTURE_FUNC(\"{f}\", new_{i})")).collect();
    let object = match functions {
        [] => String::new(),
        _ => format!(", SUTURE_OBJECT(SUTURE_MAIN{rows})"),
    };
    format!("#include <suture.h>\n{definitions}SUTURE_PATCH(\"{name}\"{object}{items});\n")
}

fn replace(name: &str, functions: &[&str], plus: i64) -> String {
    text(name, functions, plus, ", SUTURE_REPLACE_ALL")
}

/// The events of a process without those about stalls.
fn events(pid: i32) -> Vec<String> {
    report::events(pid).into_iter().filter(|event| !event.starts_with("signal")).collect()
}

fn up(name: &str) -> Vec<String> {
    ["enable", "init+", "start+", "completing+", "done+"].map(|word| format!("{word} {name}")).to_vec()
}

#[test]
fn functions_of_others_go_back_to_the_old_code() {
    on_several(|lab, mut target| {
        let a = lab.patch("a", &text("a", &["alpha", "value"], 1000, ""));
        let r = lab.patch("r", &replace("r", &["beta"], 2000));
        apply(&a, target.pid()).expect(0);
        assert_eq!(target.ask("all 1"), "all 1001 21 31");
        let applied = report::apply(&r, target.pid());
        assert_eq!(applied["finished"], true, "{applied:#}");
        assert_eq!(
            applied["functions"].as_array().map(Vec::len),
            Some(1),
            "nops are not its own: {applied:#}"
        );
        assert_eq!(target.ask("all 1"), "all 11 2001 31");
        assert_eq!(target.call(1), 2);
        for function in ["alpha", "value"] {
            assert_eq!(target.entry(function), target.file_entry(function), "the hook on {function} is gone");
        }
        assert_eq!(report::patches(target.pid()), ["r"]);
        let status = report::status(target.pid());
        assert_eq!(status["patches"][0]["functions"].as_array().map(Vec::len), Some(1), "{status:#}");
        assert_eq!(status["images_left"], 0, "a's image is unmapped: {status:#}");
        disable("a", target.pid()).expect_refused_with_hint(&["a", "not enabled"]);
        assert_eq!(events(target.pid()), [up("a"), up("r"), vec!["gone a".to_owned()]].concat());
        disable("r", target.pid()).expect(0);
        assert_eq!(target.ask("all 1"), "all 11 21 31");
        assert_eq!(target.entry("beta"), target.file_entry("beta"));
        assert!(target.finish().success());
    });
}

#[test]
fn a_function_both_replace_goes_from_one_to_the_other() {
    on_several(|lab, mut target| {
        let a = lab.patch("a", &text("a", &["alpha", "beta"], 1000, ""));
        let b = lab.patch("b", &text("b", &["alpha", "gamma"], 3000, ""));
        let r = lab.patch("r", &replace("r", &["alpha"], 2000));
        let s = lab.patch("s", &replace("s", &["alpha"], 4000));
        apply(&a, target.pid()).expect(0);
        apply(&b, target.pid()).expect(0);
        assert_eq!(target.ask("all 1"), "all 3001 1002 3002");
        let armed = target.entry("alpha");
        apply(&r, target.pid()).expect(0);
        assert_eq!(target.ask("all 1"), "all 2001 21 31");
        assert_eq!(target.entry("alpha"), armed, "one redirection serves all");
        assert_eq!(report::patches(target.pid()), ["r"]);
        apply(&s, target.pid()).expect(0);
        assert_eq!(target.ask("all 1"), "all 4001 21 31");
        assert_eq!(report::patches(target.pid()), ["s"]);
        // Another parallel patch may join, and be taken back, as ever.
        apply(&b, target.pid()).expect(0);
        assert_eq!(target.ask("all 1"), "all 3001 21 3002");
        disable("s", target.pid()).expect(0);
        assert_eq!(target.ask("all 1"), "all 3001 21 3002");
        disable("b", target.pid()).expect(0);
        assert_eq!(target.ask("all 1"), "all 11 21 31");
    });
}

#[test]
fn a_replaced_patch_can_be_applied_again() {
    let lab = Lab::new();
    let mut target = lab.start_several();
    let a = lab.patch("a", &text("a", &["alpha", "beta"], 1000, ""));
    let r = lab.patch("r", &replace("r", &["alpha"], 2000));
    for _ in 0..5 {
        apply(&a, target.pid()).expect(0);
        assert_eq!(target.ask("all 1"), "all 1001 1002 31");
        apply(&r, target.pid()).expect(0);
        assert_eq!(target.ask("all 1"), "all 2001 21 31");
        apply(&a, target.pid()).expect(0);
        disable("r", target.pid()).expect(0);
        assert_eq!(target.ask("all 1"), "all 1001 1002 31");
        disable("a", target.pid()).expect(0);
        assert_eq!(target.ask("all 1"), "all 11 21 31");
    }
}

#[test]
fn a_patch_that_replaces_with_nothing_takes_all_away() {
    on_several(|lab, mut target| {
        let a = lab.patch("a", &text("a", &["alpha", "beta"], 1000, ""));
        let state = ", SUTURE_STATE(7, 0, 0, 0, 0, 0, 0), SUTURE_REPLACE_ALL";
        let r = lab.patch("r", &text("r", &[], 0, state));
        apply(&a, target.pid()).expect(0);
        apply(&r, target.pid()).expect(0);
        assert_eq!(target.ask("all 1"), "all 11 21 31");
        assert_eq!(report::patches(target.pid()), ["r"]);
        for function in ["alpha", "beta"] {
            assert_eq!(target.entry(function), target.file_entry(function));
        }
        disable("r", target.pid()).expect(0);
        assert_eq!(report::patches(target.pid()), [""; 0]);
    });
}

#[test]
fn the_replace_attribute_is_shown() {
    let lab = Lab::new();
    let target = lab.start_several();
    let r = lab.patch("r", &replace("r", &["alpha"], 2000));
    let a = lab.patch("a", &replacing("a", "beta", "return n;"));
    apply(&r, target.pid()).expect(0);
    apply(&a, target.pid()).expect(0);
    let status = report::status(target.pid());
    assert_eq!(status["patches"][0]["replace"], true, "{status:#}");
    assert_eq!(status["patches"][1]["replace"], false, "{status:#}");
}

/// `states.c`, whose second thread can be inside blocker(), with short ticks.
fn with_blocker(test: impl Fn(&Lab, Target)) {
    for preload in [true, false] {
        let lab = Lab::new();
        let program = lab.compile_target("states.c", &[]);
        let target = Target::start(&program, &[], Options { preload, ..Options::default() });
        suture(&["inject", "--pid", &target.pid_text()]).expect(0);
        suture(&["set", "tick_ms", "20", "--pid", &target.pid_text()]).expect(0);
        test(&lab, target);
    }
}

/// Text of a patch of `blocker` of `states.c`, which then returns `version`.
fn blocking(name: &str, version: i64, items: &str) -> String {
    format!(
        "#include <suture.h>\n\
         SUTURE_EXTERN void stand(void);\n\
         static long blocker(void) {{ stand(); return {version}; }}\n\
         SUTURE_PATCH(\"{name}\", SUTURE_OBJECT(SUTURE_MAIN, SUTURE_FUNC(\"blocker\", blocker)){items});\n"
    )
}

/// Begins to enable a patch that somebody holds up; gives who.
#[track_caller]
fn held(patch: &std::path::Path, pid: i32) -> String {
    let args = ["apply", &patch.to_string_lossy(), "--timeout", "0.01", "--pid", &pid.to_string()];
    suture(&args).expect(3);
    report::held_by_one(pid);
    let held = suture(&["get", "r/pending", "--pid", &pid.to_string()]);
    held.expect(0);
    held.stdout
}

#[test]
fn a_thread_in_a_function_only_the_replaced_patch_has_holds_it_up() {
    with_blocker(|lab, mut target| {
        let pid = target.pid();
        let a = lab.patch("a", &blocking("a", 7, ""));
        let r = lab.patch("r", &replace("r", &["alpha"], 1000));
        apply(&a, pid).expect(0);
        assert_eq!(target.ask("enter"), "inside");
        assert_ne!(held(&r, pid).trim(), "", "the nop counts");
        assert_eq!(target.ask("alpha 1"), "alpha 1 = 1001", "the main thread has moved");
        let functions = report::status(pid)["patches"][1]["functions"].clone();
        let nops = functions.as_array().into_iter().flatten().filter(|f| f["nop"] == true);
        assert_eq!(nops.map(|f| f["name"].clone()).collect::<Vec<_>>(), ["blocker"], "{functions:#}");

        // Whoever turns round goes back to a's function.
        suture(&["reverse", "r", "--pid", &pid.to_string()]).expect(0);
        assert_eq!(
            (target.ask("alpha 1").as_str(), report::patches(pid)),
            ("alpha 1 = 11", vec!["a".into()])
        );
        assert_eq!(target.ask("leave"), "left 7");
        assert_eq!((target.ask("enter").as_str(), target.ask("leave").as_str()), ("inside", "left 7"));

        // And whoever leaves lets it end.
        assert_eq!(target.ask("enter"), "inside");
        assert_ne!(held(&r, pid).trim(), "");
        assert_eq!(target.ask("leave"), "left 7", "it was inside a's");
        report::await_end(pid);
        assert_eq!(report::patches(pid), ["r"]);
        assert_eq!((target.ask("enter").as_str(), target.ask("leave").as_str()), ("inside", "left 1"));
        suture(&["disable", "r", "--pid", &pid.to_string()]).expect(0);
        assert_eq!(target.entry("blocker"), target.file_entry("blocker"));
        assert!(target.finish().success());
    });
}

#[test]
fn a_forced_replace_leaves_the_code_that_threads_are_in() {
    with_blocker(|lab, mut target| {
        let pid = target.pid();
        let a = lab.patch("a", &text("a", &["alpha"], 1000, ""));
        let b = lab.patch("b", &blocking("b", 7, ""));
        let r = lab.patch("r", &replace("r", &["beta"], 2000));
        apply(&a, pid).expect(0);
        apply(&b, pid).expect(0);
        assert_eq!(target.ask("enter"), "inside");
        assert_ne!(held(&r, pid).trim(), "");
        // The main thread runs the old functions through nops already, the other one still b's.
        assert_eq!(target.ask("alpha 1"), "alpha 1 = 11");
        assert_eq!(target.ask("beta 1"), "beta 1 = 2001");
        suture(&["force", "r", "--pid", &pid.to_string()]).expect(0);
        assert_eq!(report::patches(pid), ["r"]);
        assert_eq!(target.ask("leave"), "left 7", "code that threads were forced out of stays");
        assert_eq!((target.ask("enter").as_str(), target.ask("leave").as_str()), ("inside", "left 1"));
        let status = report::status(pid);
        assert_eq!(status["images_left"], 2, "{status:#}");
    });
}
