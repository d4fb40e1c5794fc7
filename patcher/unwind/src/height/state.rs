//! What registers hold at one place of a function, as far as the code alone says.

use super::NoHeight;
use iced_x86::{Code, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register};

/// A value, relative to things that do not change while the function runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Value {
    /// The canonical frame address and an offset.
    Cfa(i64),
    /// A number.
    Number(u64),
    /// An entry of the table of 32-bit offsets there.
    Offset(u64),
    /// The sum of such an entry and the second number: the target of a jump.
    Target(u64, u64),
    /// An entry of the table of addresses there.
    Pointer(u64),
    /// Not known, and for a stack pointer why.
    Unknown(NoHeight),
}

impl Value {
    const UNKNOWN: Self = Self::Unknown(NoHeight::Dynamic);

    /// What is known when both may be the case. Only ever less: that is why following ends.
    fn join(self, other: Self) -> Self {
        match (self, other) {
            (a, b) if a == b => a,
            (Self::Unknown(a), Self::Unknown(b)) => Self::Unknown(first(a, b)),
            (Self::Unknown(why), _) | (_, Self::Unknown(why)) => Self::Unknown(why),
            _ => Self::Unknown(NoHeight::Conflict),
        }
    }

    fn plus(self, offset: i64) -> Self {
        match self {
            Self::Cfa(at) => at.checked_add(offset).map_or(Self::UNKNOWN, Self::Cfa),
            Self::Number(n) => Self::Number(n.wrapping_add_signed(offset)),
            Self::Unknown(why) => Self::Unknown(why),
            _ => Self::UNKNOWN,
        }
    }
}

/// One of two reasons, the same whichever came first.
fn first(a: NoHeight, b: NoHeight) -> NoHeight {
    let rank = |why| match why {
        NoHeight::Dynamic => 0,
        NoHeight::Aligned => 1,
        _ => 2,
    };
    if rank(a) <= rank(b) { a } else { b }
}

const RSP: usize = 4;
const RBP: usize = 5;
/// Registers that a call may change: rax, rcx, rdx, rsi, rdi, r8 to r11.
const CALL_CHANGES: [usize; 9] = [0, 1, 2, 6, 7, 8, 9, 10, 11];
/// And a system call: rax, rcx, r11.
const SYSCALL_CHANGES: [usize; 3] = [0, 1, 11];

/// General registers by their number in instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct State {
    registers: [Value; 16],
    /// Registers that were just compared with each other: a jump on "equal" knows more.
    compared: Option<(u8, u8)>,
}

impl State {
    /// At the entry of a called function: only the return address was pushed.
    pub fn entry() -> Self {
        let mut state = Self::unknown();
        state.registers[RSP] = Value::Cfa(-8);
        state
    }

    /// Where nothing is known, except what call frame information will say.
    pub fn unknown() -> Self {
        Self { registers: [Value::Unknown(NoHeight::Unreached); 16], compared: None }
    }

    pub fn sp(&self) -> Value {
        self.registers[RSP]
    }

    /// Believes call frame information: the register (by DWARF number) is `offset` below the CFA.
    pub fn believe(&mut self, register: crate::Register, offset: i64) {
        // DWARF counts rax, rdx, rcx, rbx, rsi, rdi, rbp, rsp.
        const NUMBERS: [usize; 8] = [0, 2, 1, 3, 6, 7, 5, 4];
        let number = match register.0 {
            n @ 0..8 => NUMBERS[usize::from(n)],
            n @ 8..16 => usize::from(n),
            _ => return,
        };
        self.registers[number] = offset.checked_neg().map_or(Value::UNKNOWN, Value::Cfa);
    }

    /// Takes in another way to the same place. Says whether less is known now.
    pub fn join(&mut self, other: &Self) -> bool {
        let before = *self;
        for (mine, theirs) in self.registers.iter_mut().zip(other.registers) {
            *mine = mine.join(theirs);
        }
        if self.compared != other.compared {
            self.compared = None;
        }
        *self != before
    }

    /// Where an exception continues that came out of a call: as at the call, without its arguments.
    pub fn at_landing_pad(&self, arguments: u64) -> Self {
        let mut state = *self;
        state.forget(&CALL_CHANGES);
        state.registers[RSP] = state.registers[RSP].plus(i64::try_from(arguments).unwrap_or(i64::MAX));
        state.compared = None;
        state
    }

    /// What holds behind a jump that was taken, or not. On "equal", a stack pointer that was counted
    /// up to a known place is there now; `None` when known values say that it cannot be so.
    pub fn knowing(&self, jump: &Instruction, taken: bool) -> Option<Self> {
        let mut state = *self;
        let equal = match jump.mnemonic() {
            Mnemonic::Je => taken,
            Mnemonic::Jne => !taken,
            _ => false,
        };
        if let (true, Some((a, b))) = (equal, self.compared) {
            let (a, b) = (usize::from(a), usize::from(b));
            match (self.registers[a], self.registers[b]) {
                (known @ Value::Cfa(_), Value::Unknown(_)) => state.registers[b] = known,
                (Value::Unknown(_), known @ Value::Cfa(_)) => state.registers[a] = known,
                (Value::Cfa(a), Value::Cfa(b)) if a != b => return None,
                _ => {}
            }
        }
        Some(state)
    }

    fn forget(&mut self, registers: &[usize]) {
        for &register in registers {
            self.registers[register] = Value::UNKNOWN;
        }
    }

    fn value(&self, register: Register) -> Value {
        match number(register) {
            Some(n) if register.is_gpr64() => self.registers[n],
            _ => Value::UNKNOWN,
        }
    }

    /// Where an indirect jump goes, if it is one through a table.
    pub fn jump_target(&self, jump: &Instruction) -> Option<Value> {
        match jump.op0_kind() {
            OpKind::Register => Some(self.value(jump.op0_register())),
            OpKind::Memory => Some(self.loaded(jump)),
            _ => None,
        }
        .filter(|v| matches!(v, Value::Target(..) | Value::Pointer(_)))
    }

    /// What an instruction loads from memory, as far as tables are concerned.
    fn loaded(&self, insn: &Instruction) -> Value {
        let (base, index) = (insn.memory_base(), insn.memory_index());
        match insn.memory_index_scale() {
            // movsxd r, [table + i*4]
            4 if insn.code() == Code::Movsxd_r64_rm32 && insn.memory_displacement64() == 0 => {
                let table = [base, index].into_iter().find_map(|r| match self.value(r) {
                    Value::Number(table) => Some(table),
                    _ => None,
                });
                table.map_or(Value::UNKNOWN, Value::Offset)
            }
            // mov r, [table + i*8]
            8 if index != Register::None => match self.value(base) {
                _ if base == Register::None => Value::Pointer(insn.memory_displacement64()),
                Value::Number(table) => Value::Pointer(table.wrapping_add(insn.memory_displacement64())),
                _ => Value::UNKNOWN,
            },
            _ => Value::UNKNOWN,
        }
    }

    /// What holds behind an instruction that goes on to the next one.
    pub fn pass(&mut self, insn: &Instruction, effects: &mut InstructionInfoFactory) {
        let before = *self;
        self.compared = None;
        let first = insn.op0_register();
        match (insn.mnemonic(), number(first)) {
            (Mnemonic::Cmp, Some(a)) if first.is_gpr64() => {
                if insn.op1_kind() == OpKind::Register
                    && let Some(b) = number(insn.op1_register())
                {
                    self.compared = Some((a as u8, b as u8));
                }
            }
            (Mnemonic::Syscall, _) => self.forget(&SYSCALL_CHANGES),
            (Mnemonic::Call, _) => self.forget(&CALL_CHANGES),
            (Mnemonic::Leave, _) => {
                self.registers[RSP] = self.registers[RBP].plus(8);
                self.registers[RBP] = Value::UNKNOWN;
            }
            (Mnemonic::Enter, _) => {
                let saved = self.registers[RSP].plus(-8);
                self.registers[RBP] = if insn.immediate8_2nd() == 0 { saved } else { Value::UNKNOWN };
                self.registers[RSP] = self.registers[RSP].plus(i64::from(insn.stack_pointer_increment()));
            }
            (Mnemonic::Nop | Mnemonic::Endbr64 | Mnemonic::Test, _) => {}
            (_, to) => {
                self.clobber(insn, effects);
                let to = to.filter(|_| insn.op0_kind() == OpKind::Register);
                if let (Some(to), Some(value)) = (to, before.result(insn)) {
                    self.registers[to] = value;
                }
            }
        }
    }

    /// Forgets what an instruction writes, and moves the stack pointer.
    fn clobber(&mut self, insn: &Instruction, effects: &mut InstructionInfoFactory) {
        let moved = self.registers[RSP].plus(i64::from(insn.stack_pointer_increment()));
        for used in effects.info(insn).used_registers() {
            let written = !matches!(
                used.access(),
                OpAccess::Read | OpAccess::CondRead | OpAccess::None | OpAccess::NoMemAccess
            );
            if written && let Some(n) = number(used.register()) {
                self.registers[n] = Value::UNKNOWN;
            }
        }
        // `pop rsp` loads it, and is no move.
        let loads = insn.op0_kind() == OpKind::Register && insn.op0_register() == Register::RSP;
        if insn.is_stack_instruction() && !(loads && insn.mnemonic() == Mnemonic::Pop) {
            self.registers[RSP] = moved;
        }
    }

    /// The value of the first operand after an instruction that computes it from known ones. The
    /// state is the one before the instruction.
    fn result(&self, insn: &Instruction) -> Option<Value> {
        let to = insn.op0_register();
        if to.is_gpr32() && insn.code() == Code::Mov_r32_imm32 {
            return Some(Value::Number(u64::from(insn.immediate32())));
        }
        if !to.is_gpr64() {
            return None;
        }
        let own = self.value(to);
        let source = (insn.op_count() == 2).then(|| match insn.op1_kind() {
            OpKind::Register => self.value(insn.op1_register()),
            OpKind::Memory => self.loaded(insn),
            OpKind::Immediate8to64 | OpKind::Immediate32to64 | OpKind::Immediate64 => {
                Value::Number(insn.immediate(1))
            }
            _ => Value::UNKNOWN,
        })?;
        match insn.mnemonic() {
            Mnemonic::Mov | Mnemonic::Movsxd => Some(source),
            Mnemonic::Lea => Some(self.address(insn)),
            Mnemonic::Add => Some(match (own, source) {
                (value, Value::Number(n)) if !matches!(value, Value::Offset(_)) => {
                    value.plus(n.cast_signed())
                }
                (Value::Number(n), value @ Value::Cfa(_)) => value.plus(n.cast_signed()),
                (Value::Offset(table), Value::Number(base)) | (Value::Number(base), Value::Offset(table)) => {
                    Value::Target(table, base)
                }
                _ => Value::UNKNOWN,
            }),
            Mnemonic::Sub => Some(match source {
                Value::Number(n) => n.cast_signed().checked_neg().map_or(Value::UNKNOWN, |n| own.plus(n)),
                _ => Value::UNKNOWN,
            }),
            Mnemonic::And if to == Register::RSP => Some(match (own, source) {
                (Value::Cfa(_), Value::Number(_)) => Value::Unknown(NoHeight::Aligned),
                _ => Value::UNKNOWN,
            }),
            _ => None,
        }
    }

    fn address(&self, lea: &Instruction) -> Value {
        if lea.is_ip_rel_memory_operand() {
            return Value::Number(lea.ip_rel_memory_address());
        }
        let displacement = lea.memory_displacement64().cast_signed();
        match (lea.memory_base(), lea.memory_index()) {
            (base, Register::None) if base.is_gpr64() => self.value(base).plus(displacement),
            _ => Value::UNKNOWN,
        }
    }
}

/// Number of a general register of any width.
fn number(register: Register) -> Option<usize> {
    register.is_gpr().then(|| register.full_register().number())
}
