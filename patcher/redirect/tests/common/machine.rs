//! Calls a function with every register given and reads every register back.

use std::arch::global_asm;
use std::sync::atomic::{AtomicU64, Ordering};

/// General registers by number (rsp unused), flags, vector registers.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct State {
    pub general: [u64; 16],
    pub flags: u64,
    pub pad: u64,
    pub vector: [[u64; 2]; 16],
}

unsafe extern "C" {
    fn redirect_test_call(function: u64, state: *mut State);
}

global_asm!(
    ".globl redirect_test_call",
    "redirect_test_call:",
    "push rbx",
    "push rbp",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "push rax",
    "push rsi",
    "push rdi",
    "mov rax, rsi",
    "movups xmm0, [rax+144]",
    "movups xmm1, [rax+160]",
    "movups xmm2, [rax+176]",
    "movups xmm3, [rax+192]",
    "movups xmm4, [rax+208]",
    "movups xmm5, [rax+224]",
    "movups xmm6, [rax+240]",
    "movups xmm7, [rax+256]",
    "mov rcx, [rax+8]",
    "mov rdx, [rax+16]",
    "mov rbx, [rax+24]",
    "mov rbp, [rax+40]",
    "mov rsi, [rax+48]",
    "mov rdi, [rax+56]",
    "mov r8, [rax+64]",
    "mov r9, [rax+72]",
    "mov r10, [rax+80]",
    "mov r11, [rax+88]",
    "mov r12, [rax+96]",
    "mov r13, [rax+104]",
    "mov r14, [rax+112]",
    "mov r15, [rax+120]",
    "mov rax, [rax]",
    "call [rsp]",
    "pushfq",
    "cld",
    "push rax",
    "mov rax, [rsp+24]",
    "mov [rax+8], rcx",
    "pop rcx",
    "mov [rax], rcx",
    "pop rcx",
    "mov [rax+128], rcx",
    "mov [rax+16], rdx",
    "mov [rax+24], rbx",
    "mov [rax+40], rbp",
    "mov [rax+48], rsi",
    "mov [rax+56], rdi",
    "mov [rax+64], r8",
    "mov [rax+72], r9",
    "mov [rax+80], r10",
    "mov [rax+88], r11",
    "mov [rax+96], r12",
    "mov [rax+104], r13",
    "mov [rax+112], r14",
    "mov [rax+120], r15",
    "movups [rax+144], xmm0",
    "movups [rax+160], xmm1",
    "movups [rax+176], xmm2",
    "movups [rax+192], xmm3",
    "movups [rax+208], xmm4",
    "movups [rax+224], xmm5",
    "movups [rax+240], xmm6",
    "movups [rax+256], xmm7",
    "pop rdi",
    "pop rsi",
    "pop rax",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbp",
    "pop rbx",
    "ret",
);

/// Words of memory a tested function may use through rdi and r8.
pub const WORDS: usize = 64;

/// The same addresses in every run, so that results that contain addresses can be compared.
static MEMORY: [AtomicU64; WORDS] = [const { AtomicU64::new(0) }; WORDS];

/// Runs the code at `function` with registers and memory made from `seed`. One thread at a time.
pub fn run(function: u64, seed: u64) -> (State, Vec<u64>) {
    for (i, word) in MEMORY.iter().enumerate() {
        word.store(mix(seed ^ ((i as u64) << 32)), Ordering::Relaxed);
    }
    let mut state = State::default();
    for (i, register) in state.general.iter_mut().enumerate() {
        *register = mix(seed.wrapping_add(i as u64)) >> (seed % 60);
    }
    for (i, vector) in state.vector.iter_mut().enumerate() {
        *vector = [mix(seed ^ i as u64), mix(seed ^ !(i as u64))];
    }
    let data = MEMORY.as_ptr() as u64 + 128;
    state.general[7] = data;
    state.general[8] = data + 64;
    // SAFETY: the tested functions follow the calling convention apart from what they do to
    // caller-saved registers, all of which the assembly reads back or restores; they write no memory
    // but their stack and the words at rdi and r8.
    unsafe { redirect_test_call(function, &mut state) };
    // The auxiliary carry and the reserved bits are left undefined by many instructions.
    state.flags &= 0x8c5;
    state.general[4] = 0;
    (state, MEMORY.iter().map(|w| w.load(Ordering::Relaxed)).collect())
}

fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}
