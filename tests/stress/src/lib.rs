//! Write stress: shows that the arming stores of a redirect site are safe while other threads
//! execute the bytes, and that the same harness catches every rule that is broken on purpose.
//!
//! Victims are functions made for the harness, one for each shape of entry, class of store and
//! alignment. Threads call them with known values in every register, from signal handlers and in
//! forked children too, while one thread arms and disarms the site and flips its slot. Each call
//! must give exactly the old or the new result and keep its registers.
//!
//! The victims run in a child process, so that a crash is a finding with a name and a place.

pub mod board;
pub mod call;
pub mod control;
pub mod engine;
pub mod error;
pub mod library;
pub mod memory;
pub mod op;
pub mod planned;
pub mod report;
pub mod shape;
pub mod signals;
pub mod site;
pub mod store;
pub mod straight;
pub mod suite;
pub mod supervise;
pub mod victim;
pub mod world;
