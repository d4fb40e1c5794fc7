//! Where things are, and how other programs are run: announced, checked, never silently.

use std::env;
use std::ffi::OsStr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// The source tree and where its products go.
#[derive(Debug)]
pub struct Project {
    /// Root of the source tree.
    pub root: PathBuf,
    /// Cargo's target directory.
    pub target: PathBuf,
}

impl Project {
    /// The project this program was built from.
    pub fn find() -> Result<Self> {
        let root =
            Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the xtask package has no parent")?;
        let target = match env::var_os("CARGO_TARGET_DIR") {
            Some(dir) => env::current_dir()?.join(dir),
            None => root.join("target"),
        };
        Ok(Self { root: root.to_owned(), target })
    }

    /// Where finished products are: `suture`, `libsuture.so`, `samples/`.
    pub fn dist(&self) -> PathBuf {
        self.target.join("dist")
    }

    /// Cargo, in the root of the source tree.
    pub fn cargo<I: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = I>) -> Command {
        let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command.current_dir(&self.root).args(args).env("SUTURE_DIST", self.dist());
        command
    }

    /// The command under test, with the rights it needs.
    pub fn suture<I: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = I>) -> Command {
        let mut command = privileged(self.dist().join("suture"));
        command.args(args);
        command
    }
}

/// Announces what happens next.
pub fn step(what: impl AsRef<str>) {
    eprintln!("==> {}", what.as_ref());
}

/// Runs a command to its end; its failure is ours.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot run {}", shown(command)))?;
    if !status.success() {
        bail!("{} failed: {status}", shown(command));
    }
    Ok(())
}

/// A program run as root: as it is for root, through sudo otherwise.
pub fn privileged(program: impl AsRef<OsStr>) -> Command {
    if is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("sudo");
    command.arg(program);
    command
}

/// Whether this process is root's.
pub fn is_root() -> bool {
    // SAFETY: geteuid has no arguments and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// Makes the program end with this one, even when this one is killed and cannot clean up.
pub fn leave_nothing_behind(command: &mut Command) -> &mut Command {
    // SAFETY: the closure runs between fork and exec and makes one system call, which is allowed
    // there; it touches no memory of the parent.
    unsafe {
        command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        })
    }
}

/// A command as one would type it.
pub fn shown(command: &Command) -> String {
    let program = Path::new(command.get_program()).file_name().unwrap_or(command.get_program());
    let mut text = program.to_string_lossy().into_owned();
    for arg in command.get_args() {
        text.push(' ');
        text.push_str(&arg.to_string_lossy());
    }
    text
}
