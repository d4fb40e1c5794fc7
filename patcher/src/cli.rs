//! The command line. Doc comments here are the help texts.
#![allow(missing_docs, reason = "flattened groups have no text of their own")]

use crate::context::Wait;
use crate::target::select::Selection;
use clap::builder::NonEmptyStringValueParser;
use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;
use std::time::Duration;

/// Live-patches running processes: replaces functions without restart and without stopping them.
#[derive(Debug, Parser)]
#[command(name = "suture", version, about, after_help = EXIT_CODES, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Libraries that are not loaded yet.
#[derive(Clone, Debug, Default, Args)]
pub struct ObjectFiles {
    /// The file of a library that the patch names and that is not loaded yet. It is patched when it is loaded.
    /// Without this the file is looked for as the process's own loader would; may be given several times
    #[arg(long = "object-file", value_name = "FILE")]
    pub files: Vec<PathBuf>,
}

/// What the exit status means, as every help text and manual page says it.
pub const EXIT_CODES: &str = "\
Exit status:
  0  done (processes that do not concern the patch are skipped with --name and --all)
  1  refused or failed; the process is unchanged
  2  wrong command line
  3  started, but not finished within --timeout (or with --no-wait); says which threads hold it up
  4  several processes, and some of them failed";

/// Sub-commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Enable a patch in running processes
    Apply {
        /// The patch: a shared object that exports suture_patch
        patch: PathBuf,
        #[command(flatten)]
        targets: Targets,
        #[command(flatten)]
        files: ObjectFiles,
        #[command(flatten)]
        engine: ApplyEngine,
        #[command(flatten)]
        wait: Waiting,
        #[command(flatten)]
        output: Output,
    },
    /// Disable a patch: the old functions are called again. A patch that is still being enabled is reversed
    Disable {
        /// Name of the patch, or its file
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        patch: String,
        #[command(flatten)]
        targets: Targets,
        #[command(flatten)]
        wait: Waiting,
        #[command(flatten)]
        output: Output,
    },
    /// Turn the transition of a patch round: threads that have moved go back
    Reverse {
        /// Name of the patch, or its file
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        patch: String,
        #[command(flatten)]
        targets: Targets,
        #[command(flatten)]
        wait: Waiting,
        #[command(flatten)]
        output: Output,
    },
    /// Help the transition of a patch to its end, whichever way it is going
    Wait {
        /// Name of the patch, or its file
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        patch: String,
        #[command(flatten)]
        targets: Targets,
        #[command(flatten)]
        wait: Waiting,
        #[command(flatten)]
        output: Output,
    },
    /// Finish the transition of a patch without looking at the threads that hold it up. They may mix old
    /// and new code; memory of what leaves is kept for ever
    Force {
        /// Name of the patch, or its file
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        patch: String,
        #[command(flatten)]
        targets: Targets,
        #[command(flatten)]
        wait: Waiting,
        #[command(flatten)]
        output: Output,
    },
    /// Show what is patched, and check that it still is
    Status {
        #[command(flatten)]
        targets: OptionalTargets,
        /// Also show the patch state of every thread
        #[arg(long)]
        threads: bool,
        #[command(flatten)]
        output: Output,
    },
    /// Dry run: whether processes can be patched, or a patch could be enabled there, or what could be
    /// patched in a file
    ///
    /// Nothing is changed. One thread of a process that has system call filters is stopped for a moment to
    /// read them.
    Check {
        /// The patch; without one, whether and how the processes can be entered at all
        patch: Option<PathBuf>,
        #[command(flatten)]
        targets: CheckTargets,
        /// Count which functions of these files can be redirected, by class and by reason; with one
        /// --pid, as they are loaded there
        #[arg(long, value_name = "FILE", num_args = 1.., conflicts_with_all = ["name", "all", "patch"])]
        object: Vec<PathBuf>,
        #[command(flatten)]
        files: ObjectFiles,
        #[command(flatten)]
        engine: Engine,
        #[command(flatten)]
        output: Output,
    },
    /// Put the runtime into running processes, without a patch
    ///
    /// Enabling a patch does it by itself where it has to be done.
    Inject {
        #[command(flatten)]
        targets: NamedTargets,
        #[command(flatten)]
        output: Output,
    },
    /// Describe a patch file
    Info {
        /// The patch
        patch: PathBuf,
        #[command(flatten)]
        output: Output,
    },
    /// Read an attribute of a process or of a patch in it, or list them: PATCH/enabled, PATCH/transition,
    /// PATCH/OBJECT/patched and so on
    Get {
        /// Path of the attribute; a directory, or nothing, to list what is there
        #[arg(default_value = "")]
        path: String,
        #[command(flatten)]
        targets: Targets,
        #[command(flatten)]
        output: Output,
    },
    /// Write an attribute: PATCH/enabled, PATCH/force, hooking, tick_ms. Does not wait for threads that
    /// cannot be moved at once
    Set {
        /// Path of the attribute
        path: String,
        /// Its new value
        value: String,
        #[command(flatten)]
        targets: Targets,
        #[command(flatten)]
        output: Output,
    },
    /// Show the event log of a process
    Log {
        /// Process id
        #[arg(long, value_name = "N", value_parser = pid, allow_negative_numbers = true)]
        pid: i32,
        /// Keep waiting for further events
        #[arg(long)]
        follow: bool,
        #[command(flatten)]
        output: Output,
    },
    /// List the shadow variables of a process: data that patches keep beside its objects
    Shadow {
        /// Process id
        #[arg(long, value_name = "N", value_parser = pid, allow_negative_numbers = true)]
        pid: i32,
        /// Only those of this id (decimal, or hexadecimal with 0x)
        #[arg(long, value_name = "ID", value_parser = id)]
        id: Option<u64>,
        #[command(flatten)]
        output: Output,
    },
}

/// An id of shadow variables.
fn id(text: &str) -> Result<u64, String> {
    let parsed = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    parsed.map_err(|_| "an id is a number of at most 64 bits, like 4660 or 0x1234".to_owned())
}

/// The processes a command works on; one kind must be given.
#[derive(Args, Debug)]
#[group(required = true, multiple = false)]
pub struct Targets {
    /// These processes
    #[arg(long, value_name = "N", num_args = 1.., value_parser = pid, allow_negative_numbers = true)]
    pid: Vec<i32>,
    /// Every process of that name
    #[arg(long, value_name = "COMM", value_parser = NonEmptyStringValueParser::new())]
    name: Option<String>,
    /// Every process with the runtime in it
    #[arg(long)]
    all: bool,
}

/// As [`Targets`], all processes when none is given.
#[derive(Args, Debug)]
#[group(multiple = false)]
pub struct OptionalTargets {
    /// These processes
    #[arg(long, value_name = "N", num_args = 1.., value_parser = pid, allow_negative_numbers = true)]
    pid: Vec<i32>,
    /// Every process of that name
    #[arg(long, value_name = "COMM", value_parser = NonEmptyStringValueParser::new())]
    name: Option<String>,
    /// Every process with the runtime in it
    #[arg(long)]
    all: bool,
}

/// As [`OptionalTargets`], where `--all` means more.
#[derive(Args, Debug)]
#[group(multiple = false)]
pub struct CheckTargets {
    /// These processes
    #[arg(long, value_name = "N", num_args = 1.., value_parser = pid, allow_negative_numbers = true)]
    pid: Vec<i32>,
    /// Every process of that name
    #[arg(long, value_name = "COMM", value_parser = NonEmptyStringValueParser::new())]
    name: Option<String>,
    /// Every process of the machine, as a table (status 0 whatever is found); with a patch, every process
    /// with the runtime in it
    #[arg(long)]
    all: bool,
}

/// Processes that are named.
#[derive(Args, Debug)]
#[group(required = true, multiple = false)]
pub struct NamedTargets {
    /// These processes
    #[arg(long, value_name = "N", num_args = 1.., value_parser = pid, allow_negative_numbers = true)]
    pid: Vec<i32>,
    /// Every process of that name
    #[arg(long, value_name = "COMM", value_parser = NonEmptyStringValueParser::new())]
    name: Option<String>,
}

/// How functions may be redirected.
#[derive(Args, Debug)]
pub struct Engine {
    /// Redirect classes that may be used, in any order
    #[arg(long, value_name = "LETTERS", default_value = "PSAJW", value_parser = classes)]
    pub classes: String,
}

/// How functions are redirected when a patch is enabled.
#[derive(Args, Debug)]
pub struct ApplyEngine {
    #[command(flatten)]
    pub engine: Engine,
    /// Keep every entry on its stub: do not let it jump straight to the new function when the transition is over
    #[arg(long)]
    pub no_direct: bool,
}

/// How long to wait until every thread has moved.
#[derive(Args, Clone, Copy, Debug)]
pub struct Waiting {
    /// Seconds until every thread must have moved, 0 = wait for ever
    #[arg(long, value_name = "S", default_value = "60", value_parser = seconds, allow_negative_numbers = true)]
    timeout: Duration,
    /// What to do when the time is over: leave the transition going on, or reverse it
    #[arg(long, value_name = "WHAT", value_enum, default_value_t = OnTimeout::Leave)]
    on_timeout: OnTimeout,
    /// Do not wait: the transition goes on by itself
    #[arg(long, conflicts_with_all = ["timeout", "on_timeout"])]
    no_wait: bool,
}

fn pid(text: &str) -> Result<i32, String> {
    let number = text.parse().ok().filter(|pid| *pid > 0);
    number.ok_or_else(|| "a process id is a whole number from 1 up".to_owned())
}

fn seconds(text: &str) -> Result<Duration, String> {
    let wanted = || "give a number of seconds, like 30 or 0.5, or 0 to wait for ever".to_owned();
    let seconds: f64 = text.parse().map_err(|_| wanted())?;
    Duration::try_from_secs_f64(seconds).map_err(|_| wanted())
}

/// See [`Waiting`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum OnTimeout {
    Leave,
    Reverse,
}

impl Waiting {
    /// What was asked for.
    #[must_use]
    pub fn wait(self) -> Wait {
        Wait {
            timeout: (!self.timeout.is_zero()).then_some(self.timeout),
            reverse: self.on_timeout == OnTimeout::Reverse,
            no_wait: self.no_wait,
            for_threads: true,
        }
    }
}

/// How results are shown.
#[derive(Args, Clone, Copy, Debug)]
pub struct Output {
    /// Print one JSON document (schema 1)
    #[arg(long)]
    pub json: bool,
}

fn classes(text: &str) -> Result<String, String> {
    let upper = text.to_ascii_uppercase();
    if !upper.is_empty() && upper.chars().all(|c| "PSAJW".contains(c)) {
        Ok(upper)
    } else {
        Err("give some of the letters P, S, A, J, W".into())
    }
}

fn selection(pid: &[i32], name: Option<&String>, all: bool) -> Option<Selection> {
    match (pid, name, all) {
        ([], None, false) => None,
        ([], None, true) => Some(Selection::All),
        ([], Some(name), _) => Some(Selection::Name(name.clone())),
        (pids, ..) => Some(Selection::Pids(pids.to_vec())),
    }
}

impl Targets {
    /// What was selected.
    #[must_use]
    pub fn selection(&self) -> Selection {
        selection(&self.pid, self.name.as_ref(), self.all).unwrap_or(Selection::All)
    }
}

impl OptionalTargets {
    /// What was selected, if anything.
    #[must_use]
    pub fn selection(&self) -> Option<Selection> {
        selection(&self.pid, self.name.as_ref(), self.all)
    }
}

impl CheckTargets {
    /// What was selected, if anything.
    #[must_use]
    pub fn selection(&self) -> Option<Selection> {
        selection(&self.pid, self.name.as_ref(), self.all)
    }
}

impl NamedTargets {
    /// What was selected.
    #[must_use]
    pub fn selection(&self) -> Selection {
        selection(&self.pid, self.name.as_ref(), false).unwrap_or(Selection::Pids(Vec::new()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn exactly_one_kind_of_target_is_asked_for() {
        let parse = |args: &[&str]| Cli::try_parse_from([&["suture"], args].concat());
        assert!(parse(&["apply", "x.so"]).is_err());
        assert!(parse(&["apply", "x.so", "--pid", "1", "--all"]).is_err());
        assert!(parse(&["apply", "x.so", "--pid", "0"]).is_err());
        assert!(parse(&["apply", "x.so", "--pid", "1", "--classes", "Q"]).is_err());
        let Command::Apply { targets, .. } = parse(&["apply", "x.so", "--pid", "7", "8"]).unwrap().command
        else {
            panic!("not apply");
        };
        assert_eq!(targets.selection(), Selection::Pids(vec![7, 8]));
    }
}
