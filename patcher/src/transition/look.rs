//! An exact look at one thread, from outside.
//!
//! A blocked thread is not touched: run count, record, `syscall` line, a walk of its stack by call frame
//! information, run count again, in this order (the runtime's `transition::look` says why). A thread that
//! runs whenever one looks is stopped once, for as long as it takes to read its registers, walk its stack
//! and have the worker move it.

use super::guard::Guard;
use super::late::Late;
use super::looks::Looks;
use super::records::Records;
use super::runs;
use super::threads::{Thread, name as thread_name};
use crate::doorbell;
use crate::error::Error;
use crate::names::{self, Names, Place};
use crate::sys::proc;
use crate::sys::ptrace::{StopError, StoppedThread};
use crate::sys::time::Deadline;
use crate::sys::urgent::Urgent;
use crate::target::Target;
use crate::target::books::Books;
use crate::threads::ThreadLayout;
use crate::view::Cache;
use serde::Serialize;
use std::cell::{Cell, RefCell};
use std::fs;
use std::ops::Range;
use std::time::{Duration, Instant};
use suture_abi::batch::{PROT_EXEC, RANGE_CONTEXT, ROLE_ARENA};
use suture_abi::block::{PATCH_OWN_STACKS, SiteRow};
use suture_abi::channel::Move;
use suture_abi::dispatch::side;
use suture_elf::{Addr, Base, Pages};
use suture_link::ProcessView;
use suture_runtime::transition::searched::{Late as SearchedLate, searched};
use suture_scan::Interval;
use suture_scan::proc::{Runs, Stat, Syscall};
use suture_stack::By;
use suture_unwind::{Module, Register, Registers, Unwinder};

/// What a look says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// Clear of everything searched: it may be moved, if its record still says so.
    Clear(Move),
    /// It is at the goal already.
    There,
    /// It cannot be moved now.
    Held(Why),
    /// It is gone.
    Gone,
}

/// Why a thread cannot be moved now: the kernel's three refusals.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// It runs, or may run unseen (`EBUSY`).
    Running,
    /// The whole process is in a group stop (SIGSTOP), and was left alone.
    Stopped,
    /// Its stack cannot be read for certain (`EINVAL`).
    Unreliable(String),
    /// A searched function is on its stack (`EADDRINUSE`).
    OnStack {
        /// The function.
        function: String,
        /// Functions from the innermost outwards.
        backtrace: Vec<String>,
    },
}

impl std::fmt::Display for Why {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Running => f.write_str("running"),
            Self::Stopped => f.write_str("stopped by a signal"),
            Self::Unreliable(why) => write!(f, "unreliable stack: {why}"),
            Self::OnStack { function, .. } => write!(f, "on function {function}"),
        }
    }
}

/// A thread that holds a transition up, for people.
#[derive(Clone, Debug, Serialize)]
pub struct Blocker {
    /// Thread id.
    pub tid: i32,
    /// Its name.
    pub name: String,
    /// `running`, `stopped`, `unreliable` or `on-stack`.
    pub reason: &'static str,
    /// The reason in words.
    pub why: String,
    /// Searched function on its stack.
    pub function: Option<String>,
    /// Functions on its stack, from the innermost outwards.
    pub backtrace: Vec<String>,
}

impl Blocker {
    /// Describes a thread.
    #[must_use]
    pub fn new(pid: i32, thread: Thread, why: &Why) -> Self {
        let (reason, function, backtrace) = match why {
            Why::Running => ("running", None, Vec::new()),
            Why::Stopped => ("stopped", None, Vec::new()),
            Why::Unreliable(_) => ("unreliable", None, Vec::new()),
            Why::OnStack { function, backtrace } => ("on-stack", Some(function.clone()), backtrace.clone()),
        };
        let name = thread_name(pid, thread.tid);
        Self { tid: thread.tid, name, reason, why: why.to_string(), function, backtrace }
    }
}

/// What asking a thread to stop came to.
enum Hold {
    Gone,
    No(Why),
    Held(StoppedThread),
}

/// Looks at the threads of one transition.
pub struct Looker<'t> {
    pub(super) target: &'t Target,
    pub(super) records: Records,
    transition: u32,
    to_switched: bool,
    pub(super) searched: Vec<Interval>,
    /// Count of objects that came late, of which the above knows.
    pub(super) epoch: u64,
    pub(super) layout: ThreadLayout,
    /// What proves that a thread did not run.
    runs: Runs,
    /// What can be read without a gap, as it was mapped when this was made.
    pub(super) readable: Vec<Range<u64>>,
    pub(super) named: Vec<(Range<u64>, String)>,
    /// Remembers what it learns about the code from one thread to the next.
    pub(super) unwinder: RefCell<Unwinder<Vec<Module>>>,
    /// Where coroutines made by `makecontext` return to.
    pub(super) contexts: Vec<Interval>,
    /// Address of the table of registered stacks.
    pub(super) stacks: u64,
    /// In a program that may have stacks nobody knows.
    pub(super) guard: Option<Guard>,
    /// What the looks so far came to.
    pub looks: Cell<Looks>,
    /// Threads stopped so far, and for how long in all.
    pub stops: u32,
    /// See `stops`.
    pub held: Duration,
}

impl std::fmt::Debug for Looker<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Looker").field("transition", &self.transition).finish_non_exhaustive()
    }
}

impl<'t> Looker<'t> {
    /// A looker for the transition that is going on; `None` when there is none.
    ///
    /// # Errors
    /// When it cannot be found out what is loaded.
    pub fn new(target: &'t Target, books: &Books, cache: &Cache) -> Result<Option<Self>, Error> {
        let Some(t) = books.transition else { return Ok(None) };
        let path = (books.path.start, books.path.end);
        let no_memory = || Error::Unreadable { pid: target.pid(), what: "too much code is searched".into() };
        // Ranges and sites are where their objects are already.
        let late = SearchedLate { bases: &[], code: &books.near() };
        let searched = searched(&books.as_runtime(), &t, path, &late).map_err(|_| no_memory())?;
        let mut looker = Self::searching(target, books, cache, searched)?;
        (looker.transition, looker.to_switched) = (t.id, t.to_switched());
        if books.patches.iter().any(|p| p.row.id == t.patch && p.row.flags & PATCH_OWN_STACKS != 0) {
            looker.guard = Some(Guard::new(&looker, books)?);
        }
        Ok(Some(looker))
    }

    /// A looker without a transition, for [`Looker::outside`].
    ///
    /// # Errors
    /// When it cannot be found out what is loaded.
    pub fn searching(
        target: &'t Target,
        books: &Books,
        cache: &Cache,
        searched: Vec<Interval>,
    ) -> Result<Self, Error> {
        let maps = crate::view::maps(target)?;
        let readable = maps.readable_runs();
        let view = crate::view::process(target, maps, cache)?;
        let mut modules = modules(&view);
        modules.extend(images(&view, books));
        let contexts = books.ranges.iter().filter(|r| r.kind == RANGE_CONTEXT);
        let mut contexts: Vec<_> = contexts.map(|r| Interval { first: r.start, last: r.end }).collect();
        contexts.sort_unstable();
        contexts.dedup();
        Ok(Self {
            target,
            records: Records::of(books),
            transition: 0,
            to_switched: false,
            searched,
            epoch: books.late_epoch,
            layout: crate::threads::layout(target, &view)?,
            runs: runs::known(),
            readable,
            named: named(books),
            contexts,
            stacks: books.stacks,
            guard: None,
            unwinder: RefCell::new(Unwinder::new(modules, arenas(books))),
            looks: Cell::default(),
            stops: 0,
            held: Duration::ZERO,
        })
    }

    /// The process.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.target.pid()
    }

    /// Searches something else from now on.
    pub fn search_for(&mut self, searched: Vec<Interval>) {
        self.searched = searched;
    }

    /// Whether a call stands in front of an address.
    #[must_use]
    pub fn follows_call(&self, addr: u64) -> bool {
        self.unwinder.borrow().follows_call(addr)
    }

    fn is_there(&self, word: u64) -> bool {
        (side(word) == self.transition) == self.to_switched
    }

    /// Whether a thread is at the goal, as far as can be seen.
    #[must_use]
    pub fn is_at_goal(&self, thread: Thread) -> bool {
        self.records.word(self.target, thread.own).is_some_and(|word| self.is_there(word))
    }

    /// Looks at a thread without touching it.
    #[must_use]
    pub fn look(&self, thread: Thread) -> Seen {
        let mut by = None;
        let seen = self.look_now(thread, &mut by);
        self.count(|looks| match (&seen, by) {
            (Seen::Clear(_), Some(By::Scan)) => looks.scan += 1,
            (Seen::Clear(_), Some(By::Cfi)) => looks.cfi += 1,
            (Seen::Clear(_), Some(By::Height)) => looks.height += 1,
            (Seen::Clear(_), None) => looks.no_stack += 1,
            (Seen::Held(why), _) => looks.count_held(why),
            (Seen::There | Seen::Gone, _) => {}
        });
        seen
    }

    fn count(&self, add: impl FnOnce(&mut Looks)) {
        let mut looks = self.looks.get();
        add(&mut looks);
        self.looks.set(looks);
    }

    fn runs_of(&self, thread: Thread) -> Option<Option<u64>> {
        runs::of(self.runs, self.target.pid(), thread.tid)
    }

    /// `by` stays `None` when a clear thread has no stack.
    fn look_now(&self, thread: Thread, by: &mut Option<By>) -> Seen {
        let before = match self.runs_of(thread) {
            None => return Seen::Gone,
            Some(None) => return Seen::Held(Why::Running),
            Some(Some(before)) => before,
        };
        // Without a record of its own nobody can tell whether it passes a dispatcher meanwhile.
        let Some(word) = self.records.word(self.target, thread.own) else { return Seen::Held(Why::Running) };
        if self.is_there(word) {
            return Seen::There;
        }
        if self.guard.as_ref().is_some_and(|guard| !guard.allows(thread, word)) {
            return Seen::Held(Why::Running);
        }
        match self.while_off(thread, before) {
            None => Seen::Gone,
            Some(Ok(how)) => {
                *by = how;
                Seen::Clear(Move { tid: thread.own, reserved: 0, seen: word })
            }
            Some(Err(why)) => Seen::Held(why),
        }
    }

    /// The verdict on a thread that is off the processor from when its run count was `before` until after the look.
    /// `Ok(None)`: it has no stack. `None`: it is gone.
    fn while_off(&self, thread: Thread, before: u64) -> Option<Result<Option<By>, Why>> {
        let file = |name: &str| fs::read(format!("/proc/{}/task/{}/{name}", self.target.pid(), thread.tid));
        let stat = Stat::parse(&file("stat").ok()?)?;
        // The kernel's own, or dead and still listed: neither runs code of the program.
        if stat.is_kernel_made() || stat.is_dead() {
            return Some(Ok(None));
        }
        let (sp, pc) = match Syscall::parse(&file("syscall").ok()?) {
            Some(line @ Syscall::Blocked { sp, pc, .. }) if !line.shares_itself() => (sp, pc),
            Some(Syscall::Elsewhere { .. }) => {
                return Some(Err(Why::Unreliable("blocked outside a system call".into())));
            }
            _ => return Some(Err(Why::Running)),
        };
        // Never a page that is not asked for: behind the end of a stack may lie one that nobody fills (userfaultfd), and
        // whoever reads it waits.
        let stack = Pages::new(&self.target.memory);
        let verdict = self.verdict(thread, Registers::from_pc_sp(pc, sp), &stack);
        if self.runs_of(thread) != Some(Some(before)) {
            return Some(Err(Why::Running));
        }
        Some(verdict.map(Some))
    }

    /// Whether a thread is outside of everything searched, without touching it. One that is gone is.
    ///
    /// # Errors
    /// Why it is not, or cannot be told.
    pub fn outside(&self, thread: Thread) -> Result<(), Why> {
        match self.runs_of(thread) {
            None => Ok(()),
            Some(None) => Err(Why::Running),
            Some(Some(before)) => self.while_off(thread, before).unwrap_or(Ok(None)).map(drop),
        }
    }

    /// The same of a thread that runs, which is stopped for it.
    ///
    /// # Errors
    /// When the kernel refuses to stop it.
    pub fn outside_when_stopped(&self, thread: Thread, late: &mut Late) -> Result<Result<(), Why>, Error> {
        let deadline = Deadline::after(Duration::from_millis(200));
        let _urgent = Urgent::begin();
        let held = match self.hold(thread, deadline, late)? {
            Hold::Gone => return Ok(Ok(())),
            Hold::No(why) => return Ok(Err(why)),
            Hold::Held(held) => held,
        };
        let os = |e: std::io::Error| Error::from_ptrace(self.target, &e);
        let regs = doorbell::hide(&held).map_err(os)?;
        let verdict = self.verdict_held(thread, &regs);
        held.release().map_err(os)?;
        Ok(verdict.map(drop))
    }

    /// Stops a thread.
    fn hold(&self, thread: Thread, deadline: Deadline, late: &mut Late) -> Result<Hold, Error> {
        let facts = proc::thread_facts(self.target.pid(), thread.tid);
        let Some(facts) = facts else { return Ok(Hold::Gone) };
        // The tracer would wait for the child of a vfork, or for a disk.
        if facts.state == 'D' || facts.is_making_child() || late.contains(thread.tid) {
            return Ok(Hold::No(Why::Running));
        }
        let stop = || {
            let mut asked = StoppedThread::ask(thread.tid)?;
            let stopped = asked.await_stop(deadline)?;
            Ok((asked, stopped))
        };
        match stop() {
            Ok((held, true)) => Ok(Hold::Held(held)),
            Ok((asked, false)) => {
                late.push(asked);
                Ok(Hold::No(Why::Running))
            }
            Err(StopError::Gone) => Ok(Hold::Gone),
            Err(StopError::Stopped) => Ok(Hold::No(Why::Stopped)),
            Err(StopError::Os(e)) => Err(Error::from_ptrace(self.target, &e)),
        }
    }

    /// Stops a thread for an instant, looks at it with all its registers, and moves it with `move_it` if it
    /// is clear, before it runs on: a thread that calls a redirected function all the time would have
    /// passed its dispatcher again by then.
    ///
    /// # Errors
    /// When the kernel refuses to stop it, or `move_it` fails.
    pub fn stop_and_move(
        &mut self,
        thread: Thread,
        deadline: Deadline,
        late: &mut Late,
        move_it: &mut dyn FnMut(Move) -> Result<bool, Error>,
    ) -> Result<Seen, Error> {
        let _urgent = Urgent::begin();
        let started = Instant::now();
        let held = match self.hold(thread, deadline, late)? {
            Hold::Gone => return Ok(Seen::Gone),
            Hold::No(why) => return Ok(Seen::Held(why)),
            Hold::Held(held) => held,
        };
        let os = |e: std::io::Error| Error::from_ptrace(self.target, &e);
        let regs = doorbell::hide(&held).map_err(os)?;
        let seen = match self.records.word(self.target, thread.own) {
            None => Seen::Held(Why::Running),
            Some(word) if self.is_there(word) => Seen::There,
            Some(word) => {
                if let Some(guard) = self.guard.as_ref().filter(|guard| !guard.allows(thread, word)) {
                    self.guard = Some(guard.while_held(self)?);
                }
                match self.verdict_held(thread, &regs) {
                    Err(why) => Seen::Held(why),
                    Ok(_) => {
                        let clear = Move { tid: thread.own, reserved: 0, seen: word };
                        if move_it(clear)? { Seen::There } else { Seen::Held(Why::Running) }
                    }
                }
            }
        };
        held.release().map_err(os)?;
        self.stops += 1;
        self.held += started.elapsed();
        self.count(|looks| match &seen {
            // It was moved now, or itself in the instant before.
            Seen::There => looks.ptrace += 1,
            Seen::Held(why) => looks.count_held(why),
            Seen::Clear(_) | Seen::Gone => {}
        });
        Ok(seen)
    }
}

/// Names of the searched code: functions by what their patches say of them, and the engine's own.
fn named(books: &Books) -> Vec<(Range<u64>, String)> {
    let mut named = Vec::new();
    let descriptions = names::descriptions(books);
    let names: Vec<Names<'_>> = descriptions.iter().map(Names::of).collect();
    let name_of = |site: &SiteRow| {
        let place = Place::of(books, site);
        let name = names.iter().find_map(|names| names.at(&place));
        name.map_or_else(|| format!("{:#x}", site.plan.entry), |(name, _)| name)
    };
    for range in books.ranges.iter().filter(|r| r.kind != RANGE_CONTEXT) {
        let mut name = books.site(range.site).map_or_else(|| "0x0".into(), name_of);
        if range.kind == suture_abi::batch::RANGE_NEW {
            let patch = books.patches.iter().find(|p| p.row.id == range.patch);
            name = format!("{name} [{}]", patch.map_or("?", |p| p.name.as_str()));
        }
        named.push((range.start..range.end, name));
    }
    for site in &books.sites {
        let name = name_of(site);
        named.push((site.plan.copy..site.plan.copy + site.plan.copy_len, name));
    }
    for image in &books.images {
        let patch = books.patches.iter().find(|p| p.row.id == image.patch);
        let name = format!("code of patch {}", patch.map_or("?", |p| p.name.as_str()));
        named.push((image.plan.text_start..image.plan.text_end, name));
    }
    named
}

/// The objects of a process, for walks.
pub(crate) fn modules(view: &ProcessView<'_>) -> Vec<Module> {
    let of = |o: &suture_link::LoadedObject| Module::new(o.path.clone(), o.base, o.file.clone());
    view.objects.iter().map(of).collect()
}

/// The images of patches, which exist in memory only.
fn images(view: &ProcessView<'_>, books: &Books) -> Vec<Module> {
    let image = |row: &suture_abi::block::ImageRow| {
        let (plan, name) = (row.plan, format!("patch {}", books.name_of(row.patch)));
        let range = plan.start..plan.end;
        let hdr = Addr(plan.eh_frame_hdr);
        // One that cannot be read has gone meanwhile: a walk that needs it will say so.
        Module::image_in_memory(name, Base(plan.base), &range, hdr, &view.maps, view.memory.0).ok()
    };
    books.images.iter().filter_map(image).collect()
}

/// The runtime's own code without call frame information.
fn arenas(books: &Books) -> Vec<Range<u64>> {
    let is_code = |m: &&suture_abi::block::MappingRow| m.role == ROLE_ARENA && m.prot & PROT_EXEC != 0;
    let mapped = books.mappings.iter().filter(is_code).map(|m| m.addr..m.addr.saturating_add(m.len));
    let near = books.near().into_iter().map(|i| i.first..i.last);
    mapped.chain([books.path.clone()]).chain(near).collect()
}

/// All registers of a stopped thread.
pub(crate) fn registers(regs: &crate::sys::ptrace::Registers) -> Registers {
    let pairs = [
        (Register::RBX, regs.rbx),
        (Register::RBP, regs.rbp),
        (Register(12), regs.r12),
        (Register(13), regs.r13),
        (Register(14), regs.r14),
        (Register(15), regs.r15),
        (Register(0), regs.rax),
        (Register(1), regs.rdx),
        (Register(2), regs.rcx),
        (Register(4), regs.rsi),
        (Register(5), regs.rdi),
        (Register(8), regs.r8),
        (Register(9), regs.r9),
        (Register(10), regs.r10),
        (Register(11), regs.r11),
    ];
    pairs.into_iter().fold(Registers::from_pc_sp(regs.rip, regs.rsp), |r, (register, v)| r.with(register, v))
}
