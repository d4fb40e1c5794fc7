//! Shadow variables that belong to states: made by `pre_patch`, handed from patch to patch, and freed when the
//! last holder goes. The variable of state N hangs on no object and says `[]`, or `[ON]` while its state is in
//! full effect.

use serde_json::Value;
use std::path::{Path, PathBuf};
use suture_tests::command::{apply, disable, suture};
use suture_tests::target::Options;
use suture_tests::{Lab, Target, poll, report};

/// A patch of `states.c` whose states are `ids`. `alpha(n)` is 0 if state n has no variable, else its address,
/// `beta(n)` is 0, 1 for `[]`, 2 for `[ON]`. `fail` is a statement of `pre_patch`, with `id` and the variable
/// `v` at hand.
fn text(name: &str, functions: &[&str], ids: &[u64], items: &str, fail: &str) -> String {
    let rows: String = functions.iter().map(|f| format!(", SUTURE_FUNC(\"{f}\", new_{f})")).collect();
    let state = |id: &u64| {
        format!(
            ", SUTURE_STATE({id}, SUTURE_IS_SHADOW, pre_patch, post_patch, pre_unpatch, post_unpatch, dtor)"
        )
    };
    let states: String = ids.iter().map(state).collect();
    format!(
        r#"
        #include <string.h>
        #include <suture.h>

        SUTURE_EXTERN void note(const char *what, const char *patch, unsigned long state);
        SUTURE_EXTERN void stand(void);
        SUTURE_EXTERN volatile long level;
        #define UNUSED __attribute__((unused))
        #define CALLBACK(kind, name) UNUSED static kind name(struct suture_patch *patch, struct suture_state *state)

        UNUSED static long new_alpha(long n) {{ return (long)suture_shadow_get(0, (uint64_t)n); }}
        UNUSED static long new_beta(long n)
        {{
            const char *v = suture_shadow_get(0, (uint64_t)n);
            return !v ? 0 : !strcmp(v, "[]") ? 1 : !strcmp(v, "[ON]") ? 2 : -1;
        }}
        UNUSED static long new_blocker(void) {{ stand(); return 1000; }}

        static void say(const char *patch, uint64_t id, const char *text)
        {{
            char *v = suture_shadow_get(0, id);
            if (v)
                strcpy(v, text);
            else
                note("missing", patch, id);
        }}
        CALLBACK(int, pre_patch)
        {{
            uint64_t id = state->id;
            char *v = suture_shadow_alloc(0, id, 8, 0, 0);
            if (!v)
                return -17;
            strcpy(v, "[]");
            {fail}
            (void)patch;
            return 0;
        }}
        CALLBACK(void, post_patch) {{ say(patch->name, state->id, "[ON]"); }}
        CALLBACK(void, pre_unpatch) {{ say(patch->name, state->id, "[]"); }}
        CALLBACK(void, post_unpatch)
        {{
            if (!suture_shadow_get(0, state->id))
                note("freed too early", patch->name, state->id);
        }}
        UNUSED static void dtor(void *obj, void *data) {{ note(data, obj ? "object" : "none", 0); }}

        SUTURE_PATCH("{name}", SUTURE_OBJECT(SUTURE_MAIN{rows}){states}{items});
        "#
    )
}

struct Scene<'l> {
    lab: &'l Lab,
    target: Target,
}

impl Scene<'_> {
    fn patch(&self, name: &str, functions: &[&str], ids: &[u64], items: &str) -> PathBuf {
        self.lab.patch(name, &text(name, functions, ids, items, ""))
    }

    fn apply(&self, patch: &Path) {
        apply(patch, self.target.pid()).expect(0);
    }

    fn disable(&self, name: &str) {
        disable(name, self.target.pid()).expect(0);
    }

    /// What a patched `alpha` or `beta` says.
    fn ask(&mut self, function: &str, n: u64) -> i64 {
        let answer = self.target.ask(&format!("{function} {n}"));
        answer.rsplit(' ').next().and_then(|n| n.parse().ok()).unwrap_or_else(|| panic!("{answer}"))
    }

    /// Contents of the variables that were freed since the last time, and complaints of callbacks.
    fn freed(&mut self) -> String {
        let notes = self.target.ask("notes").replacen("notes", "", 1);
        // Each is `[..](none,0):alpha(1)`.
        let name = |note: &str| note.split_once('(').map_or(note, |(name, _)| name).to_owned();
        notes.split_whitespace().map(name).collect::<Vec<_>>().join(" ")
    }

    /// Callbacks and destructors in the log from event `after` on.
    fn callbacks(&self, after: usize) -> (Vec<String>, usize) {
        let log = suture(&["log", "--json", "--pid", &self.target.pid_text()]).expect(0).json();
        let rows = log["events"].as_array().cloned().unwrap_or_default();
        let show = |row: &Value| {
            let word = row["event"].as_str()?;
            let shown = ["pre_patch", "post_patch", "pre_unpatch", "post_unpatch", "dtor"].contains(&word);
            shown.then(|| format!("{word}({},{})", row["patch"].as_str().unwrap_or("?"), row["subject"]))
        };
        (rows[after..].iter().filter_map(show).collect(), rows.len())
    }
}

/// The preloaded and the injected runtime, several threads and one.
fn each(several_only: bool, test: impl Fn(&mut Scene<'_>)) {
    for (preload, single) in [(true, false), (false, false), (true, true), (false, true)] {
        if single && several_only {
            continue;
        }
        let lab = Lab::new();
        let program = lab.compile_target("states.c", &[]);
        let args: &[&str] = if single { &["single"] } else { &[] };
        let target = Target::start(&program, args, Options { preload, ..Options::default() });
        test(&mut Scene { lab: &lab, target });
    }
}

const REPLACE: &str = ", SUTURE_REPLACE_ALL";

#[test]
fn a_variable_lives_as_long_as_its_state() {
    each(false, |scene| {
        let a = scene.patch("a", &["alpha", "beta"], &[10], "");
        for _ in 0..2 {
            scene.apply(&a);
            assert_eq!(scene.ask("beta", 10), 2, "[ON]");
            scene.disable("a");
            assert_eq!(scene.freed(), "[]", "freed once, by the destructor, after pre_unpatch");
        }
        let once = "pre_patch(a,10) post_patch(a,10) pre_unpatch(a,10) post_unpatch(a,10) dtor(a,10)";
        assert_eq!(scene.callbacks(0).0.join(" "), [once, once].join(" "));
    });
}

#[test]
fn a_variable_is_handed_from_patch_to_patch() {
    each(false, |scene| {
        let a = scene.patch("a", &["alpha", "beta"], &[10], REPLACE);
        let b = scene.patch("b", &["alpha", "beta"], &[10], REPLACE);
        let c = scene.patch("c", &["alpha", "beta"], &[10, 11], REPLACE);
        let d = scene.patch("d", &["alpha", "beta"], &[11], REPLACE);
        scene.apply(&a);
        let place = scene.ask("alpha", 10);
        assert_ne!(place, 0);
        for patch in [&b, &c] {
            scene.apply(patch);
            assert_eq!((scene.ask("alpha", 10), scene.ask("beta", 10)), (place, 2), "{}", patch.display());
        }
        assert_eq!(scene.freed(), "");
        let (_, before) = scene.callbacks(0);
        scene.apply(&d);
        assert_eq!((scene.ask("alpha", 10), scene.ask("beta", 11)), (0, 2));
        assert_eq!(scene.freed(), "[]");
        let expected = ["pre_unpatch(c,10)", "post_unpatch(c,10)", "dtor(c,10)"];
        assert_eq!(scene.callbacks(before).0, expected, "the callbacks of its last holder");
        scene.disable("d");
        assert_eq!(scene.freed(), "[]");
    });
}

#[test]
fn the_last_of_several_holders_frees() {
    each(false, |scene| {
        let a = scene.patch("a", &["alpha", "beta"], &[10], "");
        let b = scene.patch("b", &["alpha", "beta"], &[10], "");
        let r = scene.patch("r", &["alpha", "beta"], &[], REPLACE);
        scene.apply(&a);
        scene.apply(&b);
        scene.disable("a");
        assert_eq!((scene.ask("beta", 10), scene.freed().as_str()), (2, ""), "b holds it");
        scene.apply(&a);
        scene.apply(&r);
        assert_eq!((scene.ask("beta", 10), scene.freed().as_str()), (0, "[]"), "once, not leaked");
        scene.disable("r");
    });
}

#[test]
fn nothing_is_left_of_an_enable_that_failed() {
    each(false, |scene| {
        let fail = "if (id == 10 && level == 12) return -12;";
        let a = scene.lab.patch("a", &text("a", &["alpha", "beta"], &[8, 9, 10, 11], "", fail));
        assert_eq!(scene.target.ask("level 12"), "level 12");
        let refused = suture(&["apply", &a.to_string_lossy(), "--json", "--pid", &scene.target.pid_text()]);
        assert_eq!(refused.expect(1).json()["results"][0]["error"]["errno"], "ENOMEM");
        let (events, before) = scene.callbacks(0);
        let expected = "pre_patch(a,8) pre_patch(a,9) pre_patch(a,10) \
                        post_unpatch(a,8) dtor(a,8) post_unpatch(a,9) dtor(a,9) dtor(a,10)";
        assert_eq!(events.join(" "), expected, "what pre_patch(10) left is freed, too");
        assert_eq!(scene.freed(), "[] [] []");
        assert_eq!(scene.target.ask("level 4"), "level 4");
        scene.apply(&a);
        assert!([8, 9, 10, 11].iter().all(|id| scene.ask("beta", *id) == 2), "no leftovers in the way");
        assert_eq!(scene.callbacks(before).0.len(), 8);
        scene.disable("a");
        assert_eq!(scene.freed(), "[] [] [] []");
    });
}

#[test]
fn reversing_and_forcing_free_what_goes_and_keep_what_stays() {
    each(true, |scene| {
        let pid = scene.target.pid();
        suture(&["inject", "--pid", &pid.to_string()]).expect(0);
        suture(&["set", "tick_ms", "20", "--pid", &pid.to_string()]).expect(0);
        let begin = |patch: &Path| {
            let args = ["apply", &patch.to_string_lossy(), "--timeout", "0.01", "--pid", &pid.to_string()];
            suture(&args).expect(3);
            report::held_by_one(pid);
        };
        let settled = || poll::until_true("the end", || report::status(pid)["transition"].is_null());
        let run = |verb: &str, name: &str| _ = suture(&[verb, name, "--pid", &pid.to_string()]).expect(0);
        let a = scene.patch("a", &["alpha", "beta"], &[10], "");
        let r = scene.patch("r", &["alpha", "beta", "blocker"], &[11], REPLACE);
        scene.apply(&a);
        let place = scene.ask("alpha", 10);
        assert_eq!(scene.target.ask("enter"), "inside");
        begin(&r);
        assert_eq!((scene.ask("beta", 10), scene.ask("beta", 11)), (1, 1), "neither is in full effect");
        run("reverse", "r");
        settled();
        assert_eq!((scene.ask("alpha", 10), scene.ask("beta", 10)), (place, 2), "as it was");
        assert_eq!((scene.ask("beta", 11), scene.freed().as_str()), (0, "[]"));

        begin(&r);
        run("force", "r");
        settled();
        assert_eq!((scene.ask("beta", 10), scene.ask("beta", 11)), (0, 2));
        assert_eq!(scene.freed(), "[]", "the destructor has run, whatever becomes of the memory");
        assert_eq!(scene.target.ask("leave"), "left 1");
        scene.disable("r");
        assert_eq!(scene.freed(), "[]");
    });
}

#[test]
fn a_state_that_is_no_shadow_frees_nothing_and_one_without_callbacks_all() {
    each(false, |scene| {
        let a = |flags: &str| {
            let body = text(
                "a",
                &["alpha", "beta"],
                &[],
                &format!(", SUTURE_STATE(10, {flags}, 0, 0, 0, 0, 0)"),
                "",
            );
            // Its code makes the variable itself.
            let made = "(long)suture_shadow_get_or_alloc(0, (uint64_t)n, 8, 0, 0)";
            body.replace("(long)suture_shadow_get(0, (uint64_t)n)", made)
        };
        let kept = scene.lab.patch("kept", &a("0"));
        let freed = scene.lab.patch("freed", &a("SUTURE_IS_SHADOW"));
        let watch = scene.patch("watch", &["beta"], &[], "");
        scene.apply(&watch);
        for (patch, left) in [(&kept, -1), (&freed, 0)] {
            scene.apply(patch);
            assert_ne!(scene.ask("alpha", 10), 0);
            scene.disable("a");
            assert_eq!(scene.ask("beta", 10), left, "{}: empty, or gone", patch.display());
        }
        assert_eq!(scene.freed(), "", "no destructor was given");
    });
}
