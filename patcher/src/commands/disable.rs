//! `suture disable`.

use super::show;
use suture_patcher::cli::Output;
use suture_patcher::disable::{self, Disabled};
use suture_patcher::error::Error;
use suture_patcher::run;
use suture_patcher::target::Target;
use suture_patcher::target::select::Selection;

pub fn run(patch: &str, selection: &Selection, output: Output) -> u8 {
    let pids = match selection.pids() {
        Ok(pids) => pids,
        Err(error) => return show::failure("disable", &error, output),
    };
    let one = |pid: i32, progress: &run::Progress| {
        progress.step(pid, "disabling");
        let target = Target::open(pid)?;
        let name = disable::matching_name(&target, patch).unwrap_or_else(|| patch.to_owned());
        disable::disable(&target, &name).map_err(|error| target.ended_or(error))
    };
    let results = run::on_each(&pids, one, show::bar(pids.len(), output));
    let skip = |error: &Error| match error {
        Error::NotEnabled { .. } if selection.skips() => Some("the patch is not enabled there".into()),
        Error::NotPrepared { .. } if selection.skips() => Some("no runtime".into()),
        _ => None,
    };
    let outcomes = show::outcomes(results, skip);
    show::results("disable", &outcomes, output, |o, d: &Disabled| {
        let left =
            if d.left > 0 { format!(", {} left under a foreign probe", d.left) } else { String::new() };
        format!(
            "{} ({}): {} disabled, {} function(s), {} entries restored{left}\n",
            o.comm, o.pid, d.patch, d.functions, d.restored
        )
    })
}
