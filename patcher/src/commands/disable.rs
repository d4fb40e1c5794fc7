//! `suture disable`, `reverse`, `force` and `wait`.

use super::show;
use suture_patcher::cli::Output;
use suture_patcher::context::{Context, Wait};
use suture_patcher::disable::{self, Action, Disabled};
use suture_patcher::error::Error;
use suture_patcher::run;
use suture_patcher::target::Target;
use suture_patcher::target::books::Books;
use suture_patcher::target::select::Selection;
use suture_patcher::view::Cache;

pub fn run(patch: &str, action: Action, selection: &Selection, wait: Wait, output: Output) -> u8 {
    let (command, doing, done) = words(action);
    let pids = match selection.pids() {
        Ok(pids) => pids,
        Err(error) => return show::failure(command, &error, output),
    };
    let (cache, interrupted) = (Cache::default(), show::interrupted());
    let one = |pid: i32, progress: &run::Progress| {
        progress.step(pid, doing);
        let target = Target::open(pid)?;
        let name = disable::matching_name(&target, patch).unwrap_or_else(|| patch.to_owned());
        let told = |books: &Books| progress.transition(pid, books);
        let context =
            Context { cache: &cache, interrupted: &interrupted, wait, stubs_only: false, progress: &told };
        disable::act(&target, &name, action, &context).map_err(|error| target.ended_or(error))
    };
    let results = run::on_each(&pids, one, || {}, show::bar(pids.len(), output));
    let skip = |error: &Error| match error {
        Error::NotEnabled { .. } if selection.skips() => Some("the patch is not enabled there".into()),
        Error::NotInTransition { .. } if selection.skips() => Some("the patch is not in transition".into()),
        Error::NotPrepared { .. } if selection.skips() => Some("no runtime".into()),
        Error::Vanished { .. } | Error::NoProcess { .. } if selection.skips() => Some("it ended".into()),
        _ => None,
    };
    let outcomes = show::sort_out(show::outcomes(results, skip), |d: &Disabled| d.moved.finished);
    show::results(command, &outcomes, output, |o, d: &Disabled| {
        let left = match d.moved.left {
            0 => String::new(),
            left => format!(", {left} left under a foreign probe"),
        };
        let done = if action == Action::Wait && !d.moved.finished { "goes on" } else { done };
        format!(
            "{} ({}): {} {done}, {} function(s), {} entries restored{left}\n{}",
            o.comm,
            o.pid,
            d.patch,
            d.functions,
            d.moved.restored,
            show::pending(o.pid, &d.patch, &d.moved)
        )
    })
}

fn words(action: Action) -> (&'static str, &'static str, &'static str) {
    match action {
        Action::Disable => ("disable", "disabling", "disabled"),
        Action::Reverse => ("reverse", "reversing", "reversed"),
        Action::Force => ("force", "forcing", "forced"),
        Action::Wait => ("wait", "moving threads", "is done"),
    }
}
