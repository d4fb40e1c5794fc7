//! The frame of a borrowed thread: where it lies and what is in it.

use super::timeout::Rest;
use crate::sys::ptrace::Registers;
use suture_abi::doorbell::{
    self as abi, Frame, RED_ZONE, RESTART_ALWAYS, RESTART_BLOCK, RESTART_NONE, RESTART_SAME, RESTART_SYS,
};
use suture_elf::Addr;

/// Kernel-internal results of an interrupted call (`linux/errno.h`), seen only by tracers.
const ERESTARTSYS: i64 = 512;
const ERESTARTNOINTR: i64 = 513;
const ERESTARTNOHAND: i64 = 514;
const ERESTART_RESTARTBLOCK: i64 = 516;
const EINTR: i64 = 4;

/// `close`: −EINTR means that the descriptor is gone, so it must never be made again.
const SYS_CLOSE: u64 = 3;

/// 64-bit code.
const USER_CODE_64: u64 = 0x33;
/// The program steps through itself instruction by instruction; the entry must not be stepped through.
const TRAP_FLAG: u64 = 0x100;
/// Faults on words that are not aligned, as those of the frame may be.
const ALIGNMENT_CHECK: u64 = 0x4_0000;

/// Whether the thread is in a system call.
#[must_use]
pub fn in_call(regs: &Registers) -> bool {
    regs.orig_rax.cast_signed() >= 0
}

fn result(regs: &Registers) -> i64 {
    regs.rax.cast_signed()
}

/// Registers with which a stop is not seen: calls that answer it with −EINTR are made to restart, as the
/// kernel does for the others by itself. `None`: they are so already.
#[must_use]
pub fn hidden(regs: &Registers) -> Option<Registers> {
    let seen = in_call(regs) && result(regs) == -EINTR && regs.orig_rax != SYS_CLOSE;
    seen.then_some(Registers { rax: (-ERESTARTNOHAND).cast_unsigned(), ..*regs })
}

/// How the interrupted call goes on.
fn restart(regs: &Registers) -> u64 {
    if !in_call(regs) {
        return RESTART_NONE;
    }
    match -result(regs) {
        ERESTARTSYS => RESTART_SYS,
        ERESTARTNOHAND => RESTART_SAME,
        ERESTARTNOINTR => RESTART_ALWAYS,
        ERESTART_RESTARTBLOCK => RESTART_BLOCK,
        _ => RESTART_NONE,
    }
}

/// Whether the call will be made again by the `syscall` instruction before the program counter.
#[must_use]
pub fn is_made_again(regs: &Registers) -> bool {
    restart(regs) != RESTART_NONE
}

/// Address of the frame and the frame; `None` at a place where the entry cannot run.
#[must_use]
pub fn plan(regs: &Registers, mask: u64) -> Option<(Addr, Frame)> {
    if regs.cs != USER_CODE_64 || regs.eflags & TRAP_FLAG != 0 {
        return None;
    }
    let at = regs.rsp.checked_sub(RED_ZONE + size_of::<Frame>() as u64)?;
    let frame = Frame {
        note: 0,
        mask,
        pending: 0,
        restart: restart(regs),
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
    Some((Addr(at), frame))
}

/// Registers that send the thread into the entry.
#[must_use]
pub fn sent(regs: &Registers, entry: u64, frame: Addr) -> Registers {
    // In no call any more: the entry decides about it, not the kernel.
    let orig_rax = u64::MAX;
    Registers { rip: entry, rsp: frame.0, orig_rax, eflags: regs.eflags & !ALIGNMENT_CHECK, ..*regs }
}

/// Where the `n`th time-out beside an entry lies.
#[must_use]
pub fn timeout_slot(entry: u64, n: u64) -> Addr {
    Addr(entry + abi::TIMEOUT_OFFSET + n % abi::TIMEOUT_SLOTS * 16)
}

/// Lets the call be made again with the rest of its time. `slot` holds the time where the call wants a
/// pointer to it.
pub fn shorten(frame: &mut Frame, rest: Rest, slot: Addr) {
    match rest {
        Rest::Millis(left) => frame.r10 = left,
        Rest::Timespec(2, _) => frame.rdx = slot.0,
        Rest::Timespec(_, _) => frame.r10 = slot.0,
        // Whether the call is to be made again is known better by now.
        Rest::Wait { wait, left, over } if frame.restart == RESTART_SAME => {
            (frame.wait, frame.left, frame.over) = (wait, left, i64::from(over).cast_unsigned());
        }
        Rest::Wait { .. } => {}
    }
}

/// The frame as it lies in memory.
#[must_use]
#[allow(unsafe_code)]
pub fn bytes(frame: &Frame) -> [u8; size_of::<Frame>()] {
    // SAFETY: `Frame` is `repr(C)` and of `u64` fields only: no padding, and any bytes are fine.
    unsafe { std::mem::transmute_copy(frame) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn regs(orig_rax: i64, rax: i64) -> Registers {
        // SAFETY: all-zero is a valid value of this plain struct.
        #[allow(unsafe_code)]
        let zero: Registers = unsafe { std::mem::zeroed() };
        Registers {
            orig_rax: orig_rax.cast_unsigned(),
            rax: rax.cast_unsigned(),
            rsp: 0x7000,
            cs: 0x33,
            ..zero
        }
    }

    #[test]
    fn only_a_call_that_is_made_again_is_waited_for() {
        let rest = Rest::Wait { wait: 1 << 32, left: [1, 2], over: -libc::EAGAIN };
        for (result, over) in [(-514, -11), (17, 0), (-512, 0), (-513, 0)] {
            let (_, mut frame) = plan(&regs(45, result), 0).unwrap();
            shorten(&mut frame, rest, Addr(0));
            assert_eq!(frame.over.cast_signed(), over, "{result}");
        }
    }

    #[test]
    fn each_kernel_result_gets_its_restart_rule() {
        let rule = |orig, rax| plan(&regs(orig, rax), 0).unwrap().1.restart;
        assert_eq!(rule(-1, -512), RESTART_NONE, "not in a system call");
        assert_eq!(rule(0, 17), RESTART_NONE, "the call had finished");
        assert_eq!(rule(0, -EINTR), RESTART_NONE, "an EINTR that was left alone is the program's");
        assert_eq!(rule(202, -512), RESTART_SYS);
        assert_eq!(rule(202, -513), RESTART_ALWAYS);
        assert_eq!(rule(232, -514), RESTART_SAME);
        assert_eq!(rule(7, -516), RESTART_BLOCK);
    }

    #[test]
    fn only_an_eintr_of_a_call_that_may_be_repeated_is_hidden() {
        assert_eq!(hidden(&regs(232, -EINTR)).unwrap().rax.cast_signed(), -514);
        assert!(hidden(&regs(232, -514)).is_none(), "the kernel's own");
        assert!(hidden(&regs(-1, -EINTR)).is_none(), "a number of the program's");
        assert!(hidden(&regs(3, -EINTR)).is_none(), "close");
        assert!(hidden(&regs(232, 1)).is_none(), "a result");
    }

    #[test]
    fn the_frame_ends_where_the_red_zone_begins() {
        let (at, frame) = plan(&regs(0, 0), 5).unwrap();
        assert_eq!(at.0 + bytes(&frame).len() as u64 + RED_ZONE, 0x7000);
        assert_eq!((frame.mask, bytes(&frame)[8]), (5, 5));
    }

    #[test]
    fn the_entry_is_not_entered_where_it_could_not_run() {
        assert!(plan(&Registers { cs: 0x23, ..regs(0, 0) }, 0).is_none(), "32-bit code");
        assert!(plan(&Registers { eflags: 0x302, ..regs(0, 0) }, 0).is_none(), "single steps");
        let checked = Registers { eflags: 0x4_0202, ..regs(0, 0) };
        let (at, frame) = plan(&checked, 0).unwrap();
        assert_eq!((sent(&checked, 1, at).eflags, frame.rflags), (0x202, 0x4_0202), "alignment checks");
    }

    #[test]
    fn a_rest_takes_the_place_of_the_argument() {
        let (_, frame) = plan(&regs(232, -514), 0).unwrap();
        let with = |rest| {
            let mut frame = frame;
            shorten(&mut frame, rest, Addr(0x99));
            (frame.rdx, frame.r10)
        };
        assert_eq!(with(Rest::Millis(7)), (0, 7));
        assert_eq!(with(Rest::Timespec(2, [1, 2])), (0x99, 0));
        assert_eq!(with(Rest::Timespec(3, [1, 2])), (0, 0x99));
        assert_eq!(timeout_slot(0x1000, 0).0, 0x1008);
        assert_eq!(timeout_slot(0x1000, 7).0, 0x1038);
    }
}
