//! Shadow variables: data that patches keep beside objects they cannot change.
//!
//! The protocol is [`suture_table`]; here are its memory ([`blocks`], [`map`]), what the end of a
//! state needs ([`sweep`], [`job`]) and the functions patches call ([`api`]).
//!
//! Runs on any thread of the program, in handlers, in forked children; never uses the arena, which is the
//! worker's.

pub mod api;
pub mod blocks;
pub mod job;
pub mod map;
pub mod sweep;

pub use map::MAP;

#[cfg(test)]
mod marks_tests;
#[cfg(test)]
mod tests;
