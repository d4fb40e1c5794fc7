//! What callbacks and patched functions can ask about patches.

use suture_tests::callbacks::{KINDS, PLAIN, Patch, begin, both, start};
use suture_tests::command::{apply, disable, get, set};
use suture_tests::plugins::Plugins;
use suture_tests::report::await_end;

/// Notes what attributes are, and what comes of an attempt to disable and to enable.
const ASK: &str = "\
    char text[80];\
    snprintf(text, sizeof text, \"%ld%ld%ld/%d%d\", (long)suture_attribute_get(\"a/enabled\"),\
        (long)suture_attribute_get(\"a/transition\"), (long)suture_attribute_get(\"a/main/patched\"),\
        -suture_attribute_set(\"b/enabled\", \"0\"), -suture_attribute_set(\"b/force\", \"1\"));\
    note(text, patch->name, id);";

#[test]
fn callbacks_read_where_they_are() {
    for kind in KINDS {
        let lab = suture_tests::Lab::new();
        let mut target = start(&lab, kind);
        let pid = target.pid();
        // EDEADLK of a patch that could be disabled.
        apply(&Patch { name: "b", functions: &["beta"], ..PLAIN }.make(&lab), pid).expect(0);
        apply(&Patch { states: &[(10, "0")], before: ASK, after: [ASK; 3], ..PLAIN }.make(&lab), pid)
            .expect(0);
        let notes = target.ask("notes");
        assert_eq!(
            notes, "notes pre_patch(a,10):11 010/3535(a,10):11 post_patch(a,10):1001 111/3535(a,10):1001",
            "{kind:?}"
        );
        assert_eq!(target.ask("beta 1"), "beta 1 = 1001", "nothing came of it");
        disable("a", pid).expect(0);
        let notes = target.ask("notes");
        assert_eq!(
            notes, "notes pre_unpatch(a,10):1001 111/3535(a,10):1001 post_unpatch(a,10):11 010/3535(a,10):11",
            "{kind:?}"
        );
        assert!(target.finish().success());
    }
}

#[test]
fn patched_functions_read_what_the_command_shows() {
    both(|lab, mut target| {
        let pid = target.pid();
        let paths = [
            "r/enabled",
            "r/transition",
            "r/stack_order",
            "r/replace",
            "r/states/10/holders",
            "r/states/10/is_shadow",
            "r/states/11/block_disable",
            "r/states/11/callbacks",
            "r/main/patched",
            "r/libnone.so/patched",
            "hooking",
            "tick_ms",
            "r",
            "r/states",
            "r/force",
            "r/last_callback",
            "nobody/enabled",
            "r/other",
            "r/enabled/",
        ];
        let list: String = paths.iter().map(|p| format!("\"{p}\", ")).collect();
        let text = format!(
            "#include <suture.h>\n\
             static const char *const paths[] = {{ {list} }};\n\
             static int ready(struct suture_patch *p, struct suture_state *s) {{ (void)p; (void)s; return 0; }}\n\
             static long read_it(long n) {{ return n < 0 ? -suture_attribute_set(\"r/enabled\", \"0\")\n\
                 : suture_attribute_get(n < {} ? paths[n] : (const char *)0); }}\n\
             static long none(long n) {{ return n; }}\n\
             SUTURE_PATCH(\"r\", SUTURE_OBJECT(SUTURE_MAIN, SUTURE_FUNC(\"alpha\", read_it)),\n\
                 SUTURE_OBJECT(\"libnone.so\", SUTURE_FUNC(\"nothing\", none)),\n\
                 SUTURE_STATE(10, SUTURE_IS_SHADOW, 0, 0, 0, 0, 0), SUTURE_STATE(11, 0, ready, 0, 0, 0, 0));\n",
            paths.len()
        );
        apply(&lab.patch("r", &text), pid).expect(0);
        let mut asked = |n: i64| {
            let answer = target.ask(&format!("alpha {n}"));
            answer.rsplit(' ').next().unwrap_or_default().parse::<i64>().expect("a number")
        };
        let found: Vec<i64> = (0..=i64::try_from(paths.len()).unwrap()).map(&mut asked).collect();
        let wanted = [1, 0, 1, 0, 1, 1, 0, 1, 1, 0, 1, 20, -21, -21, -13, -95, -2, -2, 1, -22];
        assert_eq!(found, wanted);
        assert_eq!(asked(-1), 1, "EPERM: not a callback");
        for (path, value) in
            paths.iter().zip(wanted).filter(|(path, v)| *v >= 0 && !path.contains("11/callbacks"))
        {
            let shown = if path.ends_with("holders") { "r".into() } else { value.to_string() };
            assert_eq!(get(path, pid), shown, "{path}");
        }
        // The values follow: another patch that holds the state, other ticks.
        apply(&Patch { name: "b", functions: &["beta"], states: &[(10, "0")], ..PLAIN }.make(lab), pid)
            .expect(0);
        set("tick_ms", "35", pid);
        assert_eq!((asked(4), asked(11)), (2, 35));
        disable("b", pid).expect(0);
        assert_eq!(asked(4), 1);
        disable("r", pid).expect(0);
        assert_eq!(target.ask("alpha 1"), "alpha 1 = 11");
    });
}

#[test]
fn a_transition_shows_while_it_goes_on() {
    both(|lab, mut target| {
        let pid = target.pid();
        let asks = "\
            #include <suture.h>\n\
            static long ask(long n) { return 100 * suture_attribute_get(\"a/enabled\") + 10 * suture_attribute_get(\"a/transition\") + n; }\n\
            SUTURE_PATCH(\"asks\", SUTURE_OBJECT(SUTURE_MAIN, SUTURE_FUNC(\"beta\", ask)));\n";
        apply(&lab.patch("asks", asks), pid).expect(0);
        assert_eq!(target.ask("beta 0"), format!("beta 0 = {}", -2 * 110), "there is no such patch");
        assert_eq!(target.ask("enter"), "inside");
        begin(&Patch { functions: &["blocker"], ..PLAIN }.make(lab), pid);
        assert_eq!(target.ask("beta 0"), "beta 0 = 110");
        set("a/enabled", "0", pid);
        await_end(pid);
        assert_eq!(target.ask("beta 0"), format!("beta 0 = {}", -2 * 110), "it has gone");
    });
}

#[test]
fn patched_follows_a_library() {
    Plugins::both(|mut p| {
        let patch = p.lab.patch(
            "p",
            "#include <suture.h>\n\
             static long new_wait(void) { return suture_attribute_get(\"p/plugin.so/patched\"); }\n\
             static long new_answer(long n) { return n + 1000 + suture_attribute_get(\"p/plugin.so/patched\"); }\n\
             SUTURE_PATCH(\"p\", SUTURE_OBJECT(SUTURE_MAIN, SUTURE_FUNC(\"wait_here\", new_wait)),\n\
                 SUTURE_OBJECT(\"plugin.so\", SUTURE_FUNC(\"answer\", new_answer)));\n",
        );
        p.load(0, "plugin.so");
        p.apply(&patch);
        for _ in 0..2 {
            assert_eq!(p.waited(), 1);
            assert_eq!(p.values(0).0, 1002);
            p.drop_place(0);
            assert_eq!(p.waited(), 0);
            p.load(0, "plugin.so");
            assert_eq!(p.values(0).1, 1002, "its constructor is told, too");
        }
        p.disable("p");
    });
}
