//! From a parsed command line to an exit status.

mod access;
mod apply;
mod check;
mod control;
mod disable;
mod info;
mod inject;
mod log;
mod shadow;
mod show;
mod status;

use suture_patcher::cli::{Cli, Command};
use suture_patcher::disable::Action;
use suture_patcher::error::{EXIT_DONE, EXIT_REFUSED};

/// Runs the command and gives its exit status.
pub fn run(cli: Cli) -> u8 {
    let only_looks = matches!(
        cli.command,
        Command::Status { .. }
            | Command::Check { .. }
            | Command::Get { .. }
            | Command::Info { .. }
            | Command::Log { .. }
            | Command::Shadow { .. }
    );
    let status = run_command(cli.command);
    // Of a command that changes something the status says what it did; of others, that they could not tell.
    if status == EXIT_DONE && only_looks && show::is_incomplete() { EXIT_REFUSED } else { status }
}

fn run_command(command: Command) -> u8 {
    match command {
        Command::Apply { patch, targets, files, engine, wait, output } => {
            apply::run(&patch, &targets.selection(), &files, &engine, wait.wait(), output)
        }
        Command::Disable { patch, targets, wait, output } => {
            disable::run(&patch, Action::Disable, &targets.selection(), wait.wait(), output)
        }
        Command::Reverse { patch, targets, wait, output } => {
            disable::run(&patch, Action::Reverse, &targets.selection(), wait.wait(), output)
        }
        Command::Wait { patch, targets, wait, output } => {
            disable::run(&patch, Action::Wait, &targets.selection(), wait.wait(), output)
        }
        Command::Force { patch, targets, wait, output } => {
            disable::run(&patch, Action::Force, &targets.selection(), wait.wait(), output)
        }
        Command::Status { targets, threads, output } => status::run(targets.selection(), threads, output),
        Command::Check { patch, targets, object, files, engine, output } => {
            check::run(patch.as_deref(), targets.selection(), &object, &files, &engine, output)
        }
        Command::Get { path, targets, output } => control::get(&path, &targets.selection(), output),
        Command::Set { path, value, targets, output } => {
            control::set(&path, &value, &targets.selection(), output)
        }
        Command::Inject { targets, output } => inject::run(&targets.selection(), output),
        Command::Info { patch, output } => info::run(&patch, output),
        Command::Log { pid, follow, output } => log::run(pid, follow, output),
        Command::Shadow { pid, id, output } => shadow::run(pid, id, output),
    }
}
