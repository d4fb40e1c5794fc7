//! The instructions victims are made of: prologue steps that a stub can undo, and instructions that
//! are displaced.

use dynasm::dynasm;
use dynasmrt::x64::X64Relocation;
use dynasmrt::{DynasmApi, VecAssembler};

/// The assembler every piece of code of the harness is made with.
pub type Assembler = VecAssembler<X64Relocation>;

/// What `lea r11` adds to the address behind it. Its low bytes are part of a punned displacement,
/// which they keep away from the text.
pub const LEA_DISTANCE: i32 = 0x0007_5040;

/// One instruction of a victim's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// `endbr64`
    Endbr,
    /// `push r64`; the body changes the register afterwards.
    Push(u8),
    /// `mov rbp, rsp`
    MovRbpRsp,
    /// `sub rsp, imm8`
    SubImm8(i8),
    /// `sub rsp, imm32`
    SubImm32(i32),
    /// One-byte `nop` of a patchable entry.
    Nop,
    /// `mov eax, eax`: two bytes.
    MovEaxEax,
    /// `add al, imm8`: two bytes, seen in the result.
    AddAl(i8),
    /// `xor r11d, r11d`: three bytes, seen in the result.
    XorR11,
    /// `xor r10d, r10d`: seen in the result.
    XorR10,
    /// `cmp eax, imm32`: five bytes, only flags.
    CmpEax(i32),
    /// `mov [rsp-8], r11`: five bytes, writes the red zone, seen in the result.
    SpillR11,
    /// `mov r11d, imm32`: six bytes, seen in the result.
    MovR11d(i32),
    /// `lea r11, [rip+LEA_DISTANCE]`: seven bytes; the copy must not move what it points at.
    LeaR11,
    /// `mov dword [rsp-16], imm32`: eight bytes.
    StoreImm(i32),
    /// `mov r11, imm64`: ten bytes, seen in the result.
    MovabsR11(i64),
    /// `ret` with padding behind it: the whole function.
    Ret,
    /// `jmp short` over three bytes of padding.
    JmpShort,
}

impl Op {
    /// Emits the instruction.
    pub fn emit(self, a: &mut Assembler) {
        match self {
            Self::Endbr => dynasm!(a ; .arch x64 ; .bytes [0xf3_u8, 0x0f, 0x1e, 0xfa].iter()),
            Self::Push(r) => emit_short(a, 0x50, r),
            Self::MovRbpRsp => dynasm!(a ; .arch x64 ; mov rbp, rsp),
            Self::SubImm8(n) => dynasm!(a ; .arch x64 ; sub rsp, BYTE n),
            Self::SubImm32(n) => dynasm!(a ; .arch x64 ; sub rsp, DWORD n),
            Self::Nop => dynasm!(a ; .arch x64 ; nop),
            Self::MovEaxEax => dynasm!(a ; .arch x64 ; mov eax, eax),
            Self::AddAl(n) => dynasm!(a ; .arch x64 ; add al, BYTE n),
            Self::XorR11 => dynasm!(a ; .arch x64 ; xor r11d, r11d),
            Self::XorR10 => dynasm!(a ; .arch x64 ; xor r10d, r10d),
            Self::CmpEax(n) => dynasm!(a ; .arch x64 ; cmp eax, DWORD n),
            Self::SpillR11 => dynasm!(a ; .arch x64 ; mov [rsp - 8], r11),
            Self::MovR11d(n) => dynasm!(a ; .arch x64 ; mov r11d, DWORD n),
            Self::LeaR11 => dynasm!(a ; .arch x64 ; lea r11, [rip + LEA_DISTANCE]),
            Self::StoreImm(n) => dynasm!(a ; .arch x64 ; mov DWORD [rsp - 16], DWORD n),
            Self::MovabsR11(n) => dynasm!(a ; .arch x64 ; mov r11, QWORD n),
            Self::Ret => dynasm!(a ; .arch x64 ; ret ; .bytes [0xcc_u8; 15].iter()),
            Self::JmpShort => dynasm!(a ; .arch x64 ; .bytes [0xeb_u8, 3, 0xcc, 0xcc, 0xcc].iter()),
        }
    }

    /// Length of the instruction itself, without padding behind it.
    pub fn length(self) -> usize {
        match self {
            Self::Ret => 1,
            Self::JmpShort => 2,
            _ => {
                let mut a = Assembler::new(0);
                self.emit(&mut a);
                a.offset().0
            }
        }
    }

    /// By how much the instruction lowers the stack pointer.
    pub fn depth(self) -> i32 {
        match self {
            Self::Push(_) => 8,
            Self::SubImm8(n) => i32::from(n),
            Self::SubImm32(n) => n,
            _ => 0,
        }
    }

    /// Emits what takes the instruction back, without touching flags.
    pub fn emit_undo(self, a: &mut Assembler) {
        match self {
            Self::Push(r) => emit_short(a, 0x58, r),
            Self::SubImm8(_) | Self::SubImm32(_) => {
                let n = self.depth();
                dynasm!(a ; .arch x64 ; lea rsp, [rsp + n]);
            }
            _ => {}
        }
    }

    /// Whether the instruction may stand before a site: it needs no undo or has one.
    pub fn is_undoable(self) -> bool {
        matches!(self, Self::Endbr | Self::Push(_) | Self::MovRbpRsp | Self::SubImm8(_) | Self::SubImm32(_))
    }
}

/// `push` (0x50) or `pop` (0x58) in the compilers' form. The assembler gives a register chosen at
/// run time a prefix even where none is needed, and the one-byte form is the one to attack.
fn emit_short(a: &mut Assembler, opcode: u8, register: u8) {
    if register >= 8 {
        a.push(0x41);
    }
    a.push(opcode + register % 8);
}
