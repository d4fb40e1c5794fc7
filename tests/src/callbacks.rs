//! Patches with callbacks for `states.c`, which leave notes, and the event log that they must lead to.

use crate::command::{run, suture};
use crate::lab::Lab;
use crate::report;
use crate::target::{Options, Target};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Kinds of process that callbacks run in.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    /// The runtime is preloaded, else injected.
    pub preload: bool,
    /// With one thread only.
    pub single: bool,
}

/// All of them.
pub const KINDS: [Kind; 4] = [
    Kind { preload: true, single: false },
    Kind { preload: false, single: false },
    Kind { preload: true, single: true },
    Kind { preload: false, single: true },
];

/// Starts `states.c`.
///
/// # Panics
/// When it cannot be started.
#[must_use]
pub fn start(lab: &Lab, kind: Kind) -> Target {
    let program = lab.compile_target("states.c", &[]);
    let args: &[&str] = if kind.single { &["single"] } else { &[] };
    Target::start(&program, args, Options { preload: kind.preload, ..Options::default() })
}

/// With a second thread, and short ticks.
///
/// # Panics
/// When it cannot be started.
#[must_use]
pub fn start_threaded(lab: &Lab, preload: bool) -> Target {
    let target = start(lab, Kind { preload, single: false });
    suture(&["inject", "--pid", &target.pid_text()]).expect(0);
    suture(&["set", "tick_ms", "20", "--pid", &target.pid_text()]).expect(0);
    target
}

/// The preloaded and the injected runtime.
pub fn both(test: impl Fn(&Lab, Target)) {
    for preload in [true, false] {
        let lab = Lab::new();
        let target = start_threaded(&lab, preload);
        test(&lab, target);
    }
}

/// A patch with callbacks, all of which leave notes.
#[derive(Clone, Debug)]
pub struct Patch<'a> {
    /// Its name.
    pub name: &'a str,
    /// Functions of the program: `alpha` and `beta` return N + `plus`, `blocker` returns `plus`.
    pub functions: &'a [&'a str],
    /// What the new functions add.
    pub plus: i64,
    /// States and their flags.
    pub states: &'a [(u64, &'a str)],
    /// It replaces all others.
    pub replace: bool,
    /// Further statements of `pre_patch`, which may return; `id` is the state's.
    pub before: &'a str,
    /// Further statements of `post_patch`, `pre_unpatch`, `post_unpatch`.
    pub after: [&'a str; 3],
}

/// One function, and no state.
pub const PLAIN: Patch<'static> = Patch {
    name: "a",
    functions: &["alpha"],
    plus: 1000,
    states: &[],
    replace: false,
    before: "",
    after: [""; 3],
};

impl Patch<'_> {
    /// Compiles it.
    ///
    /// # Panics
    /// When the compiler refuses it.
    #[must_use]
    pub fn make(&self, lab: &Lab) -> PathBuf {
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
///
/// # Panics
/// When its log cannot be read.
#[must_use]
#[track_caller]
pub fn events(pid: i32) -> Vec<String> {
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
    report::log(pid).iter().map(show).filter(|event| !event.starts_with("signal")).collect()
}

/// What must be in the log when a patch comes: its callbacks before and after the threads move.
#[must_use]
pub fn up(patch: &str, before: &[&str], after: &[&str]) -> Vec<String> {
    let own = |words: &[&str]| words.iter().map(|w| format!("{w} {patch}")).collect::<Vec<_>>();
    [own(&["enable", "init+"]), lines(before), own(&["start+", "completing+"]), lines(after), own(&["done+"])]
        .concat()
}

/// The same for one that goes.
#[must_use]
pub fn down(patch: &str, before: &[&str], after: &[&str]) -> Vec<String> {
    let own = |words: &[&str]| words.iter().map(|w| format!("{w} {patch}")).collect::<Vec<_>>();
    [own(&["init-"]), lines(before), own(&["start-", "completing-"]), lines(after), own(&["done-", "gone"])]
        .concat()
}

/// Lines of the log.
#[must_use]
pub fn lines(words: &[&str]) -> Vec<String> {
    words.iter().map(|w| (*w).to_owned()).collect()
}

/// Begins to enable; the transition is left going on, held up by one thread.
///
/// # Panics
/// When it is not.
#[track_caller]
pub fn begin(patch: &Path, pid: i32) {
    run(&["apply", &patch.to_string_lossy(), "--timeout", "0.01"], pid).expect(3);
    report::held_by_one(pid);
}
