//! Patches that keep data beside the program's objects.

use std::path::PathBuf;
use suture_tests::command::{apply, disable};
use suture_tests::target::Options;
use suture_tests::{Lab, Target};

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
    Target::start(&lab.compile_target("shadow.c", &["-fno-ipa-ra"]), &[], options)
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
