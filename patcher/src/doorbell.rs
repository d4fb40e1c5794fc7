//! Ringing the doorbell: one thread makes the worker, and goes on as if nothing had happened.
//!
//! The stop is as short as it can be: everything is chosen and computed before, the thread gets a
//! frame below its red zone (`suture_abi::doorbell`) and is let go into the runtime's entry, which
//! does one raw clone and leaves. Nobody waits for it.
//!
//! Order matters for the case that this process dies between two steps:
//! 1. a result of −EINTR becomes −ERESTARTNOHAND, so that a plain detach restarts the call;
//! 2. the frame is written (memory below the red zone: nobody reads it);
//! 3. registers are set — from here the entry finishes the job by itself;
//! 4. signals are blocked, for the few microseconds the entry needs; it puts the mask back;
//! 5. detach.

use crate::error::Error;
use crate::seccomp;
use crate::sys::proc::{self, ThreadFacts};
use crate::sys::ptrace::{Registers, StopError, StoppedThread};
use crate::sys::time::{Backoff, Deadline};
use crate::sys::urgent::Urgent;
use crate::target::{Target, books};
use std::mem::offset_of;
use std::time::{Duration, Instant};
use suture_abi::block::RuntimeBlock;
use suture_abi::doorbell::{self as frame, Frame, RED_ZONE};
use suture_elf::{Addr, Memory};

/// Kernel-internal results of an interrupted call (`linux/errno.h`), seen only by tracers.
const ERESTARTSYS: i64 = 512;
const ERESTARTNOINTR: i64 = 513;
const ERESTARTNOHAND: i64 = 514;
const ERESTART_RESTARTBLOCK: i64 = 516;
const EINTR: i64 = 4;

/// `close`: −EINTR means that the descriptor is gone, so it must never be made again.
const SYS_CLOSE: u64 = 3;
/// vfork and clone: the thread cannot be stopped before its child lets it go.
const NEVER: [u64; 4] = [56, 57, 58, 435];
/// Waits for outside events: threads that sit in one are asked first.
const WAITS: [u64; 14] = [0, 7, 23, 43, 45, 47, 61, 202, 232, 270, 271, 281, 288, 441];

/// What ringing cost the program.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ring {
    /// Thread that was stopped.
    pub tid: i32,
    /// From the request to stop until it was let go.
    pub held: Duration,
    /// Threads that were stopped and let go again unused.
    pub tries: u32,
    /// Where its frame was written.
    pub frame: u64,
}

/// Makes the worker. On return the clone was made or an error says why not.
///
/// # Errors
/// As [`borrow`], or no thread can be made in the process.
pub fn ring(target: &Target, block: Addr, entry: u64, deadline: Deadline) -> Result<Ring, Error> {
    let ring = borrow(target, entry, deadline)?;
    await_worker(target, block, deadline)?;
    Ok(ring)
}

/// Sends one thread through `entry`, which must end with `suture_abi::doorbell_return`.
///
/// # Errors
/// No thread could be stopped, the process is stopped or gone.
pub fn borrow(target: &Target, entry: u64, deadline: Deadline) -> Result<Ring, Error> {
    let pid = target.pid();
    if target.facts.shadow_stack {
        return Err(Error::ShadowStack { pid });
    }
    if target.facts.seccomp != 0 {
        check_filters(target, deadline)?;
    }
    let mut tries = 0;
    let mut backoff = Backoff::default();
    loop {
        let mut stopped_by = None;
        for thread in candidates(pid)? {
            match try_thread(target, entry, thread, deadline) {
                Ok(Some((held, frame))) => return Ok(Ring { tid: thread.tid, held, tries, frame }),
                Ok(None) | Err(StopError::Gone) => tries += 1,
                Err(StopError::Stopped(signal)) => stopped_by = Some(signal),
                Err(StopError::Deadline) => {}
                Err(StopError::Os(e)) => return Err(Error::from_ptrace(target, &e)),
            }
        }
        target.still_there()?;
        if let Some(signal) = stopped_by {
            return Err(Error::Stopped { pid, signal });
        }
        if deadline.passed() {
            return Err(Error::Unreachable { pid, tries });
        }
        backoff.pause();
    }
}

/// Stops one thread to read the program's filters.
fn check_filters(target: &Target, deadline: Deadline) -> Result<(), Error> {
    for thread in candidates(target.pid())? {
        match StoppedThread::stop(thread.tid, deadline) {
            Ok(held) => {
                hide_interruption(&held).map_err(|e| Error::from_ptrace(target, &e))?;
                return seccomp::check(target, &held);
            }
            Err(StopError::Os(e)) => return Err(Error::from_ptrace(target, &e)),
            Err(StopError::Stopped(signal)) => return Err(Error::Stopped { pid: target.pid(), signal }),
            Err(StopError::Gone | StopError::Deadline) => {}
        }
    }
    target.still_there()
}

/// Makes sure that the stop itself is not seen: calls that answer a stop with −EINTR are made to
/// restart, as the kernel does for the others by itself.
///
/// # Errors
/// When the thread was killed meanwhile.
pub fn hide_interruption(held: &StoppedThread) -> std::io::Result<Registers> {
    let mut regs = held.registers()?;
    if in_syscall(&regs) && result(&regs) == -EINTR && regs.orig_rax != SYS_CLOSE {
        regs.rax = (-ERESTARTNOHAND).cast_unsigned();
        held.set_registers(&regs)?;
    }
    Ok(regs)
}

/// The errno an entry left in its frame under the given mark. Only to be asked soon after: the
/// memory is below the thread's stack, and its own again.
#[must_use]
pub fn note(target: &Target, ring: &Ring, mark: u64) -> Option<i32> {
    let note = target.memory.read_u64(Addr(ring.frame)).ok()?;
    (note >> 32 == mark).then_some((note & 0xffff_ffff) as i32)
}

/// Living threads that may be stopped, most suitable first.
fn candidates(pid: i32) -> Result<Vec<ThreadFacts>, Error> {
    let tids = proc::threads(pid).map_err(|e| Error::from_proc(pid, &e))?;
    // Looking at every thread of a large program costs more than the stop itself: the first few
    // that wait for something outside are enough, the rest stay as a second choice.
    let mut threads: Vec<ThreadFacts> = Vec::new();
    for tid in tids {
        let Some(thread) = proc::thread_facts(pid, tid) else { continue };
        let unfit = thread.kernel_made
            || matches!(thread.state, 'Z' | 'X' | 'D' | 't')
            || thread.syscall.is_some_and(|nr| NEVER.contains(&nr));
        if !unfit {
            threads.push(thread);
        }
        if threads.iter().filter(|t| rank(t) == 0).count() == 4 {
            break;
        }
    }
    threads.sort_by_key(rank);
    Ok(threads)
}

fn rank(thread: &ThreadFacts) -> u8 {
    match thread.syscall {
        Some(nr) if thread.state == 'S' && WAITS.contains(&nr) => 0,
        _ if thread.state == 'R' => 1,
        _ => 2,
    }
}

/// Stops one thread and sends it through the entry. `None`: it was not usable and goes on untouched.
fn try_thread(
    target: &Target,
    entry: u64,
    thread: ThreadFacts,
    deadline: Deadline,
) -> Result<Option<(Duration, u64)>, StopError> {
    let _urgent = Urgent::begin();
    let started = Instant::now();
    // No shorter limit than the whole: a thread that was asked to stop and abandoned would stop
    // later, with nobody there to let it go. Threads that cannot stop were sorted out by state.
    let held = StoppedThread::stop(thread.tid, deadline)?;
    let os = StopError::Os;
    let regs = hide_interruption(&held).map_err(os)?;
    let mask = held.signal_mask().map_err(os)?;
    let Some((at, frame)) = plan_frame(&regs, mask, target.facts.caught) else { return Ok(None) };
    // A stack that ends here cannot take the frame; another thread's will.
    if target.memory.write(at, &frame_bytes(&frame)).is_err() {
        return Ok(None);
    }
    let sent = Registers { rip: entry, rsp: at.0, orig_rax: u64::MAX, ..regs };
    held.set_registers(&sent).map_err(os)?;
    held.set_signal_mask(u64::MAX).map_err(os)?;
    held.release().map_err(os)?;
    Ok(Some((started.elapsed(), at.0)))
}

fn in_syscall(regs: &Registers) -> bool {
    regs.orig_rax.cast_signed() >= 0
}

fn result(regs: &Registers) -> i64 {
    regs.rax.cast_signed()
}

/// Where the frame goes and what is in it; `None` when the thread is at a place that the runtime
/// itself owns the rules of (32-bit code).
fn plan_frame(regs: &Registers, mask: u64, caught: u64) -> Option<(Addr, Frame)> {
    const USER_CODE_64: u64 = 0x33;
    if regs.cs != USER_CODE_64 {
        return None;
    }
    let restart = if in_syscall(regs) {
        match -result(regs) {
            ERESTARTSYS => frame::RESTART_SYS,
            ERESTARTNOHAND => frame::RESTART_SAME,
            ERESTARTNOINTR => frame::RESTART_ALWAYS,
            ERESTART_RESTARTBLOCK => frame::RESTART_BLOCK,
            _ => frame::RESTART_NONE,
        }
    } else {
        frame::RESTART_NONE
    };
    let at = regs.rsp.checked_sub(RED_ZONE + size_of::<Frame>() as u64)?;
    let frame = Frame {
        note: 0,
        mask,
        caught,
        pending: 0,
        restart,
        orig_rax: regs.orig_rax,
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
    };
    Some((Addr(at), frame))
}

fn frame_bytes(frame: &Frame) -> Vec<u8> {
    let Frame {
        note,
        mask,
        caught,
        pending,
        restart,
        orig_rax,
        r15,
        r14,
        r13,
        r12,
        rbp,
        rbx,
        r11,
        r10,
        r9,
        r8,
        rax,
        rcx,
        rdx,
        rsi,
        rdi,
        rflags,
        rip,
    } = *frame;
    let words = [
        note, mask, caught, pending, restart, orig_rax, r15, r14, r13, r12, rbp, rbx, r11, r10, r9, r8, rax,
        rcx, rdx, rsi, rdi, rflags, rip,
    ];
    words.iter().flat_map(|w| w.to_le_bytes()).collect()
}

/// Waits until the entry's clone has happened, or failed.
fn await_worker(target: &Target, block: Addr, deadline: Deadline) -> Result<(), Error> {
    let pid = target.pid();
    let mut backoff = Backoff::default();
    loop {
        let errno = books::word(target, block, offset_of!(RuntimeBlock, clone_errno))?;
        if errno != 0 {
            return Err(Error::NoThread { pid, errno: errno.cast_signed() });
        }
        let worker = books::word(target, block, offset_of!(RuntimeBlock, worker))?;
        // A worker that could not make its channel may have come and gone already.
        let gone = books::word(target, block, offset_of!(RuntimeBlock, worker_errno))? != 0;
        if gone || !matches!(worker, 0 | u32::MAX) {
            return Ok(());
        }
        if deadline.passed() {
            return Err(Error::Unreachable { pid, tries: 1 });
        }
        backoff.pause();
    }
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
    fn each_kernel_result_gets_its_restart_rule() {
        let rule = |orig, rax| plan_frame(&regs(orig, rax), 0, 0).unwrap().1.restart;
        assert_eq!(rule(-1, -512), frame::RESTART_NONE, "not in a system call");
        assert_eq!(rule(0, 17), frame::RESTART_NONE, "the call had finished");
        assert_eq!(rule(0, -EINTR), frame::RESTART_NONE, "an EINTR that was left alone is the program's");
        assert_eq!(rule(202, -512), frame::RESTART_SYS);
        assert_eq!(rule(202, -513), frame::RESTART_ALWAYS);
        assert_eq!(rule(232, -514), frame::RESTART_SAME);
        assert_eq!(rule(7, -516), frame::RESTART_BLOCK);
    }

    #[test]
    fn the_frame_ends_where_the_red_zone_begins() {
        let (at, frame) = plan_frame(&regs(0, 0), 5, 6).unwrap();
        assert_eq!(at.0 + frame_bytes(&frame).len() as u64 + RED_ZONE, 0x7000);
        assert_eq!((frame.mask, frame.caught), (5, 6));
        assert!(plan_frame(&Registers { cs: 0x23, ..regs(0, 0) }, 0, 0).is_none(), "32-bit code");
    }
}
