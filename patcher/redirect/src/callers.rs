//! Rule 4: registers at the entry, and registers that callers rely on.
//!
//! Compilers look into functions of the same translation unit (gcc's `-fipa-ra`, on from `-O2`) and
//! keep values across a call in any register the called function happens not to touch. A new
//! function does not know that. Hand-written assembly does the same, and passes values in flags.

use crate::Refusal;
use crate::analysis::{Found, ObjectAnalysis};
use crate::effects::RegSet;
use crate::flow::{Flow, caller_saved};
use crate::function::Function;
use crate::refs::References;
use iced_x86::{Mnemonic, OpKind, Register};
use std::collections::BTreeMap;
use suture_elf::Vaddr;

/// Functions visited while walking up the callers of one function; then it is refused rather than
/// guessed. None of the libraries the planner is tested on needs more than a few.
const MAX_FUNCTIONS: usize = 512;

/// Flags and registers the function takes from its callers besides arguments.
pub(crate) fn check_entry(flow: &mut Flow<'_>, function: &Function) -> Result<(), Refusal> {
    let Some(first) = function.first() else { return Ok(()) };
    let at = Vaddr(function.code[first].ip());
    let query = RegSet::FLAGS | RegSet::all(&[Register::R10, Register::R11]);
    let mut live = flow.read(at, query, fillers(function));
    // r10 is the static chain of nested functions: a pointer that is saved or looked through.
    if live.intersects(RegSet::of(Register::R10)) && static_chain(function) {
        live -= RegSet::of(Register::R10);
    }
    if live.is_empty() { Ok(()) } else { Err(Refusal::LiveIn { register: live.name() }) }
}

/// Registers that the function pushes to align the stack, not to use or to give back what is in them:
/// nothing takes them from the stack again. A shorter instruction than a subtraction.
fn fillers(function: &Function) -> RegSet {
    let popped = |register: Register| {
        function.code.iter().any(|i| i.mnemonic() == Mnemonic::Pop && i.op0_register() == register)
    };
    [Register::R10, Register::R11]
        .into_iter()
        .filter(|r| !popped(*r))
        .map(RegSet::of)
        .fold(RegSet::EMPTY, |all, one| all | one)
}

fn static_chain(function: &Function) -> bool {
    let uses = |register: Register| register.full_register() == Register::R10;
    let first = function.code.iter().find(|i| {
        uses(i.memory_base())
            || (0..i.op_count()).any(|o| i.op_kind(o) == OpKind::Register && uses(i.op_register(o)))
    });
    first.is_some_and(|i| {
        let saved =
            i.mnemonic() == Mnemonic::Mov && i.op1_kind() == OpKind::Register && uses(i.op1_register());
        uses(i.memory_base()) || saved
    })
}

/// Registers that direct callers rely on and the new function, which leaves `new` alone, destroys: those
/// that direct callers, and callers of those as long as they leave the register alone
/// too, keep across the call.
pub(crate) fn check_callers(
    object: &ObjectAnalysis,
    flow: &mut Flow<'_>,
    function: &Function,
    references: &References,
    new: RegSet,
) -> Result<(), Refusal> {
    let results =
        RegSet::all(&[Register::RAX, Register::RDX, Register::XMM0, Register::XMM1]) | RegSet::FLAGS;
    let own = flow.callee(function.entry, 12);
    if !own.returns {
        return Ok(());
    }
    // Flags are never kept across a call by a compiler: one that reads them takes a result.
    let kept = (caller_saved() - results - own.clobbers - new) | RegSet::FLAGS;
    let mut open: BTreeMap<Vaddr, RegSet> = BTreeMap::from([(function.entry, kept)]);
    let mut visited: BTreeMap<Vaddr, RegSet> = BTreeMap::new();
    let mut depth = 0;
    while !open.is_empty() {
        let level = std::mem::take(&mut open);
        let sources = if depth == 0 {
            Found::Borrowed(references)
        } else {
            object.references(level.keys().map(|f| *f..*f + 1).collect())
        };
        for (entry, kept) in level {
            for branch in sources.branches(&(entry..entry + 1)) {
                let Some(frame) = object.frames().at(branch.source) else { continue };
                if frame.start == entry && !branch.call {
                    continue;
                }
                if branch.call && (object.is_indexed() || is_instruction(object, frame.start, branch.next)) {
                    let live = flow.live(branch.next, kept);
                    let live = if live.is_empty() { live } else { flow.held(branch.next, live) };
                    if !live.is_empty() {
                        let caller = object.name_of(branch.source);
                        return Err(Refusal::LiveAcross { caller, at: branch.source, register: live.name() });
                    }
                }
                // Most functions call something unknown: then nothing is kept, only flags are asked for.
                let registers = kept - RegSet::FLAGS;
                if registers.is_empty() {
                    continue;
                }
                let rest = flow.left_alone(frame.start, registers);
                let seen = visited.entry(frame.start).or_default();
                let new = rest - *seen;
                *seen |= rest;
                if !new.is_empty() {
                    *open.entry(frame.start).or_default() |= new;
                }
            }
        }
        depth += 1;
        if visited.len() > MAX_FUNCTIONS {
            let register = visited.values().fold(RegSet::EMPTY, |all, r| all | *r).name();
            let caller = object.name_of(function.entry);
            return Err(Refusal::LiveAcross { caller, at: function.entry, register });
        }
    }
    Ok(())
}

/// Whether decoding from `start` has an instruction boundary at `at`: a search by bytes also finds
/// displacements that are none.
fn is_instruction(object: &ObjectAnalysis, start: Vaddr, at: Vaddr) -> bool {
    object.decode(&(start..at)).last().is_some_and(|last| last.next_ip() == at.0)
}
