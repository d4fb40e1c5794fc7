//! The doorbell: where a borrowed thread of the program makes the worker.
//!
//! Runs on a thread of the program that was stopped at any instruction whatever: inside its allocator,
//! with the loader's lock held, in the middle of a signal handler. So it calls nothing, reads no `fs`,
//! touches no vector register, and uses no memory but the frame the command has written
//! ([`suture_abi::doorbell`]), 40 bytes below that (signals are blocked), and the worker's words.
//!
//! # Safety
//!
//! Both entries are naked: nothing the compiler could get wrong about registers is left to it.
#![allow(unsafe_code)]

use crate::block::{BLOCK, BlockCell};
use crate::worker::{DummyTls, TLS_SELF, WORKER_STACK, WORKER_STACK_LEN, WorkerStack, worker_main};
use core::arch::naked_asm;
use core::mem::offset_of;
use suture_abi::block::RuntimeBlock;

const CLONE_VM: u32 = 0x100;
const CLONE_FS: u32 = 0x200;
const CLONE_SIGHAND: u32 = 0x800;
const CLONE_THREAD: u32 = 0x1_0000;
const CLONE_SYSVSEM: u32 = 0x4_0000;
const CLONE_SETTLS: u32 = 0x8_0000;
const CLONE_CHILD_CLEARTID: u32 = 0x20_0000;
const CLONE_CHILD_SETTID: u32 = 0x100_0000;

/// A thread of the process with a descriptor table of its own (no `CLONE_FILES`): what the worker
/// opens never appears in the program's table and what it closes never disappears from it.
const CLONE_FLAGS: u32 = CLONE_VM
    | CLONE_FS
    | CLONE_SIGHAND
    | CLONE_THREAD
    | CLONE_SYSVSEM
    | CLONE_SETTLS
    | CLONE_CHILD_SETTID
    | CLONE_CHILD_CLEARTID;

/// Address the command points a borrowed thread's `rip` at.
pub fn doorbell_entry() -> u64 {
    entry as *const () as u64
}

/// The entry. `rsp` points at a [`suture_abi::doorbell::Frame`]; everything else is as the program left it.
///
/// The clone is made only by the thread that turns the worker's word from 0 to `u32::MAX`, so that
/// two doorbells rung at once make one worker. The kernel then fills the word with the thread id and
/// clears it when the worker is off its stack. A failed clone clears it here; nobody can wait for the
/// word on a futex (waiters would be other processes), so nobody is woken.
#[unsafe(naked)]
unsafe extern "C" fn entry() {
    naked_asm!(
        suture_abi::doorbell_head!(),
        "cld",
        "mov rbx, qword ptr [rip + {block}@GOTPCREL]",
        "xor eax, eax",
        "mov ecx, -1",
        "lock cmpxchg dword ptr [rbx + {worker}], ecx",
        "jne 3f",
        "mov dword ptr [rbx + {clone_errno}], 0",
        "mov dword ptr [rbx + {worker_errno}], 0",
        "mov dword ptr [rbx + {channel_fd}], -1",
        "mov edi, {flags}",
        "lea rsi, [rip + {stack}]",
        "add rsi, {stack_len}",
        "xor edx, edx",
        "lea r10, [rbx + {worker}]",
        "mov r8, qword ptr [rip + {tls}@GOTPCREL]",
        "add r8, {tls_self}",
        "mov eax, 56", // clone
        "syscall",
        "test rax, rax",
        "jz 20f",
        "jns 3f",
        "neg eax",
        "mov dword ptr [rbx + {clone_errno}], eax",
        "mov dword ptr [rbx + {worker}], 0",
        suture_abi::doorbell_return!(),
        // The worker, on its own stack.
        "20:",
        "xor ebp, ebp",
        "call {main}",
        "ud2",
        block = sym BLOCK,
        stack = sym WORKER_STACK,
        stack_len = const WORKER_STACK_LEN,
        tls = sym crate::worker::DUMMY_TLS,
        tls_self = const TLS_SELF,
        main = sym worker_main,
        flags = const CLONE_FLAGS,
        worker = const offset_of!(RuntimeBlock, worker),
        clone_errno = const offset_of!(RuntimeBlock, clone_errno),
        worker_errno = const offset_of!(RuntimeBlock, worker_errno),
        channel_fd = const offset_of!(RuntimeBlock, channel_fd),
    )
}

const _: () = {
    // Offsets are used from the start of these wrappers.
    assert!(size_of::<BlockCell>() == size_of::<RuntimeBlock>());
    assert!(size_of::<WorkerStack>() == WORKER_STACK_LEN);
    assert!(TLS_SELF < size_of::<DummyTls>());
};
