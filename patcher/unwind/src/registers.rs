//! Registers of a frame, as far as they are known.

use std::fmt;

/// A general register by its DWARF number (System V psABI x86-64, figure 3.36).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Register(pub u16);

impl Register {
    /// `rbx`.
    pub const RBX: Self = Self(3);
    /// `rbp`.
    pub const RBP: Self = Self(6);
    /// `rsp`.
    pub const RSP: Self = Self(7);
    /// The return address column.
    pub const RA: Self = Self(16);
    /// Number of columns kept: sixteen general registers and the return address.
    pub const COUNT: usize = 17;
    /// The general registers but `rsp`.
    pub const ALL: [Self; 15] = [
        Self(0),
        Self(1),
        Self(2),
        Self::RBX,
        Self(4),
        Self(5),
        Self::RBP,
        Self(8),
        Self(9),
        Self(10),
        Self(11),
        Self(12),
        Self(13),
        Self(14),
        Self(15),
    ];
    /// Registers a callee preserves, besides `rsp`.
    pub const PRESERVED: [Self; 6] = [Self::RBX, Self::RBP, Self(12), Self(13), Self(14), Self(15)];
}

impl fmt::Debug for Register {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const NAMES: [&str; Register::COUNT] = [
            "rax", "rdx", "rcx", "rbx", "rsi", "rdi", "rbp", "rsp", "r8", "r9", "r10", "r11", "r12", "r13",
            "r14", "r15", "ra",
        ];
        match NAMES.get(usize::from(self.0)) {
            Some(name) => f.write_str(name),
            None => write!(f, "register {}", self.0),
        }
    }
}

impl fmt::Display for Register {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Values of registers; unknown where nothing says what they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Registers([Option<u64>; Register::COUNT]);

impl Registers {
    /// Only the program counter and the stack pointer: what `/proc/PID/task/TID/syscall` tells.
    #[must_use]
    pub fn from_pc_sp(pc: u64, sp: u64) -> Self {
        Self::default().with(Register::RA, pc).with(Register::RSP, sp)
    }

    /// The same with one more register known.
    #[must_use]
    pub fn with(mut self, register: Register, value: u64) -> Self {
        self.set(register, Some(value));
        self
    }

    /// Value of a register, if known.
    #[must_use]
    pub fn get(&self, register: Register) -> Option<u64> {
        self.0.get(usize::from(register.0)).copied().flatten()
    }

    /// Sets or forgets a register. Columns beyond the general registers are not kept.
    pub fn set(&mut self, register: Register, value: Option<u64>) {
        if let Some(slot) = self.0.get_mut(usize::from(register.0)) {
            *slot = value;
        }
    }

    /// Program counter.
    #[must_use]
    pub fn pc(&self) -> Option<u64> {
        self.get(Register::RA)
    }

    /// Stack pointer.
    #[must_use]
    pub fn sp(&self) -> Option<u64> {
        self.get(Register::RSP)
    }
}
