//! `suture check`.

use super::{access, show};
use serde::Serialize;
use std::path::{Path, PathBuf};
use suture_elf::ObjectFile;
use suture_patcher::cli::{Engine, ObjectFiles, Output};
use suture_patcher::error::Error;
use suture_patcher::late::find;
use suture_patcher::patch::Patch;
use suture_patcher::plan::{Plan, PlannedFunction};
use suture_patcher::target::Target;
use suture_patcher::target::select::Selection;
use suture_patcher::view::Cache;
use suture_patcher::{apply, report, run, view};
use suture_redirect::{Census, Classes, ObjectAnalysis, Options, census};

pub fn run(
    path: Option<&Path>,
    selection: Option<Selection>,
    objects: &[PathBuf],
    files: &ObjectFiles,
    engine: &Engine,
    output: Output,
) -> u8 {
    let classes = Classes::parse(&engine.classes).unwrap_or(Classes::ALL);
    match (path, selection, objects) {
        (None, None, []) => show::usage("check needs a process (--pid, --name or --all), or --object FILE"),
        (None, Some(Selection::All), []) => access::every(output),
        (None, Some(selection), []) => access::named(&selection, output),
        (None, None, files) => counted(files, None, classes, output),
        (None, Some(Selection::Pids(pids)), files @ [_, ..]) => match pids[..] {
            [pid] => counted(files, Some(pid), classes, output),
            _ => show::usage("check --object takes one --pid"),
        },
        (Some(path), Some(selection), []) => dry_run(path, &selection, &files.files, classes, output),
        _ => show::usage("check needs both a patch and a process (--pid, --name or --all)"),
    }
}

fn counted(files: &[PathBuf], pid: Option<i32>, classes: Classes, output: Output) -> u8 {
    let options = Options { classes, ..Options::default() };
    let mut rows = Vec::new();
    for file in files {
        let census = match pid {
            None => ObjectFile::open(file).map_err(Error::from).map(|object| offline(&object, &options)),
            Some(pid) => loaded(file, pid, &options),
        };
        match census {
            Ok(census) => {
                if !output.json {
                    show::text(table(file, &census));
                }
                rows.push(serde_json::json!({ "file": file.display().to_string(), "census": census }));
            }
            Err(error) => return show::failure("check", &error, output),
        }
    }
    if output.json {
        show::json(&serde_json::json!({ "schema": report::SCHEMA, "command": "check", "objects": rows }));
    }
    0
}

fn offline(object: &ObjectFile, options: &Options) -> Census {
    census(&ObjectAnalysis::new(object), None, options)
}

/// Counts an object where a process has it: which punned pages are free depends on that.
fn loaded(file: &Path, pid: i32, options: &Options) -> Result<Census, Error> {
    let target = Target::open(pid)?;
    let maps = view::maps(&target)?;
    let seen = view::process(&target, maps.clone(), &Cache::default())?;
    let wanted = std::fs::canonicalize(file).unwrap_or_else(|_| file.to_path_buf());
    let is = |path: &str| Path::new(path) == wanted || std::fs::canonicalize(path).is_ok_and(|p| p == wanted);
    let object = seen.objects.iter().find(|o| is(&o.path)).ok_or_else(|| Error::Patch {
        what: format!("process {pid} does not map {}", file.display()),
        errno: "ENOENT",
        hint: Some(format!("see what it maps in /proc/{pid}/maps, or leave out --pid")),
    })?;
    let process = suture_redirect::ProcessView {
        maps: Some(&maps),
        existing: &[],
        memory: Some(&target.memory),
        ..suture_redirect::ProcessView::default()
    };
    Ok(census(&ObjectAnalysis::new(&object.file), Some((&process, object.base)), options))
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

fn dry_run(path: &Path, selection: &Selection, files: &[PathBuf], classes: Classes, output: Output) -> u8 {
    let prepared = Patch::open(path).and_then(|patch| Ok((patch, find::open(files)?, selection.pids()?)));
    let (patch, given, pids) = match prepared {
        Ok(prepared) => prepared,
        Err(error) => return show::failure("check", &error, output),
    };
    let cache = Cache::default();
    let one = |pid: i32, _: &run::Progress| {
        let target = Target::open(pid)?;
        apply::check(&target, &patch, classes, &given, &cache).map(Checked::from)
    };
    let results = run::on_each(&pids, one, suture_redirect::warm_up, |_| {});
    let outcomes = show::outcomes(results, |error| match error {
        Error::AlreadyEnabled { .. } if selection.skips() => Some("already enabled".into()),
        _ => None,
    });
    show::results("check", &outcomes, output, |o, checked: &Checked| {
        let mut text = format!("{} ({}): {} could be enabled\n", o.comm, o.pid, patch.descriptor.name);
        for f in &checked.functions {
            let place = match (f.offset, f.undo) {
                (0, _) => String::new(),
                (offset, 0) => format!(" at +{offset}"),
                (offset, undo) => format!(" at +{offset}, undoing {undo} step(s)"),
            };
            let head = if f.loop_head { ", entry is a loop head" } else { "" };
            text += &format!("  {}: {}  class {}{place}{head}\n", f.object, f.name, f.class);
        }
        for name in &checked.objects_awaited {
            text += &format!("  {name}: not loaded; its functions are patched when it is\n");
        }
        for name in &checked.objects_absent {
            text += &format!("  {name}: not loaded, and no file of it is known (--object-file FILE)\n");
        }
        text
    })
}

/// What a dry run says.
#[derive(Serialize)]
struct Checked {
    functions: Vec<PlannedFunction>,
    objects_awaited: Vec<String>,
    objects_absent: Vec<String>,
}

impl From<Plan> for Checked {
    fn from(plan: Plan) -> Self {
        Self { functions: plan.functions, objects_awaited: plan.awaited, objects_absent: plan.absent }
    }
}
