//! `suture get` and `suture set`.

use super::show;
use std::fmt::Write;
use std::time::Duration;
use suture_patcher::cli::Output;
use suture_patcher::context::{Context, Wait};
use suture_patcher::control::{self, Found, Written};
use suture_patcher::error::Error;
use suture_patcher::run;
use suture_patcher::target::Target;
use suture_patcher::target::books::Books;
use suture_patcher::target::select::Selection;
use suture_patcher::view::Cache;

/// How long callbacks are waited for.
const PATIENCE: Duration = Duration::from_secs(60);

pub fn get(path: &str, selection: &Selection, output: Output) -> u8 {
    let pids = match selection.pids() {
        Ok(pids) => pids,
        Err(error) => return show::failure("get", &error, output),
    };
    let cache = Cache::default();
    let one = |pid: i32, _: &run::Progress| {
        let target = Target::open(pid)?;
        control::get(&target, path, &cache).map_err(|error| target.ended_or(error))
    };
    let outcomes = show::outcomes(run::on_each(&pids, one, || {}, |_| {}), |error| skip(selection, error));
    let several = outcomes.len() > 1;
    show::results("get", &outcomes, output, |o, found: &Found| {
        // One process: the value alone, for scripts.
        let head = if several { format!("{} ({}): ", o.comm, o.pid) } else { String::new() };
        text(&head, found)
    })
}

fn text(head: &str, found: &Found) -> String {
    if let Some(value) = &found.value {
        return format!("{head}{value}\n");
    }
    let mut text = if head.is_empty() { String::new() } else { format!("{head}\n") };
    let skipped = if found.path.is_empty() { 0 } else { found.path.len() + 1 };
    for node in &found.entries {
        let name = node.path.get(skipped..).unwrap_or(&node.path);
        let slash = if node.access == control::Access::Directory { "/" } else { "" };
        let value = node.value.as_deref().unwrap_or_default().replace('\n', "; ");
        let line = format!("{:2}  {name}{slash}  {value}", node.access.letters());
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}

pub fn set(path: &str, value: &str, selection: &Selection, output: Output) -> u8 {
    let pids = match selection.pids() {
        Ok(pids) => pids,
        Err(error) => return show::failure("set", &error, output),
    };
    let (cache, interrupted) = (Cache::default(), show::interrupted());
    // As the kernel's: callbacks run within the write, and the worker or any other command moves the threads
    // that cannot be moved at once.
    let wait = Wait { timeout: Some(PATIENCE), reverse: false, no_wait: false, for_threads: false };
    let one = |pid: i32, progress: &run::Progress| {
        progress.step(pid, "writing");
        let target = Target::open(pid)?;
        let told = |books: &Books| progress.transition(pid, books);
        let context =
            Context { cache: &cache, interrupted: &interrupted, wait, stubs_only: false, progress: &told };
        control::set(&target, path, value, &context).map_err(|error| target.ended_or(error))
    };
    let results = run::on_each(&pids, one, || {}, show::bar(pids.len(), output));
    let outcomes = show::outcomes(results, |error| skip(selection, error));
    show::results("set", &outcomes, output, |o, written: &Written| {
        let mut line = format!("{} ({}): {} set to {}", o.comm, o.pid, written.path, written.value);
        if !written.finished {
            line += &format!("; threads are still moving, see: suture status --pid {}", o.pid);
        }
        line + "\n"
    })
}

fn skip(selection: &Selection, error: &Error) -> Option<String> {
    match error {
        Error::NotEnabled { .. } if selection.skips() => Some("the patch is not enabled there".into()),
        Error::NotPrepared { .. } if selection.skips() => Some("no runtime".into()),
        Error::Vanished { .. } | Error::NoProcess { .. } if selection.skips() => Some("it ended".into()),
        _ => None,
    }
}
