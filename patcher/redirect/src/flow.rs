//! Data flow over plain machine code: what is read before it is written, and what is left alone.
//!
//! Code is decoded block by block from where control goes, so nothing has to be known about function
//! boundaries, and a jump into another part or another function is followed like any other.

use crate::analysis::ObjectAnalysis;
use crate::effects::{Effects, RegSet};
use crate::refs::direct_branch;
use iced_x86::{Code, FlowControl, Instruction, Mnemonic, Register};
use std::collections::HashMap;
use suture_elf::Vaddr;

/// Instructions looked at for one question. What lies further away is decided as the ABI promises:
/// nothing is live in a register the ABI does not define there.
const LIMIT: usize = 2_000;
/// Depth of calls followed to see what a callee reads or leaves alone.
const DEPTH: usize = 12;

/// Registers the ABI passes integer arguments in, in order.
const ARGUMENTS: [Register; 6] =
    [Register::RDI, Register::RSI, Register::RDX, Register::RCX, Register::R8, Register::R9];

/// Answers questions about one object; remembers what callees do.
pub(crate) struct Flow<'a> {
    object: &'a ObjectAnalysis,
    effects: Effects,
    callees: HashMap<Vaddr, Callee>,
}

/// What a call of a function does to registers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Callee {
    /// Registers it may change; everything a caller may not rely on when it calls unknown code.
    pub clobbers: RegSet,
    /// It can return.
    pub returns: bool,
}

/// Registers that a called function may change.
pub(crate) fn caller_saved() -> RegSet {
    let general = RegSet::all(&[
        Register::RAX,
        Register::RCX,
        Register::RDX,
        Register::RSI,
        Register::RDI,
        Register::R8,
        Register::R9,
        Register::R10,
        Register::R11,
    ]);
    general | RegSet::VECTORS | RegSet::MASKS | RegSet::FLAGS
}

impl<'a> Flow<'a> {
    pub fn new(object: &'a ObjectAnalysis) -> Self {
        Self { object, effects: Effects::default(), callees: HashMap::new() }
    }

    /// Registers of `query` that code from `at` on reads before it writes them.
    pub fn live(&mut self, at: Vaddr, query: RegSet) -> RegSet {
        self.live_within(at, query, DEPTH / 4)
    }

    fn live_within(&mut self, start: Vaddr, query: RegSet, depth: usize) -> RegSet {
        let mut live = RegSet::EMPTY;
        let mut seen: HashMap<Vaddr, RegSet> = HashMap::new();
        let mut work = vec![(start, query)];
        let mut budget = LIMIT;
        while let Some((mut at, mut open)) = work.pop() {
            loop {
                let before = seen.entry(at).or_default();
                open -= *before;
                open -= live;
                *before |= open;
                if open.is_empty() || budget == 0 {
                    break;
                }
                budget -= 1;
                let Some(insn) = self.object.instruction(at) else { break };
                let effect = self.effects.of(&insn);
                live |= open & effect.reads;
                let branch = direct_branch(&insn);
                match insn.flow_control() {
                    FlowControl::Call if insn.mnemonic() == Mnemonic::Call => {
                        let target = branch.map(|b| b.target);
                        live |= open & self.taken(target, query - open, open, depth);
                        let callee = target.map(|t| self.callee(t, DEPTH / 2));
                        if callee.is_some_and(|c| !c.returns) {
                            break;
                        }
                        open -= callee.map_or(caller_saved(), |c| c.clobbers);
                    }
                    FlowControl::IndirectCall => {
                        live |= open & self.taken(None, query - open, open, depth);
                        open -= caller_saved();
                    }
                    FlowControl::Call => {
                        live |= open & arguments_before(query - open);
                        open -= effect.kills;
                    }
                    FlowControl::Return | FlowControl::Exception | FlowControl::Interrupt => break,
                    FlowControl::IndirectBranch => {
                        // A table's targets are blocks of the same function; a tail call is a call.
                        live |= open & arguments_before(query - open);
                        break;
                    }
                    FlowControl::UnconditionalBranch => {
                        let Some(branch) = branch else { break };
                        at = branch.target;
                        continue;
                    }
                    FlowControl::ConditionalBranch | FlowControl::XbeginXabortXend => {
                        open -= effect.kills;
                        work.extend(branch.map(|b| (b.target, open)));
                    }
                    FlowControl::Next => open -= effect.kills,
                }
                if insn.code() == Code::Hlt {
                    break;
                }
                at = Vaddr(insn.next_ip());
            }
        }
        live
    }

    /// Registers of `open` that a callee takes as arguments. Decoded where the callee is known; for
    /// others an argument register counts when a later one was set since (`written`): arguments are
    /// passed in order, so the earlier ones must be arguments too.
    fn taken(&mut self, target: Option<Vaddr>, written: RegSet, open: RegSet, depth: usize) -> RegSet {
        let known = target.filter(|t| depth > 0 && !self.leaves_object(*t));
        match known {
            Some(target) => self.live_within(target, open, depth - 1),
            None => arguments_before(written),
        }
    }

    /// Whether the code is a stub that jumps through a pointer at once.
    fn leaves_object(&self, target: Vaddr) -> bool {
        let Some(first) = self.object.instruction(target) else { return true };
        let insn = match first.code() {
            Code::Endbr64 => self.object.instruction(Vaddr(first.next_ip())),
            _ => Some(first),
        };
        insn.is_none_or(|i| i.flow_control() == FlowControl::IndirectBranch)
    }

    /// What a call of the function at `entry` does.
    pub fn callee(&mut self, entry: Vaddr, depth: usize) -> Callee {
        if let Some(known) = self.callees.get(&entry) {
            return *known;
        }
        // While it is being looked at (recursion), and beyond the depth: as if it left everything
        // alone, which only makes more callers be looked at.
        let nothing = Callee { clobbers: RegSet::EMPTY, returns: true };
        if depth == 0 {
            return nothing;
        }
        self.callees.insert(entry, nothing);
        let callee = self.explore(entry, depth);
        self.callees.insert(entry, callee);
        callee
    }

    fn explore(&mut self, entry: Vaddr, depth: usize) -> Callee {
        let everything = Callee { clobbers: caller_saved(), returns: true };
        let mut writes = RegSet::EMPTY;
        let (mut pushed, mut popped) = (RegSet::EMPTY, RegSet::EMPTY);
        let mut returns = false;
        let mut seen = std::collections::HashSet::new();
        let mut work = vec![entry];
        while let Some(mut at) = work.pop() {
            while seen.insert(at) {
                if seen.len() > LIMIT {
                    return everything;
                }
                let Some(insn) = self.object.instruction(at) else { break };
                let branch = direct_branch(&insn);
                let set = RegSet::of(saved_register(&insn));
                match insn.mnemonic() {
                    Mnemonic::Push => pushed |= set,
                    Mnemonic::Pop => popped |= set,
                    _ => writes |= self.effects.of(&insn).writes,
                }
                match insn.flow_control() {
                    FlowControl::Call if insn.mnemonic() == Mnemonic::Call => {
                        let Some(branch) = branch else { return everything };
                        let callee = self.callee(branch.target, depth - 1);
                        writes |= callee.clobbers;
                        if !callee.returns {
                            break;
                        }
                    }
                    FlowControl::IndirectCall | FlowControl::IndirectBranch => return everything,
                    FlowControl::Return => {
                        returns = true;
                        break;
                    }
                    FlowControl::Exception | FlowControl::Interrupt => break,
                    FlowControl::UnconditionalBranch => {
                        let Some(branch) = branch else { break };
                        at = branch.target;
                        continue;
                    }
                    _ => work.extend(branch.map(|b| b.target)),
                }
                if insn.code() == Code::Hlt {
                    break;
                }
                at = Vaddr(insn.next_ip());
            }
            if writes & caller_saved() == caller_saved() {
                return everything;
            }
        }
        // A register that is saved and restored is left alone.
        let clobbers = (writes - (pushed & popped)) | (popped - pushed);
        Callee { clobbers: clobbers & caller_saved(), returns }
    }
}

fn saved_register(insn: &Instruction) -> Register {
    if insn.op_count() == 1 { insn.op0_register() } else { Register::None }
}

/// Argument registers in front of the last one in the set.
fn arguments_before(written: RegSet) -> RegSet {
    let last = ARGUMENTS.iter().rposition(|r| written.intersects(RegSet::of(*r)));
    RegSet::all(&ARGUMENTS[..last.unwrap_or(0)])
}
