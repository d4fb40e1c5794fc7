//! Running a seccomp filter for a system call that nobody makes yet.
//!
//! Classic BPF as the kernel's seccomp allows it (`seccomp(2)`, `linux/filter.h`). Pure.

/// One instruction, `struct sock_filter`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// Operation.
    pub code: u16,
    /// Instructions to skip when true.
    pub jt: u8,
    /// Instructions to skip when false.
    pub jf: u8,
    /// Operand.
    pub k: u32,
}

/// What a filter sees, `struct seccomp_data`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Data {
    /// System call number.
    pub nr: u32,
    /// Arguments.
    pub args: [u64; 6],
}

/// `AUDIT_ARCH_X86_64`.
const ARCH: u32 = 0xc000_003e;

/// A program that does what the kernel would have refused to load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadProgram;

impl Data {
    fn word(&self, offset: u32) -> Result<u32, BadProgram> {
        if offset > 60 || !offset.is_multiple_of(4) {
            return Err(BadProgram);
        }
        Ok(match offset {
            0 => self.nr,
            4 => ARCH,
            // The instruction pointer is not known before the call is made.
            8 | 12 => 0,
            _ => {
                let index = (offset - 16) as usize;
                let arg = self.args[index / 8];
                if index.is_multiple_of(8) { arg as u32 } else { (arg >> 32) as u32 }
            }
        })
    }
}

/// Runs one filter and gives its return value (`SECCOMP_RET_*`).
///
/// # Errors
/// For an operation, jump or offset that no loaded filter can have.
pub fn run(program: &[Instruction], data: &Data) -> Result<u32, BadProgram> {
    let (mut a, mut x, mut memory, mut pc) = (0u32, 0u32, [0u32; 16], 0usize);
    loop {
        let Instruction { code, jt, jf, k } = *program.get(pc).ok_or(BadProgram)?;
        pc += 1;
        let slot = k as usize;
        match code & 7 {
            // LD, LDX
            class @ (0 | 1) => {
                let value = match code & 0xe0 {
                    0x00 => k,
                    0x20 if class == 0 => data.word(k)?,
                    0x60 => *memory.get(slot).ok_or(BadProgram)?,
                    0x80 => 64,
                    _ => return Err(BadProgram),
                };
                if class == 0 { a = value } else { x = value }
            }
            2 => *memory.get_mut(slot).ok_or(BadProgram)? = a,
            3 => *memory.get_mut(slot).ok_or(BadProgram)? = x,
            4 => {
                let b = if code & 8 == 0 { k } else { x };
                a = match code & 0xf0 {
                    0x00 => a.wrapping_add(b),
                    0x10 => a.wrapping_sub(b),
                    0x20 => a.wrapping_mul(b),
                    0x30 => a.checked_div(b).ok_or(BadProgram)?,
                    0x40 => a | b,
                    0x50 => a & b,
                    0x60 => a.checked_shl(b).unwrap_or(0),
                    0x70 => a.checked_shr(b).unwrap_or(0),
                    0x80 => a.wrapping_neg(),
                    0xa0 => a ^ b,
                    _ => return Err(BadProgram),
                };
            }
            5 => {
                let b = if code & 8 == 0 { k } else { x };
                let taken = match code & 0xf0 {
                    0x00 => {
                        pc = pc.checked_add(slot).ok_or(BadProgram)?;
                        continue;
                    }
                    0x10 => a == b,
                    0x20 => a > b,
                    0x30 => a >= b,
                    0x40 => a & b != 0,
                    _ => return Err(BadProgram),
                };
                pc += usize::from(if taken { jt } else { jf });
            }
            6 => return Ok(if code & 0x18 == 0x10 { a } else { k }),
            _ if code & 0xf8 == 0x80 => a = x,
            _ => x = a,
        }
    }
}

/// Whether a filter's return value lets the call through as it is (`ALLOW`, `LOG`).
#[must_use]
pub fn allows(action: u32) -> bool {
    matches!(action & 0xffff_0000, 0x7fff_0000 | 0x7ffc_0000)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LD_NR: Instruction = Instruction { code: 0x20, jt: 0, jf: 0, k: 0 };
    const LD_ARCH: Instruction = Instruction { code: 0x20, jt: 0, jf: 0, k: 4 };
    const fn jeq(k: u32, jt: u8, jf: u8) -> Instruction {
        Instruction { code: 0x15, jt, jf, k }
    }
    const fn ret(k: u32) -> Instruction {
        Instruction { code: 6, jt: 0, jf: 0, k }
    }
    const ALLOW: u32 = 0x7fff_0000;

    #[test]
    fn an_allow_list_lets_through_what_it_names() {
        let filter = [LD_ARCH, jeq(ARCH, 1, 0), ret(0), LD_NR, jeq(9, 1, 0), ret(0x0005_0001), ret(ALLOW)];
        let action = |nr| run(&filter, &Data { nr, ..Data::default() }).unwrap();
        assert!(allows(action(9)));
        assert!(!allows(action(319)));
    }

    #[test]
    fn arguments_are_seen_in_halves() {
        // mmap with PROT_EXEC (args[2] & 4) is killed: what systemd's MemoryDenyWriteExecute does.
        let filter = [
            LD_NR,
            jeq(9, 0, 3),
            Instruction { code: 0x20, jt: 0, jf: 0, k: 32 },
            Instruction { code: 0x45, jt: 0, jf: 1, k: 4 },
            ret(0),
            ret(ALLOW),
        ];
        let mmap = |prot| run(&filter, &Data { nr: 9, args: [0, 0, prot, 0, 0, 0] }).unwrap();
        assert!(allows(mmap(3)));
        assert!(!allows(mmap(5)));
        assert!(allows(run(&filter, &Data { nr: 1, ..Data::default() }).unwrap()));
    }

    #[test]
    fn impossible_programs_are_refused() {
        let data = Data::default();
        assert_eq!(run(&[], &data), Err(BadProgram));
        assert_eq!(run(&[Instruction { code: 0x20, jt: 0, jf: 0, k: 64 }, ret(0)], &data), Err(BadProgram));
        assert_eq!(
            run(&[Instruction { code: 5, jt: 0, jf: 0, k: u32::MAX }, ret(0)], &data),
            Err(BadProgram)
        );
        assert_eq!(run(&[Instruction { code: 0x34, jt: 0, jf: 0, k: 0 }, ret(0)], &data), Err(BadProgram));
    }
}
