//! DWARF expressions in CFI: signal frames and the PLT use a handful of operations.

use crate::registers::{Register, Registers};
use gimli::{EndianSlice, EvaluationResult, Expression, LittleEndian, Location, Value};
use suture_elf::{Addr, Memory};

const ENCODING: gimli::Encoding =
    gimli::Encoding { address_size: 8, format: gimli::Format::Dwarf32, version: 4 };

/// Operations that one expression may take: those of signal frames take three.
const MAX_OPERATIONS: u32 = 1_000;

/// Why there is no value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoValue {
    /// A register is not known.
    Unknown(Register),
    /// Memory cannot be read.
    Unreadable(u64),
    /// The expression makes no sense, does not end, or asks for what a frame does not have.
    Bad,
}

/// Evaluates an expression.
pub(crate) fn evaluate(
    expression: &[u8],
    initial: Option<u64>,
    registers: &Registers,
    memory: &dyn Memory,
) -> Result<u64, NoValue> {
    let expression = Expression(EndianSlice::new(expression, LittleEndian));
    let mut evaluation = expression.evaluation(ENCODING);
    evaluation.set_max_iterations(MAX_OPERATIONS);
    if let Some(value) = initial {
        evaluation.set_initial_value(value);
    }
    let bad = |_| NoValue::Bad;
    let mut result = evaluation.evaluate().map_err(bad)?;
    loop {
        result = match result {
            EvaluationResult::Complete => break,
            EvaluationResult::RequiresRegister { register, .. } => {
                let register = Register(register.0);
                let value = registers.get(register).ok_or(NoValue::Unknown(register))?;
                evaluation.resume_with_register(Value::Generic(value)).map_err(bad)?
            }
            EvaluationResult::RequiresMemory { address, size, space: None, .. } => {
                let mut word = [0; 8];
                let part = word.get_mut(..usize::from(size)).ok_or(NoValue::Bad)?;
                memory.read(Addr(address), part).map_err(|_| NoValue::Unreadable(address))?;
                evaluation.resume_with_memory(Value::Generic(u64::from_le_bytes(word))).map_err(bad)?
            }
            _ => return Err(NoValue::Bad),
        };
    }
    match evaluation.as_result() {
        [piece] => match piece.location {
            Location::Address { address } => Ok(address),
            _ => Err(NoValue::Bad),
        },
        _ => Err(NoValue::Bad),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use suture_elf::MemoryError;

    struct Zeros;
    impl Memory for Zeros {
        fn read(&self, addr: Addr, buf: &mut [u8]) -> Result<(), MemoryError> {
            let low = addr.0 < 0x10_0000;
            buf.fill(7);
            if low { Ok(()) } else { Err(MemoryError { addr, len: buf.len() }) }
        }
    }

    fn run(expression: &[u8], registers: &Registers) -> Result<u64, NoValue> {
        evaluate(expression, Some(16), registers, &Zeros)
    }

    #[test]
    fn operations_of_frames_work_and_say_what_they_lack() {
        let known = Registers::from_pc_sp(1, 0x1000);
        // breg7 8; deref
        assert_eq!(run(&[0x77, 8, 0x06], &known), Ok(0x0707_0707_0707_0707));
        // breg6 0
        assert_eq!(run(&[0x76, 0], &known), Err(NoValue::Unknown(Register::RBP)));
        // const8u; deref
        assert_eq!(run(&[0x0e, 0, 0, 0, 0, 0, 0, 0, 1, 0x06], &known), Err(NoValue::Unreadable(1 << 56)));
        // skip -3: for ever
        assert_eq!(run(&[0x2f, 0xfd, 0xff], &known), Err(NoValue::Bad));
        assert_eq!(run(&[0x06 + 0xe0], &known), Err(NoValue::Bad));
    }

    proptest! {
        /// Any bytes end, with a value or without.
        #[test]
        fn any_bytes_end(bytes in proptest::collection::vec(any::<u8>(), 0..64), sp in 0u64..0x20_0000) {
            let _ = run(&bytes, &Registers::from_pc_sp(0, sp));
        }

        /// The same for bytes that are mostly operations.
        #[test]
        fn likely_operations_end(
            bytes in proptest::collection::vec(prop_oneof![0x03u8..0x4f, 0x70u8..0x98, Just(0xfd), Just(0xff)], 0..64),
        ) {
            let _ = run(&bytes, &Registers::from_pc_sp(0, 0x800));
        }
    }
}
