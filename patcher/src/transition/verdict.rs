//! The verdict on a thread ([`suture_stack`]), in words.

use super::look::{Looker, Why, registers};
use super::threads::Thread;
use crate::sys::ptrace;
use suture_elf::{Memory, Pages};
use suture_scan::Ranges;
use suture_stack::ends::OwnThread;
use suture_stack::{By, Refusal, StackCheck};
use suture_unwind::Registers;

fn unreliable(what: impl Into<String>) -> Why {
    Why::Unreliable(what.into())
}

impl Looker<'_> {
    /// Decides on a thread that is off the processor.
    pub(super) fn verdict(
        &self,
        thread: Thread,
        registers: Registers,
        memory: &dyn Memory,
    ) -> Result<By, Why> {
        self.verdict_on(self.own(thread), registers, memory)
    }

    /// Decides on a thread that is held.
    pub(super) fn verdict_held(&self, thread: Thread, regs: &ptrace::Registers) -> Result<By, Why> {
        let own = OwnThread { block: Some(regs.fs_base), ..self.own(thread) };
        self.verdict_on(own, registers(regs), &Pages::new(&self.target.memory))
    }

    fn verdict_on(&self, own: OwnThread, registers: Registers, memory: &dyn Memory) -> Result<By, Why> {
        let searched = Ranges::new(&self.searched).map_err(|_| unreliable("no ranges to search"))?;
        let mut unwinder = self.unwinder.borrow_mut();
        let mut check = StackCheck {
            searched,
            contexts: Ranges::new(&self.contexts).unwrap_or_default(),
            layout: self.layout,
            stacks: self.stacks,
            memory: &self.target.memory,
            readable: &self.readable,
            unwinder: &mut unwinder,
        };
        let by = check.check(own, registers, memory);
        drop(unwinder);
        let by = by.map_err(|refusal| self.why(refusal))?;
        match self.guard.as_ref().and_then(|guard| guard.hidden()) {
            None => Ok(by),
            Some(word) => {
                let what = word.word.map_or_else(|| "anything".into(), |word| self.name(word));
                Err(unreliable(format!("{what} may be on a stack that nobody knows, at {}", word.place)))
            }
        }
    }

    fn own(&self, thread: Thread) -> OwnThread {
        OwnThread { tid: thread.own, main: thread.tid == self.target.pid(), block: None }
    }

    /// Where the stack ends that an address lies on, if it is this thread's.
    #[must_use]
    pub fn end_of_stack(&self, thread: Thread, at: u64) -> Option<u64> {
        self.layout.end_of(self.own(thread), at, &self.target.memory)
    }

    fn why(&self, refusal: Refusal) -> Why {
        match refusal {
            Refusal::OnStack { pc, frames } => {
                let backtrace = frames.into_iter().map(|pc| self.name(pc)).collect();
                Why::OnStack { function: self.name(pc), backtrace }
            }
            Refusal::Suspended { word, place } => {
                let function = self.name(word);
                Why::OnStack { backtrace: vec![format!("{function} (suspended {place})")], function }
            }
            Refusal::Unreliable(doubt) => unreliable(doubt.to_string()),
        }
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
