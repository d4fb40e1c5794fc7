//! The notation of scenario files.

mod events;
mod parse;
mod patch;
mod step;

pub use events::Expected;
pub use parse::{Row, read, rows};
pub use patch::{Broken, Code, Fails, Function, Kind, Patch, State};
pub use step::{Action, Query, Step, Verb, Want};

/// A mistake in a scenario file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{file}:{line}: {what}")]
pub struct Mistake {
    /// Name of the file.
    pub file: String,
    /// Line, from 1.
    pub line: usize,
    /// What is wrong.
    pub what: String,
}

/// The scenario files of the project, in the order of their names.
///
/// # Errors
/// When the folder cannot be read.
pub fn all() -> std::io::Result<Vec<std::path::PathBuf>> {
    let folder = suture_tests::dist::root().join("tests/conformance");
    let entries = std::fs::read_dir(folder)?.collect::<Result<Vec<_>, _>>()?;
    let is_scenario = |path: &std::path::PathBuf| path.extension().is_some_and(|e| e == "scn");
    let mut files: Vec<_> = entries.into_iter().map(|e| e.path()).filter(is_scenario).collect();
    files.sort();
    Ok(files)
}
