//! What dispatchers and newborn threads run of the runtime itself.
//!
//! A dispatcher (emitted by the command, one per site) finds its thread's record by itself. Only when the
//! chunk of that record does not exist, or when it is time for the thread to look at its own stack, does it come
//! here, with the address to come back to in `r10`. The thread stands at the entry of a function of the program,
//! perhaps in a signal handler, perhaps in the middle of the program's allocator: every register but `r10` and
//! `r11`, which the dispatcher has saved, goes back unchanged.
//!
//! The code lies between two labels that the block names: a thread that is in it, or was interrupted in
//! it, is on its way into a function and on neither side.
//!
//! # Safety
//!
//! Assembly on threads of the program. It touches the stack below `rsp`, what
//! it calls touches the directory and records, and nothing else.
#![allow(unsafe_code)]

use super::save::{restore_general, restore_vectors, save_general, save_vectors};
use core::arch::{asm, global_asm};
use core::sync::atomic::{AtomicU32, Ordering};

/// Offset of the thread id from `fs`. Written by the worker before the first slot leads to a dispatcher
/// and never changed (it belongs to the C library of the process).
pub static THREAD_ID: AtomicU32 = AtomicU32::new(0);

global_asm!(
    // Calls compiled code with the record in `rdi` and the place of the function's return address in `rsi`, then goes
    // back to the dispatcher.
    ".macro suture_call compiled",
    save_general!(),
    "mov rdi, r11",
    // Above the ten words here and the two of the dispatcher: the return address of the function.
    "lea rsi, [rsp + 96]",
    save_vectors!(),
    "cld",
    "call \\compiled",
    restore_vectors!(),
    restore_general!(),
    "jmp r10",
    ".endm",
    ".pushsection .text.suture_path, \"ax\", @progbits",
    ".balign 64",
    ".globl suture_path_start",
    ".hidden suture_path_start",
    "suture_path_start:",
    ".globl suture_slow_path",
    ".hidden suture_slow_path",
    ".type suture_slow_path, @function",
    "suture_slow_path:",
    "suture_call {first}",
    ".size suture_slow_path, . - suture_slow_path",
    ".globl suture_self_look",
    ".hidden suture_self_look",
    ".type suture_self_look, @function",
    "suture_self_look:",
    "suture_call {look}",
    ".size suture_self_look, . - suture_self_look",
    ".globl suture_path_end",
    ".hidden suture_path_end",
    "suture_path_end:",
    ".popsection",
    // A newborn thread: takes its side, then goes where the program wants it to start. It leaves by a
    // jump, so it is on no stack afterwards.
    ".pushsection .text.suture_birth, \"ax\", @progbits",
    ".globl suture_birth",
    ".hidden suture_birth",
    ".type suture_birth, @function",
    "suture_birth:",
    ".cfi_startproc",
    "sub rsp, 8",
    ".cfi_adjust_cfa_offset 8",
    "call {settle}",
    "add rsp, 8",
    ".cfi_adjust_cfa_offset -8",
    "mov rdi, rdx",
    "jmp rax",
    ".cfi_endproc",
    ".size suture_birth, . - suture_birth",
    ".popsection",
    ".purgem suture_call",
    settle = sym crate::birth::settle,
    first = sym crate::birth::first_pass,
    look = sym crate::transition::own::look_at_self,
);

unsafe extern "C" {
    static suture_path_start: u8;
    static suture_path_end: u8;
    static suture_slow_path: u8;
    static suture_self_look: u8;
    static suture_birth: u8;
}

/// First address of the code above, and the address after it.
pub fn path() -> (u64, u64) {
    let (start, end) = (&raw const suture_path_start, &raw const suture_path_end);
    (start.expose_provenance() as u64, end.expose_provenance() as u64)
}

/// Where a dispatcher goes whose chunk does not exist.
pub fn slow_path() -> u64 {
    (&raw const suture_slow_path).expose_provenance() as u64
}

/// Where a dispatcher goes whose thread is to look at its own stack.
pub fn self_look() -> u64 {
    (&raw const suture_self_look).expose_provenance() as u64
}

/// Where a thread starts that was created while a transition runs.
pub fn birth() -> u64 {
    (&raw const suture_birth).expose_provenance() as u64
}

/// The calling thread's id as the C library keeps it: what dispatchers use. Any thread of the program.
pub fn own_thread_id() -> u32 {
    let offset = u64::from(THREAD_ID.load(Ordering::Relaxed));
    let tid: u32;
    // SAFETY: reads the C library's thread header, where its own description says the id is. Only threads
    // of the program come here (hooks of its C library).
    unsafe {
        asm!("mov {0:e}, dword ptr fs:[{1}]", out(reg) tid, in(reg) offset, options(nostack, preserves_flags, readonly));
    }
    tid
}
