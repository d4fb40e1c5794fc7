//! Registers that code reads before it writes them.

use super::{DEPTH, Flow, Next, caller_saved};
use crate::effects::{Effect, RegSet};
use crate::refs::direct_branch;
use iced_x86::{FlowControl, Instruction, Mnemonic, Register};
use rustc_hash::FxHashMap;
use suture_elf::Vaddr;

/// Instructions looked at for one question. What is not decided by then counts as read.
const LIMIT: usize = 2_000;

/// Registers the ABI passes integer arguments in, in order.
const ARGUMENTS: [Register; 6] =
    [Register::RDI, Register::RSI, Register::RDX, Register::RCX, Register::R8, Register::R9];

/// Registers the kernel takes arguments of system calls in.
const SYSCALL_ARGUMENTS: [Register; 6] =
    [Register::RDI, Register::RSI, Register::RDX, Register::R10, Register::R8, Register::R9];

/// One question: which registers of a set are read.
struct Question {
    /// Those that are, as far as known.
    live: RegSet,
    /// What was open at an instruction on some path already.
    seen: FxHashMap<Vaddr, RegSet>,
    /// Paths to follow, and what is open on them.
    work: Vec<(Vaddr, RegSet)>,
    budget: usize,
    /// Calls followed, at most.
    depth: usize,
    /// Only what is read for certain counts; a push of one of these reads nothing.
    strict: Option<RegSet>,
}

/// A place on a path.
struct Place {
    at: Vaddr,
    /// Registers of the question that were neither read nor written so far.
    open: RegSet,
    /// Written since the last branch or call.
    recent: RegSet,
}

impl Question {
    /// What of the open registers was not asked for at that place before.
    fn still_open(&mut self, place: &Place) -> RegSet {
        let before = self.seen.entry(place.at).or_default();
        let open = place.open - *before - self.live;
        *before |= open;
        open
    }

    /// Unknown code is called: it reads what it seems to be given as arguments.
    fn call(&mut self, place: &Place, arguments: &[Register; 6]) {
        if self.strict.is_none() {
            self.live |= place.open & in_front_of(place.recent, arguments);
        }
    }
}

impl Flow<'_> {
    /// Registers of `query` that code from `at` on reads before it writes them. A push of one of `fillers`
    /// reads nothing.
    pub fn read(&mut self, at: Vaddr, query: RegSet, fillers: RegSet) -> RegSet {
        self.live_within(at, query, DEPTH / 4, Some(fillers))
    }

    /// As [`Flow::read`], and what unknown functions and the kernel seem to be given as arguments.
    pub fn live(&mut self, at: Vaddr, query: RegSet) -> RegSet {
        self.live_within(at, query, DEPTH / 4, None)
    }

    fn live_within(&mut self, start: Vaddr, query: RegSet, depth: usize, strict: Option<RegSet>) -> RegSet {
        let work = vec![(start, query)];
        let (live, seen) = (RegSet::EMPTY, FxHashMap::default());
        let mut question = Question { live, seen, work, budget: LIMIT, depth, strict };
        while let Some((at, open)) = question.work.pop() {
            let undecided = self.follow(Place { at, open, recent: RegSet::EMPTY }, &mut question);
            if !undecided.is_empty() {
                return question.live | undecided;
            }
        }
        question.live
    }

    /// Follows a path until nothing is open on it; gives what is when the question has cost too much.
    fn follow(&mut self, mut place: Place, question: &mut Question) -> RegSet {
        loop {
            place.open = question.still_open(&place);
            if place.open.is_empty() || question.budget == 0 {
                return place.open;
            }
            question.budget -= 1;
            let Some(insn) = self.cursor.instruction(place.at) else { return RegSet::EMPTY };
            let effect = self.effects.of(&insn);
            let filler = if insn.mnemonic() == Mnemonic::Push { question.strict } else { None };
            question.live |= place.open & (effect.reads - filler.unwrap_or_default());
            match self.pass(&insn, &effect, &mut place, question) {
                Next::Behind => {
                    let goes_on = insn.flow_control() == FlowControl::Next;
                    place.recent = if goes_on { place.recent | effect.writes } else { RegSet::EMPTY };
                    place.at = Vaddr(insn.next_ip());
                }
                Next::At(at) => (place.at, place.recent) = (at, RegSet::EMPTY),
                Next::End => return RegSet::EMPTY,
            }
        }
    }

    /// What an instruction leaves open, and where it leads. Branches are put among the work.
    fn pass(
        &mut self,
        insn: &Instruction,
        effect: &Effect,
        place: &mut Place,
        question: &mut Question,
    ) -> Next {
        let branch = direct_branch(insn);
        match insn.flow_control() {
            FlowControl::Call if insn.mnemonic() == Mnemonic::Call => {
                return self.pass_call(insn, branch.map(|b| b.target), place, question);
            }
            FlowControl::IndirectCall if self.keeps_registers(insn) => {
                place.open -= RegSet::of(Register::RAX);
            }
            FlowControl::IndirectCall => {
                question.call(place, &ARGUMENTS);
                place.open -= caller_saved();
                if self.import_ends(insn) || self.leaves_frame(insn) {
                    return Next::End;
                }
            }
            FlowControl::Call => {
                question.call(place, &SYSCALL_ARGUMENTS);
                place.open -= effect.kills;
            }
            FlowControl::Return | FlowControl::Exception | FlowControl::Interrupt => return Next::End,
            FlowControl::IndirectBranch => {
                // A table's targets are blocks of the same function; a tail call is a call.
                if !self.import_ends(insn) {
                    question.call(place, &ARGUMENTS);
                }
                return Next::End;
            }
            FlowControl::UnconditionalBranch => {
                let Some(branch) = branch else { return Next::End };
                if self.is_variadic_entry(branch.target) {
                    question.call(place, &ARGUMENTS);
                    return Next::End;
                }
                return Next::At(branch.target);
            }
            FlowControl::ConditionalBranch | FlowControl::XbeginXabortXend => {
                place.open -= effect.kills;
                let taken = branch.filter(|b| !self.is_variadic_entry(b.target));
                question.work.extend(taken.map(|b| (b.target, place.open)));
            }
            FlowControl::Next => place.open -= effect.kills,
        }
        Next::behind(insn)
    }

    fn pass_call(
        &mut self,
        insn: &Instruction,
        target: Option<Vaddr>,
        place: &mut Place,
        question: &mut Question,
    ) -> Next {
        match self.known_callee(target.filter(|_| question.depth > 0)) {
            Some(callee) => {
                let read = self.live_within(callee, place.open, question.depth - 1, question.strict);
                question.live |= place.open & read;
            }
            None => question.call(place, &ARGUMENTS),
        }
        let callee = target.map(|t| self.callee_of_call(t));
        if callee.is_some_and(|c| !c.returns) {
            return Next::End;
        }
        place.open -= callee.map_or(caller_saved(), |c| c.clobbers);
        if self.leaves_frame(insn) { Next::End } else { Next::behind(insn) }
    }
}

/// The argument register that must have been set earlier, when the instructions in front of a call
/// wrote the arguments before it and the one behind it: arguments are passed in order.
fn in_front_of(recent: RegSet, arguments: &[Register; 6]) -> RegSet {
    let written = |r: &Register| recent.intersects(RegSet::of(*r));
    let Some(hole) = arguments.iter().position(|r| !written(r)) else { return RegSet::EMPTY };
    let behind = arguments.get(hole + 1).is_some_and(written);
    if behind { RegSet::of(arguments[hole]) } else { RegSet::EMPTY }
}
