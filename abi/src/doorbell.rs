//! The frame a borrowed thread returns through.
//!
//! The command stops one thread, writes a [`Frame`] just below the red zone of that thread's stack
//! (`rsp − 128 − size_of::<Frame>()`, 16-byte alignment not needed), points `rsp` at it and `rip` at
//! [`crate::block::RuntimeBlock::doorbell_entry`], blocks the thread's signals and lets go. The entry
//! makes one raw clone, works out how the interrupted system call continues, restores the signal
//! mask and leaves by popping everything after [`Frame::rflags`]'s predecessors, last `ret 128`.
//! It calls nothing, touches no vector register and needs no `fs`; once the mask is restored only the
//! frame (below which signal handlers may build theirs) is needed, so no state is shared with the
//! next doorbell.

/// Thread was not in a system call: continue at `rip` with the registers as they are.
pub const RESTART_NONE: u64 = 0;
/// Re-issue the same system call (`rip − 2`, `rax` = number), unless a caught signal is waiting.
pub const RESTART_SAME: u64 = 1;
/// Continue a call that kept its remaining time: `restart_syscall` (number 219) at `rip − 2`.
pub const RESTART_BLOCK: u64 = 2;
/// Re-issue the same system call whatever is pending (`-ERESTARTNOINTR`).
pub const RESTART_ALWAYS: u64 = 3;
/// As [`RESTART_SAME`], but a waiting caught signal with `SA_RESTART` does not end the call
/// (`-ERESTARTSYS`). As in the kernel the signal that would be delivered first decides.
pub const RESTART_SYS: u64 = 4;

/// Registers and restart rule of a borrowed thread. Field order is the pop order of the entry.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Frame {
    /// The thread's signal mask before the doorbell; the entry puts it back.
    pub mask: u64,
    /// Signals the program catches (`SigCgt`), as the kernel's bit set.
    pub caught: u64,
    /// Room for `rt_sigpending`.
    pub pending: u64,
    /// One of the `RESTART_*` rules.
    pub restart: u64,
    /// System call number the thread was in (valid when `restart` is not `RESTART_NONE`).
    pub orig_rax: u64,
    /// Saved registers, popped in this order.
    pub r15: u64,
    /// Saved register.
    pub r14: u64,
    /// Saved register.
    pub r13: u64,
    /// Saved register.
    pub r12: u64,
    /// Saved register.
    pub rbp: u64,
    /// Saved register.
    pub rbx: u64,
    /// Saved register.
    pub r11: u64,
    /// Saved register.
    pub r10: u64,
    /// Saved register.
    pub r9: u64,
    /// Saved register.
    pub r8: u64,
    /// Saved register (result or number of the interrupted call).
    pub rax: u64,
    /// Saved register.
    pub rcx: u64,
    /// Saved register.
    pub rdx: u64,
    /// Saved register.
    pub rsi: u64,
    /// Saved register.
    pub rdi: u64,
    /// Saved flags.
    pub rflags: u64,
    /// Where the thread continues.
    pub rip: u64,
}

/// Bytes of red zone the System V psABI (x86-64, 3.2.2) gives a leaf function below `rsp`.
pub const RED_ZONE: u64 = 128;

const _: () = assert!(size_of::<Frame>() == 22 * 8);
