//! Where a thread of the program becomes the host, and how it calls program code.
//!
//! # Safety
//!
//! The entry is reached by a thread that the command has stopped, with a
//! [`suture_abi::doorbell::Frame`] at `rsp`, all signals blocked, and room on its stack for what the C
//! library and callbacks need. Unlike the doorbell's it calls program code, so the whole vector state is saved.
//! It is not described to unwinders: an exception that leaves a callback ends there, not in the
//! frames of the program below.
#![allow(unsafe_code)]

use crate::block::BLOCK;
use crate::host::arrive;
use core::arch::{global_asm, naked_asm};
use core::mem::offset_of;
use suture_abi::block::RuntimeBlock;
use suture_abi::host::Host;

/// Address the command points a borrowed thread's `rip` at.
pub fn entry() -> u64 {
    enter as *const () as u64
}

/// Address the command points the host's `rip` at when a callback has crashed, with the signal in `rdi`.
pub fn abandon() -> u64 {
    (&raw const suture_host_abandon).expose_provenance() as u64
}

#[unsafe(naked)]
unsafe extern "C" fn enter() {
    naked_asm!(
        suture_abi::doorbell_head!(),
        "cld",
        "mov r12, rsp",
        // Size of the state the kernel has enabled for user code.
        "mov eax, 0xd",
        "xor ecx, ecx",
        "cpuid",
        "mov ebx, ebx",
        "sub rsp, rbx",
        "and rsp, -64",
        "mov r13, rsp",
        // The part of the header that XSAVE does not write must be zero for XRSTOR.
        "xor eax, eax",
        "lea rdi, [r13 + 512]",
        "mov ecx, 8",
        "rep stosq",
        "mov eax, -1",
        "mov edx, -1",
        "xsave64 [r13]",
        "call {arrive}",
        "mov eax, -1",
        "mov edx, -1",
        "xrstor64 [r13]",
        "mov rsp, r12",
        suture_abi::doorbell_return!(),
        arrive = sym arrive,
    )
}

/// Offset of [`Host::resume`] in the block.
const RESUME: usize = offset_of!(RuntimeBlock, host) + offset_of!(Host, resume);

global_asm!(
    ".pushsection .text.suture_host, \"ax\", @progbits",
    ".globl suture_host_call",
    ".hidden suture_host_call",
    ".type suture_host_call, @function",
    "suture_host_call:",
    ".cfi_startproc",
    "push rbp",
    ".cfi_adjust_cfa_offset 8",
    ".cfi_rel_offset rbp, 0",
    "mov rbp, rsp",
    ".cfi_def_cfa_register rbp",
    "push rbx\npush r12\npush r13\npush r14\npush r15",
    "sub rsp, 24",
    ".cfi_offset rbx, -24\n.cfi_offset r12, -32\n.cfi_offset r13, -40\n.cfi_offset r14, -48\n.cfi_offset r15, -56",
    "stmxcsr dword ptr [rsp]",
    "fnstcw word ptr [rsp + 4]",
    "mov r12, qword ptr [rip + {block}@GOTPCREL]",
    "mov qword ptr [r12 + {resume}], rsp",
    "mov rax, rdi",
    "mov rdi, rsi",
    "mov rsi, rdx",
    "call rax",
    "xor edx, edx",
    "2:",
    "ldmxcsr dword ptr [rsp]",
    "fldcw word ptr [rsp + 4]",
    "add rsp, 24",
    "pop r15\npop r14\npop r13\npop r12\npop rbx\npop rbp",
    ".cfi_def_cfa rsp, 8",
    "ret",
    ".cfi_endproc",
    ".size suture_host_call, . - suture_host_call",
    // A callback crashed: whatever it did to stack and registers, back to where it was called.
    ".globl suture_host_abandon",
    ".hidden suture_host_abandon",
    ".type suture_host_abandon, @function",
    "suture_host_abandon:",
    "cld",
    "mov r12, qword ptr [rip + {block}@GOTPCREL]",
    "mov rsp, qword ptr [r12 + {resume}]",
    "lea rbp, [rsp + 64]",
    "fninit",
    "mov edx, edi",
    "xor eax, eax",
    "jmp 2b",
    ".size suture_host_abandon, . - suture_host_abandon",
    ".popsection",
    block = sym BLOCK,
    resume = const RESUME,
);

unsafe extern "C" {
    static suture_host_abandon: u8;
    fn suture_host_call(code: u64, first: u64, second: u64) -> Outcome;
}

/// What comes back in `rax` and `rdx`.
#[repr(C)]
struct Outcome {
    result: u64,
    crash: u64,
}

/// Calls program code: its result, and the signal that ended it, if one did.
///
/// # Safety
///
/// `code` is a mapped function of at most two integer arguments, which may be called with these two. The calling
/// thread is the host: one that the C library knows, at a point where it may run code of the program, and the only
/// one that is in here ([`Host::resume`] is one word).
pub unsafe fn call(code: u64, first: u64, second: u64) -> (u64, u32) {
    // SAFETY: the caller vouches for code, arguments and thread. The callee-saved registers, the control words and
    // the stack pointer are put back by the assembly, also when the callback has crashed: the frame lies above
    // whatever the callback used, and `resume` names it.
    let Outcome { result, crash } = unsafe { suture_host_call(code, first, second) };
    (result, crash as u32)
}
