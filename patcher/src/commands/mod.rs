//! From a parsed command line to an exit status.

mod access;
mod apply;
mod check;
mod disable;
mod info;
mod inject;
mod log;
mod show;
mod status;

use suture_patcher::cli::{Cli, Command};

/// Runs the command and gives its exit status.
pub fn run(cli: Cli) -> u8 {
    match cli.command {
        Command::Apply { patch, targets, engine, output } => {
            apply::run(&patch, &targets.selection(), &engine, output)
        }
        Command::Disable { patch, targets, output } => disable::run(&patch, &targets.selection(), output),
        Command::Status { targets, output } => status::run(targets.selection(), output),
        Command::Check { patch, targets, object, engine, output } => {
            check::run(patch.as_deref(), targets.selection(), &object, &engine, output)
        }
        Command::Inject { targets, output } => inject::run(&targets.selection(), output),
        Command::Info { patch, output } => info::run(&patch, output),
        Command::Log { pid, follow, output } => log::run(pid, follow, output),
    }
}
