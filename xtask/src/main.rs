//! The project's chores: `cargo xtask --help`.
//!
//! Needs Rust, a C compiler, and root (or sudo) for what looks into other processes. Programs that
//! the tests and demos use are installed from the distribution's packages when they are missing,
//! and only then; each installation is announced.

mod ci;
mod demo;
mod dist;
mod header;
mod packages;
mod programs;
mod sanitize;
mod step;
mod suite;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use step::Project;

/// The project's chores.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Build the command and the runtime for use: dist/suture and dist/libsuture.so
    Build,
    /// Write manual pages and shell completions, from the command line's definition, into dist/share
    Manual,
    /// Compile the sample patches, without any warning, into dist/samples
    Samples,
    /// Patch a running service under load and take it back, checking every step
    Demo {
        /// What to patch
        #[arg(value_enum, default_value_t = demo::Target::Service)]
        target: demo::Target,
    },
    /// Build, then run the tests of all packages, or of those given
    Test {
        /// Packages, all default members when none is given
        packages: Vec<String>,
    },
    /// Write include/suture.h from the descriptor
    Header {
        /// Write nothing, fail when the committed file differs
        #[arg(long)]
        check: bool,
    },
    /// Measure; arguments go to the benchmark program: --json, --only NAME, --quick
    #[command(disable_help_flag = true)]
    Bench {
        /// Arguments of the benchmark program
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Play the conformance rows: all, or those of scenario files. See tests/conformance/README.md
    #[command(disable_help_flag = true)]
    Conformance {
        /// Arguments of the runner: [FILE…] [--row ID] [--mode MODE] [--jobs N] [--json]
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Store into code that threads are running, for long; arguments go to the stress program
    #[command(disable_help_flag = true)]
    Stress {
        /// Arguments of the stress program
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Patch the distribution's servers under load, for long; arguments go to the campaign: --rounds N,
    /// --server NAME, --json
    #[command(disable_help_flag = true)]
    Servers {
        /// Arguments of the campaign
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Count the functions of running programs that can be patched without a trap or a stop; arguments: --json
    #[command(disable_help_flag = true)]
    Census {
        /// Arguments of the census
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Run random functions against their relocated copies, in child processes
    Fuzz {
        /// How long
        #[arg(long, value_name = "S", default_value_t = 1200)]
        seconds: u64,
    },
    /// Run the tests again and again for a while
    Soak {
        /// How long
        #[arg(long, value_name = "S", default_value_t = 600)]
        seconds: u64,
        /// Let tests that find faults by repetition repeat more often: each round takes about an hour
        #[arg(long)]
        long: bool,
        /// Packages, suture-tests when none is given
        packages: Vec<String>,
    },
    /// Explore the interleavings of the table of shadow variables with loom (minutes)
    Models,
    /// Test the table of shadow variables under miri and the sanitizers, with a nightly toolchain (minutes)
    Sanitize {
        /// Which, all when none is given
        #[arg(value_enum)]
        tools: Vec<sanitize::Tool>,
    },
    /// Everything the continuous integration checks
    Ci,
}

fn main() -> ExitCode {
    match run(Cli::parse().verb) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(verb: Verb) -> Result<()> {
    let project = Project::find()?;
    match verb {
        Verb::Build => dist::build(&project),
        Verb::Manual => dist::manual(&project),
        Verb::Samples => dist::samples(&project),
        Verb::Demo { target } => demo::run(&project, target),
        Verb::Test { packages } => suite::run(&project, &packages),
        Verb::Header { check } => header::run(&project, check),
        Verb::Bench { args } => programs::bench(&project, &args),
        Verb::Conformance { args } => programs::conformance(&project, &args),
        Verb::Stress { args } => programs::stress(&project, &args),
        Verb::Fuzz { seconds } => programs::fuzz(&project, seconds),
        Verb::Servers { args } => programs::servers(&project, &args),
        Verb::Census { args } => programs::census(&project, &args),
        Verb::Soak { seconds, long, packages } => suite::soak(&project, seconds, long, &packages),
        Verb::Models => suite::models(&project),
        Verb::Sanitize { tools } => sanitize::run_all(&project, &tools),
        Verb::Ci => ci::run(&project),
    }
}
