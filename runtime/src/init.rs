//! What the constructor of the library does.
//!
//! Runs once, on whichever thread loads the library, before the program's own code when preloaded.
//! It keeps no descriptor, starts no thread, touches no memory but the block's page and survives
//! everything the program does to its identity later.
//!
//! # Safety
//!
//! Called from `.init_array` only, before anybody can know the block.
#![allow(unsafe_code)]

use crate::block::{BLOCK, NO_CHANNEL};
use crate::record::DIRECTORY;
use crate::{arch, events, own_memory, shadow, stacks, sys};
use core::ptr::addr_of_mut;
use core::sync::atomic::Ordering;
use suture_abi::ABI_VERSION;
use suture_abi::block::{BLOCK_MAGIC, RuntimeBlock};

/// `CARGO_PKG_VERSION`, NUL padded or cut.
const VERSION: [u8; 16] = {
    let text = env!("CARGO_PKG_VERSION").as_bytes();
    let mut out = [0u8; 16];
    let mut at = 0;
    #[allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)] // evaluated by the compiler
    while at < text.len() && at < out.len() {
        out[at] = text[at];
        at += 1;
    }
    out
};

/// Length of a tick: the kernel's.
const TICK_MS: u32 = 1000;

/// Fills the block and registers the process for membarrier.
///
/// Registering now costs microseconds; with threads it would cost a grace period (7–17 ms).
///
/// # Safety
///
/// Only the constructor may call it, once.
pub unsafe fn init() {
    let errno = sys::thread::register_sync_core().err().map_or(0, |e| e.0);
    let (path_start, path_end) = arch::path();
    own_memory::note_library();
    let block: *mut RuntimeBlock = BLOCK.as_ptr();
    // SAFETY: `block` is the static itself; nobody else touches its plain fields before the magic
    // is there (the caller's promise).
    unsafe {
        addr_of_mut!((*block).abi).write(ABI_VERSION);
        addr_of_mut!((*block).size).write(size_of::<RuntimeBlock>() as u32);
        addr_of_mut!((*block).version).write(VERSION);
        addr_of_mut!((*block).doorbell_entry).write(arch::doorbell_entry());
        addr_of_mut!((*block).host_entry).write(arch::host::entry());
        addr_of_mut!((*block).host_abandon).write(arch::host::abandon());
        addr_of_mut!((*block).membarrier_errno).write(errno);
        addr_of_mut!((*block).events).write(events::RING.as_ptr());
        addr_of_mut!((*block).records).write(DIRECTORY.addr());
        addr_of_mut!((*block).shadow).write(shadow::MAP.heads());
        addr_of_mut!((*block).slow_path).write(arch::slow_path());
        addr_of_mut!((*block).self_look).write(arch::self_look());
        addr_of_mut!((*block).own).write(own_memory::addr());
        addr_of_mut!((*block).stacks).write(stacks::addr());
        addr_of_mut!((*block).path_start).write(path_start);
        addr_of_mut!((*block).path_end).write(path_end);
        (*block).tick_ms.store(TICK_MS, Ordering::Relaxed);
        (*block).channel_fd.store(NO_CHANNEL, Ordering::Relaxed);
        (*block).magic.store(BLOCK_MAGIC, Ordering::Release);
    }
}
