//! Signals of the process under stress: timers whose handler calls the victim, and a recorder for
//! the fatal ones.

use std::mem::{MaybeUninit, zeroed};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::board::Board;
use crate::error::{Error, Result};

/// A handler with the context of the interrupted thread.
pub type Handler = extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void);

/// Installs `handler` for `signal`, on the alternate stack where the thread has one and `own_stack`
/// asks for it.
pub fn install(signal: i32, handler: Handler, own_stack: bool) -> Result<()> {
    // SAFETY: all-zero is a valid sigaction.
    let mut action: libc::sigaction = unsafe { zeroed() };
    action.sa_sigaction = handler as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART;
    if own_stack {
        action.sa_flags |= libc::SA_ONSTACK | libc::SA_NODEFER;
    }
    if signal == libc::SIGTRAP {
        // The timer's handler calls victims: were it to meet a breakpoint inside a handler that has
        // SIGTRAP blocked, the process would end.
        // SAFETY: the mask is part of a zeroed, thus empty and valid, action.
        unsafe { libc::sigaddset(&raw mut action.sa_mask, libc::SIGALRM) };
    }
    // SAFETY: the action is initialised and its handler calls nothing that can lock.
    match unsafe { libc::sigaction(signal, &raw const action, null_mut()) } {
        0 => Ok(()),
        _ => Err(Error::last("install a signal handler")),
    }
}

/// A timer that interrupts the thread that made it, until dropped by that thread.
#[derive(Debug)]
pub struct Interrupter(libc::timer_t);

impl Interrupter {
    /// SIGALRM to the calling thread, every `nanoseconds`.
    pub fn start(nanoseconds: i64) -> Result<Self> {
        // SAFETY: all-zero is a valid sigevent.
        let mut event: libc::sigevent = unsafe { zeroed() };
        event.sigev_notify = libc::SIGEV_THREAD_ID;
        event.sigev_signo = libc::SIGALRM;
        // SAFETY: takes no arguments and cannot fail.
        event.sigev_notify_thread_id = unsafe { libc::gettid() };
        let mut timer = MaybeUninit::uninit();
        // SAFETY: the event is initialised, the place for the timer is a local.
        if unsafe { libc::timer_create(libc::CLOCK_MONOTONIC, &raw mut event, timer.as_mut_ptr()) } != 0 {
            return Err(Error::last("create a timer"));
        }
        // SAFETY: timer_create succeeded and wrote it.
        let this = Self(unsafe { timer.assume_init() });
        let every = libc::timespec { tv_sec: 0, tv_nsec: nanoseconds };
        let value = libc::itimerspec { it_interval: every, it_value: every };
        // SAFETY: the timer exists, the value is initialised.
        match unsafe { libc::timer_settime(this.0, 0, &raw const value, null_mut()) } {
            0 => Ok(this),
            _ => Err(Error::last("start a timer")),
        }
    }
}

impl Drop for Interrupter {
    fn drop(&mut self) {
        // SAFETY: the timer was made by `start` and is deleted once.
        unsafe { libc::timer_delete(self.0) };
    }
}

/// Address of the board the recorder writes to.
static RECORD: AtomicU64 = AtomicU64::new(0);

/// Records fatal signals on `board` before they kill.
pub fn record_faults(board: &'static Board) -> Result<()> {
    RECORD.store(std::ptr::from_ref(board).addr() as u64, Relaxed);
    for signal in [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGTRAP, libc::SIGFPE, libc::SIGABRT] {
        install(signal, on_fault, true)?;
    }
    Ok(())
}

extern "C" fn on_fault(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: `record_faults` stored the address of a board that lives for ever.
    let board = unsafe { &*(RECORD.load(Relaxed) as *const Board) };
    if board.fault_signal.compare_exchange(0, signal as u64, Relaxed, Relaxed).is_ok() {
        board.fault_ip.store(instruction_pointer(context), Relaxed);
        // SAFETY: the kernel passes a valid siginfo to an SA_SIGINFO handler.
        board.fault_addr.store(unsafe { (*info).si_addr() }.addr() as u64, Relaxed);
    }
    // SAFETY: both may be called from a handler; the default action ends the process here.
    unsafe {
        libc::signal(signal, libc::SIG_DFL);
        libc::raise(signal);
    }
}

/// Where the interrupted thread was.
pub fn instruction_pointer(context: *mut libc::c_void) -> u64 {
    let context = context.cast::<libc::ucontext_t>();
    // SAFETY: the kernel passes a valid ucontext to an SA_SIGINFO handler.
    let ip = unsafe { (*context).uc_mcontext.gregs[libc::REG_RIP as usize] };
    ip.cast_unsigned()
}

/// Lets the interrupted thread go on at `ip`.
pub fn set_instruction_pointer(context: *mut libc::c_void, ip: u64) {
    let context = context.cast::<libc::ucontext_t>();
    // SAFETY: the kernel passes a valid, writable ucontext to an SA_SIGINFO handler.
    unsafe { (*context).uc_mcontext.gregs[libc::REG_RIP as usize] = ip.cast_signed() };
}

/// Blocks every signal that can be blocked in the calling thread.
pub fn block_all() {
    let mut set = MaybeUninit::uninit();
    // SAFETY: the set is a local that sigfillset initialises before it is read.
    unsafe {
        libc::sigfillset(set.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, set.as_ptr(), null_mut());
    }
}
