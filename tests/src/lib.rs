//! What the integration tests share: the built product, small C targets and patches compiled on the
//! spot, processes that are asked questions with deadlines, and pictures of a process to compare.
//!
//! | module | what it is for |
//! |---|---|
//! | [`dist`] | the command and the runtime under test |
//! | [`lab`] | a directory per test; compiles targets and patches |
//! | [`target`] | a running target that answers lines |
//! | [`command`] | one run of `suture`, judged |
//! | [`killer`] | ends a run of `suture` at a chosen moment |
//! | [`report`] | reading its JSON documents |
//! | [`snapshot`] | what must not change in a process |
//! | [`code`] | live code bytes against the files |
//! | [`block`] | the runtime's block and records, read and written |
//! | [`plugins`] | a target that loads and unloads a library |
//! | [`callbacks`] | patches whose callbacks leave notes, and the log they lead to |
//! | [`stall`] | a target whose threads take orders, wherever they stand |
//! | [`stepper`] | a thread that goes one instruction at a time |
//! | [`random`] | numbers in no order |
//! | [`server`] | distribution servers: redis, nginx and memcached |
//! | [`campaign`] | all distribution servers, unprepared, again and again under load |
//! | [`sys`] | the few system calls that std does not have |
//!
//! Nothing here sleeps for a fixed time: tests wait for a line, for the end of a process, or poll a
//! condition with a deadline ([`poll`]).
//!
//! The tests need root and these Debian packages: binutils, gcc, g++, gdb, memcached, musl-tools, nginx-light,
//! python3, redis-server, redis-tools, strace, util-linux, xz-utils. A missing one fails the test that needs it.
#![deny(unsafe_code)]

pub mod block;
pub mod callbacks;
pub mod campaign;
pub mod code;
pub mod command;
pub mod dist;
pub mod killer;
pub mod lab;
pub mod plugins;
pub mod poll;
pub mod random;
pub mod report;
pub mod server;
pub mod snapshot;
pub mod stall;
pub mod stepper;
pub mod sys;
pub mod target;

pub use command::{Outcome, suture};
pub use lab::Lab;
pub use snapshot::Snapshot;
pub use target::Target;

/// How often a test repeats what finds its faults by repetition: `long` times with `SUTURE_LONG=1`.
#[must_use]
pub fn repeat(short: usize, long: usize) -> usize {
    if std::env::var_os("SUTURE_LONG").is_some_and(|v| v == "1") { long } else { short }
}

/// Fails with what to install unless a program is there.
///
/// # Panics
/// When it is not.
pub fn need(program: &str, package: &str) {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .any(|dir| dir.join(program).is_file());
    assert!(found, "{program} is missing: apt-get install {package} (`cargo xtask test` does it)");
}

/// Fails unless the test runs as root.
///
/// # Panics
/// When it does not.
pub fn need_root() {
    assert_eq!(sys::effective_user(), 0, "the integration tests must run as root: sudo cargo xtask test");
}
