//! Patches that keep data beside the program's objects.

use serde_json::Value;
use std::path::PathBuf;
use suture_tests::command::{apply, disable, suture};
use suture_tests::target::Options;
use suture_tests::{Lab, Snapshot, Target, report};

/// A patch of `shadow.c` that counts, with a state of these flags and destructor.
fn counting(name: &str, flags: &str, dtor: &str) -> String {
    format!(
        r#"
        #include <stdatomic.h>
        #include <suture.h>

        struct object;
        struct count {{ atomic_long touches; const void *of; long check; }};
        enum {{ ID = 0x5355 }};
        static atomic_long destroyed;

        static int begin(void *obj, void *data, void *arg)
        {{
            struct count *c = data;
            if (c->touches || c->of || c->check)
                return 22;
            c->of = obj;
            c->check = (long)arg;
            return 0;
        }}
        static void end(void *obj, void *data)
        {{
            struct count *c = data;
            if (c->of == obj && c->check == 77)
                destroyed++;
        }}
        static long touch(struct object *o)
        {{
            struct count *c = suture_shadow_get_or_alloc(o, ID, sizeof *c, begin, (void *)77);
            if (!c || c->of != o || c->check != 77 || ((uintptr_t)c & 15))
                return -5;
            return ++c->touches;
        }}
        static long look(struct object *o)
        {{
            struct count *c = suture_shadow_get(o, ID);
            return c ? (long)c->touches : 0;
        }}
        static long drop(struct object *o)
        {{
            suture_shadow_free(o, ID, end);
            return suture_shadow_get(o, ID) ? -6 : 0;
        }}
        static long drop_all(void)
        {{
            destroyed = 0;
            suture_shadow_free_all(ID, end);
            return destroyed;
        }}
        SUTURE_PATCH("{name}",
            SUTURE_OBJECT(SUTURE_MAIN, SUTURE_FUNC("touch", touch), SUTURE_FUNC("look", look),
                          SUTURE_FUNC("drop", drop), SUTURE_FUNC("drop_all", drop_all)){}
            );
        "#,
        match flags {
            "" => String::new(),
            flags => format!(", SUTURE_STATE(ID, {flags}, 0, 0, 0, 0, {dtor})"),
        }
    )
}

fn number(target: &mut Target, question: &str) -> i64 {
    let word = question.split(' ').next().expect("a word").to_owned();
    let answer = target.ask(question);
    Target::number(&answer, &word)
}

fn start(lab: &Lab, options: Options) -> Target {
    // Callers in the same file would rely on what the old functions leave alone.
    Target::start(&lab.compile_target("shadow.c", &["-fno-ipa-ra"]), &["waiter"], options)
}

/// Without the preload the runtime comes with the patch.
fn both(run: impl Fn(&mut Target, &PathBuf)) {
    let lab = Lab::new();
    let patch = lab.patch("count", &counting("count", "", ""));
    for preload in [true, false] {
        let mut target = start(&lab, Options { preload, ..Options::default() });
        assert_eq!((number(&mut target, "touch 3"), number(&mut target, "look 3")), (0, -1));
        run(&mut target, &patch);
        assert!(target.finish().success());
    }
}

#[test]
fn a_patch_keeps_data_beside_objects() {
    both(|target, patch| {
        apply(patch, target.pid()).expect(0);
        assert_eq!(number(target, "look 3"), 0);
        for n in 1..=5 {
            assert_eq!(number(target, "touch 3"), n);
        }
        assert_eq!(number(target, "touch 4"), 1);
        assert_eq!(number(target, "sum"), 6);
        assert_eq!(number(target, "drop 3"), 0);
        assert_eq!((number(target, "look 3"), number(target, "touch 3")), (0, 1));
        assert_eq!(number(target, "drop_all"), 2);
        assert_eq!(number(target, "sum"), 0);
        // What a patch leaves behind without a state is there for the next one.
        assert_eq!(number(target, "touch 9"), 1);
        disable("count", target.pid()).expect(0);
        assert_eq!(number(target, "touch 9"), 0);
        apply(patch, target.pid()).expect(0);
        assert_eq!(number(target, "touch 9"), 2);
    });
}

#[test]
fn threads_and_signal_handlers_count_together() {
    both(|target, patch| {
        apply(patch, target.pid()).expect(0);
        for _ in 0..3 {
            let answer = target.ask("storm 8 15000");
            assert_eq!(Target::number(&answer, "wrong"), 0, "{answer}");
            let touches = Target::number(&answer, "storm");
            assert!(touches >= 8 * 2 * 15_000, "{answer}");
            assert_eq!(number(target, "sum"), touches, "a count was lost");
            assert!(number(target, "drop_all") >= 15_000);
            assert_eq!(number(target, "sum"), 0);
        }
    });
}

#[test]
fn forked_children_have_working_variables() {
    both(|target, patch| {
        apply(patch, target.pid()).expect(0);
        let answer = target.ask("forks 3 200");
        assert_eq!(Target::number(&answer, "wrong"), 0, "{answer}");
    });
}

/// Events of a process with this word: subject and value.
fn events(pid: i32, word: &str) -> Vec<(u64, u64)> {
    let rows = report::log(pid);
    let number = |row: &Value, field: &str| row[field].as_u64().expect("a number");
    let of_word = rows.iter().filter(|row| row["event"] == word);
    of_word.map(|row| (number(row, "subject"), number(row, "value"))).collect()
}

const ID: u64 = 0x5355;

#[test]
fn the_variables_of_a_state_go_with_it() {
    let lab = Lab::new();
    for dtor in ["end", "0"] {
        let patch = lab.patch("count", &counting("count", "SUTURE_IS_SHADOW", dtor));
        for (preload, args) in [(true, ["waiter"].as_slice()), (false, &["waiter"]), (true, &[])] {
            let program = lab.compile_target("shadow.c", &["-fno-ipa-ra"]);
            let mut target = Target::start(&program, args, Options { preload, ..Options::default() });
            for round in 1..=3 {
                apply(&patch, target.pid()).expect(0);
                assert_eq!(number(&mut target, "sum"), 0);
                for n in [1, 2, 5] {
                    assert_eq!(number(&mut target, &format!("touch {n}")), 1);
                }
                disable("count", target.pid()).expect(0);
                let dtors = events(target.pid(), "dtor");
                let runs = if dtor == "0" { 0 } else { 3 * round };
                assert_eq!(dtors.len(), runs, "{dtors:x?}");
                assert!(dtors.iter().all(|(id, _)| *id == ID), "{dtors:x?}");
            }
            let mut objects: Vec<u64> = events(target.pid(), "dtor").iter().map(|(_, obj)| *obj).collect();
            objects.sort_unstable();
            objects.dedup();
            assert_eq!(objects.len(), if dtor == "0" { 0 } else { 3 });
            assert!(target.finish().success());
        }
    }
}

#[test]
fn variables_stay_while_somebody_holds_their_state() {
    let lab = Lab::new();
    let text = |name: &str, flags: &str| counting(name, flags, "end");
    let shadow = "SUTURE_IS_SHADOW";
    let (a, b) = (lab.patch("a", &text("a", shadow)), lab.patch("b", &text("b", shadow)));
    let replacing = |name: &str, state: &str| {
        let text = counting(name, state, "end");
        let at = text.rfind(");").expect("the end of the patch");
        format!("{}, SUTURE_REPLACE_ALL{}", &text[..at], &text[at..])
    };
    let keeping = lab.patch("keeping", &replacing("keeping", shadow));
    let dropping = lab.patch("dropping", &replacing("dropping", ""));
    let mut target = start(&lab, Options::default());
    apply(&a, target.pid()).expect(0);
    assert_eq!(number(&mut target, "touch 1"), 1);
    apply(&b, target.pid()).expect(0);
    disable("a", target.pid()).expect(0);
    assert_eq!(number(&mut target, "touch 1"), 2, "another patch holds the state");
    apply(&keeping, target.pid()).expect(0);
    assert_eq!(number(&mut target, "touch 1"), 3, "the new patch holds the state");
    assert_eq!(events(target.pid(), "dtor"), []);
    apply(&dropping, target.pid()).expect(0);
    assert_eq!(events(target.pid(), "dtor").len(), 1);
    assert_eq!(number(&mut target, "look 1"), 0, "the new patch does not");
    disable("dropping", target.pid()).expect(0);
}

#[test]
fn many_variables_do_not_push_everything_else_out_of_the_log() {
    let lab = Lab::new();
    let patch = lab.patch("count", &counting("count", "SUTURE_IS_SHADOW", "end"));
    let mut target = start(&lab, Options::default());
    apply(&patch, target.pid()).expect(0);
    target.ask("storm 2 9000");
    disable("count", target.pid()).expect(0);
    let freed = events(target.pid(), "shadow-freed");
    assert!(matches!(freed[..], [(ID, n)] if n >= 9000), "{freed:?}");
    assert_eq!(events(target.pid(), "dtor").len(), 64);
    assert_eq!(events(target.pid(), "enable").len(), 1, "the beginning is still there");
    apply(&patch, target.pid()).expect(0);
    assert_eq!(number(&mut target, "sum"), 0);
}

#[test]
fn a_destructor_that_crashes_is_not_the_end() {
    let lab = Lab::new();
    let text = counting("count", "SUTURE_IS_SHADOW", "end");
    let crash = "if (c->touches == 2) *(volatile int *)8 = 0";
    let text = text.replacen("if (c->of == obj", &format!("{crash};\n if (c->of == obj"), 1);
    let patch = lab.patch("count", &text);
    for preload in [true, false] {
        let mut target = start(&lab, Options { preload, ..Options::default() });
        for round in 1..=2 {
            apply(&patch, target.pid()).expect(0);
            for n in 0..10 {
                assert_eq!(number(&mut target, &format!("touch {n}")), 1);
            }
            assert_eq!(number(&mut target, "touch 4"), 2);
            disable("count", target.pid());
            assert_eq!(events(target.pid(), "crashed").len(), round);
            assert_eq!(number(&mut target, "look 4"), -1, "the patch has left");
        }
        apply(&patch, target.pid()).expect(0);
        assert_eq!(number(&mut target, "sum"), 0, "nothing of it is left");
        assert!(target.finish().success());
    }
}

/// A thread that was forced out of a patch may still use its variables.
#[test]
fn variables_stay_after_a_forced_transition() {
    let lab = Lab::new();
    // `look` gives the address of the variable, `drop_all` stays inside, with one in hand, until it is let go.
    let text = counting("count", "SUTURE_IS_SHADOW", "end")
        .replacen("return c ? (long)c->touches : 0;", "return (long)c;", 1)
        .replacen(
            "destroyed = 0;",
            "struct count *mine = suture_shadow_get_or_alloc(&ID_of, ID, sizeof *mine, begin, (void *)77);\n\
             inside = 1; while (!released) usleep(1000); return mine->check;",
            1,
        )
        .replacen(
            "struct object;",
            "struct object; SUTURE_EXTERN volatile int inside, released; SUTURE_EXTERN int usleep(unsigned);\n\
             static int ID_of;",
            1,
        );
    let patch = lab.patch("count", &text);
    for force in [true, false] {
        let mut target = start(&lab, Options::default());
        apply(&patch, target.pid()).expect(0);
        let mut places = Vec::new();
        for n in 0..20 {
            number(&mut target, &format!("touch {n}"));
            places.push(number(&mut target, &format!("look {n}")));
        }
        if force {
            assert_eq!(target.ask("enter"), "inside");
            suture(&["disable", "count", "--no-wait", "--pid", &target.pid_text()]);
            suture(&["force", "count", "--pid", &target.pid_text()]).expect(0);
        } else {
            disable("count", target.pid()).expect(0);
        }
        assert_eq!(events(target.pid(), "dtor").len(), if force { 0 } else { 20 });
        apply(&patch, target.pid()).expect(0);
        let mut again = Vec::new();
        for n in 0..20 {
            number(&mut target, &format!("touch {n}"));
            again.push(number(&mut target, &format!("look {n}")));
        }
        let reused = again.iter().filter(|place| places.contains(place)).count();
        assert_eq!(reused, 20, "freed memory is used again, what was not freed is found again");
        if force {
            assert_eq!(again, places);
            assert_eq!(target.ask("leave"), "left");
        }
    }
}

#[test]
fn variables_are_listed_from_outside() {
    let lab = Lab::new();
    let patch = lab.patch("count", &counting("count", "", ""));
    let mut target = start(&lab, Options { preload: false, ..Options::default() });
    let pid = target.pid_text();
    let list =
        |more: &[&str]| suture(&[&["shadow", "--json", "--pid", &pid], more].concat()).expect(0).json();
    suture(&["shadow", "--pid", &pid]).expect(1);
    apply(&patch, target.pid()).expect(0);
    assert_eq!(list(&[])["variables"], Value::Array(Vec::new()));
    for n in [7, 8, 9] {
        assert_eq!(number(&mut target, &format!("touch {n}")), 1);
    }
    let before = Snapshot::of(target.pid());
    let all = list(&[]);
    Snapshot::of(target.pid()).assert_untouched(&before);
    let variables = all["variables"].as_array().expect("a list");
    let object = |n: usize| variables[n]["object"].as_u64().expect("a number");
    assert_eq!((object(1) - object(0), object(2) - object(1)), (32, 32), "{all:#}");
    assert!(variables.iter().all(|v| v["id"] == ID && v["size"] == 24), "{all:#}");
    let data = variables[0]["data"].as_u64().expect("a number");
    assert_eq!(suture_tests::code::read(target.pid(), data + 8, 8), object(0).to_le_bytes());
    assert_eq!(all["counts"], serde_json::json!([{ "id": ID, "variables": 3, "bytes": 72 }]));
    assert_eq!(list(&["--id", "0x5355"])["variables"], all["variables"]);
    assert_eq!(list(&["--id", "21333"])["variables"], all["variables"]);
    assert_eq!(list(&["--id", "1"])["variables"], Value::Array(Vec::new()));
    suture(&["shadow", "--pid", &pid, "--id", "x"]).expect(2);
    assert_eq!(suture_tests::report::status(target.pid())["shadow"], all["counts"]);

    // Many, while they come and go.
    target.tell("storm 4 15000");
    while target.line_now().is_none() {
        let found = list(&[]);
        let variables = found["variables"].as_array().expect("a list");
        assert!(variables.len() >= 3 && variables.len() <= 20_000);
    }
    assert!(list(&[])["variables"].as_array().expect("a list").len() >= 15_000);
}
