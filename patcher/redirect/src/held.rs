//! Which registers may hold a value of the caller's at a call.
//!
//! What code behind a call reads need not have been there before it: data flow sees reads that are none
//! (arguments of calls whose number nobody knows, bytes of registers that an instruction only passes
//! on). A register that an unknown function had the right to change, and that nothing has written since,
//! holds nothing that anybody could rely on.

use crate::effects::RegSet;
use crate::flow::{Flow, caller_saved};
use crate::refs::direct_branch;
use crate::tables;
use iced_x86::{FlowControl, Instruction, Mnemonic, Register};
use std::collections::HashMap;
use suture_elf::{Frame, Vaddr};

/// Instructions of the largest function that is looked at.
const LIMIT: usize = 30_000;

impl Flow<'_> {
    /// Those of the registers that may hold a value at the call that `next` stands behind. All of them
    /// when that cannot be told.
    pub fn held(&mut self, next: Vaddr, registers: RegSet) -> RegSet {
        // Flags are never kept across a call: what reads them takes a result.
        let flags = registers & RegSet::FLAGS;
        match self.values_at(next) {
            Some(values) => (registers & values) | flags,
            None => registers,
        }
    }

    fn values_at(&mut self, next: Vaddr) -> Option<RegSet> {
        let frame = self.object.frames().at(Vaddr(next.0 - 1))?;
        let code = self.object.decode(&(frame.start..frame.end));
        if code.len() > LIMIT || code.last()?.next_ip() != frame.end.0 {
            return None;
        }
        let places: HashMap<u64, usize> = code.iter().enumerate().map(|(i, insn)| (insn.ip(), i)).collect();
        let call = code.iter().position(|insn| insn.next_ip() == next.0)?;
        let mut tables: HashMap<u64, Vec<Vaddr>> = HashMap::new();
        for (jump, target) in tables::resolve(self.object, &code, &(frame.start..frame.end)).known()? {
            tables.entry(jump.0).or_default().push(target);
        }
        // What holds a value before each instruction; `None` = nothing leads there yet.
        let mut values: Vec<Option<RegSet>> = vec![None; code.len()];
        let mut work = Vec::new();
        for entry in self.entries(&frame)? {
            let at = *places.get(&entry.0)?;
            values[at] = Some(caller_saved());
            work.push(at);
        }
        while let Some(at) = work.pop() {
            let insn = &code[at];
            let before = values[at].unwrap_or_default();
            let Some(after) = self.values_behind(insn, before) else { continue };
            let mut next: Vec<u64> = Vec::new();
            if let Some(targets) = tables.get(&insn.ip()) {
                next.extend(targets.iter().map(|t| t.0));
            }
            next.extend(direct_branch(insn).filter(|b| !b.call).map(|b| b.target.0));
            if !ends(insn.flow_control()) {
                next.push(insn.next_ip());
            }
            for target in next.into_iter().filter(|t| frame.contains(Vaddr(*t))) {
                let target = *places.get(&target)?;
                let known = values[target];
                let joined = known.unwrap_or_default() | after;
                if known != Some(joined) {
                    values[target] = Some(joined);
                    work.push(target);
                }
            }
        }
        values[call]
    }

    /// Where control enters the range: its start, landing pads, and whatever is jumped or pointed to from
    /// elsewhere.
    fn entries(&self, frame: &Frame) -> Option<Vec<Vaddr>> {
        let range = frame.start..frame.end;
        let references = self.object.references(vec![range.clone()]);
        let mut entries = vec![frame.start];
        entries.extend(self.object.frames().landing_pads(frame)?);
        entries.extend(references.pointers(&range));
        let outside = references.branches(&range).iter().filter(|b| !range.contains(&b.source) || b.call);
        entries.extend(outside.map(|b| b.target));
        Some(entries)
    }

    /// What holds a value behind an instruction. `None` = nothing continues there.
    fn values_behind(&mut self, insn: &Instruction, before: RegSet) -> Option<RegSet> {
        let results =
            RegSet::all(&[Register::RAX, Register::RDX, Register::XMM0, Register::XMM1]) | RegSet::FLAGS;
        let unknown = (before - caller_saved()) | results;
        match insn.flow_control() {
            FlowControl::Call if insn.mnemonic() == Mnemonic::Call => {
                let callee = direct_branch(insn).map(|b| self.callee_of_call(b.target));
                match callee {
                    Some(callee) if !callee.returns => None,
                    // Code that calls nothing unknown may be hand-written, and hand over what it likes.
                    Some(callee) if callee.clobbers != caller_saved() => {
                        Some(before | callee.clobbers | results)
                    }
                    _ => Some(unknown),
                }
            }
            FlowControl::IndirectCall if self.keeps_registers(insn) => Some(before | results),
            FlowControl::IndirectCall => Some(unknown),
            _ => Some(before | self.effects.of(insn).writes),
        }
    }
}

/// Whether nothing continues behind the instruction.
fn ends(flow: FlowControl) -> bool {
    matches!(
        flow,
        FlowControl::Return
            | FlowControl::Exception
            | FlowControl::UnconditionalBranch
            | FlowControl::IndirectBranch
    )
}
