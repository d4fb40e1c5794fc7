//! One frame after the other, or a reason why not.

use crate::expression;
use crate::module::{Found, Module, Reader};
use crate::registers::{Register, Registers};
use gimli::{CfaRule, RegisterRule, UnwindContext, UnwindTableRow};
use suture_elf::{Addr, Memory};
use thiserror::Error;

/// Why a stack could not be walked to its end.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Unreliable {
    /// The program counter lies in no loaded object.
    #[error("no object is loaded at {pc:#x}")]
    NoModule {
        /// Program counter of the frame.
        pc: u64,
    },
    /// No frame description covers it.
    #[error("{module} has no call frame information at {pc:#x}")]
    NoCfi {
        /// Object.
        module: String,
        /// Program counter of the frame.
        pc: u64,
    },
    /// A rule needs a register that is not known.
    #[error("the frame at {pc:#x} depends on {register}, which is not known")]
    UnknownRegister {
        /// Program counter of the frame.
        pc: u64,
        /// The register.
        register: Register,
    },
    /// A rule cannot be followed.
    #[error("the call frame information at {pc:#x} cannot be followed")]
    BadRule {
        /// Program counter of the frame.
        pc: u64,
    },
    /// The stack cannot be read there.
    #[error("the stack cannot be read at {addr:#x}")]
    Memory {
        /// Address.
        addr: u64,
    },
    /// The stack pointer did not move up.
    #[error("the frame at {pc:#x} does not lie above the one it called")]
    NotAscending {
        /// Program counter of the frame.
        pc: u64,
    },
    /// More frames than anybody has.
    #[error("the stack has more than {limit} frames")]
    TooDeep {
        /// The limit.
        limit: usize,
    },
}

/// How a frame was left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameKind {
    /// The innermost frame: `pc` is the next instruction.
    Innermost,
    /// A caller: `pc` is the return address, the call lies before it.
    Caller,
    /// Interrupted by a signal: `pc` is the next instruction.
    Interrupted,
}

/// One frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Exact program counter or return address.
    pub pc: u64,
    /// Canonical frame address: `rsp` before the call was made.
    pub cfa: u64,
    /// How to read `pc`.
    pub kind: FrameKind,
    /// The frame is a signal trampoline.
    pub trampoline: bool,
}

/// Walks stacks of one process.
#[derive(Debug)]
pub struct Unwinder<'a> {
    modules: &'a [Module],
    limit: usize,
}

impl<'a> Unwinder<'a> {
    /// An unwinder over these objects.
    #[must_use]
    pub fn new(modules: &'a [Module]) -> Self {
        Self { modules, limit: 100_000 }
    }

    /// Walks to the proven end of the stack.
    ///
    /// # Errors
    /// What stopped the walk; the frames up to there are lost on purpose, since half a walk decides
    /// nothing.
    pub fn walk(&self, start: Registers, memory: &dyn Memory) -> Result<Vec<Frame>, Unreliable> {
        let mut frames = Vec::new();
        let mut registers = start;
        let mut kind = FrameKind::Innermost;
        let mut context = UnwindContext::new();
        loop {
            let pc = registers.pc().ok_or(Unreliable::UnknownRegister { pc: 0, register: Register::RA })?;
            if frames.len() == self.limit {
                return Err(Unreliable::TooDeep { limit: self.limit });
            }
            // A return address may lie one past the function whose last instruction is the call.
            let lookup = if kind == FrameKind::Caller { pc.wrapping_sub(1) } else { pc };
            let module = self
                .modules
                .iter()
                .find(|m| m.range().contains(&lookup))
                .ok_or(Unreliable::NoModule { pc })?;
            let found =
                module.fde(lookup).ok_or_else(|| Unreliable::NoCfi { module: module.name.clone(), pc })?;
            let address = lookup.wrapping_sub(module.base.0);
            let row = found
                .fde
                .unwind_info_for_address(&found.section, &found.bases, &mut context, address)
                .map_err(|_| Unreliable::BadRule { pc })?;
            let trampoline = found.fde.is_signal_trampoline();
            let cfa = cfa(row, &found, &registers, memory, pc)?;
            frames.push(Frame { pc, cfa, kind, trampoline });
            let Some(caller) = caller(row, &found, &registers, memory, cfa, pc)? else { return Ok(frames) };
            // A signal may run on another stack, so only ordinary calls must ascend.
            if !trampoline && registers.sp().is_none_or(|sp| cfa <= sp) {
                return Err(Unreliable::NotAscending { pc });
            }
            kind = if trampoline { FrameKind::Interrupted } else { FrameKind::Caller };
            registers = caller;
        }
    }
}

fn known(registers: &Registers, register: Register, pc: u64) -> Result<u64, Unreliable> {
    registers.get(register).ok_or(Unreliable::UnknownRegister { pc, register })
}

fn cfa(
    row: &UnwindTableRow<usize>,
    found: &Found<'_>,
    registers: &Registers,
    memory: &dyn Memory,
    pc: u64,
) -> Result<u64, Unreliable> {
    match row.cfa() {
        CfaRule::RegisterAndOffset { register, offset } => {
            Ok(known(registers, Register(register.0), pc)?.wrapping_add_signed(*offset))
        }
        CfaRule::Expression(e) => {
            let expression = e.get(&found.section).map_err(|_| Unreliable::BadRule { pc })?;
            expression::evaluate(expression, None, registers, memory).ok_or(Unreliable::BadRule { pc })
        }
    }
}

/// Registers of the caller; `None` at the end of the stack (return address undefined).
fn caller(
    row: &UnwindTableRow<usize>,
    found: &Found<'_>,
    registers: &Registers,
    memory: &dyn Memory,
    cfa: u64,
    pc: u64,
) -> Result<Option<Registers>, Unreliable> {
    let mut result = Registers::default().with(Register::RSP, cfa);
    let read = |addr: u64| memory.read_u64(Addr(addr)).map_err(|_| Unreliable::Memory { addr });
    let evaluate = |e: &gimli::UnwindExpression<usize>| -> Result<u64, Unreliable> {
        let expression: gimli::Expression<Reader<'_>> =
            e.get(&found.section).map_err(|_| Unreliable::BadRule { pc })?;
        expression::evaluate(expression, Some(cfa), registers, memory).ok_or(Unreliable::BadRule { pc })
    };
    for register in Register::PRESERVED {
        result.set(register, registers.get(register));
    }
    let mut return_address = None;
    for (column, rule) in row.registers() {
        let column = Register(column.0);
        let value = match rule {
            RegisterRule::Undefined if column == Register::RA => return Ok(None),
            RegisterRule::Undefined => None,
            RegisterRule::SameValue => registers.get(column),
            RegisterRule::Offset(offset) => Some(read(cfa.wrapping_add_signed(*offset))?),
            RegisterRule::ValOffset(offset) => Some(cfa.wrapping_add_signed(*offset)),
            RegisterRule::Register(other) => registers.get(Register(other.0)),
            RegisterRule::Expression(e) => Some(read(evaluate(e)?)?),
            RegisterRule::ValExpression(e) => Some(evaluate(e)?),
            _ => return Err(Unreliable::BadRule { pc }),
        };
        if column == Register::RA {
            return_address = Some(value.ok_or(Unreliable::UnknownRegister { pc, register: Register::RA })?);
        }
        result.set(column, value);
    }
    match return_address {
        Some(_) => Ok(Some(result)),
        // A row that does not say where the return address is proves nothing.
        None => Err(Unreliable::BadRule { pc }),
    }
}
