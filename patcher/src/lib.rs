//! The `suture` command, as a library for its binary and its tests.
//!
//! Data flows one way: the descriptor of a patch file → link (`suture_link`) and redirect plan
//! (`suture_redirect`) → one batch ([`batch`]) → shipped over a [`session`] and committed
//! ([`apply`]) → described again by [`status`]. Everything that can fail on bad data happens before
//! the first byte of the target is written.
#![deny(unsafe_code)]

pub mod access;
pub mod apply;
pub mod batch;
pub mod channel;
pub mod cli;
pub mod commit;
pub mod context;
pub mod control;
pub mod debug_files;
pub mod description;
pub mod direct;
pub mod disable;
pub mod doorbell;
pub mod drain;
pub mod error;
pub mod folded;
pub mod hooks;
pub mod host;
pub mod inject;
pub mod late;
pub mod log;
pub mod names;
pub mod operation;
pub mod patch;
pub mod plan;
pub mod replace;
pub mod report;
pub mod run;
pub mod seccomp;
pub mod session;
pub mod shadow;
pub mod states;
pub mod status;
pub mod stores;
pub mod sys;
pub mod target;
pub mod threads;
pub mod transition;
pub mod view;
