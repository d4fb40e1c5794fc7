//! `suture check`.

use super::show;
use std::path::{Path, PathBuf};
use suture_elf::ObjectFile;
use suture_patcher::cli::{Engine, Output};
use suture_patcher::error::Error;
use suture_patcher::patch::Patch;
use suture_patcher::plan::PlannedFunction;
use suture_patcher::target::Target;
use suture_patcher::target::select::Selection;
use suture_patcher::view::Cache;
use suture_patcher::{apply, report, run};
use suture_redirect::{Census, Classes, ObjectAnalysis, Options, census};

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

fn offline(files: &[PathBuf], classes: Classes, output: Output) -> u8 {
    let options = Options { classes, ..Options::default() };
    let mut rows = Vec::new();
    for file in files {
        let object = match ObjectFile::open(file) {
            Ok(object) => object,
            Err(error) => return show::failure("check", &Error::from(error), output),
        };
        let counted = census(&ObjectAnalysis::new(&object), None, &options);
        if !output.json {
            show::text(table(file, &counted));
        }
        rows.push(serde_json::json!({ "file": file.display().to_string(), "census": counted }));
    }
    if output.json {
        show::json(&serde_json::json!({ "schema": report::SCHEMA, "command": "check", "objects": rows }));
    }
    0
}

fn table(file: &Path, census: &Census) -> String {
    let mut text = format!(
        "{}\n  {} functions, {} can be redirected ({:.1} %)\n",
        file.display(),
        census.functions,
        census.redirectable,
        census.share()
    );
    let share = |n: usize| 100.0 * n as f64 / census.functions.max(1) as f64;
    for (class, n) in &census.classes {
        text += &format!("    class {class}  {n:7}  {:5.1} %\n", share(*n));
    }
    for (rule, n) in &census.refused {
        text += &format!("    refused {n:7}  {:5.1} %  {rule}\n", share(*n));
    }
    text
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
