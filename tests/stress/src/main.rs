//! `suture-stress`: runs the write stress and its negative controls.
//!
//! Exit codes: 0 nothing wrong (or the control was caught), 1 a wrong result, a crash, an idle case
//! (or a control that survived), 2 the harness could not do its work.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use clap::{Parser, Subcommand};
use suture_stress::board::SharedBoard;
use suture_stress::control::{CONTROLS, Control, Setting};
use suture_stress::engine::{Options, run};
use suture_stress::error::{Error, Result};
use suture_stress::report::{HEAD, Totals, rows, summary};
use suture_stress::store::Protocol;
use suture_stress::suite::Suite;
use suture_stress::supervise::{End, supervise};

#[derive(Parser)]
#[command(about = "Write stress of redirect sites, with negative controls")]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Attacks every shape of a class at every alignment.
    Run {
        /// P, S, A, J, W, or all of them; by name only: `first` (first touch of file pages) and
        /// `planned` (the project's own planner, in a library), `straight`
        /// (jumps that lead past their stubs and back).
        #[arg(long, default_value = "all")]
        class: String,
        /// Threads that call.
        #[arg(long, default_value_t = 3)]
        threads: usize,
        /// Seconds per class.
        #[arg(long, default_value_t = 60)]
        seconds: u64,
        /// Start of the random values.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Takes only the cases whose name contains this text.
        #[arg(long, default_value = "")]
        only: String,
        /// Prints only the sums.
        #[arg(long)]
        quiet: bool,
    },
    /// Runs with one rule broken; 0 if the harness notices.
    Control {
        /// One of the names `list` shows.
        name: String,
        /// Threads that call.
        #[arg(long, default_value_t = 3)]
        threads: usize,
        /// Seconds a broken rule may go unnoticed.
        #[arg(long, default_value_t = 15)]
        seconds: u64,
        /// Keeps the rule after all: nothing may be found.
        #[arg(long)]
        mended: bool,
    },
    /// Lists cases and controls.
    List,
    /// The process under stress.
    #[command(hide = true)]
    Worker {
        #[arg(long)]
        board: i32,
        #[arg(long)]
        class: Option<String>,
        #[arg(long, default_value = "")]
        only: String,
        #[arg(long)]
        control: Option<String>,
        #[arg(long)]
        mended: bool,
        #[arg(long)]
        threads: usize,
        #[arg(long)]
        seconds: u64,
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
}

fn main() -> ExitCode {
    let done = match Cli::parse().verb {
        Verb::Run { class, threads, seconds, seed, only, quiet } => {
            run_classes(&class, &only, threads, seconds, seed, quiet)
        }
        Verb::Control { name, threads, seconds, mended } => run_control(&name, threads, seconds, mended),
        Verb::List => list(),
        Verb::Worker { board, class, only, control, mended, threads, seconds, seed } => {
            let time = Duration::from_secs(seconds);
            match (control, class) {
                (Some(name), _) => work_control(board, &name, Setting { threads, mended, time }),
                (None, class) => {
                    work_class(board, class.as_deref().unwrap_or("all"), &only, threads, time, seed)
                }
            }
        }
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("suture-stress: {error}");
            ExitCode::from(2)
        }
    }
}

fn own_exe() -> Result<PathBuf> {
    std::env::current_exe().map_err(|source| Error::System { what: "find the own program", source })
}

fn run_classes(
    class: &str,
    only: &str,
    threads: usize,
    seconds: u64,
    seed: u64,
    quiet: bool,
) -> Result<bool> {
    let suites = if class == "all" { Suite::ALL.to_vec() } else { vec![class.parse()?] };
    let mut good = true;
    for suite in suites {
        let arguments = [
            format!("--class={suite}"),
            format!("--threads={threads}"),
            format!("--seconds={seconds}"),
            format!("--seed={seed}"),
            format!("--only={only}"),
        ];
        let outcome = supervise(&own_exe()?, &arguments, Duration::from_secs(120 + seconds * 3))?;
        let (board, cases) = (outcome.board.get(), suite.cases(only));
        if !quiet {
            println!("{HEAD}");
            rows(board, &cases).iter().for_each(|row| println!("{row}"));
        }
        let totals = Totals::of(board, cases.len());
        println!("{}", summary(&format!("class {suite}, {threads} threads"), cases.len(), &totals));
        let [pages, physical] = [0, 1].map(|i: usize| board.punned[i].load(Relaxed));
        if pages != 0 {
            println!("class {suite}: {pages} punned pages on {physical} physical pages");
        }
        if !outcome.is_clean() {
            let case = cases.get(board.current.load(Relaxed) as usize);
            let name = case.map(ToString::to_string).unwrap_or_default();
            println!("class {suite}: {outcome}; busy with {name}");
        }
        good &= outcome.is_clean() && totals.idle == 0;
    }
    Ok(good)
}

fn run_control(name: &str, threads: usize, seconds: u64, mended: bool) -> Result<bool> {
    let control = Control::named(name)?;
    let mut arguments =
        vec![format!("--control={name}"), format!("--threads={threads}"), format!("--seconds={seconds}")];
    arguments.extend(mended.then(|| "--mended".to_owned()));
    let outcome = supervise(&own_exe()?, &arguments, Duration::from_secs(30 + seconds * 3))?;
    if let (End::Failed(_), false) = (outcome.end, outcome.caught()) {
        return Err(Error::Unfinished(name.to_owned()));
    }
    println!("{}", summary(control.name, 1, &Totals::of(outcome.board.get(), 1)));
    let verdict = match (outcome.caught(), mended) {
        (true, false) => "caught",
        (false, false) => "survived",
        (true, true) => "mended, but something was found",
        (false, true) => "mended, nothing found",
    };
    println!("{name}: {verdict}: {outcome}");
    Ok(outcome.caught() != mended)
}

fn list() -> Result<bool> {
    for suite in Suite::ALL {
        for case in suite.cases("") {
            println!("{case}");
        }
    }
    println!("{} cases of first touch", Suite::First.cases("").len());
    for control in CONTROLS {
        println!("control {:<12} {}", control.name, control.about);
    }
    Ok(true)
}

fn work_control(board: i32, name: &str, setting: Setting) -> Result<bool> {
    let shared = SharedBoard::open(board)?;
    Control::named(name)?.work(shared.get(), setting)?;
    Ok(true)
}

fn work_class(
    board: i32,
    class: &str,
    only: &str,
    threads: usize,
    time: Duration,
    seed: u64,
) -> Result<bool> {
    let shared = SharedBoard::open(board)?;
    let suite: Suite = class.parse()?;
    let world = Box::leak(Box::new(suite.world(only)?));
    let options = Options {
        threads,
        time,
        seed,
        protocol: Protocol::OneStore,
        signals: true,
        forks: true,
        mask: false,
        stop_on_wrong: false,
    };
    run(world, shared.get(), options)?;
    Ok(true)
}
