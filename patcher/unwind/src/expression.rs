//! DWARF expressions in CFI: signal frames and the PLT use a handful of operations.

use crate::module::Reader;
use crate::registers::{Register, Registers};
use gimli::{EvaluationResult, Expression, Location, Value};
use suture_elf::{Addr, Memory};

const ENCODING: gimli::Encoding =
    gimli::Encoding { address_size: 8, format: gimli::Format::Dwarf32, version: 4 };

/// Evaluates an expression; `None` when it needs anything that is not known.
pub(crate) fn evaluate(
    expression: Expression<Reader<'_>>,
    initial: Option<u64>,
    registers: &Registers,
    memory: &dyn Memory,
) -> Option<u64> {
    let mut evaluation = expression.evaluation(ENCODING);
    evaluation.set_max_iterations(1_000);
    if let Some(value) = initial {
        evaluation.set_initial_value(value);
    }
    let mut result = evaluation.evaluate().ok()?;
    loop {
        result = match result {
            EvaluationResult::Complete => break,
            EvaluationResult::RequiresRegister { register, .. } => {
                let value = registers.get(Register(register.0))?;
                evaluation.resume_with_register(Value::Generic(value)).ok()?
            }
            EvaluationResult::RequiresMemory { address, size, space: None, .. } => {
                let mut word = [0; 8];
                memory.read(Addr(address), word.get_mut(..usize::from(size))?).ok()?;
                evaluation.resume_with_memory(Value::Generic(u64::from_le_bytes(word))).ok()?
            }
            _ => return None,
        };
    }
    match evaluation.result().first()?.location {
        Location::Address { address } => Some(address),
        _ => None,
    }
}
