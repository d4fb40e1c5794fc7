//! Shadow variables.
#![allow(missing_docs)]
pub mod atomic;
pub mod bucket;
pub mod hash;
pub mod insert;
pub mod levels;
pub mod memory;
pub mod remove;
pub mod word;

#[cfg(all(test, loom))]
mod loom_tests;
#[cfg(test)]
mod model;
#[cfg(all(test, not(loom)))]
mod tests;
