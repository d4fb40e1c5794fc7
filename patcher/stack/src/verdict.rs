//! Whether searched code is live on a thread's stacks.
//!
//! A scan of the words first: what is clean needs nothing else. Where a scan finds anything, or cannot prove
//! where the stack ends, the stack is walked and every frame compared. A scan that cannot prove it anyway is left
//! out: it would go through all that is mapped behind a stack of the program's own, while the thread may be held.
//!
//! # Which addresses are inside
//!
//! | what is looked at | inside a function whose entry is hooked | inside any other code |
//! |---|---|---|
//! | word of a stack, its meaning unknown | `(start, end]` | `[start, end]` |
//! | program counter of a frame | `(start, end)` | `[start, end)` |
//! | return address of a frame | `(start, end]` | `(start, end]` |
//!
//! * A *word* may be a return address or a program counter that a signal interrupted, so it is inside if it would
//!   be as one or the other. These are the bounds of the table ([`Interval`](suture_scan::Interval)).
//! * A *program counter* is exact: at the end stands the next function.
//! * A *return address* belongs to the call in front of it, so the address before it decides. It equals the end
//!   where the call is the last instruction. At the start it belongs to the function in front, whose last call does
//!   not return: a thread that waits for ever below such a call would hold the transition up for ever.

use crate::ends::{OwnThread, ThreadLayout};
use crate::entry::beneath;
use crate::registered::{self, Stack};
use crate::scan::{Scanned, scan};
use std::fmt;
use std::ops::Range;
use suture_elf::{Memory, MemoryError};
use suture_scan::{End, Ranges};
use suture_unwind::{Bottom, Frame, FrameKind, Module, Register, Registers, Unreliable, Unwinder, Walk};
use thiserror::Error;

/// By what a stack was found clear.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// A scan of its words.
    Scan,
    /// A walk with call frame information.
    Cfi,
    /// A walk with a stack height from code.
    Height,
}

/// Why a thread is not clear.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Refusal {
    /// Searched code is on its stack.
    #[error("searched code is on the stack, at {pc:#x}")]
    OnStack {
        /// Program counter or return address in it.
        pc: u64,
        /// Those of all frames, from the innermost outwards.
        frames: Vec<u64>,
    },
    /// Searched code seems to be on a stack that is suspended.
    #[error("searched code seems to be suspended {place}, at {word:#x}")]
    Suspended {
        /// The word that leads there.
        word: u64,
        /// The stack.
        place: Place,
    },
    /// A stack cannot be read for certain.
    #[error(transparent)]
    Unreliable(#[from] Doubt),
}

/// A stack that a thread suspended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The one it was started on, while it runs a coroutine.
    Own,
    /// That of a coroutine.
    Registered,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Own => "on its own stack",
            Self::Registered => "on a registered stack",
        })
    }
}

/// Why a stack cannot be read for certain.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Doubt {
    /// Nothing to start from.
    #[error("its stack pointer is not known")]
    NoStackPointer,
    /// The table of registered stacks.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The walk.
    #[error(transparent)]
    Walk(#[from] Unreliable),
    /// It stands on the start of a context.
    #[error("it runs a coroutine that is not registered")]
    Coroutine,
    /// It stands on something unknown.
    #[error("its stack ends at {pc:#x}")]
    Bottom {
        /// Program counter of the outermost frame.
        pc: u64,
    },
    /// Where a context would return to, and searched code, in words that the walk did not pass as frames.
    #[error("a suspended coroutine seems to lie on its stack")]
    Inside,
    /// It runs on a registered stack.
    #[error("it runs a coroutine, and nobody says who resumed that")]
    NoResumer,
    /// A frame lies above the stack it runs on.
    #[error("the walk of its coroutine leaves the registered stack")]
    LeavesRegistered,
    /// It runs on a registered stack, and where its own ends is not proven.
    #[error("it runs a coroutine, and its own stack cannot be read")]
    OwnUnreadable,
    /// A suspended stack.
    #[error("the registered stack below {high:#x} cannot be read")]
    RegisteredUnreadable {
        /// Address behind it.
        high: u64,
    },
}

/// What the threads of one process are compared with.
pub struct StackCheck<'a, M> {
    /// Code that must not be live.
    pub searched: Ranges<'a>,
    /// Where functions of `makecontext` return to.
    pub contexts: Ranges<'a>,
    /// How the ends of stacks are recognised.
    pub layout: ThreadLayout,
    /// Address of the table of registered stacks (0 = there is none).
    pub stacks: u64,
    /// The process's memory.
    pub memory: &'a dyn Memory,
    /// What of it can be read without a gap, in order. It may have changed since.
    pub readable: &'a [Range<u64>],
    /// Over the process's objects.
    pub unwinder: &'a mut Unwinder<M>,
}

impl<M> fmt::Debug for StackCheck<'_, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StackCheck").field("searched", &self.searched).finish_non_exhaustive()
    }
}

/// The stack that a thread stands on.
struct Standing<'a> {
    thread: OwnThread,
    registers: Registers,
    sp: u64,
    /// The process's memory, with that stack read in larger pieces.
    memory: &'a dyn Memory,
}

impl<M: AsRef<[Module]>> StackCheck<'_, M> {
    /// Decides on a thread that is off the processor, or held. `memory` is the process's, with the thread's stack
    /// read in larger pieces.
    ///
    /// # Errors
    /// Why it is not clear.
    ///
    /// # Examples
    /// ```no_run
    /// # use suture_stack::ends::{OwnThread, ThreadLayout};
    /// # use suture_stack::{By, Refusal, StackCheck};
    /// # fn example(layout: ThreadLayout, modules: Vec<suture_unwind::Module>, memory: &dyn suture_elf::Memory,
    /// #     line: &[u8]) {
    /// let searched = [suture_scan::Interval { first: 0x40_1001, last: 0x40_1080 }];
    /// let mut check = StackCheck {
    ///     searched: suture_scan::Ranges::new(&searched).unwrap(),
    ///     contexts: suture_scan::Ranges::default(),
    ///     layout,
    ///     stacks: 0,
    ///     memory,
    ///     readable: &[],
    ///     unwinder: &mut suture_unwind::Unwinder::new(modules, Vec::new()),
    /// };
    /// // A line of /proc/PID/task/TID/syscall, between two equal run counts.
    /// let Some(suture_scan::proc::Syscall::Blocked { sp, pc, .. }) = suture_scan::proc::Syscall::parse(line) else { return };
    /// let thread = OwnThread { tid: 4711, main: true, block: None };
    /// match check.check(thread, suture_unwind::Registers::from_pc_sp(pc, sp), memory) {
    ///     Ok(By::Scan) => println!("no word leads there"),
    ///     Ok(_) => println!("no frame does"),
    ///     Err(refusal) => println!("{refusal}"),
    /// }
    /// # }
    /// ```
    pub fn check(
        &mut self,
        thread: OwnThread,
        registers: Registers,
        memory: &dyn Memory,
    ) -> Result<By, Refusal> {
        // Arenas have no call frame information: seen before the walk stumbles over them.
        if let Some(pc) = registers.pc().filter(|pc| holds_pc(&self.searched, *pc)) {
            return Err(Refusal::OnStack { pc, frames: vec![pc] });
        }
        let sp = registers.sp().ok_or(Doubt::NoStackPointer)?;
        let stacks = registered::read(self.memory, self.stacks).map_err(Doubt::Memory)?;
        self.suspended(&stacks, sp)?;
        let standing = Standing { thread, registers, sp, memory };
        match stacks.iter().find(|s| s.holds(sp)) {
            None => self.own_stack(&standing, &stacks),
            Some(stack) => self.coroutine(&standing, stack, &stacks),
        }
    }

    /// A thread that runs on the stack it was started on.
    fn own_stack(&mut self, at: &Standing<'_>, stacks: &[Stack]) -> Result<By, Refusal> {
        let holes: Vec<_> = stacks.iter().map(Stack::range).collect();
        let layout = self.layout;
        let scan = |ranges: &Ranges<'_>| layout.scan(at.thread, at.sp, ranges, at.memory, &holes);
        let has_word = |ranges: &Ranges<'_>| !ranges.list().is_empty() && scan(ranges).outcome.seen > 0;
        if self.may_be_scanned(at) && scan(&self.searched).is_clean() && !has_word(&self.contexts) {
            return Ok(By::Scan);
        }
        let walk = self.walk(at)?;
        match walk.bottom {
            Bottom::ProcessStart | Bottom::ThreadStart => {}
            Bottom::Context => return Err(Doubt::Coroutine.into()),
            Bottom::Unknown { pc } => return Err(Doubt::Bottom { pc }.into()),
        }
        // No walk passes the frames of a suspended coroutine whose stack is an array of this one. What the
        // scan found of the searched code may be live there.
        if has_word(&self.contexts) && has_word(&self.searched) {
            return Err(Doubt::Inside.into());
        }
        Ok(by(&walk))
    }

    /// Whether a scan may say that a thread's own stack is clear.
    fn may_be_scanned(&self, at: &Standing<'_>) -> bool {
        let run = self.readable.partition_point(|run| run.end <= at.sp);
        let run = self.readable.get(run).filter(|run| run.contains(&at.sp));
        // What was mapped since nobody knows.
        run.is_none_or(|run| self.layout.may_prove(at.thread, at.sp, run.end))
            && !in_register(&at.registers, &self.searched)
    }

    /// A thread that runs on a registered stack: that one, and what lies suspended on its own.
    fn coroutine(&mut self, at: &Standing<'_>, stack: &Stack, stacks: &[Stack]) -> Result<By, Refusal> {
        let own = registered::own_start(stacks, at.sp, self.memory).ok_or(Doubt::NoResumer)?;
        let scanned = scan(at.sp, End::Address(stack.high), &self.searched, at.memory, &[]);
        let how = if !in_register(&at.registers, &self.searched) && scanned.is_clean() {
            By::Scan
        } else {
            // However it ends: the stack that it is on is known.
            let walk = self.walk(at)?;
            if walk.frames.iter().any(|frame| frame.cfa > stack.high) {
                return Err(Doubt::LeavesRegistered.into());
            }
            by(&walk)
        };
        let holes: Vec<_> = stacks.iter().map(Stack::range).collect();
        let scanned = self.layout.scan(at.thread, own, &self.searched, self.memory, &holes);
        is_clean_or(&scanned, Place::Own, Doubt::OwnUnreadable)?;
        Ok(how)
    }

    /// Registered stacks that nothing runs on.
    fn suspended(&self, stacks: &[Stack], sp: u64) -> Result<(), Refusal> {
        for stack in stacks.iter().filter(|s| !s.holds(sp)) {
            let start = stack.suspended_at(self.memory).map_err(Doubt::Memory)?;
            let scanned = scan(start, End::Address(stack.high), &self.searched, self.memory, &[]);
            is_clean_or(&scanned, Place::Registered, Doubt::RegisteredUnreadable { high: stack.high })?;
        }
        Ok(())
    }

    /// Walks to the end; searched code in a frame is an error.
    fn walk(&mut self, at: &Standing<'_>) -> Result<Walk, Refusal> {
        let registers = beneath(at.registers, at.memory);
        let walk = self.unwinder.walk(registers, at.memory).map_err(Doubt::Walk)?;
        match walk.frames.iter().find(|frame| is_live(frame, &self.searched)) {
            None => Ok(walk),
            Some(frame) => {
                let frames = walk.frames.iter().map(|f| f.pc).collect();
                Err(Refusal::OnStack { pc: frame.pc, frames })
            }
        }
    }
}

/// What a scan of a suspended stack comes to: a word in it is taken for a frame.
fn is_clean_or(scanned: &Scanned, place: Place, unreadable: Doubt) -> Result<(), Refusal> {
    match (scanned.is_clean(), scanned.first) {
        (true, _) => Ok(()),
        (false, Some(word)) => Err(Refusal::Suspended { word, place }),
        (false, None) => Err(unreadable.into()),
    }
}

/// Whether a frame is one of searched code.
fn is_live(frame: &Frame, searched: &Ranges<'_>) -> bool {
    match frame.kind {
        FrameKind::Caller => holds_pc(searched, frame.pc.wrapping_sub(1)),
        FrameKind::Innermost | FrameKind::Interrupted => holds_pc(searched, frame.pc),
    }
}

/// Whether an instruction belongs to one of the ranges. The last address of an interval is the end of its code.
fn holds_pc(ranges: &Ranges<'_>, pc: u64) -> bool {
    let found = ranges.find(pc).and_then(|index| ranges.list().get(index as usize));
    found.is_some_and(|interval| pc < interval.last)
}

fn in_register(registers: &Registers, ranges: &Ranges<'_>) -> bool {
    Register::ALL.iter().filter_map(|r| registers.get(*r)).any(|v| ranges.find(v).is_some())
}

fn by(walk: &Walk) -> By {
    if walk.frames.iter().any(|f| f.by_height) { By::Height } else { By::Cfi }
}

#[cfg(test)]
mod tests;
