//! The rows, by what is measured.

pub mod apply;
pub mod calls;
pub mod enter;
pub mod fork;
pub mod install;
pub mod preload;
pub mod shadow;
pub mod tails;

use crate::error::Error;
use crate::lab::Lab;
use crate::row::Row;

/// Rows that are measured together.
#[derive(Clone, Copy, Debug)]
pub struct Group {
    /// What the names of its rows start with.
    pub name: &'static str,
    /// Measures them. Rows are added as they are done, so that an error loses only those after it.
    pub measure: fn(&Lab, &mut Vec<Row>) -> Result<(), Error>,
}

/// All groups, in the order they are measured and shown.
pub const GROUPS: [Group; 12] = [
    Group { name: "startup", measure: preload::startup },
    Group { name: "memory", measure: preload::memory },
    Group { name: "malloc", measure: preload::malloc },
    Group { name: "fputc", measure: preload::fputc },
    Group { name: "call", measure: calls::calls },
    Group { name: "fork", measure: fork::fork },
    Group { name: "install", measure: install::install },
    Group { name: "enter", measure: enter::enter },
    Group { name: "apply", measure: apply::apply },
    Group { name: "many", measure: apply::many },
    Group { name: "shadow", measure: shadow::shadow },
    Group { name: "tail", measure: tails::tails },
];
