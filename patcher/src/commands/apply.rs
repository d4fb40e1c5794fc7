//! `suture apply`.

use super::show;
use std::path::Path;
use suture_patcher::apply::{self, Applied};
use suture_patcher::cli::{ApplyEngine, ObjectFiles, Output};
use suture_patcher::context::{Context, Wait};
use suture_patcher::error::Error;
use suture_patcher::late::find;
use suture_patcher::patch::Patch;
use suture_patcher::run;
use suture_patcher::target::Target;
use suture_patcher::target::books::Books;
use suture_patcher::target::select::Selection;
use suture_patcher::view::Cache;
use suture_redirect::Classes;

pub fn run(
    path: &Path,
    selection: &Selection,
    files: &ObjectFiles,
    engine: &ApplyEngine,
    wait: Wait,
    output: Output,
) -> u8 {
    let prepared =
        Patch::open(path).and_then(|patch| Ok((patch, find::open(&files.files)?, selection.pids()?)));
    let (patch, given, pids) = match prepared {
        Ok(prepared) => prepared,
        Err(error) => return show::failure("apply", &error, output),
    };
    let classes = Classes::parse(&engine.engine.classes).unwrap_or(Classes::ALL);
    let cache = Cache::default();
    let interrupted = show::interrupted();
    let one = |pid: i32, progress: &run::Progress| {
        progress.step(pid, "enabling");
        let target = Target::open(pid)?;
        let told = |books: &Books| progress.transition(pid, books);
        let context = Context {
            cache: &cache,
            interrupted: &interrupted,
            wait,
            stubs_only: engine.no_direct,
            progress: &told,
        };
        let done = apply::apply(&target, &patch, classes, &given, selection.skips(), &context);
        done.map_err(|error| target.ended_or(error))
    };
    let results = run::on_each(&pids, one, suture_redirect::warm_up, show::bar(pids.len(), output));
    let skip = |error: &Error| match error {
        Error::AlreadyEnabled { .. } if selection.skips() => Some("already enabled".into()),
        Error::NotConcerned { .. } => Some("it maps none of the patch's objects".into()),
        Error::Vanished { .. } | Error::NoProcess { .. } if selection.skips() => Some("it ended".into()),
        _ => None,
    };
    let outcomes = show::sort_out(show::outcomes(results, skip), |a: &Applied| a.moved.finished);
    show::results("apply", &outcomes, output, |o, a: &Applied| {
        let classes = by_class(a);
        let names = |what: &str, names: &[String]| match names {
            [] => String::new(),
            names => format!(", {what}: {}", names.join(" ")),
        };
        let absent = names("to be patched when loaded", &a.objects_awaited)
            + &names("not loaded, no file known", &a.objects_absent);
        let warnings: String = a.warnings.iter().map(|w| format!("  warning: {w}\n")).collect();
        format!(
            "{} ({}): {} enabled, {} function(s) ({classes}){absent}, {} thread(s) held {} us, {:.1} ms in all\n{warnings}{}",
            o.comm,
            o.pid,
            a.patch,
            a.functions.len(),
            a.stops + a.moved.looks_with_stop,
            a.held_us + a.moved.look_held_us,
            a.wall_us as f64 / 1000.0,
            show::pending(o.pid, &a.patch, &a.moved)
        )
    })
}

/// How many functions of each class: `3 S, 1 J`.
fn by_class(applied: &Applied) -> String {
    let count = |class: char| applied.functions.iter().filter(|f| f.class == class).count();
    let counts = ['P', 'S', 'A', 'J', 'W'].map(|class| (class, count(class)));
    let some: Vec<String> = counts.iter().filter(|(_, n)| *n > 0).map(|(c, n)| format!("{n} {c}")).collect();
    if some.is_empty() { "nothing loaded".into() } else { some.join(", ") }
}
