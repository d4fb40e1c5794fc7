//! The worker: the one thread of the runtime, alive while a command is connected.
//!
//! Made by the doorbell with a raw clone, so libc does not know it and a single-threaded program stays
//! one. It has its own stack, its own empty descriptor table and a dummy TLS block, and blocks every
//! signal except those its own instructions can raise (a debugger's or a probe's trap in code it runs
//! must not kill the process).
//!
//! # Safety
//!
//! There is never more than one worker: the doorbell entry claims the worker's word, the kernel clears
//! it when the thread is off its stack. So what is here may use the statics without locks.
#![allow(unsafe_code)]

use crate::alloc::ARENA;
use crate::block::{BLOCK, NO_CHANNEL};
use crate::channel::Channel;
use crate::commit::{self, Engine};
use crate::publish;
use crate::sys::mem::{PROT_READ, PROT_WRITE};
use crate::sys::{self, ENOMEM, Errno};
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU32, Ordering};

/// Bytes of the worker's stack, guard page included.
pub const WORKER_STACK_LEN: usize = 64 * 1024;

/// The worker's stack.
#[repr(C, align(4096))]
#[derive(Debug)]
pub struct WorkerStack(UnsafeCell<[u8; WORKER_STACK_LEN]>);

// SAFETY: used by the one worker only, as its stack.
unsafe impl Sync for WorkerStack {}

/// The worker's stack. In `.bss`: costs nothing before the first worker.
pub static WORKER_STACK: WorkerStack = WorkerStack(UnsafeCell::new([0; WORKER_STACK_LEN]));

/// Offset in [`DummyTls`] the worker's `fs` points at. Room on both sides, because resolvers of other
/// objects that run on the worker may look at static TLS or at their C library's thread header.
pub const TLS_SELF: usize = 1024;

/// What `fs` of the worker points into.
#[repr(C, align(64))]
#[derive(Debug)]
pub struct DummyTls(UnsafeCell<[u64; 512]>);

// SAFETY: written by the worker at its start, read through `fs` by code that runs on the worker.
unsafe impl Sync for DummyTls {}

/// The worker's dummy TLS block.
pub static DUMMY_TLS: DummyTls = DummyTls(UnsafeCell::new([0; 512]));

/// Left in the block by a worker that met a fault of its own.
const EPROTO: u32 = 71;

/// SIGILL, SIGTRAP, SIGBUS, SIGFPE, SIGSEGV and SIGSYS: what an instruction can raise.
pub const SYNCHRONOUS: u64 = (1 << 3) | (1 << 4) | (1 << 6) | (1 << 7) | (1 << 10) | (1 << 30);

/// Not 0 from the start of a worker until its orderly end. A worker that finds it set comes after one
/// that died, or lives in a process that was forked while its parent's was at work: the arena and the
/// slots may be in any state. Only the worker touches it.
///
/// A forked child has what the worker has stored up to some instruction, and nothing behind it: fork takes the right
/// to write from one page after the other, and the worker stops at its first store into one that was taken. So it is
/// enough that in the order of the program nothing of the arena is touched before the swap and after the store; that
/// order the two orderings keep the compiler from changing.
static UNFINISHED: AtomicU32 = AtomicU32::new(0);

/// Where the worker starts, on its own stack with all signals blocked.
pub extern "C" fn worker_main() -> ! {
    prepare_thread();
    if let Err(errno) = work() {
        BLOCK.worker_errno().store(errno.0, Ordering::Relaxed);
    }
    BLOCK.channel_fd().store(NO_CHANNEL, Ordering::Release);
    leave_stack();
    // SAFETY: this is the worker.
    unsafe { sys::thread::exit_thread() }
}

/// Gives the stack back but for what is still needed of it, and lets its mapping be one again. Every fork of the
/// program would copy the pages and the mappings.
fn leave_stack() {
    let stack = WORKER_STACK.0.get().expose_provenance() as u64;
    // SAFETY: adds rights to a page of the runtime's own.
    let _ = unsafe { sys::mem::protect(stack, sys::mem::PAGE, PROT_READ | PROT_WRITE) };
    let here = 0u64;
    let used = (&raw const here).expose_provenance() as u64 & !(sys::mem::PAGE - 1);
    // The page below is for what is called from here on.
    let len = used.saturating_sub(sys::mem::PAGE).saturating_sub(stack);
    // SAFETY: this thread's own stack, below all its frames; the kernel puts no signal frame there, because all signals
    // but those of a fault are blocked.
    let _ = unsafe { sys::mem::forget(stack, len) };
}

fn work() -> Result<(), Errno> {
    // SAFETY: the doorbell's clone gave this thread a table of its own, and no descriptor was opened.
    unsafe { sys::fd::close_all() }?;
    if UNFINISHED.swap(1, Ordering::AcqRel) != 0 {
        // SAFETY: this is the worker, and nothing of the old arena is freed after the rescue.
        unsafe {
            ARENA.abandon();
            publish::rescue().map_err(|_| ENOMEM)?;
        }
        commit::recover().map_err(|_| ENOMEM)?;
    }
    let served = serve();
    UNFINISHED.store(0, Ordering::Release);
    served
}

/// Everything that needs the arena, up to the last byte it gives back.
fn serve() -> Result<(), Errno> {
    let mut engine = Engine::default();
    let served = Channel::open().map(|mut channel| channel.serve(&mut engine));
    engine.client_gone();
    drop(engine);
    // SAFETY: this is the worker.
    unsafe { ARENA.purge() };
    served
}

/// Ends the worker after a fault of its own. On a thread of the program there is no way on.
pub fn give_up() -> ! {
    if sys::thread::gettid() != BLOCK.worker().load(Ordering::Relaxed) {
        // A defined trap instead of a thread that vanishes without its C library knowing.
        // SAFETY: raises SIGILL and never continues.
        unsafe { core::arch::asm!("ud2", options(noreturn, nomem, nostack)) }
    }
    BLOCK.worker_errno().store(EPROTO, Ordering::Relaxed);
    BLOCK.channel_fd().store(NO_CHANNEL, Ordering::Release);
    // SAFETY: this is the worker.
    unsafe { sys::thread::exit_thread() }
}

/// Guard page, TLS words, signal mask. Each may fail without harm: they only catch other faults.
fn prepare_thread() {
    let stack = WORKER_STACK.0.get().expose_provenance() as u64;
    // SAFETY: the lowest page of a stack that is used from its top; no right anybody needs is lost.
    let _ = unsafe { sys::mem::protect(stack, sys::mem::PAGE, 0) };
    let tls = DUMMY_TLS.0.get().cast::<u64>();
    let self_addr = tls.wrapping_byte_add(TLS_SELF).expose_provenance() as u64;
    // The words x86-64 code finds at fs:0 (self), fs:0x10 (self), fs:0x28 (stack protector).
    for (at, value) in [(0, self_addr), (0x10, self_addr), (0x28, self_addr.rotate_left(17) & !0xff)] {
        // SAFETY: TLS_SELF + 0x28 + 8 lies inside the block, aligned, and only the worker writes it.
        unsafe { tls.wrapping_byte_add(TLS_SELF).wrapping_byte_add(at).write_volatile(value) };
    }
    let _ = sys::thread::set_mask(!SYNCHRONOUS);
}
