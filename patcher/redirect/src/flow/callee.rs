//! What functions change, and whether they return.

use super::{Callee, DEPTH, Flow, Next, caller_saved};
use crate::effects::RegSet;
use crate::refs::direct_branch;
use iced_x86::{FlowControl, Instruction, Mnemonic, Register};
use rustc_hash::FxHashSet;
use suture_elf::Vaddr;

/// Instructions looked at to see what a function changes.
const EXPLORE_LIMIT: usize = 20_000;

/// What was seen of a function so far.
#[derive(Default)]
struct Seen {
    writes: RegSet,
    pushed: RegSet,
    popped: RegSet,
    returns: bool,
}

impl Callee {
    /// Unknown code.
    fn unknown() -> Self {
        Self { clobbers: caller_saved(), returns: true }
    }
}

impl Flow<'_> {
    /// What a call of the function at `entry`, met on the way, does.
    pub fn callee_of_call(&mut self, entry: Vaddr) -> Callee {
        self.callee(entry, DEPTH / 2)
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

    /// Registers that the code of a whole unwind range leaves alone, of those in `kept`. Fast: code
    /// that calls something unknown leaves nothing alone, as far as its callers know.
    pub fn left_alone(&mut self, start: Vaddr, kept: RegSet) -> RegSet {
        if let Some(clobbers) = self.frames.get(&start) {
            return kept - *clobbers;
        }
        let clobbers = self.frame_clobbers(start);
        self.frames.insert(start, clobbers);
        kept - clobbers
    }

    fn frame_clobbers(&mut self, start: Vaddr) -> RegSet {
        let Some(frame) = self.object.frames().at(start) else { return RegSet::EMPTY };
        let unknown = |flow: &mut Self, insn: &Instruction| match insn.flow_control() {
            FlowControl::IndirectCall => !flow.keeps_registers(insn),
            FlowControl::Call => direct_branch(insn).is_some_and(|b| flow.leaves_object(b.target)),
            _ => false,
        };
        let code = self.object.decode(&(frame.start..frame.end));
        if code.iter().any(|insn| unknown(self, insn)) {
            return caller_saved();
        }
        self.callee(start, DEPTH).clobbers
    }

    fn explore(&mut self, entry: Vaddr, depth: usize) -> Callee {
        let mut seen = Seen::default();
        let mut passed = FxHashSet::default();
        let mut work = vec![entry];
        while let Some(mut at) = work.pop() {
            while passed.insert(at) {
                if passed.len() > EXPLORE_LIMIT {
                    // As if the rest left everything alone: more callers are looked at.
                    return Callee { clobbers: seen.writes & caller_saved(), returns: true };
                }
                let Some(insn) = self.cursor.instruction(at) else { break };
                match self.explore_one(&insn, depth, &mut seen, &mut work) {
                    Next::Behind => at = Vaddr(insn.next_ip()),
                    Next::At(target) => at = target,
                    Next::End => break,
                }
            }
            if seen.returns && seen.writes & caller_saved() == caller_saved() {
                return Callee::unknown();
            }
        }
        // A register that is saved and restored is left alone.
        let Seen { writes, pushed, popped, returns } = seen;
        let clobbers = (writes - (pushed & popped)) | (popped - pushed);
        Callee { clobbers: clobbers & caller_saved(), returns }
    }

    /// Adds what an instruction changes, and says where it leads. Branches are put among the work.
    fn explore_one(
        &mut self,
        insn: &Instruction,
        depth: usize,
        seen: &mut Seen,
        work: &mut Vec<Vaddr>,
    ) -> Next {
        let branch = direct_branch(insn);
        let saved = RegSet::of(saved_register(insn));
        match insn.mnemonic() {
            Mnemonic::Push => seen.pushed |= saved,
            Mnemonic::Pop => seen.popped |= saved,
            _ => seen.writes |= self.effects.of(insn).writes,
        }
        match insn.flow_control() {
            FlowControl::Call if insn.mnemonic() == Mnemonic::Call => {
                let callee = branch.map_or(Callee::unknown(), |b| self.callee(b.target, depth - 1));
                seen.writes |= callee.clobbers;
                if !callee.returns || self.leaves_frame(insn) {
                    return Next::End;
                }
            }
            FlowControl::IndirectCall if self.keeps_registers(insn) => {
                seen.writes |= RegSet::of(Register::RAX);
            }
            FlowControl::IndirectCall => {
                seen.writes |= caller_saved();
                if self.import_ends(insn) || self.leaves_frame(insn) {
                    return Next::End;
                }
            }
            FlowControl::IndirectBranch => {
                seen.writes |= caller_saved();
                seen.returns |= !self.import_ends(insn);
                return Next::End;
            }
            FlowControl::Return => {
                seen.returns = true;
                return Next::End;
            }
            FlowControl::Exception | FlowControl::Interrupt => return Next::End,
            FlowControl::UnconditionalBranch => {
                return branch.map_or(Next::End, |b| Next::At(b.target));
            }
            _ => work.extend(branch.map(|b| b.target)),
        }
        Next::behind(insn)
    }
}

fn saved_register(insn: &Instruction) -> Register {
    if insn.op_count() == 1 { insn.op0_register() } else { Register::None }
}
