//! Jump tables: where the indirect jumps of a function go.

use crate::analysis::ObjectAnalysis;
use crate::effects::Effects;
use iced_x86::{Code, FlowControl, Instruction, Mnemonic, OpKind, Register};
use std::ops::Range;
use suture_elf::Vaddr;

/// How far back the parts of a table jump are looked for.
const LOOK_BACK: usize = 48;
/// Most entries of one table.
const MAX_ENTRIES: u64 = 4_096;

/// Where the indirect jumps of some code go.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tables {
    /// (jump, target), one for each entry.
    pub targets: Vec<(Vaddr, Vaddr)>,
    /// A jump that may go anywhere.
    pub unresolved: Option<Vaddr>,
}

impl Tables {
    /// (jump, target) of all jumps, if all are known.
    pub fn known(self) -> Option<Vec<(Vaddr, Vaddr)>> {
        self.unresolved.is_none().then_some(self.targets)
    }
}

/// What is known of one indirect jump.
enum Jump {
    /// Through a plain pointer in memory, or one that somebody passed. Pointers to code inside a
    /// function are found as relocations, so nothing is lost.
    Pointer,
    /// Through a table of 32-bit offsets from its own address.
    Table(u64),
    Unknown,
}

/// Resolves the indirect jumps of `code`, whose function lies at `range`.
pub(crate) fn resolve(object: &ObjectAnalysis, code: &[Instruction], range: &Range<Vaddr>) -> Tables {
    let mut tables = Tables::default();
    for (at, insn) in code.iter().enumerate() {
        if insn.flow_control() != FlowControl::IndirectBranch {
            continue;
        }
        let jump = Vaddr(insn.ip());
        let before = &code[at.saturating_sub(LOOK_BACK)..at];
        match kind(insn, before, at <= LOOK_BACK) {
            Jump::Pointer => {}
            Jump::Unknown => tables.unresolved = Some(jump),
            Jump::Table(table) => {
                let bound = bound(before);
                let found = entries(object, table, bound, range);
                if found.is_empty() {
                    tables.unresolved = Some(jump);
                }
                tables.targets.extend(found.into_iter().map(|target| (jump, target)));
            }
        }
    }
    tables
}

fn kind(jump: &Instruction, before: &[Instruction], whole: bool) -> Jump {
    if jump.op0_kind() == OpKind::Memory {
        return Jump::Pointer;
    }
    let mut effects = Effects::default();
    let mut register = jump.op0_register();
    for (at, insn) in before.iter().enumerate().rev() {
        if !effects.writes_register(insn, register) {
            continue;
        }
        match insn.mnemonic() {
            Mnemonic::Mov if insn.op1_kind() == OpKind::Memory => return Jump::Pointer,
            Mnemonic::Mov if insn.op1_kind() == OpKind::Register => register = insn.op1_register(),
            Mnemonic::Cmovne | Mnemonic::Cmove => return Jump::Pointer,
            Mnemonic::Lea if insn.is_ip_rel_memory_operand() => return Jump::Pointer,
            Mnemonic::Add if insn.op1_kind() == OpKind::Register => {
                return sum(insn, &before[..at], &mut effects);
            }
            _ => return Jump::Unknown,
        }
    }
    // Never written: a pointer that was passed in. Otherwise the search gave up.
    if whole { Jump::Pointer } else { Jump::Unknown }
}

/// `add r, base` with `r` loaded from `[base + index*4]`, either way round.
fn sum(add: &Instruction, before: &[Instruction], effects: &mut Effects) -> Jump {
    let operands = [add.op0_register().full_register(), add.op1_register().full_register()];
    let load = before.iter().rposition(|insn| {
        insn.code() == Code::Movsxd_r64_rm32
            && insn.op1_kind() == OpKind::Memory
            && operands.contains(&insn.op0_register().full_register())
    });
    let Some(load) = load else { return Jump::Unknown };
    let base = before[load].memory_base().full_register();
    let mut register = base;
    if before[load].memory_index() == Register::None && !operands.contains(&base) {
        return Jump::Unknown;
    }
    for insn in before[..load].iter().rev() {
        if !effects.writes_register(insn, register) {
            continue;
        }
        if insn.code() == Code::Lea_r64_m && insn.is_ip_rel_memory_operand() {
            return Jump::Table(insn.ip_rel_memory_address());
        }
        if insn.mnemonic() == Mnemonic::Mov && insn.op1_kind() == OpKind::Register {
            register = insn.op1_register().full_register();
            continue;
        }
        return Jump::Unknown;
    }
    Jump::Unknown
}

/// Number of entries, from the comparison that guards the jump.
fn bound(before: &[Instruction]) -> Option<u64> {
    let guard = before
        .iter()
        .rposition(|i| matches!(i.mnemonic(), Mnemonic::Ja | Mnemonic::Jbe | Mnemonic::Jae | Mnemonic::Jb))?;
    let exclusive = matches!(before[guard].mnemonic(), Mnemonic::Jae | Mnemonic::Jb);
    let compare = before[..guard].iter().rev().take(4).find(|i| i.mnemonic() == Mnemonic::Cmp)?;
    let immediates = [
        OpKind::Immediate8,
        OpKind::Immediate8to32,
        OpKind::Immediate8to64,
        OpKind::Immediate32,
        OpKind::Immediate8to16,
    ];
    if !immediates.contains(&compare.op1_kind()) {
        return None;
    }
    Some((compare.immediate(1) & 0xffff_ffff) + u64::from(!exclusive)).filter(|n| *n <= MAX_ENTRIES)
}

fn entries(object: &ObjectAnalysis, table: u64, bound: Option<u64>, range: &Range<Vaddr>) -> Vec<Vaddr> {
    let hull = object.code_hull();
    let mut targets = Vec::new();
    for i in 0..bound.unwrap_or(MAX_ENTRIES) {
        let Some(bytes) = object.file().bytes_at(Vaddr(table + 4 * i), 4).and_then(|b| b.try_into().ok())
        else {
            break;
        };
        let target = Vaddr(table.wrapping_add_signed(i64::from(i32::from_le_bytes(bytes))));
        let inside = range.contains(&target);
        // A guard that belongs to something else gives a bound that is too large: entries outside
        // any code end the table. Without a guard the function's own end does.
        if !(inside || bound.is_some() && hull.contains(&target)) {
            break;
        }
        targets.push(target);
    }
    targets
}
