//! The one contract of Suture.
//!
//! Three parties compile against this crate: the `suture` command (outside), `libsuture.so` (inside
//! the target) and the patch object (its descriptor, through `include/suture.h` for C). It has no
//! dependencies, allocates nothing and knows no system call.
//!
//! | module | what it fixes | who writes | who reads |
//! |---|---|---|---|
//! | [`author`] | how a Rust patch writes its descriptor | patch author | compiler |
//! | [`descriptor`] | the exported `suture_patch` of a patch object | patch author | command |
//! | [`batch`] | one all-or-nothing change, already planned | command | worker |
//! | [`channel`] | the shared page requests and replies travel in | both | both |
//! | [`block`] | the status block and its rows | runtime | command |
//! | [`errno`] | names of errnos | nobody | both |
//! | [`event`] | the event ring | runtime | command |
//! | [`dispatch`] | what the code at a redirected entry reads while threads move one by one | runtime | dispatchers |
//! | [`host`] | the thread of the program that runs callbacks, and its work | worker, host, command | all three |
//! | [`late`] | objects that come and go after the patch | command, loading threads | loading threads, command |
//! | [`shadow`] | shadow variables in the target's memory | runtime | command |
//! | [`attributes`] | functions by which patches read attributes | runtime | patches |
//! | [`stacks`] | stacks of coroutines, as the program registers them | program | command |
//! | [`doorbell`] | the register frame a borrowed thread returns through | command | runtime's entry |
//!
//! # Versions
//!
//! [`ABI_VERSION`] covers what passes between command and runtime. It changes whenever a layout below changes
//! or a field gets another meaning; adding a new operation or event word at the end does not change it. The
//! two refuse each other when it differs. The descriptor has a version of its own, [`DESCRIPTOR_VERSION`], so
//! that patches outlive changes between those two; a patch object states the one it was compiled with.
#![no_std]
#![deny(unsafe_code)]

pub mod attributes;
pub mod author;
pub mod batch;
pub mod block;
pub mod channel;
pub mod descriptor;
pub mod dispatch;
pub mod doorbell;
pub mod errno;
pub mod event;
pub mod host;
pub mod late;
pub mod shadow;
pub mod stacks;

/// Version of every layout in this crate but the descriptor's. See the crate documentation for when it moves.
pub const ABI_VERSION: u32 = 8;

/// Version of [`descriptor`]: `SUTURE_ABI` of the C header.
pub const DESCRIPTOR_VERSION: u32 = 3;

/// Name of the data symbol a patch object exports: its [`descriptor::Patch`].
pub const PATCH_SYMBOL: &str = "suture_patch";

/// Name of the one data symbol `libsuture.so` exports for the command: its [`block::RuntimeBlock`].
pub const BLOCK_SYMBOL: &str = "suture_runtime";

/// Whether the runtime exports a function of that name for patches.
#[must_use]
pub fn is_for_patches(name: &str) -> bool {
    shadow::FUNCTIONS.contains(&name) || attributes::FUNCTIONS.contains(&name)
}

/// File name and SONAME of the runtime.
pub const RUNTIME_SONAME: &str = "libsuture.so";
