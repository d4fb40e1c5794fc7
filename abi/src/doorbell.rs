//! The frame a borrowed thread returns through.
//!
//! The command stops one thread, writes a [`Frame`] just below the red zone of that thread's stack
//! (`rsp − 128 − size_of::<Frame>()`, 16-byte alignment not needed), points `rsp` at it and `rip` at
//! [`crate::block::RuntimeBlock::doorbell_entry`], blocks the thread's signals and lets go. The entry
//! makes one raw clone, works out how the interrupted system call continues, restores the signal
//! mask and leaves by popping everything after [`Frame::rflags`]'s predecessors, last `ret 160`.
//!
//! A call on a socket with a time-out of its own (`SO_RCVTIMEO`) would begin again with the whole of it. For
//! such a call the entry first waits with `ppoll` for what the call waits for, as long as is left, and makes
//! the call only when that has come. A thread may therefore be seen asleep in an entry, at [`WAITS`], with its
//! frame at `rsp`; a further stop finds it in a call like any other.
//!
//! The entry calls nothing, touches no vector register and needs no `fs`; once the mask is restored only the
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
    /// Room for an entry that has nowhere else to leave a note for the command; 0 from the command.
    pub note: u64,
    /// The thread's signal mask before the doorbell; the entry puts it back.
    pub mask: u64,
    /// Room for `rt_sigpending`.
    pub pending: u64,
    /// One of the `RESTART_*` rules.
    pub restart: u64,
    /// System call number the thread was in (valid when `restart` is not `RESTART_NONE`).
    pub orig_rax: u64,
    /// Not 0: the command lifted `RLIMIT_NPROC` for the clone; the entry puts the limit below back.
    pub lifted: u64,
    /// Soft `RLIMIT_NPROC` to put back.
    pub limit_soft: u64,
    /// Hard `RLIMIT_NPROC` to put back.
    pub limit_hard: u64,
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
    /// What the rest of the call is waited for: a `struct pollfd`.
    pub wait: u64,
    /// The time that is left, as a `struct timespec`. The kernel keeps it up to date when that wait is
    /// stopped in its turn.
    pub left: [u64; 2],
    /// Not 0: before the call is made again (`restart` is [`RESTART_SAME`]) the thread waits for at most
    /// `left`, and if nothing comes this is the call's result.
    pub over: u64,
}

/// Bytes of red zone the System V psABI (x86-64, 3.2.2) gives a leaf function below `rsp`.
pub const RED_ZONE: u64 = 128;

/// The code before the place at which a thread waits for the rest of its call; nobody else's: it counts on
/// the frame.
pub const WAITS: [u8; 18] = [
    0x48, 0x8d, 0x94, 0x24, 0xd0, 0, 0, 0, // lea rdx, [rsp + 208]
    0x45, 0x31, 0xd2, // xor r10d, r10d
    0xb8, 0x0f, 0x01, 0, 0, // mov eax, 271
    0x0f, 0x05, // syscall
];

/// Where the time-outs that the command may have to shorten lie: [`TIMEOUT_SLOTS`] × `struct timespec`,
/// from this many bytes behind the entry. The kernel reads them when the interrupted call is made again.
pub const TIMEOUT_OFFSET: u64 = 8;
/// How many there are. More than one, because a call may be made again much later than its thread was
/// let go: a signal handler comes first.
pub const TIMEOUT_SLOTS: u64 = 4;

/// Assembly by which every entry begins: a jump over the time-outs.
#[macro_export]
macro_rules! doorbell_head {
    () => {
        ".byte 0xeb, 70\n.fill 70, 1, 0\n"
    };
}

/// Assembly (Intel syntax) by which every entry leaves; `rsp` points at the [`Frame`].
///
/// Puts a lifted limit back, decides how the interrupted call goes on, restores the mask and pops the
/// frame. Once the mask is back only the frame at `rsp` is needed: handlers build theirs below it. Labels 3
/// to 9 and 81 to 83 are used; the 40 bytes below the frame are scratch while signals are blocked.
#[macro_export]
macro_rules! doorbell_return {
    () => {
        concat!(
            "3:\n",
            "cmp qword ptr [rsp + 40], 0\n", // lifted
            "je 4f\n",
            "mov eax, 302\n", // prlimit64 of this process
            "xor edi, edi\n",
            "mov esi, 6\n", // RLIMIT_NPROC
            "lea rdx, [rsp + 48]\n",
            "xor r10d, r10d\n",
            "syscall\n",
            "4:\n",
            "mov rbp, qword ptr [rsp + 24]\n", // restart
            "test rbp, rbp\n",                 // RESTART_NONE
            "jz 9f\n",
            "cmp rbp, 3\n", // RESTART_ALWAYS
            "je 7f\n",
            // Waiting, caught and not blocked by the program: its handler will run, the call ends.
            "mov eax, 127\n", // rt_sigpending
            "lea rdi, [rsp + 16]\n",
            "mov esi, 8\n",
            "syscall\n",
            "mov r12, qword ptr [rsp + 8]\n", // mask
            "not r12\n",
            "and r12, qword ptr [rsp + 16]\n",
            "5:\n",
            "bsf rdi, r12\n",
            "jz 7f\n",
            "btr r12, rdi\n",
            "inc edi\n",
            "xor esi, esi\n",
            "lea rdx, [rsp - 40]\n",
            "mov r10d, 8\n",
            "mov eax, 13\n", // rt_sigaction, query
            "syscall\n",
            "test rax, rax\n",
            "jnz 5b\n",
            "cmp qword ptr [rsp - 40], 1\n", // SIG_DFL, SIG_IGN
            "jbe 5b\n",
            "cmp rbp, 4\n", // RESTART_SYS
            "jne 6f\n",
            "test dword ptr [rsp - 32], 0x10000000\n", // SA_RESTART in sa_flags
            "jnz 7f\n",
            "6:\n",
            "mov qword ptr [rsp + 144], -4\n", // rax = -EINTR
            "mov qword ptr [rsp + 224], 0\n",  // over
            "jmp 9f\n",
            "7:\n",
            "mov rax, qword ptr [rsp + 32]\n", // orig_rax
            "cmp rbp, 2\n",                    // RESTART_BLOCK
            "jne 8f\n",
            "mov eax, 219\n", // restart_syscall
            "8:\n",
            "mov qword ptr [rsp + 144], rax\n",
            "sub qword ptr [rsp + 192], 2\n", // rip
            "9:\n",
            "mov eax, 14\n", // rt_sigprocmask
            "mov edi, 2\n",  // SIG_SETMASK
            "lea rsi, [rsp + 8]\n",
            "xor edx, edx\n",
            "mov r10d, 8\n",
            "syscall\n",
            "cmp qword ptr [rsp + 224], 0\n", // over
            "je 83f\n",
            // The call's own wait goes on here, for what is left of it.
            "lea rdi, [rsp + 200]\n", // wait
            "mov esi, 1\n",
            "lea rdx, [rsp + 208]\n", // left
            "xor r10d, r10d\n",
            "mov eax, 271\n", // ppoll
            "syscall\n",
            "test rax, rax\n",
            "jnz 81f\n",
            "mov rax, qword ptr [rsp + 224]\n",
            "jmp 82f\n",
            "81:\n",
            // A handler has run. Whatever else it is: the call is made again.
            "cmp rax, -4\n",
            "jne 83f\n",
            "82:\n",
            "mov qword ptr [rsp + 144], rax\n",
            "add qword ptr [rsp + 192], 2\n",
            "83:\n",
            "add rsp, 64\n",
            "pop r15\npop r14\npop r13\npop r12\npop rbp\npop rbx\npop r11\npop r10\npop r9\n",
            "pop r8\npop rax\npop rcx\npop rdx\npop rsi\npop rdi\npopfq\n",
            "ret 160\n",
        )
    };
}

const _: () = {
    use core::mem::offset_of;
    // What the assembly above counts on.
    assert!(offset_of!(Frame, mask) == 8 && offset_of!(Frame, pending) == 16);
    assert!(offset_of!(Frame, restart) == 24 && offset_of!(Frame, orig_rax) == 32);
    assert!(offset_of!(Frame, lifted) == 40 && offset_of!(Frame, limit_soft) == 48);
    assert!(offset_of!(Frame, limit_hard) == 56 && offset_of!(Frame, r15) == 64);
    assert!(offset_of!(Frame, rax) == 144 && offset_of!(Frame, rflags) == 184);
    assert!(offset_of!(Frame, rip) == 192);
    assert!(offset_of!(Frame, wait) == 200 && offset_of!(Frame, left) == 208);
    assert!(offset_of!(Frame, over) == 224);
    // `ret` pops `rip`, and with its operand what follows and the red zone.
    assert!(size_of::<Frame>() as u64 - 200 + RED_ZONE == 160);
    assert!(size_of::<Frame>() == 232 && TIMEOUT_OFFSET + 16 * TIMEOUT_SLOTS == 72);
    assert!(RESTART_NONE == 0 && RESTART_BLOCK == 2 && RESTART_ALWAYS == 3 && RESTART_SYS == 4);
    assert!(RED_ZONE == 128);
};
