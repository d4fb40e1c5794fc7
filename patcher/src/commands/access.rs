//! `suture check` without a patch: which processes can be entered, and why the others cannot.

use super::show;
use comfy_table::{ContentArrangement, Table, presets};
use suture_patcher::access::{self, Access, Way};
use suture_patcher::cli::Output;
use suture_patcher::error::Error;
use suture_patcher::report::{self, Ending, Outcome};
use suture_patcher::run;
use suture_patcher::sys::proc;
use suture_patcher::target::Target;
use suture_patcher::target::select::Selection;
use suture_patcher::view::Cache;

/// Looks at the processes named one by one, or by name. Status 1 or 4 when some cannot be entered.
pub fn named(selection: &Selection, output: Output) -> u8 {
    let pids = match selection.pids() {
        Ok(pids) => pids,
        Err(error) => return show::failure("check", &error, output),
    };
    let outcomes = look(&pids, output);
    show::results("check", &outcomes, output, |o, a: &Access| {
        let filtered = if a.filtered { ", its filters let the runtime work" } else { "" };
        format!("{} ({}): can be patched: {}{filtered}\n", o.comm, o.pid, way(a))
    })
}

/// Looks at every process there is. What cannot be entered is a finding, not a failure.
pub fn every(output: Output) -> u8 {
    let all = match proc::all_pids() {
        Ok(all) => all,
        Err(source) => {
            let error = Error::Io { what: "cannot list /proc".into(), source };
            return show::failure("check", &error, output);
        }
    };
    let own = std::process::id().cast_signed();
    let is_kernels = |pid: &i32| proc::facts(*pid).is_ok_and(|f| f.kernel);
    let (kernels, programs): (Vec<i32>, Vec<i32>) = all.into_iter().partition(is_kernels);
    let pids: Vec<i32> = programs.into_iter().filter(|pid| *pid != own).collect();
    let mut outcomes = look(&pids, output);
    // One that ended since the list was made is not there to be judged.
    outcomes.retain(|o| !matches!(o.ending, Ending::Failed(Error::NoProcess { .. })));
    if output.json {
        let mut document = report::outcomes_json("check", &outcomes);
        document["kernel_threads"] = kernels.len().into();
        show::json(&document);
    } else {
        show::text(table(&outcomes));
        let can = outcomes.iter().filter(|o| matches!(o.ending, Ending::Done(_))).count();
        show::text(format!(
            "{can} of {} processes can be patched; {} threads of the kernel have no program\n",
            outcomes.len(),
            kernels.len()
        ));
    }
    suture_patcher::error::EXIT_DONE
}

fn look(pids: &[i32], output: Output) -> Vec<Outcome<Access>> {
    let cache = Cache::default();
    let one = |pid: i32, progress: &run::Progress| {
        progress.step(pid, "looking");
        let target = Target::open(pid)?;
        access::check(&target, &cache).map_err(|error| target.ended_or(error))
    };
    show::outcomes(run::on_each(pids, one, || {}, show::bar(pids.len(), output)), |_| None)
}

fn way(access: &Access) -> String {
    let runtime = access.runtime.as_deref().unwrap_or_default();
    let patches = match access.patches.as_slice() {
        [] => "no patch".to_owned(),
        some => some.join(" "),
    };
    match access.way {
        Way::Injectable => "the runtime will be put in".to_owned(),
        Way::Injected => format!("runtime {runtime} was put in, {patches}"),
        Way::Preloaded => format!("runtime {runtime} was loaded with it, {patches}"),
    }
}

fn table(outcomes: &[Outcome<Access>]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(["PID", "NAME", "USER", "THREADS", "PATCHABLE", "HOW, OR WHY NOT"]);
    for outcome in outcomes {
        let facts = proc::facts(outcome.pid).ok();
        let fact = |number: Option<u64>| number.map_or_else(|| "?".to_owned(), |n| n.to_string());
        let (can, why) = match &outcome.ending {
            Ending::Done(access) | Ending::Unfinished(access) => ("yes", way(access)),
            Ending::Failed(error) => ("no", error.to_string()),
            Ending::Skipped(why) => ("no", why.clone()),
        };
        table.add_row([
            outcome.pid.to_string(),
            outcome.comm.clone(),
            fact(facts.as_ref().map(|f| f.euid.into())),
            fact(facts.as_ref().map(|f| f.threads)),
            can.to_owned(),
            why,
        ]);
    }
    format!("{table}\n")
}
