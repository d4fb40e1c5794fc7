//! The host: program code of patches, on a thread of the program.
//!
//! Two sides. *The worker* asks for a job and later for its result ([`run`]), sends the host away
//! ([`dismiss`]). *The host* is a thread of the program that the command has sent here ([`arrive`]): it
//! waits for jobs, runs each, and rings the worker's bell. [`suture_abi::host`] is the protocol.
//!
//! Jobs have numbers. A job that was given is never given again, whatever becomes of its host: its callback may have
//! run half way.
//!
//! # Safety
//!
//! [`arrive`] runs on a borrowed thread at a point where it holds no lock of its C library (the command has
//! made sure), with all signals blocked and every register saved.
#![allow(unsafe_code)]

use crate::arch;
use crate::block::BLOCK;
use crate::sys::mem;
use crate::sys::{Errno, thread};
use crate::worker::SYNCHRONOUS;
use core::ffi::c_int;
use core::sync::atomic::{AtomicPtr, AtomicU32, Ordering};
use suture_abi::host::{
    ARRIVED, BORROWED, COMING, DONE, Functions, GIVEN, Host, IDLE, LEAVE, NONE, OWN, RUNNING, VANISHED,
};

/// Bytes of the stack of a host of its own, guard page included. The C library takes the thread's block from
/// it. Only what is used becomes memory.
const STACK_LEN: u64 = 1 << 20;

/// How long the worker waits for a job that has just been given before it does something else, in
/// nanoseconds: most callbacks are over sooner.
const GRACE: u32 = 500_000;

/// How long a host that waits lets pass until it looks again, in nanoseconds.
const NAP: u32 = 500_000_000;

/// The worker's bell, while it can be rung: a word of its channel.
static BELL: AtomicPtr<AtomicU32> = AtomicPtr::new(core::ptr::null_mut());

/// Code to be run.
#[derive(Clone, Copy, Debug)]
pub struct Work {
    /// Number of the job, never 0 and never used again.
    pub serial: u64,
    /// Address.
    pub code: u64,
    /// Arguments.
    pub args: [u64; 2],
    /// Word of the event it will be, the patch, the state.
    pub about: (u32, u32, u64),
}

/// How it is getting on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// It returned this.
    Returned(u64),
    /// It was ended by this signal, or [`VANISHED`].
    Crashed(u32),
    /// It is running.
    Running,
    /// There is no host.
    NoHost,
}

/// From now on the host rings this. Worker only; the word must stay until [`is_there`] is false.
pub fn set_bell(bell: &AtomicU32) {
    // pairs with: the load in `ring`
    BELL.store(core::ptr::from_ref(bell).cast_mut(), Ordering::Release);
}

/// Gets ready for a host that is about to be sent. Worker only.
pub fn expect(mode: u32, functions: [u64; 5]) -> Result<(), Errno> {
    let host = BLOCK.host();
    drop_vanished(host);
    let free = |state| host.state.compare_exchange(state, NONE, Ordering::Acquire, Ordering::Relaxed).is_ok();
    // One that was sent by a command that died, and has not arrived: whoever comes first is it.
    if !free(NONE) && !free(COMING) {
        return Err(crate::sys::EBUSY);
    }
    if mode == OWN {
        prepare_stack(host)?;
    }
    host.mode.store(mode, Ordering::Relaxed);
    host.errno.store(0, Ordering::Relaxed);
    let Functions { errno_location, attr_init, attr_setstack, attr_setdetachstate, create } = &host.functions;
    let places = [errno_location, attr_init, attr_setstack, attr_setdetachstate, create];
    for (place, function) in places.into_iter().zip(functions) {
        place.store(function, Ordering::Relaxed);
    }
    // pairs with: the swap in `arrive`
    host.state.store(COMING, Ordering::Release);
    Ok(())
}

/// Maps a stack, or takes the last one again when its thread is gone.
fn prepare_stack(host: &Host) -> Result<(), Errno> {
    let (old, last) = (host.stack.load(Ordering::Relaxed), host.stack_tid.load(Ordering::Relaxed));
    if old != 0 && (last == 0 || !thread::exists(thread::getpid(), last)) {
        return Ok(());
    }
    // A stack whose thread may still be on it is left to it for good.
    let stack = mem::map_anywhere(STACK_LEN)?;
    // SAFETY: the lowest page of a mapping that was just made.
    unsafe { mem::protect(stack, mem::PAGE, 0) }?;
    host.stack.store(stack, Ordering::Relaxed);
    host.stack_len.store(STACK_LEN, Ordering::Relaxed);
    Ok(())
}

/// Runs a job, or asks how it is getting on. Worker only.
pub fn run(work: Work) -> Progress {
    let host = BLOCK.host();
    if host.serial.load(Ordering::Relaxed) != work.serial {
        drop_vanished(host);
        if !matches!(host.state.load(Ordering::Acquire), IDLE | DONE) {
            return Progress::NoHost;
        }
        let (kind, patch, subject) = work.about;
        host.serial.store(work.serial, Ordering::Relaxed);
        host.code.store(work.code, Ordering::Relaxed);
        let [first, second] = &host.args;
        first.store(work.args[0], Ordering::Relaxed);
        second.store(work.args[1], Ordering::Relaxed);
        host.kind.store(kind, Ordering::Relaxed);
        host.patch.store(patch, Ordering::Relaxed);
        host.subject.store(subject, Ordering::Relaxed);
        host.since_ns.store(thread::realtime(), Ordering::Relaxed);
        host.crash.store(0, Ordering::Relaxed);
        // pairs with: the host's load in `serve`
        host.state.store(GIVEN, Ordering::Release);
        thread::futex_wake(&host.state);
        wait_a_moment(host);
    }
    match host.state.load(Ordering::Acquire) {
        GIVEN | RUNNING if lives(host) => Progress::Running,
        GIVEN | RUNNING => {
            host.crash.store(VANISHED, Ordering::Relaxed);
            forget(host);
            Progress::Crashed(VANISHED)
        }
        _ => match host.crash.load(Ordering::Relaxed) {
            0 => Progress::Returned(host.result.load(Ordering::Relaxed)),
            crash => Progress::Crashed(crash),
        },
    }
}

/// Whether a job was given already. Worker only.
pub fn was_given(work: &Work) -> bool {
    BLOCK.host().serial.load(Ordering::Relaxed) == work.serial
}

fn wait_a_moment(host: &Host) {
    let until = thread::monotonic().saturating_add(u64::from(GRACE));
    loop {
        let state = host.state.load(Ordering::Acquire);
        if !matches!(state, GIVEN | RUNNING) || thread::monotonic() > until {
            return;
        }
        let _ = thread::futex_wait(&host.state, state, GRACE);
    }
}

/// Sends the host away, one of its own only if `own`. Worker only.
pub fn dismiss(own: bool) {
    let host = BLOCK.host();
    if host.mode.load(Ordering::Relaxed) == OWN && !own {
        return;
    }
    for state in [IDLE, DONE] {
        // pairs with: the host's load in `serve`
        if host.state.compare_exchange(state, LEAVE, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
            thread::futex_wake(&host.state);
        }
    }
}

/// In a process that was forked while a host was on its way or at work, there is none. Worker only, before
/// anything else.
pub fn recover() {
    call_off();
    let host = BLOCK.host();
    let _ = host.state.compare_exchange(ARRIVED, NONE, Ordering::AcqRel, Ordering::Relaxed);
}

/// Nobody is expected any more. Worker only.
pub fn call_off() {
    let host = BLOCK.host();
    let _ = host.state.compare_exchange(COMING, NONE, Ordering::AcqRel, Ordering::Relaxed);
}

/// True while a host is there, or on its way out. Worker only.
pub fn is_there() -> bool {
    let host = BLOCK.host();
    drop_vanished(host);
    !matches!(host.state.load(Ordering::Acquire), NONE | COMING)
}

/// True if a host has finished its job, or has come: there is something to do. Worker only.
pub fn has_news() -> bool {
    matches!(BLOCK.host().state.load(Ordering::Acquire), IDLE | DONE)
}

/// Thread id of a host of its own that is not in program code: it has no frame of any patch.
pub fn idle_tid() -> Option<u32> {
    let host = BLOCK.host();
    let idle = host.mode.load(Ordering::Relaxed) == OWN
        && matches!(host.state.load(Ordering::Acquire), IDLE | DONE | LEAVE);
    idle.then(|| host.tid.load(Ordering::Relaxed)).filter(|tid| *tid != 0)
}

/// True on the thread that is running a callback, while it does. On any thread.
pub fn is_caller() -> bool {
    let host = BLOCK.host();
    // Both words are the caller's own if it is the host.
    host.state.load(Ordering::Relaxed) == RUNNING && host.tid.load(Ordering::Relaxed) == thread::gettid()
}

fn lives(host: &Host) -> bool {
    thread::exists(thread::getpid(), host.tid.load(Ordering::Relaxed))
}

/// Forgets a host that has ended without a word. What state it left depends on where it was; only between its
/// arrival and its first job nothing says which thread it is.
fn drop_vanished(host: &Host) {
    let state = host.state.load(Ordering::Acquire);
    let waits = matches!(state, IDLE | DONE | LEAVE);
    if waits && !lives(host) {
        forget(host);
    }
}

fn forget(host: &Host) {
    host.state.store(NONE, Ordering::Release);
}

// ---- the host's side ----

/// A borrowed thread has come. Called by the entry ([`arch::host`]).
pub extern "C" fn arrive() {
    let host = BLOCK.host();
    // pairs with: the store in `expect`. Two that were sent by two commands do not both get in.
    if host.state.compare_exchange(COMING, ARRIVED, Ordering::Acquire, Ordering::Relaxed).is_err() {
        return;
    }
    let place = errno_place(&host.functions);
    // SAFETY: `__errno_location` gave it: this thread's own word, aligned, and there as long as the thread is.
    let errno = unsafe { place.map(|place| place.read_volatile()) };
    if host.mode.load(Ordering::Relaxed) == BORROWED {
        serve(host);
    } else {
        spawn(host);
    }
    if let (Some(place), Some(errno)) = (place, errno) {
        // SAFETY: as above; nobody but this thread reads or writes it.
        unsafe { place.write_volatile(errno) };
    }
}

fn errno_place(functions: &Functions) -> Option<*mut c_int> {
    let address = functions.errno_location.load(Ordering::Relaxed);
    (address != 0).then(|| {
        // SAFETY: not null. The command looked `__errno_location` up where the program itself would find it, in
        // objects that are never unloaded, before it sent this thread; that function has this type.
        let locate: extern "C" fn() -> *mut c_int = unsafe { core::mem::transmute(address as usize) };
        locate()
    })
}

/// `pthread_attr_t` of x86-64 has 56 bytes.
type Attributes = [u64; 8];
type Start = extern "C" fn(*mut u8) -> *mut u8;

/// Makes a thread for the host.
fn spawn(host: &Host) {
    const PTHREAD_CREATE_DETACHED: c_int = 1;
    let of = |place: &core::sync::atomic::AtomicU64| place.load(Ordering::Relaxed) as usize;
    let functions = &host.functions;
    let mut attributes: Attributes = [0; 8];
    let mut made = 0u64;
    let stack = core::ptr::with_exposed_provenance_mut::<u8>(host.stack.load(Ordering::Relaxed) as usize);
    let stack = stack.wrapping_add(mem::PAGE as usize);
    let len = host.stack_len.load(Ordering::Relaxed).saturating_sub(mem::PAGE) as usize;
    // SAFETY: the command looked the four functions up where the program itself would find them, in objects that
    // are never unloaded, and sends nobody here if one is missing; they have these types. `attributes` is larger
    // than a `pthread_attr_t` and outlives the calls. The stack is a mapping of the worker's of `stack_len` bytes,
    // without its lowest page; it is never unmapped, and used again only when the thread that had it is gone.
    let errno = unsafe {
        let init: extern "C" fn(*mut Attributes) -> c_int = core::mem::transmute(of(&functions.attr_init));
        let set_stack: extern "C" fn(*mut Attributes, *mut u8, usize) -> c_int =
            core::mem::transmute(of(&functions.attr_setstack));
        let set_detached: extern "C" fn(*mut Attributes, c_int) -> c_int =
            core::mem::transmute(of(&functions.attr_setdetachstate));
        let create: extern "C" fn(*mut u64, *const Attributes, Start, *mut u8) -> c_int =
            core::mem::transmute(of(&functions.create));
        let steps = [
            init(&raw mut attributes),
            set_stack(&raw mut attributes, stack, len),
            set_detached(&raw mut attributes, PTHREAD_CREATE_DETACHED),
        ];
        match steps.into_iter().find(|errno| *errno != 0) {
            Some(errno) => errno,
            None => create(&raw mut made, &raw const attributes, host_main, core::ptr::null_mut()),
        }
    };
    if errno != 0 {
        host.errno.store(errno.unsigned_abs(), Ordering::Relaxed);
        ring();
        // pairs with: the worker's and the command's loads. The channel is not touched any more.
        host.state.store(NONE, Ordering::Release);
    }
}

/// Where a thread made for it starts.
extern "C" fn host_main(_: *mut u8) -> *mut u8 {
    let host = BLOCK.host();
    host.stack_tid.store(thread::gettid(), Ordering::Relaxed);
    serve(host);
    core::ptr::null_mut()
}

/// Runs jobs until it is sent away.
fn serve(host: &Host) {
    let own = thread::gettid();
    host.tid.store(own, Ordering::Relaxed);
    // A blocked signal that an instruction raises would end the process past the program's handler.
    let _ = thread::set_mask(!SYNCHRONOUS);
    // pairs with: the worker's loads
    host.state.store(IDLE, Ordering::Release);
    ring();
    loop {
        // pairs with: the worker's stores of GIVEN and LEAVE
        match host.state.load(Ordering::Acquire) {
            GIVEN => {
                host.state.store(RUNNING, Ordering::Relaxed);
                let (code, [first, second]) = (&host.code, &host.args);
                let [code, first, second] = [code, first, second].map(|word| word.load(Ordering::Relaxed));
                // SAFETY: the worker has given a callback that the books name, of a patch whose image is mapped as
                // long as a job of it is on, with that callback's arguments. This thread is the host, at the point
                // that the command chose or in `host_main`, and there is one: `arrive` let it in.
                let (result, crash) = unsafe { arch::host::call(code, first, second) };
                if thread::gettid() != own {
                    // The child of a callback that has forked: the job is its parent's.
                    break;
                }
                host.result.store(result, Ordering::Relaxed);
                host.crash.store(crash, Ordering::Relaxed);
                host.state.store(DONE, Ordering::Release);
                thread::futex_wake(&host.state);
                ring();
            }
            LEAVE => break,
            state => {
                let _ = thread::futex_wait(&host.state, state, NAP);
            }
        }
    }
    // The entry, and the end of a thread, want all blocked.
    let _ = thread::set_mask(u64::MAX);
    // The last the worker hears of it; afterwards neither the channel nor the words here are touched.
    host.state.store(NONE, Ordering::Release);
}

/// Tells the worker. It keeps the bell until the host has gone.
fn ring() {
    let bell = BELL.load(Ordering::Acquire);
    // SAFETY: set by the worker, which keeps the word mapped while a host is there.
    if let Some(bell) = unsafe { bell.as_ref() } {
        bell.fetch_add(1, Ordering::Release);
        thread::futex_wake(bell);
    }
}
