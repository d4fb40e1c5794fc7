//! `cargo xtask servers`: patches the servers of the distribution under load, again and again.

use clap::Parser;
use std::process::ExitCode;
use suture_tests::campaign::servers::{ALL, Spec};
use suture_tests::campaign::{run, table};

/// Puts the runtime into servers under load, patches and unpatches them, and counts what happens.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask servers", max_term_width = 100)]
struct Options {
    /// Rounds per server; each starts the server anew
    #[arg(long, default_value_t = 100)]
    rounds: usize,
    /// Further rounds in which calls that end with EINTR are counted, as many as there are rounds by default
    #[arg(long)]
    counted: Option<usize>,
    /// Only this one, or several
    #[arg(long, value_name = "NAME", value_parser = ALL.map(|s| s.name))]
    server: Vec<String>,
    /// Print one JSON document (schema 1)
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let wanted = |spec: &&Spec| options.server.is_empty() || options.server.iter().any(|n| n == spec.name);
    let mut rows = Vec::new();
    for spec in ALL.iter().filter(wanted) {
        eprintln!("{}: {} rounds", spec.name, options.rounds);
        let tally = run::run(spec, options.rounds, options.counted.unwrap_or(options.rounds));
        if !options.json {
            eprint!("{}", table::table(&[(spec.name, tally.clone())]));
        }
        rows.push((spec.name, tally));
    }
    if options.json {
        let servers: Vec<_> = rows.iter().map(|(name, tally)| run::json(name, tally)).collect();
        println!("{:#}", serde_json::json!({ "schema": 1, "servers": servers }));
    } else {
        print!("{}\n{}", table::table(&rows), table::transitions(&rows));
    }
    let bad: Vec<&str> = rows.iter().filter(|(_, t)| !table::is_good(t)).map(|(name, _)| *name).collect();
    if bad.is_empty() {
        return ExitCode::SUCCESS;
    }
    eprintln!("not as it should be: {}", bad.join(", "));
    ExitCode::FAILURE
}
