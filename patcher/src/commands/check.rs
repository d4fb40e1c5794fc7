//! `suture check`.

use super::show;
use std::path::{Path, PathBuf};
use suture_patcher::cli::{Engine, Output};
use suture_patcher::error::Error;
use suture_patcher::patch::Patch;
use suture_patcher::plan::PlannedFunction;
use suture_patcher::target::Target;
use suture_patcher::target::select::Selection;
use suture_patcher::view::Cache;
use suture_patcher::{apply, run};
use suture_redirect::Classes;

pub fn run(
    path: Option<&Path>,
    selection: Option<Selection>,
    objects: &[PathBuf],
    engine: &Engine,
    output: Output,
) -> u8 {
    let classes = Classes::parse(&engine.classes).unwrap_or(Classes::ALL);
    match (path, selection, objects) {
        (None, None, []) => show::usage("check needs a patch and a process, or --object FILE"),
        (None, None, files) => offline(files, classes, output),
        (Some(path), Some(selection), []) => dry_run(path, &selection, classes, output),
        _ => show::usage("check needs both a patch and a process (--pid, --name or --all)"),
    }
}

fn offline(_: &[PathBuf], _: Classes, _: Output) -> u8 {
    show::usage("the census is being built")
}

fn dry_run(path: &Path, selection: &Selection, classes: Classes, output: Output) -> u8 {
    let prepared = Patch::open(path).and_then(|patch| Ok((patch, selection.pids()?)));
    let (patch, pids) = match prepared {
        Ok(prepared) => prepared,
        Err(error) => return show::failure("check", &error, output),
    };
    let cache = Cache::default();
    let one = |pid: i32, _: &run::Progress| {
        let target = Target::open(pid)?;
        apply::check(&target, &patch, classes, &cache).map(|plan| plan.functions)
    };
    let results = run::on_each(&pids, one, |_| {});
    let outcomes = show::outcomes(results, |error| match error {
        Error::AlreadyEnabled { .. } if selection.skips() => Some("already enabled".into()),
        _ => None,
    });
    show::results("check", &outcomes, output, |o, functions: &Vec<PlannedFunction>| {
        let mut text = format!("{} ({}): {} could be enabled\n", o.comm, o.pid, patch.descriptor.name);
        for f in functions {
            let place = match (f.offset, f.undo) {
                (0, _) => String::new(),
                (offset, 0) => format!(" at +{offset}"),
                (offset, undo) => format!(" at +{offset}, undoing {undo} step(s)"),
            };
            let head = if f.loop_head { ", entry is a loop head" } else { "" };
            text += &format!("  {}: {}  class {}{place}{head}\n", f.object, f.name, f.class);
        }
        text
    })
}
