//! One checked call: every register is loaded with a known value, the function is called, and the
//! result and every register that must survive are compared.
//!
//! The victims hash the registers they were entered with, the stack pointer included, so that a
//! stub that loses or changes any of them gives a wrong result.

use std::arch::naked_asm;

/// Added to the hash by the old code.
pub const OLD: u64 = 0x01d0_01d0_01d0_01d1;
/// Added to the hash by the new code.
pub const NEW: u64 = 0x0bee_f0be_ef0b_eef3;

/// Registers before and after a call. The assembly below knows the offsets.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Frame {
    /// rax, rdi, rsi, rdx, rcx, r8, r9, r10, r11 and xmm0 at the entry.
    pub arguments: [u64; 10],
    /// rbx, rbp, r12, r13, r14, r15 at the entry.
    pub saved: [u64; 6],
    /// rax at the return.
    pub result: u64,
    /// The callee-saved registers at the return.
    pub saved_after: [u64; 6],
    /// rsp as the callee sees it at its entry.
    pub entry_rsp: u64,
    /// rsp after the return; must be 8 more than `entry_rsp`.
    pub return_rsp: u64,
}

/// Index of rax in [`Frame::arguments`].
pub const RAX: usize = 0;
/// Index of r10 in [`Frame::arguments`].
pub const R10: usize = 7;
/// Index of r11 in [`Frame::arguments`].
pub const R11: usize = 8;

/// Calls `target` with the registers of `frame` and stores what comes back.
///
/// # Safety
/// `frame` is valid for writes and `target` is code that follows the System V calling convention.
#[unsafe(naked)]
unsafe extern "C" fn call_with_frame(frame: *mut Frame, target: u64) {
    naked_asm!(
        "push rbx",
        "push rbp",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "push rdi",
        "push rsi",
        "push rsi",
        // Nine pushes and the return address: rsp is a multiple of 16.
        "lea rax, [rsp - 8]",
        "mov [rdi + 184], rax",
        "mov rsi, [rdi + 16]",
        "mov rdx, [rdi + 24]",
        "mov rcx, [rdi + 32]",
        "mov r8,  [rdi + 40]",
        "mov r9,  [rdi + 48]",
        "mov r10, [rdi + 56]",
        "mov r11, [rdi + 64]",
        "movq xmm0, [rdi + 72]",
        "mov rbx, [rdi + 80]",
        "mov rbp, [rdi + 88]",
        "mov r12, [rdi + 96]",
        "mov r13, [rdi + 104]",
        "mov r14, [rdi + 112]",
        "mov r15, [rdi + 120]",
        "mov rax, [rdi]",
        "mov rdi, [rdi + 8]",
        "call [rsp]",
        "mov rdi, [rsp + 16]",
        "mov [rdi + 128], rax",
        "mov [rdi + 136], rbx",
        "mov [rdi + 144], rbp",
        "mov [rdi + 152], r12",
        "mov [rdi + 160], r13",
        "mov [rdi + 168], r14",
        "mov [rdi + 176], r15",
        "mov [rdi + 192], rsp",
        "add rsp, 24",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbp",
        "pop rbx",
        "ret",
    )
}

/// How the old code of a victim looks at the registers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OldView {
    /// The head loads r10 with this value before the hash.
    pub r10: Option<u64>,
    /// The displaced instruction loads r11 with this value before the hash.
    pub r11: Option<u64>,
    /// The displaced instruction adds this to al before the hash.
    pub al_add: u8,
    /// The function is one `ret`: it returns rax as it came.
    pub only_ret: bool,
}

/// What a call gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The old code ran, and only the old code.
    Old,
    /// The new code ran, and only the new code.
    New,
    /// Neither.
    Wrong {
        /// What came back.
        got: u64,
        /// What the old code would have given.
        old: u64,
        /// What the new code would have given.
        new: u64,
        /// Bit n: n-th callee-saved register changed; bit 7: the stack pointer.
        registers: u32,
    },
}

/// The hash both sides compute from the registers at the entry.
pub fn hash(arguments: &[u64; 10], entry_rsp: u64) -> u64 {
    let [rax, rdi, rsi, rdx, rcx, r8, r9, r10, r11, xmm0] = *arguments;
    let mut h = rax ^ rdi;
    for value in [rsi, rdx, rcx, r8, r9, r10, r11, xmm0, entry_rsp] {
        h = h.rotate_left(7).wrapping_add(value);
    }
    h
}

/// A small generator of register values; one per thread.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// Starts from `seed`, which may be 0.
    pub fn new(seed: u64) -> Self {
        Self(seed ^ 0x9e37_79b9_7f4a_7c15)
    }

    /// The next value (splitmix64).
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// Calls the victim at `entry` once with values from `rng` and judges what came back.
///
/// # Safety
/// `entry` is a victim of this harness: it follows the calling convention and touches only the
/// stack.
pub unsafe fn checked_call(entry: u64, view: OldView, rng: &mut Rng) -> Verdict {
    let seed = rng.draw();
    let mut frame = Frame::default();
    for (i, value) in frame.arguments.iter_mut().chain(&mut frame.saved).enumerate() {
        *value = seed.rotate_left(i as u32 * 5) ^ (i as u64).wrapping_mul(0x0101_0101_0101_0101);
    }
    // A 32-bit value, because `mov eax, eax` is one of the displaced instructions.
    frame.arguments[RAX] &= 0xffff_ffff;
    // SAFETY: the frame is a local; `entry` is code by this function's own contract.
    unsafe { call_with_frame(&raw mut frame, entry) };
    let new = hash(&frame.arguments, frame.entry_rsp).wrapping_add(NEW);
    let old = if view.only_ret {
        frame.arguments[RAX]
    } else {
        let mut seen = frame.arguments;
        seen[R10] = view.r10.unwrap_or(seen[R10]);
        seen[R11] = view.r11.unwrap_or(seen[R11]);
        seen[RAX] = (seen[RAX] & !0xff) | u64::from((seen[RAX] as u8).wrapping_add(view.al_add));
        hash(&seen, frame.entry_rsp).wrapping_add(OLD)
    };
    let mut registers = 0;
    for (i, (before, after)) in frame.saved.iter().zip(&frame.saved_after).enumerate() {
        registers |= u32::from(before != after) << i;
    }
    registers |= u32::from(frame.return_rsp != frame.entry_rsp.wrapping_add(8)) << 7;
    match (frame.result, registers) {
        (result, 0) if result == old => Verdict::Old,
        (result, 0) if result == new => Verdict::New,
        (got, _) => Verdict::Wrong { got, old, new, registers },
    }
}

const _: () = {
    assert!(std::mem::offset_of!(Frame, saved) == 80);
    assert!(std::mem::offset_of!(Frame, result) == 128);
    assert!(std::mem::offset_of!(Frame, saved_after) == 136);
    assert!(std::mem::offset_of!(Frame, entry_rsp) == 184);
    assert!(std::mem::offset_of!(Frame, return_rsp) == 192);
};
