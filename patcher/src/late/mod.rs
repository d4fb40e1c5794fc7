//! Objects that come after the patch, seen from the command: their files, their recipes.

pub mod blob;
mod far;
pub mod find;
mod plan;
pub mod status;

pub use plan::{LatePlan, Subject, concerned, plan};
