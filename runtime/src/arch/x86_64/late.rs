//! The handler of the loader's debug-state function.
//!
//! The function does nothing, the loader's compiler knew that, and so its callers may keep values in any
//! register across the call. Every general register, the flags and the vector registers of the baseline (the
//! compiled code uses no others) go back unchanged, then the function itself is run.
//!
//! # Safety
//!
//! Assembly on threads of the program, in the middle of their loader.
#![allow(unsafe_code)]

use super::save::{restore_general, restore_vectors, save_general, save_vectors};
use core::arch::global_asm;
use core::sync::atomic::{AtomicU64, Ordering};
use suture_abi::batch::HOOK_DL_DEBUG_STATE;

/// Copy of the redirected function. Written by the worker before the first slot leads to the handler.
static ORIGINAL: AtomicU64 = AtomicU64::new(0);

global_asm!(
    ".pushsection .text.suture_debug_state, \"ax\", @progbits",
    ".globl suture_debug_state",
    ".hidden suture_debug_state",
    ".type suture_debug_state, @function",
    "suture_debug_state:",
    "pushfq",
    save_general!(),
    save_vectors!(),
    "cld",
    "call {changed}",
    restore_vectors!(),
    restore_general!(),
    "popfq",
    "jmp qword ptr [rip + {original}]",
    ".size suture_debug_state, . - suture_debug_state",
    ".popsection",
    changed = sym crate::late::loader_changed,
    original = sym ORIGINAL,
);

unsafe extern "C" {
    static suture_debug_state: u8;
}

/// Address of the handler for a hook, 0 for none.
pub fn handler(hook: u32) -> u64 {
    match hook {
        HOOK_DL_DEBUG_STATE => (&raw const suture_debug_state).expose_provenance() as u64,
        _ => 0,
    }
}

/// Says where the old function of the hook stays callable. To be done before a slot leads to it.
pub fn set_original(hook: u32, copy: u64) {
    if hook == HOOK_DL_DEBUG_STATE {
        // pairs with: the handler's jump (the slot's release store comes later still)
        ORIGINAL.store(copy, Ordering::Release);
    }
}
