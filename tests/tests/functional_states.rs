//! States: what a patch holds besides functions, who may share it, and what it forbids.

use serde_json::Value;
use suture_tests::command::{apply, disable, run};
use suture_tests::lab::on_several;
use suture_tests::{Lab, Snapshot, report};

/// A patch of `functions` of `several.c` (each returns N + `plus`), and further items.
fn text(name: &str, functions: &[&str], plus: i64, items: &[&str]) -> String {
    let rows: String = functions.iter().map(|f| format!(", SUTURE_FUNC(\"{f}\", patched)")).collect();
    let object = match functions {
        [] => String::new(),
        _ => format!(", SUTURE_OBJECT(SUTURE_MAIN{rows})"),
    };
    let items: String = items.iter().map(|item| format!(", {item}")).collect();
    let unused = "__attribute__((unused))";
    format!(
        "#include <suture.h>\n\
         {unused} static long patched(long n) {{ return n + {plus}; }}\n\
         SUTURE_PATCH(\"{name}\"{object}{items});\n"
    )
}

/// A state without callbacks.
fn state(id: u64, flags: &str) -> String {
    format!("SUTURE_STATE({id}, {flags}, 0, 0, 0, 0, 0)")
}

#[test]
fn a_state_that_blocks_disable_keeps_its_patch() {
    on_several(|lab, mut target| {
        let states = [state(10, "0"), state(11, "SUTURE_BLOCK_DISABLE")];
        let a = lab.patch("a", &text("a", &["alpha"], 1000, &states.each_ref().map(String::as_str)));
        apply(&a, target.pid()).expect(0);
        let before = Snapshot::of(target.pid());
        let (errno, message) = run(&["disable", "a"], target.pid()).refusal();
        assert_eq!(errno, "EINVAL");
        assert!(message.contains("does not support disable") && message.contains("state 11"), "{message}");
        disable("a", target.pid()).expect_refused_with_hint(&["does not support disable"]);
        Snapshot::of(target.pid()).assert_untouched(&before);
        assert_eq!(target.ask("all 1"), "all 1001 21 31");
        let status = report::status(target.pid());
        assert_eq!(status["patches"][0]["enabled"], true, "{status:#}");
        assert_eq!(status["transition"], Value::Null, "{status:#}");

        // Others come and go beside it.
        let b = lab.patch("b", &text("b", &["beta"], 2000, &[]));
        apply(&b, target.pid()).expect(0);
        disable("b", target.pid()).expect(0);
        assert_eq!(target.ask("all 1"), "all 1001 21 31");
    });
}

#[test]
fn a_replacing_patch_must_have_the_states_that_cannot_be_given_up() {
    on_several(|lab, mut target| {
        let held = state(10, "SUTURE_BLOCK_DISABLE");
        let a = lab.patch("a", &text("a", &["alpha"], 1000, &[&held]));
        let none = lab.patch("none", &text("none", &["alpha"], 2000, &["SUTURE_REPLACE_ALL"]));
        let other =
            lab.patch("other", &text("other", &["alpha"], 2000, &[&state(11, "0"), "SUTURE_REPLACE_ALL"]));
        let taking =
            lab.patch("taking", &text("taking", &["beta"], 3000, &[&state(10, "0"), "SUTURE_REPLACE_ALL"]));
        apply(&a, target.pid()).expect(0);
        let (before, log) = (Snapshot::of(target.pid()), report::events(target.pid()));
        for patch in [&none, &other] {
            let (errno, message) = run(&["apply", &patch.to_string_lossy()], target.pid()).refusal();
            assert_eq!(errno, "EINVAL");
            let words = ["not compatible with the already installed", "patch a", "state 10"];
            assert!(words.iter().all(|word| message.contains(word)), "{message}");
        }
        Snapshot::of(target.pid()).assert_untouched(&before);
        assert_eq!(report::events(target.pid()), log, "nothing has even begun");
        assert_eq!(report::patches(target.pid()), ["a"]);
        assert_eq!(target.ask("all 1"), "all 1001 21 31");

        // Whoever takes the state over decides from then on.
        let warnings = report::apply(&taking, target.pid())["warnings"].clone();
        assert!(warnings.to_string().contains("disagree on block_disable"), "{warnings:#}");
        assert_eq!(target.ask("all 1"), "all 11 3001 31");
        disable("taking", target.pid()).expect(0);
        assert_eq!(target.ask("all 1"), "all 11 21 31");
        assert_eq!(report::patches(target.pid()), [""; 0]);
    });
}

#[test]
fn patches_without_functions_come_and_go() {
    on_several(|lab, target| {
        let a = lab.patch("a", &text("a", &[], 0, &[&state(1, "SUTURE_IS_SHADOW")]));
        apply(&a, target.pid()).expect(0);
        disable("a", target.pid()).expect(0);
        let up = ["enable a", "init+ a", "start+ a", "completing+ a", "done+ a"];
        let down = ["init- a", "start- a", "completing- a", "done- a", "gone a"];
        assert_eq!(report::events(target.pid()), [up, down].concat());
    });
}

/// A descriptor written by hand around `static long patched(long n)`.
fn by_hand(tables: &str, patch: &str) -> String {
    format!(
        "#include <suture.h>\n\
         static long patched(long n) {{ return n; }}\n\
         static const struct suture_func funcs[] __attribute__((used)) = {{{{\"value\", (const void *)patched, 0}}, {{0}}}};\n\
         {tables}\n\
         __attribute__((visibility(\"default\"))) struct suture_patch suture_patch = {{SUTURE_ABI, sizeof(struct suture_patch), {patch}}};\n"
    )
}

/// Everything that is refused for what its descriptor says: errno, words of the message, text.
fn bad_descriptors() -> Vec<(&'static str, &'static str, String)> {
    let object = "static const struct suture_object objects[] = {{0, 0, funcs}, {0}};";
    let plain = |tables: &str, patch: &str| by_hand(tables, patch);
    let state = |fields: &str| {
        let tables = format!("{object}\nstatic const struct suture_state states[] = {{{fields}, {{0}}}};");
        plain(&tables, "\"bad\", 0, objects, states, 0")
    };
    let ten = self::state(10, "0");
    vec![
        ("EINVAL", "state 10 stands in the patch twice", text("bad", &["value"], 1, &[&ten, &ten])),
        ("EINVAL", "the id of a state", state("{0, 1, 0, {0}}")),
        ("EINVAL", "flags of state 3", state("{3, 64, 0, {0}}")),
        ("EINVAL", "`reserved` of state 3", state("{3, 0, 9, {0}}")),
        ("EINVAL", "pre_patch of state 3", state("{3, 0, 0, {(void *)objects, 0, 0, 0, 0}}")),
        ("EINVAL", "shadow_dtor of state 3", state("{3, 0, 0, {0, 0, 0, 0, (void *)7}}")),
        ("EEXIST", "replaces `value` twice", text("bad", &["value", "value"], 1, &[])),
        (
            "EEXIST",
            "one function",
            text("bad", &["value"], 1, &[]).replace(
                "SUTURE_FUNC(\"value\", patched)",
                "SUTURE_FUNC(\"value\", patched), SUTURE_FUNC_AT(\"value\", 1, patched)",
            ),
        ),
        (
            "EEXIST",
            "stands in the patch twice",
            plain(
                "static const struct suture_object objects[] = {{0, 0, funcs}, {0, 0, funcs}, {0}};",
                "\"bad\", 0, objects, 0, 0",
            ),
        ),
        ("EINVAL", "replaces nothing", plain("", "\"bad\", SUTURE_REPLACE, 0, 0, 0")),
        (
            "EINVAL",
            "the array of functions of libspk.so is missing",
            plain(
                "static const struct suture_object objects[] = {{\"libspk.so\", 0, 0}, {0}};",
                "\"bad\", SUTURE_REPLACE, objects, 0, 0",
            ),
        ),
        (
            "EINVAL",
            "the name of function 1 of the main executable is missing",
            plain(
                "static const struct suture_func nameless[] = {{0, (const void *)patched, 0}, {0}};\n\
                 static const struct suture_object objects[] = {{0, 0, nameless}, {0}};",
                "\"bad\", SUTURE_REPLACE, objects, 0, 0",
            ),
        ),
        (
            "EINVAL",
            "the new function for `value` is missing",
            plain(
                "static const struct suture_func empty[] = {{\"value\", 0, 0}, {0}};\n\
                 static const struct suture_object objects[] = {{0, 0, empty}, {0}};",
                "\"bad\", SUTURE_REPLACE, objects, 0, 0",
            ),
        ),
        ("EINVAL", "the array of objects is the number 0x10", plain("", "\"bad\", 0, (void *)16, 0, 0")),
        (
            "EINVAL",
            "the array of states points to",
            plain(object, "\"bad\", 0, objects, (void *)((char *)objects + 4), 0"),
        ),
        (
            "EINVAL",
            "the array of references points to",
            plain(object, "\"bad\", 0, objects, 0, (void *)((char *)&suture_patch + (1L << 40))"),
        ),
        ("EINVAL", "the patch's name is missing", plain(object, "0, 0, objects, 0, 0")),
        ("EINVAL", "the patch's name \"../x\"", plain(object, "\"../x\", 0, objects, 0, 0")),
        ("EINVAL", "the patch's name \"\"", plain(object, "\"\", 0, objects, 0, 0")),
        ("EINVAL", "the patch's flags has unknown bits", plain(object, "\"bad\", 1 << 9, objects, 0, 0")),
        (
            "EINVAL",
            "the array of functions of the main executable does not end",
            plain(
                "#define A {\"value\", (const void *)patched, 1},\n\
                 #define B A A A A A A A A\n#define C B B B B B B B B\n#define D C C C C C C C C\n\
                 #define E D D D D D D D D\n#define F E E E E E E E E\n\
                 static const struct suture_func many[] = {F F F {0}};\n\
                 static const struct suture_object objects[] = {{0, 0, many}, {0}};",
                "\"bad\", 0, objects, 0, 0",
            ),
        ),
    ]
}

#[test]
fn bad_descriptors_are_refused_with_the_field_named() {
    let lab = Lab::new();
    let mut target = lab.start_several();
    let b = lab.patch("b", &text("b", &["beta"], 2000, &[]));
    apply(&b, target.pid()).expect(0);
    let (before, log) = (Snapshot::of(target.pid()), report::events(target.pid()));
    for (number, (errno, words, text)) in bad_descriptors().into_iter().enumerate() {
        let patch = lab.patch(&format!("bad-{number}"), &text);
        let (found, message) = run(&["apply", &patch.to_string_lossy()], target.pid()).refusal();
        assert_eq!((found.as_str(), message.contains(words)), (errno, true), "{number} {words}: {message}");
    }
    Snapshot::of(target.pid()).assert_untouched(&before);
    assert_eq!(report::events(target.pid()), log);
    assert_eq!(report::patches(target.pid()), ["b"]);
    assert_eq!(target.ask("all 1"), "all 11 2001 31");
}
