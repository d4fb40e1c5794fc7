//! `suture`: see `suture --help`.
#![deny(unsafe_code)]

mod commands;

use clap::Parser;
use std::process::ExitCode;
use suture_patcher::cli::Cli;
use suture_patcher::error::EXIT_USAGE;

fn main() -> ExitCode {
    suture_patcher::sys::heap::grow_in_steps();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // --help and --version are no errors.
            let code = if error.use_stderr() { EXIT_USAGE } else { 0 };
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    suture_patcher::sys::urgent::keep_child_notices();
    ExitCode::from(commands::run(cli))
}
