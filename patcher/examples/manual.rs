//! Writes the manual pages and shell completions of `suture` into a directory, laid out like `/usr/share`.
//!
//! `cargo xtask manual` runs it. Everything in them comes from the command line's definition, so they cannot
//! say anything else than `--help`.

use clap::CommandFactory;
use clap_complete::{Shell, generate};
use std::path::{Path, PathBuf};
use std::{env, fs, io};
use suture_patcher::cli::{Cli, EXIT_CODES};

/// Where each shell looks for what belongs to a command.
const COMPLETIONS: [(Shell, &str); 3] = [
    (Shell::Bash, "bash-completion/completions/suture"),
    (Shell::Zsh, "zsh/site-functions/_suture"),
    (Shell::Fish, "fish/vendor_completions.d/suture.fish"),
];

#[allow(dead_code, reason = "the test has this file as a module")]
fn main() -> io::Result<()> {
    let folder = env::args_os().nth(1).map(PathBuf::from);
    write(&folder.ok_or_else(|| io::Error::other("usage: manual DIRECTORY"))?)
}

/// Writes a page for the command and one for each of its verbs, and the completions.
///
/// # Errors
/// When a file cannot be written.
pub fn write(folder: &Path) -> io::Result<()> {
    let pages = folder.join("man/man1");
    fs::create_dir_all(&pages)?;
    let command = Cli::command().disable_help_subcommand(true).propagate_version(true);
    clap_mangen::generate_to(command.mut_subcommands(|verb| verb.after_help(EXIT_CODES)), pages)?;
    for (shell, name) in COMPLETIONS {
        let mut script = Vec::new();
        generate(shell, &mut Cli::command(), "suture", &mut script);
        let path = folder.join(name);
        path.parent().map_or(Ok(()), fs::create_dir_all)?;
        fs::write(path, script)?;
    }
    Ok(())
}
