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
    "push rax\npush rcx\npush rdx\npush rsi\npush rdi\npush r8\npush r9\npush r10\npush r11\npush rbx",
    "mov rbx, rsp",
    "and rsp, -16",
    "sub rsp, 272",
    "movaps [rsp], xmm0\nmovaps [rsp + 16], xmm1\nmovaps [rsp + 32], xmm2\nmovaps [rsp + 48], xmm3",
    "movaps [rsp + 64], xmm4\nmovaps [rsp + 80], xmm5\nmovaps [rsp + 96], xmm6\nmovaps [rsp + 112], xmm7",
    "movaps [rsp + 128], xmm8\nmovaps [rsp + 144], xmm9\nmovaps [rsp + 160], xmm10",
    "movaps [rsp + 176], xmm11\nmovaps [rsp + 192], xmm12\nmovaps [rsp + 208], xmm13",
    "movaps [rsp + 224], xmm14\nmovaps [rsp + 240], xmm15",
    "cld",
    "call {changed}",
    "movaps xmm0, [rsp]\nmovaps xmm1, [rsp + 16]\nmovaps xmm2, [rsp + 32]\nmovaps xmm3, [rsp + 48]",
    "movaps xmm4, [rsp + 64]\nmovaps xmm5, [rsp + 80]\nmovaps xmm6, [rsp + 96]\nmovaps xmm7, [rsp + 112]",
    "movaps xmm8, [rsp + 128]\nmovaps xmm9, [rsp + 144]\nmovaps xmm10, [rsp + 160]",
    "movaps xmm11, [rsp + 176]\nmovaps xmm12, [rsp + 192]\nmovaps xmm13, [rsp + 208]",
    "movaps xmm14, [rsp + 224]\nmovaps xmm15, [rsp + 240]",
    "mov rsp, rbx",
    "pop rbx\npop r11\npop r10\npop r9\npop r8\npop rdi\npop rsi\npop rdx\npop rcx\npop rax",
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
