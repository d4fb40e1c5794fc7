//! `suture-bench`: what Suture costs, beside what it is compared with.
//!
//! Every figure comes from real processes, the real command and the real runtime. Each row has a
//! baseline that was measured in the same run, in turn with it. `cargo xtask bench` builds what is
//! measured and runs this.

mod clock;
mod error;
mod groups;
mod interrupts;
mod lab;
mod maps;
mod processor;
mod row;
mod spinner;
mod stats;
mod suture;
mod target;
mod world;

use clap::Parser;
use std::process::ExitCode;

/// Measures what Suture costs.
#[derive(Debug, Parser)]
#[command(name = "suture-bench", max_term_width = 100)]
struct Options {
    /// Print one JSON document (schema 1) instead of a table
    #[arg(long)]
    json: bool,
    /// Only rows whose name starts like this
    #[arg(long, value_name = "NAME", default_value = "")]
    only: String,
    /// A fifth of the rounds: for a first look and to see that the benches work
    #[arg(long)]
    quick: bool,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let lab = match lab::Lab::new(options.quick, &options.only) {
        Ok(lab) => lab,
        Err(error) => {
            eprintln!("suture-bench: {error}");
            return ExitCode::FAILURE;
        }
    };
    warn_if_busy();
    let (mut rows, mut failed) = (Vec::new(), false);
    for group in groups::GROUPS.iter().filter(|g| lab.wants(g.name)) {
        eprintln!("measuring {}", group.name);
        if let Err(error) = (group.measure)(&lab, &mut rows) {
            eprintln!("suture-bench: {}: {error}", group.name);
            failed = true;
        }
    }
    rows.retain(|r| r.name.starts_with(&options.only));
    if options.json {
        println!("{}", row::json(&rows));
    } else {
        print!("{}", row::table(&rows));
    }
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// The figures about gaps and wall times hold on an idle machine only, so a busy one is named.
fn warn_if_busy() {
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load: f64 = load.split(' ').next().and_then(|l| l.parse().ok()).unwrap_or_default();
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    if load > 0.5 * processors as f64 {
        eprintln!("the machine is busy (load {load} on {processors} processors): apply, many and install");
        eprintln!("show that; compare them with their baselines only, or run again when it is idle");
    }
}
