//! Whether searched code is live on a thread's stacks.
//!
//! A scan of the words first: what is clean needs nothing else. Where a scan finds anything, or cannot prove
//! where the stack ends, the stack is walked and every frame compared.

use super::look::{Looker, Why};
use super::looks::By;
use super::registered::{self, Stack};
use super::threads::Thread;
use crate::threads;
use std::ops::Range;
use suture_elf::{Addr, Memory};
use suture_scan::{End, Hit, Outcome, Ranges, Scanner, StackEnd, Step};
use suture_unwind::{Bottom, Frame, Register, Registers, Walk};

/// What a scan found.
struct Scanned {
    outcome: Outcome,
    /// The first word that leads into one of the ranges.
    first: Option<u64>,
}

impl Scanned {
    fn is_clean(&self) -> bool {
        self.outcome.is_clean()
    }
}

fn unreliable(what: impl Into<String>) -> Why {
    Why::Unreliable(what.into())
}

impl Looker<'_> {
    /// Decides on a thread that is off the processor, or held.
    pub(super) fn verdict(
        &self,
        thread: Thread,
        registers: Registers,
        memory: &dyn Memory,
    ) -> Result<By, Why> {
        let ranges = Ranges::new(&self.searched).map_err(|_| unreliable("no ranges to search"))?;
        // Arenas have no call frame information: seen before the walk stumbles over them.
        if let Some(pc) = registers.pc().filter(|pc| ranges.find(*pc).is_some()) {
            return Err(Why::OnStack { function: self.name(pc), backtrace: vec![self.name(pc)] });
        }
        let sp = registers.sp().ok_or_else(|| unreliable("its stack pointer is not known"))?;
        let stacks = registered::read(self.target, self.stacks).map_err(|e| unreliable(e.to_string()))?;
        self.suspended(&stacks, sp, &ranges)?;
        let by = match stacks.iter().find(|s| s.holds(sp)) {
            None => self.own_stack(thread, registers, sp, &stacks, &ranges, memory),
            Some(stack) => self.coroutine(thread, registers, stack, &stacks, &ranges, memory),
        }?;
        match self.guard.as_ref().and_then(|guard| guard.hidden()) {
            None => Ok(by),
            Some(word) => {
                let what = word.word.map_or_else(|| "anything".into(), |word| self.name(word));
                Err(unreliable(format!("{what} may be on a stack that nobody knows, at {}", word.place)))
            }
        }
    }

    /// A thread that runs on the stack it was started on.
    fn own_stack(
        &self,
        thread: Thread,
        registers: Registers,
        sp: u64,
        stacks: &[Stack],
        ranges: &Ranges<'_>,
        memory: &dyn Memory,
    ) -> Result<By, Why> {
        let contexts = Ranges::new(&self.contexts).unwrap_or_default();
        let scan = |ranges: &Ranges<'_>| self.scan_own(thread, sp, stacks, ranges, memory);
        let has_word = |ranges: &Ranges<'_>| !ranges.list().is_empty() && scan(ranges).outcome.seen > 0;
        let in_context = has_word(&contexts);
        if !in_register(&registers, ranges) && !in_context && scan(ranges).is_clean() {
            return Ok(By::Scan);
        }
        let walk = self.walk(registers, ranges, memory)?;
        match walk.bottom {
            Bottom::ProcessStart | Bottom::ThreadStart => {}
            Bottom::Context => return Err(unreliable("it runs a coroutine that is not registered")),
            Bottom::Unknown { pc } => return Err(unreliable(format!("its stack ends at {pc:#x}"))),
        }
        // No walk passes the frames of a suspended coroutine whose stack is an array of this one. What the
        // scan found of the searched code may be live there.
        if in_context && has_word(ranges) {
            return Err(unreliable("a suspended coroutine seems to lie on its stack"));
        }
        Ok(by(&walk))
    }

    /// A thread that runs on a registered stack: that one, and what lies suspended on its own.
    fn coroutine(
        &self,
        thread: Thread,
        registers: Registers,
        stack: &Stack,
        stacks: &[Stack],
        ranges: &Ranges<'_>,
        memory: &dyn Memory,
    ) -> Result<By, Why> {
        let sp = registers.sp().unwrap_or(stack.high);
        let own = registered::own_start(stacks, sp, &self.target.memory);
        let own = own.ok_or_else(|| unreliable("it runs a coroutine, and nobody says who resumed that"))?;
        let scanned = scan(sp, End::Address(stack.high), ranges, memory, &[]);
        let how = if !in_register(&registers, ranges) && scanned.is_clean() {
            By::Scan
        } else {
            // However it ends: the stack that it is on is known.
            let walk = self.walk(registers, ranges, memory)?;
            if walk.frames.iter().any(|frame| frame.cfa > stack.high) {
                return Err(unreliable("the walk of its coroutine leaves the registered stack"));
            }
            by(&walk)
        };
        let scanned = self.scan_own(thread, own, stacks, ranges, &self.target.memory);
        match (scanned.is_clean(), scanned.first) {
            (true, _) => Ok(how),
            (false, Some(word)) => Err(self.suspended_in(word, "on its own stack")),
            (false, None) => Err(unreliable("it runs a coroutine, and its own stack cannot be read")),
        }
    }

    /// Registered stacks that nothing runs on.
    fn suspended(&self, stacks: &[Stack], sp: u64, ranges: &Ranges<'_>) -> Result<(), Why> {
        let memory = &self.target.memory;
        for stack in stacks.iter().filter(|s| !s.holds(sp)) {
            let start = stack.suspended_at(memory).map_err(|e| unreliable(e.to_string()))?;
            let scanned = scan(start, End::Address(stack.high), ranges, memory, &[]);
            match (scanned.is_clean(), scanned.first) {
                (true, _) => {}
                (false, Some(word)) => return Err(self.suspended_in(word, "on a registered stack")),
                (false, None) => {
                    let what = format!("the registered stack below {:#x} cannot be read", stack.high);
                    return Err(unreliable(what));
                }
            }
        }
        Ok(())
    }

    fn suspended_in(&self, word: u64, place: &str) -> Why {
        let function = self.name(word);
        Why::OnStack { backtrace: vec![format!("{function} (suspended {place})")], function }
    }

    /// Walks to the end; searched code in a frame is an error.
    fn walk(&self, registers: Registers, ranges: &Ranges<'_>, memory: &dyn Memory) -> Result<Walk, Why> {
        let walk = self.unwinder.borrow_mut().walk(registers, memory);
        let walk = walk.map_err(|why| unreliable(why.to_string()))?;
        match walk.frames.iter().find(|f| ranges.find(f.pc).is_some()) {
            None => Ok(walk),
            Some(frame) => {
                Err(Why::OnStack { function: self.name(frame.pc), backtrace: self.backtrace(&walk.frames) })
            }
        }
    }

    /// Scans a thread's own stack from an address to its proven end. Registered stacks in it are passed over.
    fn scan_own(
        &self,
        thread: Thread,
        from: u64,
        stacks: &[Stack],
        ranges: &Ranges<'_>,
        memory: &dyn Memory,
    ) -> Scanned {
        let holes: Vec<_> = stacks.iter().map(Stack::range).collect();
        let main = End::Address(self.layout.main_stack_end);
        if thread.tid == self.target.pid() && self.layout.main_stack_end > from {
            let scanned = scan(from, main, ranges, memory, &holes);
            if scanned.outcome.end != StackEnd::Unproven {
                return scanned;
            }
        }
        let (tid, tid_offset) = (thread.own, self.layout.thread_id);
        if !self.layout.linked {
            return scan(from, End::ThreadBlock { tid, tid_offset }, ranges, memory, &holes);
        }
        let mut scanned = scan(from, End::LinkedBlock { tid, tid_offset }, ranges, memory, &holes);
        if let StackEnd::Proven(at) = scanned.outcome.end
            && !threads::is_linked(memory, Addr(at))
        {
            scanned.outcome.end = StackEnd::Unproven;
        }
        scanned
    }

    /// Where the stack ends that an address lies on, if it is this thread's.
    pub(super) fn own_end(&self, thread: Thread, from: u64) -> Option<u64> {
        let scanned = self.scan_own(thread, from & !7, &[], &Ranges::default(), &self.target.memory);
        match scanned.outcome.end {
            StackEnd::Proven(end) => Some(end),
            StackEnd::Unproven => None,
        }
    }

    fn backtrace(&self, frames: &[Frame]) -> Vec<String> {
        frames.iter().map(|f| self.name(f.pc)).collect()
    }

    /// Name of the function an address lies in, as well as it is known.
    pub(super) fn name(&self, pc: u64) -> String {
        // A return address may lie one past its function.
        let at = pc.wrapping_sub(1);
        if let Some((_, name)) = self.named.iter().find(|(range, _)| range.contains(&at)) {
            return name.clone();
        }
        let unwinder = self.unwinder.borrow();
        let module = unwinder.modules().iter().find(|m| m.range().contains(&at));
        let Some(module) = module else { return format!("{pc:#x}") };
        let short = module.name.rsplit('/').next().unwrap_or(&module.name);
        let offset = pc.wrapping_sub(module.base.0);
        module.symbol_at(at).unwrap_or_else(|| format!("{short}+{offset:#x}"))
    }
}

fn in_register(registers: &Registers, ranges: &Ranges<'_>) -> bool {
    Register::ALL.iter().filter_map(|r| registers.get(*r)).any(|v| ranges.find(v).is_some())
}

fn by(walk: &Walk) -> By {
    if walk.frames.iter().any(|f| f.by_height) { By::Height } else { By::Cfi }
}

/// Most bytes of one stack that are scanned.
const MOST_SCANNED: u64 = 64 << 20;

fn scan(sp: u64, end: End, ranges: &Ranges<'_>, memory: &dyn Memory, holes: &[Range<u64>]) -> Scanned {
    let mut hits = [Hit::default(); 1];
    let mut scanner = Scanner::new(ranges, &mut hits, sp, end);
    let mut bytes = [0; 4096];
    while scanner.next() < sp.saturating_add(MOST_SCANNED) {
        let at = scanner.next();
        // To the end of the page: what comes after it may not be there.
        let piece = &mut bytes[..4096 - (at % 4096) as usize];
        if memory.read(Addr(at), piece).is_err() {
            break;
        }
        let to_word = |b: &[u8; 8]| u64::from_le_bytes(*b);
        let mut words: Vec<u64> = piece.as_chunks::<8>().0.iter().map(to_word).collect();
        if !holes.is_empty() {
            let places = (at..).step_by(8);
            words.iter_mut().zip(places).filter(|(_, at)| holes.iter().any(|h| h.contains(at))).for_each(
                |(word, _)| {
                    *word = 0;
                },
            );
        }
        if scanner.feed(&words) == Step::Ended {
            break;
        }
    }
    let outcome = scanner.finish();
    let first = (outcome.hits > 0).then(|| memory.read_u64(Addr(hits[0].at)).ok()).flatten();
    Scanned { outcome, first }
}
