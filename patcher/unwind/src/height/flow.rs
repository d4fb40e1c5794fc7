//! Follows the code of one function.

use super::state::{State, Value};
use super::{NoHeight, Place, table};
use crate::Register;
use crate::cfi::Stretches;
use crate::module::Module;
use iced_x86::{
    Code, Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpKind,
};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::sync::Arc;
use suture_elf::{CallSite, Vaddr};

/// Instructions of one function with its parts. The largest of Debian's binaries have 30 000.
const MAX_INSTRUCTIONS: usize = 400_000;
/// Visits of instructions; each is visited again only when less is known than before.
const MAX_STEPS: usize = 4 * MAX_INSTRUCTIONS;

/// Frames of an object by address, read when asked for.
pub(super) struct Rows<'m> {
    module: &'m Module,
    /// Whether what they say of the CFA is believed. Tests compare instead.
    believed: bool,
    frames: RefCell<BTreeMap<Vaddr, Arc<Frame>>>,
}

/// One unwind range.
pub(super) struct Frame {
    pub stretches: Stretches,
    sites: Vec<CallSite>,
}

impl<'m> Rows<'m> {
    pub fn of(module: &'m Module) -> Self {
        Self { module, believed: true, frames: RefCell::default() }
    }

    /// Rows that tell where functions are, and nothing more.
    #[cfg(test)]
    pub fn disbelieved(module: &'m Module) -> Self {
        Self { believed: false, ..Self::of(module) }
    }

    pub fn frame_at(&self, at: Vaddr) -> Option<Arc<Frame>> {
        let known = self.frames.borrow().range(..=at).next_back().map(|(_, frame)| Arc::clone(frame));
        if let Some(frame) = known.filter(|f| f.stretches.frame.contains(&at)) {
            return Some(frame);
        }
        let found = self.module.fde(at)?;
        let frame =
            Arc::new(Frame { stretches: Stretches::of(&found), sites: self.module.call_sites(&found) });
        self.frames.borrow_mut().insert(frame.stretches.frame.start, Arc::clone(&frame));
        Some(frame)
    }

    /// Whether the stack at an address is as a call leaves it.
    pub fn is_entered_by_call(&self, at: Vaddr) -> bool {
        let frame = self.frame_at(at);
        frame.is_none_or(|f| f.stretches.at(at).and_then(|s| s.cfa) == Some((Register::RSP, 8)))
    }
}

/// An instruction that was reached.
#[derive(Clone, Copy, Debug)]
struct Reached {
    at: Vaddr,
    next: Vaddr,
    call: bool,
    sp: Value,
}

/// All that was reached from one entry.
#[derive(Debug)]
pub(super) struct Region {
    /// By address.
    reached: Vec<Reached>,
    complete: bool,
}

impl Region {
    /// Follows the code from `start`. With `bounds` it has no call frame information and ends there.
    pub fn follow(module: &Module, rows: &Rows<'_>, start: Vaddr, bounds: Option<Range<Vaddr>>) -> Self {
        let mut flow = Flow {
            module,
            rows,
            bounds,
            nodes: HashMap::new(),
            work: Vec::new(),
            effects: InstructionInfoFactory::new(),
            tables: BTreeSet::new(),
            pending: Vec::new(),
            unresolved: Vec::new(),
            steps: 0,
        };
        let entry = if rows.is_entered_by_call(start) { State::entry() } else { State::unknown() };
        flow.work.push((start, entry));
        flow.run();
        let mut known = 0;
        while flow.nodes.len() > known && flow.within_limits() {
            known = flow.nodes.len();
            flow.seed_computed_jumps();
            flow.run();
        }
        let complete = flow.within_limits();
        let node = |(&at, node): (&Vaddr, &Node)| Reached {
            at,
            next: node.next,
            call: node.call,
            sp: node.state.sp(),
        };
        let mut reached: Vec<Reached> = flow.nodes.iter().map(node).collect();
        reached.sort_unstable_by_key(|r| r.at);
        Self { reached, complete }
    }

    /// Distance from the stack pointer up to the CFA.
    pub fn height(&self, place: Place) -> Result<i64, NoHeight> {
        if !self.complete {
            return Err(NoHeight::TooLong);
        }
        let sought = match place {
            Place::Before(at) | Place::Call(at) => at,
        };
        let from = self.reached.partition_point(|r| r.at.0 < sought.0.saturating_sub(15));
        let near = self.reached.get(from..).unwrap_or_default().iter().take_while(|r| r.at <= sought);
        let mut found = near.filter(|r| match place {
            Place::Before(at) => r.at == at,
            Place::Call(at) => r.next == at && r.call,
        });
        match (found.next().map(|r| r.sp), found.next()) {
            (Some(Value::Cfa(offset)), None) => offset.checked_neg().ok_or(NoHeight::Dynamic),
            (Some(Value::Unknown(why)), None) => Err(why),
            (Some(_), None) => Err(NoHeight::Dynamic),
            // Two calls that end at one place: the code was read in two ways.
            (Some(_), Some(_)) => Err(NoHeight::Conflict),
            (None, _) => Err(NoHeight::Unreached),
        }
    }
}

struct Node {
    state: State,
    next: Vaddr,
    call: bool,
}

struct Flow<'a, 'm> {
    module: &'a Module,
    rows: &'a Rows<'m>,
    bounds: Option<Range<Vaddr>>,
    nodes: HashMap<Vaddr, Node>,
    work: Vec<(Vaddr, State)>,
    effects: InstructionInfoFactory,
    /// Everything whose address the code takes: a table ends where something else begins.
    tables: BTreeSet<u64>,
    /// Jumps through tables, looked at when the code in front of them is known.
    pending: Vec<(Vaddr, Value, State)>,
    /// Indirect jumps to unknown places.
    unresolved: Vec<Vaddr>,
    steps: usize,
}

impl Flow<'_, '_> {
    fn within_limits(&self) -> bool {
        self.nodes.len() <= MAX_INSTRUCTIONS && self.steps <= MAX_STEPS
    }

    fn run(&mut self) {
        loop {
            while let Some((at, state)) = self.work.pop() {
                self.go(at, state);
            }
            let Some((at, through, state)) = self.pending.pop() else { return };
            let mut targets = self.targets(at, through);
            if targets.is_empty() {
                self.unresolved.push(at);
            }
            // Rare cases may lie in a part that is entered without a frame: those do not matter.
            targets.retain(|target| self.same_function(at, *target));
            self.work.extend(targets.into_iter().map(|target| (target, state)));
        }
    }

    /// Follows one way until it ends or meets a known one.
    fn go(&mut self, mut at: Vaddr, mut state: State) {
        while self.within_limits() {
            self.steps += 1;
            let frame = self.rows.frame_at(at);
            let cfa = frame.as_ref().and_then(|f| f.stretches.at(at)?.cfa);
            if let Some((register, offset)) = cfa.filter(|_| self.rows.believed) {
                state.believe(register, offset);
            }
            if let Some(node) = self.nodes.get_mut(&at) {
                if !node.state.join(&state) {
                    return;
                }
                state = node.state;
            }
            let Some(insn) = self.decode(at) else { return };
            let next = Vaddr(insn.next_ip());
            self.nodes.insert(at, Node { state, next, call: is_call(&insn) });
            let Some(after) = self.step(&insn, state, frame.as_deref()) else { return };
            if !self.same_function(at, next) {
                return;
            }
            (at, state) = (next, after);
        }
    }

    fn decode(&self, at: Vaddr) -> Option<Instruction> {
        let bytes = self.module.code_from(at)?;
        let bytes = bytes.get(..bytes.len().min(15))?;
        let insn = Decoder::with_ip(64, bytes, at.0, DecoderOptions::NONE).decode();
        (!insn.is_invalid()).then_some(insn)
    }

    /// Queues the ways that branch off; gives the state with which control falls through.
    fn step(&mut self, insn: &Instruction, state: State, frame: Option<&Frame>) -> Option<State> {
        let mut after = state;
        let at = Vaddr(insn.ip());
        let target = near_target(insn);
        if insn.code() == Code::Lea_r64_m && insn.is_ip_rel_memory_operand() {
            self.tables.insert(insn.ip_rel_memory_address());
        }
        match insn.flow_control() {
            FlowControl::Next => after.pass(insn, &mut self.effects),
            FlowControl::Call | FlowControl::IndirectCall => {
                self.unwind_to_pads(at, &state, frame);
                after.pass(insn, &mut self.effects);
            }
            FlowControl::UnconditionalBranch => {
                self.branch(at, target?, state);
                return None;
            }
            FlowControl::ConditionalBranch => {
                if let (Some(target), Some(taken)) = (target, state.knowing(insn, true)) {
                    self.branch(at, target, taken);
                }
                after = state.knowing(insn, false)?;
            }
            FlowControl::IndirectBranch => {
                self.jump_through_table(at, insn, &state);
                return None;
            }
            FlowControl::XbeginXabortXend => {
                if let Some(target) = target {
                    self.branch(at, target, state);
                }
            }
            FlowControl::Return | FlowControl::Exception => return None,
            FlowControl::Interrupt => after.pass(insn, &mut self.effects),
        }
        (insn.code() != Code::Hlt).then_some(after)
    }

    fn branch(&mut self, from: Vaddr, target: Vaddr, state: State) {
        if self.same_function(from, target) {
            self.work.push((target, state));
        }
    }

    /// Whether a jump stays in the function. One into another range leads to a part of the function
    /// if a frame is already made there; else it is a tail call, or it does not matter: the height
    /// there is that of an entry, and its own information says so.
    fn same_function(&self, from: Vaddr, to: Vaddr) -> bool {
        if let Some(bounds) = &self.bounds {
            return bounds.contains(&to);
        }
        let Some(frame) = self.rows.frame_at(to) else { return false };
        frame.stretches.frame.contains(&from) || !self.rows.is_entered_by_call(to)
    }

    fn unwind_to_pads(&mut self, call: Vaddr, state: &State, frame: Option<&Frame>) {
        let Some(frame) = frame else { return };
        let arguments = frame.stretches.at(call).map_or(0, |s| s.arguments);
        let sites = frame.sites.iter().filter(|site| site.range.contains(&call));
        let pads = sites.filter_map(|site| site.pad).map(|pad| (pad, state.at_landing_pad(arguments)));
        self.work.extend(pads);
    }

    fn jump_through_table(&mut self, at: Vaddr, jump: &Instruction, state: &State) {
        match state.jump_target(jump) {
            Some(through) => self.pending.push((at, through, *state)),
            None => self.unresolved.push(at),
        }
    }

    /// Where a jump through a table goes.
    fn targets(&self, jump: Vaddr, through: Value) -> Vec<Vaddr> {
        // Without a frame, of which the beginning is known, code cannot be told from the middle of it.
        let frame = self.rows.frame_at(jump).map(|f| f.stretches.frame.clone());
        let range = frame.or_else(|| self.bounds.clone()).unwrap_or(jump..jump);
        let code = table::Code::new(self.module, &range);
        let accept =
            |t: Vaddr| if range.contains(&t) { code.starts_at(t) } else { self.is_table_target(jump, t) };
        table::targets(self.module, through, &self.tables, accept)
    }

    /// Whether a table of the jump at `from` may lead there: into its own range, or a part of it.
    fn is_table_target(&self, from: Vaddr, to: Vaddr) -> bool {
        if let Some(bounds) = &self.bounds {
            return bounds.contains(&to);
        }
        let Some(frame) = self.rows.frame_at(to) else { return false };
        let range = &frame.stretches.frame;
        range.contains(&from) || to == range.start || !self.rows.is_entered_by_call(range.start)
    }

    /// Code of the function that no known way leads to is reached by one of its computed jumps, if it
    /// has any. If all of those that stand under the same description of the frame agree on what
    /// they know, that holds at their targets, whichever they are.
    fn seed_computed_jumps(&mut self) {
        self.unresolved.sort_unstable();
        self.unresolved.dedup();
        let mut known: BTreeMap<Vaddr, Vec<(Register, i64, State)>> = BTreeMap::new();
        for at in &self.unresolved {
            let Some(frame) = self.rows.frame_at(*at) else { continue };
            let cfa = frame.stretches.at(*at).and_then(|s| s.cfa);
            let (Some((register, offset)), Some(node)) = (cfa, self.nodes.get(at)) else { continue };
            let states = known.entry(frame.stretches.frame.start).or_default();
            match states.iter_mut().find(|s| (s.0, s.1) == (register, offset)) {
                Some(same) => _ = same.2.join(&node.state),
                None => states.push((register, offset, node.state)),
            }
        }
        for (start, states) in known {
            for at in self.unreached(start) {
                let frame = self.rows.frame_at(at);
                let cfa = frame.and_then(|f| f.stretches.at(at)?.cfa);
                let state = states.iter().find(|s| Some((s.0, s.1)) == cfa);
                self.work.extend(state.map(|s| (at, s.2)));
            }
        }
    }

    /// First instructions of the stretches of a frame that were not reached, padding left out.
    fn unreached(&self, start: Vaddr) -> Vec<Vaddr> {
        let Some(frame) = self.rows.frame_at(start) else { return Vec::new() };
        let mut at = start;
        let mut gaps = Vec::new();
        let mut in_gap = false;
        while frame.stretches.frame.contains(&at) {
            if let Some(node) = self.nodes.get(&at) {
                (at, in_gap) = (node.next, false);
                continue;
            }
            let Some(insn) = self.decode(at) else { break };
            // In front of an aligned target nobody runs the padding: what its rows say is what holds
            // behind the jump before it.
            if !in_gap && insn.mnemonic() != Mnemonic::Nop {
                gaps.push(at);
                in_gap = true;
            }
            at = Vaddr(insn.next_ip());
        }
        gaps
    }
}

pub(super) fn is_call(insn: &Instruction) -> bool {
    insn.is_call_near() || insn.is_call_near_indirect()
}

pub(super) fn near_target(insn: &Instruction) -> Option<Vaddr> {
    let near = (0..insn.op_count()).any(|i| insn.op_kind(i) == OpKind::NearBranch64);
    near.then(|| Vaddr(insn.near_branch_target()))
}

#[cfg(test)]
mod tests;
