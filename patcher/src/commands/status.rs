//! `suture status`.

use super::show;
use suture_patcher::cli::Output;
use suture_patcher::error::Error;
use suture_patcher::target::Target;
use suture_patcher::target::select::Selection;
use suture_patcher::view::Cache;
use suture_patcher::{report, run, status};

pub fn run(selection: Option<Selection>, threads: bool, output: Output) -> u8 {
    let selection = selection.unwrap_or(Selection::All);
    let pids = match selection.pids() {
        Ok(pids) => pids,
        Err(error) => return show::failure("status", &error, output),
    };
    let cache = Cache::default();
    let one = |pid: i32, _: &run::Progress| status::read(&Target::open(pid)?, threads, &cache);
    let results = run::on_each(&pids, one, || {}, |_| {});
    let skip = |error: &Error| match error {
        Error::NotPrepared { .. } | Error::Vanished { .. } | Error::NoProcess { .. } if selection.skips() => {
            Some("no runtime".into())
        }
        _ => None,
    };
    let outcomes = show::outcomes(results, skip);
    show::results("status", &outcomes, output, |_, s| report::status_text(s))
}
