//! The doorbell as a command would ring it.

use super::target::Target;
use std::ffi::c_void;
use std::mem::offset_of;
use suture_abi::block::RuntimeBlock;
use suture_abi::doorbell::{
    Frame, RED_ZONE, RESTART_ALWAYS, RESTART_BLOCK, RESTART_NONE, RESTART_SAME, RESTART_SYS,
};

fn ptrace(request: libc::c_uint, tid: i32, addr: usize, data: usize) {
    // SAFETY: the pointers in `addr` and `data` are those of live locals of the callers.
    let result = unsafe { libc::ptrace(request, tid, addr as *mut c_void, data as *mut c_void) };
    assert!(result >= 0, "ptrace {request:#x}: {}", std::io::Error::last_os_error());
}

/// Rings through one thread.
pub fn ring(target: &Target, tid: i32) {
    ring_with(target, tid, || ());
}

/// Rings through one thread; `late` runs when it is about to be let go with all signals blocked.
pub fn ring_with(target: &Target, tid: i32, late: impl FnOnce()) {
    ptrace(libc::PTRACE_SEIZE, tid, 0, 0);
    ptrace(libc::PTRACE_INTERRUPT, tid, 0, 0);
    let mut status = 0;
    // SAFETY: waits for the thread seized above.
    let waited = unsafe { libc::waitpid(tid, &mut status, libc::__WALL) };
    assert_eq!(waited, tid);
    assert_eq!(status >> 16, libc::PTRACE_EVENT_STOP, "an unexpected stop");
    // SAFETY: plain integers.
    let mut regs: libc::user_regs_struct = unsafe { std::mem::zeroed() };
    ptrace(libc::PTRACE_GETREGS, tid, 0, (&raw mut regs) as usize);
    let mut mask = 0u64;
    ptrace(libc::PTRACE_GETSIGMASK, tid, 8, (&raw mut mask) as usize);
    let in_call = (regs.orig_rax as i64) >= 0;
    if in_call && regs.rax as i64 == -4 {
        regs.rax = -514i64 as u64;
    }
    let restart = match (in_call, -(regs.rax as i64)) {
        (true, 512) => RESTART_SYS,
        (true, 513) => RESTART_ALWAYS,
        (true, 514) => RESTART_SAME,
        (true, 516) => RESTART_BLOCK,
        _ => RESTART_NONE,
    };
    let frame = Frame {
        note: 0,
        mask,
        pending: 0,
        restart,
        orig_rax: regs.orig_rax,
        lifted: 0,
        limit_soft: 0,
        limit_hard: 0,
        r15: regs.r15,
        r14: regs.r14,
        r13: regs.r13,
        r12: regs.r12,
        rbp: regs.rbp,
        rbx: regs.rbx,
        r11: regs.r11,
        r10: regs.r10,
        r9: regs.r9,
        r8: regs.r8,
        rax: regs.rax,
        rcx: regs.rcx,
        rdx: regs.rdx,
        rsi: regs.rsi,
        rdi: regs.rdi,
        rflags: regs.eflags,
        rip: regs.rip,
        wait: 0,
        left: [0; 2],
        over: 0,
    };
    let place = regs.rsp - RED_ZONE - size_of::<Frame>() as u64;
    // SAFETY: `Frame` is u64 words without padding.
    let bytes = unsafe { std::slice::from_raw_parts((&raw const frame).cast::<u8>(), size_of::<Frame>()) };
    target.write(place, bytes);
    regs.rip = target.block_word(offset_of!(RuntimeBlock, doorbell_entry));
    regs.rsp = place;
    regs.orig_rax = u64::MAX;
    ptrace(libc::PTRACE_SETREGS, tid, 0, (&raw mut regs) as usize);
    let all = u64::MAX;
    ptrace(libc::PTRACE_SETSIGMASK, tid, 8, (&raw const all) as usize);
    late();
    ptrace(libc::PTRACE_DETACH, tid, 0, 0);
}
