//! Where a thread may be taken for program code of a patch.
//!
//! Such code may allocate, print, make threads. So its thread must be at a point where the program itself could
//! have called any function: not inside the loader, not inside the allocator, not inside the C
//! library but for a wait that holds nothing, not in a signal handler, not in code that runs before `main` or
//! after `exit`. The whole stack is walked by call frame information with all registers; a stack that cannot be
//! walked to its end is no such point.

use crate::doorbell::Place;
use crate::sys::proc::ThreadFacts;
use crate::sys::ptrace::Registers;
use crate::target::Target;
use crate::threads;
use crate::transition::look::{modules, registers};
use std::cell::RefCell;
use std::ops::Range;
use suture_elf::Pages;
use suture_link::{LoadedObject, ProcessView};
use suture_unwind::{Bottom, Frame, Module, Unwinder, Walk};

/// Room a callback gets on a borrowed stack, in bytes.
const ROOM: u64 = 64 << 10;

/// Frames of the C library below `main` or a thread's function: `start_thread` and `clone`, or
/// `__libc_start_call_main` and `__libc_start_main`. One more is `exit` or a destructor of thread-local data.
const START_FRAMES: usize = 2;

/// System calls in which threads wait for something from outside.
const WAITS: [u64; 27] = [
    // read, readv, poll, ppoll, select, pselect6, epoll_wait, epoll_pwait, epoll_pwait2
    0, 19, 7, 271, 23, 270, 232, 281, 441, // accept, accept4, recvfrom, recvmsg, recvmmsg
    43, 288, 45, 47, 299, // pause, rt_sigsuspend, rt_sigtimedwait, wait4, waitid
    34, 130, 128, 61, 247, // nanosleep, clock_nanosleep, futex
    35, 230, 202, // msgrcv, semop, semtimedop, io_getevents, mq_timedreceive
    70, 65, 220, 208, 243,
];

/// Functions of the C library that make such a call and hold nothing meanwhile.
const WRAPPERS: [&str; 48] = [
    "read",
    "readv",
    "poll",
    "ppoll",
    "select",
    "pselect",
    "epoll_wait",
    "epoll_pwait",
    "epoll_pwait2",
    "accept",
    "accept4",
    "recv",
    "recvfrom",
    "recvmsg",
    "recvmmsg",
    "pause",
    "sigsuspend",
    "sigwait",
    "sigwaitinfo",
    "sigtimedwait",
    "wait",
    "wait3",
    "wait4",
    "waitpid",
    "waitid",
    "nanosleep",
    "clock_nanosleep",
    "sleep",
    "usleep",
    "msgrcv",
    "semop",
    "semtimedop",
    "mq_receive",
    "mq_timedreceive",
    "syscall",
    "pthread_cond_wait",
    "pthread_cond_timedwait",
    "pthread_cond_clockwait",
    "cnd_wait",
    "cnd_timedwait",
    "pthread_join",
    "pthread_timedjoin_np",
    "pthread_clockjoin_np",
    "thrd_join",
    "sem_wait",
    "sem_timedwait",
    "sem_clockwait",
    "pthread_barrier_wait",
];

/// What code of a process belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    /// The loader.
    Loader,
    /// The C library.
    Library,
    /// The allocator, where that is an object of its own.
    Allocator,
    /// Everything else.
    Program,
}

/// The points of one process.
pub struct Point<'t> {
    target: &'t Target,
    /// Remembers what it learnt: a thread that was walked before its stop is held the shorter.
    unwinder: RefCell<Unwinder<Vec<Module>>>,
    objects: Vec<(Range<u64>, Owner)>,
    wrappers: Vec<Range<u64>>,
    /// The main executable defines the allocator: its frames may be inside of it.
    own_allocator: bool,
    /// Thread id of the runtime's worker.
    worker: u32,
}

impl<'t> Point<'t> {
    /// Reads what the points of a process are decided by.
    #[must_use]
    pub fn new(target: &'t Target, view: &ProcessView<'_>, worker: u32) -> Self {
        let library = threads::library(view).map(|l| l.base);
        let main = view.objects.iter().position(|o| o.main).unwrap_or(0);
        let scope = view.scope_of(main);
        let allocator = scope.into_iter().map(|at| &view.objects[at]).find(|o| o.defined("malloc").is_some());
        let allocator = allocator.filter(|o| Some(o.base) != library);
        let owner = |o: &LoadedObject| match allocator {
            _ if Some(o.base) == library => Owner::Library,
            _ if o.defined("_dl_find_object").is_some() || o.name.starts_with("ld-") => Owner::Loader,
            Some(allocator) if !allocator.main && allocator.base == o.base => Owner::Allocator,
            _ => Owner::Program,
        };
        let mut wrappers = Vec::new();
        for object in view.objects.iter().filter(|o| Some(o.base) == library) {
            for name in WRAPPERS {
                for symbol in object.tables.named(name).into_iter().filter(|s| s.section != 0) {
                    let start = object.base.0.wrapping_add(symbol.value);
                    wrappers.push(start..start.wrapping_add(symbol.size.max(1)));
                }
            }
        }
        Self {
            target,
            unwinder: RefCell::new(Unwinder::new(modules(view), Vec::new())),
            objects: view.objects.iter().map(|o| (o.range(), owner(o))).collect(),
            wrappers,
            own_allocator: allocator.is_some_and(|o| o.main),
            worker,
        }
    }

    fn owner(&self, pc: u64) -> Owner {
        let found = self.objects.iter().find(|(range, _)| range.contains(&pc));
        found.map_or(Owner::Program, |(_, owner)| *owner)
    }

    fn walk(&self, start: suture_unwind::Registers) -> Option<Walk> {
        let stack = Pages::new(&self.target.memory);
        self.unwinder.borrow_mut().walk(suture_stack::beneath(start, &stack), &stack).ok()
    }

    /// Why a stack is not at a suitable point. `waits` = the thread was stopped in a call of [`WAITS`].
    fn judge(&self, walk: &Walk, waits: bool) -> Option<&'static str> {
        let frames = &walk.frames;
        // The stack of a coroutine may be of any size.
        if !matches!(walk.bottom, Bottom::ProcessStart | Bottom::ThreadStart) {
            return Some("on a stack of its own");
        }
        if frames.iter().any(|f| f.trampoline) {
            return Some("in a signal handler");
        }
        let at =
            |f: &Frame| if f.kind == suture_unwind::FrameKind::Caller { f.pc.wrapping_sub(1) } else { f.pc };
        let owners: Vec<Owner> = frames.iter().map(|f| self.owner(at(f))).collect();
        if owners.contains(&Owner::Loader) {
            return Some("in the loader");
        }
        if owners.contains(&Owner::Allocator) {
            return Some("in the allocator");
        }
        let inner = owners.iter().take_while(|o| **o == Owner::Library).count();
        if inner > 0 {
            // The outermost of them is what the program called.
            let called = frames.get(inner - 1).map_or(0, at);
            if !waits || !self.wrappers.iter().any(|range| range.contains(&called)) {
                return Some("inside the C library");
            }
        } else if self.own_allocator && !waits {
            return Some("in a program with an allocator of its own");
        }
        let mut rest = owners.get(inner..).unwrap_or_default();
        // `_start`, below the C library's own frames.
        if let [before @ .., Owner::Library, Owner::Program] = rest {
            rest = &rest[..before.len() + 1];
        }
        let start = rest.iter().rev().take_while(|o| **o == Owner::Library).count();
        let middle = &rest[..rest.len() - start];
        if middle.is_empty() || start == 0 || start > START_FRAMES || middle.contains(&Owner::Library) {
            return Some("called by the C library");
        }
        None
    }

    fn has_room(&self, sp: u64) -> bool {
        let Ok(maps) = self.target.maps() else { return false };
        let Some(region) = maps.region_at(sp) else { return false };
        // The first thread's stack grows by itself.
        region.path.as_deref() == Some("[stack]") || sp - region.start >= ROOM
    }
}

impl std::fmt::Debug for Point<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Point").field("own_allocator", &self.own_allocator).finish_non_exhaustive()
    }
}

impl Place for Point<'_> {
    fn unfit(&self, thread: &ThreadFacts) -> Option<&'static str> {
        if i64::from(thread.tid) == i64::from(self.worker) {
            return Some("made by the runtime");
        }
        let Some(call) = thread.call.as_ref() else {
            return (thread.state != 'R').then_some("blocked outside a system call");
        };
        if !WAITS.contains(&call.nr) {
            return Some("in a call that may hold something");
        }
        // Most are told apart without a stop. One whose walk needs its registers may be at such a point.
        let start = suture_unwind::Registers::from_pc_sp(call.pc, call.sp);
        let walk = self.walk(start)?;
        self.judge(&walk, true)
    }

    fn refusal(&self, regs: &Registers) -> Option<&'static str> {
        let waits = regs.orig_rax.cast_signed() >= 0 && WAITS.contains(&regs.orig_rax);
        let Some(walk) = self.walk(registers(regs)) else {
            return Some("on a stack that cannot be walked");
        };
        self.judge(&walk, waits).or_else(|| (!self.has_room(regs.rsp)).then_some("short of stack"))
    }
}
