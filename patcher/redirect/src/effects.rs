//! What an instruction reads and writes, as sets of registers.

use iced_x86::{Instruction, InstructionInfoFactory, Mnemonic, OpAccess, Register};
use std::ops::{BitAnd, BitOr, BitOrAssign, Not, Sub, SubAssign};

/// A set of registers: 16 general ones, 32 vector ones, 8 masks, and the six arithmetic flags.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct RegSet(u64);

const FLAG_SHIFT: u32 = 56;

impl RegSet {
    pub const EMPTY: Self = Self(0);
    pub const VECTORS: Self = Self(0xffff_ffff << 16);
    pub const MASKS: Self = Self(0xff << 48);
    pub const FLAGS: Self = Self(0x3f << FLAG_SHIFT);

    /// The set of one register; empty for those that are not tracked.
    pub fn of(register: Register) -> Self {
        if register.is_gpr() {
            Self(1 << register.full_register().number())
        } else if register.is_vector_register() {
            Self(1 << (16 + register.number()))
        } else if register.is_k() {
            Self(1 << (48 + register.number()))
        } else {
            Self::EMPTY
        }
    }

    pub fn all(registers: &[Register]) -> Self {
        registers.iter().fold(Self::EMPTY, |set, r| set | Self::of(*r))
    }

    /// The arithmetic flags among iced's flag bits.
    fn flags(bits: u32) -> Self {
        // OF, SF, ZF, AF, CF, PF are iced's low bits; DF and the rest are not compiler temporaries.
        Self(u64::from(bits & 0x3f) << FLAG_SHIFT)
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
            n @ 0..16 => GENERAL[n],
            n @ 16..32 => VECTOR[n - 16],
            32..48 => "a register of xmm16 to xmm31",
            48..56 => "a mask register",
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
        for used in self.0.info(insn).used_registers() {
            let set = RegSet::of(used.register());
            let (reads, writes) = match used.access() {
                OpAccess::Read | OpAccess::CondRead => (true, false),
                OpAccess::Write | OpAccess::CondWrite => (false, true),
                OpAccess::ReadWrite | OpAccess::ReadCondWrite => (true, true),
                OpAccess::None | OpAccess::NoMemAccess => (false, false),
            };
            // A write of 8 or 16 bits keeps the rest of the register.
            let register = used.register();
            let whole = !register.is_gpr() || register.is_gpr64() || register.is_gpr32();
            if reads {
                effect.reads |= set;
            }
            if writes {
                effect.writes |= set;
            }
            if used.access() == OpAccess::Write && whole {
                effect.kills |= set;
            }
        }
        effect
    }

    pub fn writes_register(&mut self, insn: &Instruction, register: Register) -> bool {
        self.of(insn).writes.intersects(RegSet::of(register))
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
        let mov_eax = effect(&[0xb8, 1, 0, 0, 0]);
        assert!(mov_eax.kills.intersects(rax) && !mov_eax.reads.intersects(rax));
        let mov_al = effect(&[0xb0, 1]);
        assert!(mov_al.writes.intersects(rax) && !mov_al.kills.intersects(rax));
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
