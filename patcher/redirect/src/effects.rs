//! What an instruction reads and writes, as sets of registers.

use iced_x86::{Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register};
use std::ops::{BitAnd, BitOr, BitOrAssign, Not, Sub, SubAssign};

/// A set of registers: 16 general ones in two parts (their lowest byte and the rest), 32 vector ones, 8
/// masks, and the six arithmetic flags.
///
/// Compilers write the lowest byte of a register, read that, and never look at the rest, which would
/// look like a value that was there before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct RegSet(u128);

/// Constants as wide as what they are combined with: all ones are all ones.
const IMMEDIATES: [OpKind; 3] = [OpKind::Immediate8to32, OpKind::Immediate8to64, OpKind::Immediate32to64];

const REST_SHIFT: u32 = 16;
const VECTOR_SHIFT: u32 = 32;
const MASK_SHIFT: u32 = 64;
const FLAG_SHIFT: u32 = 72;

impl RegSet {
    pub const EMPTY: Self = Self(0);
    pub const VECTORS: Self = Self(0xffff_ffff << VECTOR_SHIFT);
    pub const MASKS: Self = Self(0xff << MASK_SHIFT);
    const REST: Self = Self(0xffff << REST_SHIFT);
    pub const FLAGS: Self = Self(0x3f << FLAG_SHIFT);

    /// The set of one register; empty for those that are not tracked.
    pub fn of(register: Register) -> Self {
        if register.is_gpr() {
            let register = register.full_register().number();
            Self(1 << register | 1 << (REST_SHIFT as usize + register))
        } else if register.is_vector_register() {
            Self(1 << (VECTOR_SHIFT as usize + register.number()))
        } else if register.is_k() {
            Self(1 << (MASK_SHIFT as usize + register.number()))
        } else {
            Self::EMPTY
        }
    }

    /// What an access to the register touches.
    fn touched(register: Register) -> Self {
        let whole = Self::of(register);
        match register {
            Register::AH | Register::CH | Register::DH | Register::BH => whole & Self::REST,
            _ if register.is_gpr8() => whole - Self::REST,
            _ => whole,
        }
    }

    /// What a write of the register leaves nothing of: 16 bits and the second byte are a part of the rest.
    fn replaced(register: Register) -> Self {
        match register {
            Register::AH | Register::CH | Register::DH | Register::BH => Self::EMPTY,
            _ if register.is_gpr8() || register.is_gpr16() => Self::of(register) - Self::REST,
            _ => Self::of(register),
        }
    }

    pub fn all(registers: &[Register]) -> Self {
        registers.iter().fold(Self::EMPTY, |set, r| set | Self::of(*r))
    }

    /// The arithmetic flags among iced's flag bits.
    fn flags(bits: u32) -> Self {
        // OF, SF, ZF, AF, CF, PF are iced's low bits; DF and the rest are not compiler temporaries.
        Self(u128::from(bits & 0x3f) << FLAG_SHIFT)
    }

    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub fn intersects(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// A register of the set by name, `flags` for flags.
    pub fn name(self) -> &'static str {
        const GENERAL: [&str; 16] = [
            "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13",
            "r14", "r15",
        ];
        const VECTOR: [&str; 16] = [
            "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11",
            "xmm12", "xmm13", "xmm14", "xmm15",
        ];
        match self.0.trailing_zeros() as usize {
            n @ 0..32 => GENERAL[n % 16],
            n @ 32..48 => VECTOR[n - 32],
            48..64 => "a register of xmm16 to xmm31",
            64..72 => "a mask register",
            _ => "flags",
        }
    }
}

impl BitOr for RegSet {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitOrAssign for RegSet {
    fn bitor_assign(&mut self, other: Self) {
        self.0 |= other.0;
    }
}

impl BitAnd for RegSet {
    type Output = Self;
    fn bitand(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

impl Sub for RegSet {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
}

impl SubAssign for RegSet {
    fn sub_assign(&mut self, other: Self) {
        self.0 &= !other.0;
    }
}

impl Not for RegSet {
    type Output = Self;
    fn not(self) -> Self {
        Self(!self.0)
    }
}

/// Reads and writes of one instruction.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Effect {
    /// Read, perhaps only on some condition.
    pub reads: RegSet,
    /// Changed in any way.
    pub writes: RegSet,
    /// Written as a whole in any case, so that what was there before is gone.
    pub kills: RegSet,
}

/// Computes effects; keeps iced's scratch memory.
pub(crate) struct Effects(InstructionInfoFactory);

impl Default for Effects {
    fn default() -> Self {
        Self(InstructionInfoFactory::new())
    }
}

impl Effects {
    pub fn of(&mut self, insn: &Instruction) -> Effect {
        // A system call saves the flags in r11; nobody takes them from there.
        let flags_read = if insn.mnemonic() == Mnemonic::Syscall { 0 } else { insn.rflags_read() };
        let mut effect = Effect {
            reads: RegSet::flags(flags_read),
            writes: RegSet::flags(insn.rflags_modified()),
            kills: RegSet::flags(insn.rflags_modified()),
        };
        let constant = is_constant(insn);
        for used in self.0.info(insn).used_registers() {
            let register = used.register();
            let set = RegSet::touched(register);
            let (reads, writes) = match used.access() {
                OpAccess::Read | OpAccess::CondRead => (true, false),
                OpAccess::Write | OpAccess::CondWrite => (false, true),
                OpAccess::ReadWrite | OpAccess::ReadCondWrite => (true, true),
                OpAccess::None | OpAccess::NoMemAccess => (false, false),
            };
            if reads && !constant {
                effect.reads |= set;
            }
            if writes {
                effect.writes |= set;
            }
            if used.access() == OpAccess::Write || writes && constant {
                effect.kills |= RegSet::replaced(register);
            }
        }
        effect
    }

    pub fn writes_memory(&mut self, insn: &Instruction) -> bool {
        let writes = |access| {
            !matches!(access, OpAccess::None | OpAccess::NoMemAccess | OpAccess::Read | OpAccess::CondRead)
        };
        self.0.info(insn).used_memory().iter().any(|memory| writes(memory.access()))
    }

    pub fn writes_register(&mut self, insn: &Instruction, register: Register) -> bool {
        self.of(insn).writes.intersects(RegSet::of(register))
    }
}

/// Whether the result is the same whatever was in the register before. The decoder knows the ways to make
/// a zero by one register and itself.
fn is_constant(insn: &Instruction) -> bool {
    let register = insn.op0_kind() == OpKind::Register;
    let immediate = insn.op_count() == 2 && IMMEDIATES.contains(&insn.op1_kind());
    let same = register && insn.op1_kind() == OpKind::Register && insn.op0_register() == insn.op1_register();
    match insn.mnemonic() {
        Mnemonic::Or => register && immediate && insn.immediate(1) == u64::MAX,
        Mnemonic::And => register && immediate && insn.immediate(1) == 0,
        Mnemonic::Pcmpeqb | Mnemonic::Pcmpeqw | Mnemonic::Pcmpeqd => insn.op_count() == 2 && same,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::{Decoder, DecoderOptions};

    fn effect(bytes: &[u8]) -> Effect {
        Effects::default().of(&Decoder::new(64, bytes, DecoderOptions::NONE).decode())
    }

    #[test]
    fn whole_and_partial_writes_differ() {
        let rax = RegSet::of(Register::RAX);
        let (al, rest) = (RegSet::touched(Register::AL), RegSet::touched(Register::AH));
        assert_eq!((al | rest, al & rest), (rax, RegSet::EMPTY));
        let mov_eax = effect(&[0xb8, 1, 0, 0, 0]);
        assert!(mov_eax.kills & rax == rax && !mov_eax.reads.intersects(rax));
        let mov_al = effect(&[0xb0, 1]);
        assert_eq!((mov_al.writes, mov_al.kills), (al, al));
        let mov_ah = effect(&[0xb4, 1]);
        assert_eq!((mov_ah.writes, mov_ah.kills), (rest, RegSet::EMPTY));
        let mov_ax = effect(&[0x66, 0xb8, 1, 0]);
        assert_eq!((mov_ax.writes, mov_ax.kills), (rax, al));
        let movzx_ecx_al = effect(&[0x0f, 0xb6, 0xc8]);
        assert_eq!(movzx_ecx_al.reads, al);
        let xor = effect(&[0x31, 0xc0]);
        assert!(xor.kills.intersects(rax) && !xor.reads.intersects(rax), "zeroing idiom");
        assert_eq!(xor.kills & RegSet::FLAGS, RegSet::FLAGS);
        let je = effect(&[0x74, 0]);
        assert!(je.reads.intersects(RegSet::FLAGS));
        assert_eq!((je.reads & RegSet::FLAGS).name(), "flags");
        let addsd = effect(&[0xf2, 0x0f, 0x58, 0xd1]);
        assert!(addsd.reads.intersects(RegSet::of(Register::XMM2)));
        assert_eq!(RegSet::of(Register::YMM5), RegSet::of(Register::XMM5));
        assert_eq!(RegSet::of(Register::R11D).name(), "r11");
    }
}
