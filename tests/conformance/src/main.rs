//! Runs conformance rows: `suture-conformance [FILE…] [--row ID] [--mode MODE] [--json]`.

use anyhow::{Result, bail};
use clap::{Parser, ValueEnum};
use std::path::PathBuf;
use std::process::ExitCode;
use suture_conformance::report::{self, Mode, Outcome};
use suture_conformance::run::Runner;
use suture_conformance::scn::{self, Row};

/// Runs rows of scenario files in both modes. Fails when a row fails.
#[derive(Debug, Parser)]
#[command(bin_name = "cargo xtask conformance", max_term_width = 100)]
struct Cli {
    /// Scenario files; all of tests/conformance when none is given
    files: Vec<PathBuf>,
    /// Print one JSON document (schema 1)
    #[arg(long)]
    json: bool,
    /// Only rows whose id begins with this
    #[arg(long, value_name = "ID")]
    row: Vec<String>,
    /// Only this mode
    #[arg(long, value_enum)]
    mode: Option<Only>,
    /// Rows played at a time
    #[arg(long, value_name = "N", default_value_t = 3)]
    jobs: usize,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Only {
    Preloaded,
    Injected,
}

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(false) => ExitCode::SUCCESS,
        Ok(true) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(cli: &Cli) -> Result<bool> {
    let files = if cli.files.is_empty() { scn::all()? } else { cli.files.clone() };
    let rows = chosen(&files, &cli.row)?;
    let modes = match cli.mode {
        None => vec![Mode::Preloaded, Mode::Injected],
        Some(Only::Preloaded) => vec![Mode::Preloaded],
        Some(Only::Injected) => vec![Mode::Injected],
    };
    // A harness that gives up is a row's failure, which is told with the row.
    std::panic::set_hook(Box::new(|_| {}));
    let tell = |outcome: &Outcome| {
        if !cli.json {
            print!("{}", report::line(outcome));
        }
    };
    let outcomes = Runner::new().run(&rows, &modes, cli.jobs, tell);
    if cli.json {
        println!("{:#}", report::document(&outcomes));
    } else {
        print!("{}", report::summary(&outcomes));
    }
    Ok(report::failed(&outcomes))
}

fn chosen(files: &[PathBuf], only: &[String]) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for file in files {
        rows.extend(scn::read(file)?);
    }
    let wanted = |id: &str| only.is_empty() || only.iter().any(|o| id.starts_with(o.as_str()));
    rows.retain(|row| wanted(&row.id));
    if rows.is_empty() {
        bail!("there is no row whose id begins with {}", only.join(" or "));
    }
    Ok(rows)
}
