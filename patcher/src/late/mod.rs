//! Objects that come after the patch, seen from the command: their files, their recipes.

pub mod blob;
mod far;
pub mod find;
mod loaded;
mod plan;
pub mod status;

pub use loaded::Loaded;
pub use plan::{LatePlan, Subject, concerned, find_objects, plan};
