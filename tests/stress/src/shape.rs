//! The catalogue: which functions are attacked, in which class, at which alignments.

use std::fmt;

use crate::op::Op;

/// Class of an arming store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// Two NOPs of a patchable entry become a short jump into the pad.
    P,
    /// The first two bytes of an instruction become a short jump into verified padding.
    S,
    /// The first five bytes of one instruction become `jmp rel32`.
    A,
    /// One byte becomes `E9`; the four bytes behind it are the displacement.
    J,
    /// Two to four bytes of an instruction become the beginning of `jmp rel32`; the bytes behind them are the
    /// rest of its displacement.
    W,
}

impl Class {
    /// All classes, in the order a planner prefers them.
    pub const ALL: [Self; 5] = [Self::P, Self::S, Self::A, Self::J, Self::W];

    /// The class's letter.
    pub fn letter(self) -> u8 {
        match self {
            Self::P => b'P',
            Self::S => b'S',
            Self::A => b'A',
            Self::J => b'J',
            Self::W => b'W',
        }
    }

    /// Bytes of code the arming store changes at least.
    pub fn width(self) -> u64 {
        match self {
            Self::P | Self::S | Self::W => 2,
            Self::A => 5,
            Self::J => 1,
        }
    }

    /// Whether a site may stand at this address: the changed bytes lie in one aligned word.
    pub fn accepts(self, site: u64) -> bool {
        site % 8 + self.width() <= 8
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", char::from(self.letter()))
    }
}

/// Distance of the padding from the site: the nearest place, and close to the end of a short jump.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pad {
    /// The class needs none.
    None,
    /// Right before the entry, as compilers place it.
    Near,
    /// At the far end of the short jump's reach.
    Far,
}

/// Head of a victim.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Short name.
    pub name: &'static str,
    /// Class of its site.
    pub class: Class,
    /// Prologue before the site.
    pub before: &'static [Op],
    /// The instruction at the site.
    pub site: Op,
    /// Rest of the head.
    pub after: &'static [Op],
    /// Where the padding lies.
    pub pad: Pad,
}

const RBX: u8 = 3;
const RBP: u8 = 5;

const fn shape(
    class: Class,
    name: &'static str,
    before: &'static [Op],
    site: Op,
    after: &'static [Op],
    pad: Pad,
) -> Shape {
    Shape { name, class, before, site, after, pad }
}

const FRAME: &[Op] = &[Op::Push(RBP), Op::MovRbpRsp];
const PUSHES: &[Op] = &[Op::Push(12), Op::Push(RBX)];
const FOUR: &[Op] = &[Op::Push(15), Op::Push(14), Op::Push(13), Op::Push(12)];
const LONG: &[Op] = &[Op::Endbr, Op::Push(RBP), Op::MovRbpRsp, Op::Push(15), Op::SubImm32(0x188)];
const FIVE: &[Op] = &[Op::Endbr, Op::Push(15), Op::Push(14), Op::Push(13), Op::Push(12)];

/// Every shape of the catalogue.
#[rustfmt::skip]
pub const SHAPES: &[Shape] = &[
    shape(Class::P, "pad", &[], Op::Nop, &[Op::Nop, Op::Push(RBP), Op::MovRbpRsp], Pad::Near),
    shape(Class::P, "endbr pad", &[Op::Endbr], Op::Nop, &[Op::Nop, Op::Push(RBX)], Pad::Near),

    shape(Class::S, "push r12", &[], Op::Push(12), &[Op::Push(RBX)], Pad::Near),
    shape(Class::S, "mov eax,eax", &[], Op::MovEaxEax, &[], Pad::Far),
    shape(Class::S, "add al", &[], Op::AddAl(0x5a), &[Op::Push(RBX)], Pad::Near),
    shape(Class::S, "xor r11d", &[], Op::XorR11, &[], Pad::Far),
    shape(Class::S, "sub rsp,8", &[], Op::SubImm8(8), &[], Pad::Near),
    shape(Class::S, "spill", &[], Op::SpillR11, &[], Pad::Far),
    shape(Class::S, "lea rip", &[], Op::LeaR11, &[], Pad::Near),
    shape(Class::S, "movabs", &[], Op::MovabsR11(0x0123_4567_89ab_cdef), &[], Pad::Near),
    shape(Class::S, "jmp short", &[], Op::JmpShort, &[], Pad::Near),
    shape(Class::S, "endbr;push r13", &[Op::Endbr], Op::Push(13), &[], Pad::Far),
    shape(Class::S, "push rbp;mov", &[Op::Push(RBP)], Op::MovRbpRsp, &[Op::Push(RBX)], Pad::Near),
    shape(Class::S, "frame;push r15", FRAME, Op::Push(15), &[Op::SubImm8(24)], Pad::Far),
    shape(Class::S, "pushes;sub", PUSHES, Op::SubImm8(40), &[], Pad::Near),
    shape(Class::S, "sub 0x188;mov", &[Op::SubImm32(0x188)], Op::MovEaxEax, &[], Pad::Near),
    shape(Class::S, "four;add al", FOUR, Op::AddAl(0x11), &[Op::Push(RBX)], Pad::Far),
    shape(Class::S, "long;xor r11d", LONG, Op::XorR11, &[], Pad::Far),

    shape(Class::A, "cmp eax", &[], Op::CmpEax(0x1234_5678), &[Op::Push(RBX)], Pad::None),
    shape(Class::A, "spill", &[], Op::SpillR11, &[], Pad::None),
    shape(Class::A, "mov r11d", &[], Op::MovR11d(0x1357_9bdf), &[Op::Push(RBP), Op::MovRbpRsp], Pad::None),
    shape(Class::A, "sub 0x188", &[], Op::SubImm32(0x188), &[], Pad::None),
    shape(Class::A, "lea rip", &[], Op::LeaR11, &[Op::Push(12)], Pad::None),
    shape(Class::A, "store imm", &[], Op::StoreImm(0x2468_ace0), &[], Pad::None),
    shape(Class::A, "movabs", &[], Op::MovabsR11(0x0fed_cba9_8765_4321), &[], Pad::None),
    shape(Class::A, "ret+pad", &[], Op::Ret, &[], Pad::None),
    shape(Class::A, "jmp short+pad", &[], Op::JmpShort, &[], Pad::None),
    shape(Class::A, "endbr;mov r11d", &[Op::Endbr], Op::MovR11d(0x600d_cafe), &[], Pad::None),
    shape(Class::A, "frame;sub", FRAME, Op::SubImm32(0x200), &[], Pad::None),
    shape(Class::A, "pushes;lea rip", PUSHES, Op::LeaR11, &[], Pad::None),
    shape(Class::A, "sub 24;movabs", &[Op::SubImm8(24)], Op::MovabsR11(0x1111_2222_3333_4444), &[], Pad::None),
    shape(Class::A, "five;spill", FIVE, Op::SpillR11, &[], Pad::None),
    shape(Class::A, "long;mov r11d", LONG, Op::MovR11d(0x0bad_f00d), &[], Pad::None),

    shape(Class::J, "push rbp;mov", &[], Op::Push(RBP), &[Op::MovRbpRsp, Op::Push(RBX)], Pad::None),
    shape(Class::J, "push r12;push", &[], Op::Push(12), &[Op::Push(RBX), Op::SubImm8(8)], Pad::None),
    shape(Class::J, "sub rsp,24", &[], Op::SubImm8(24), &[], Pad::None),
    shape(Class::J, "mov eax,eax", &[], Op::MovEaxEax, &[Op::Push(RBP), Op::MovRbpRsp], Pad::None),
    shape(Class::J, "add al", &[], Op::AddAl(0x33), &[Op::XorR11], Pad::None),
    shape(Class::J, "lea rip", &[], Op::LeaR11, &[Op::Push(RBX)], Pad::None),
    shape(Class::J, "movabs", &[], Op::MovabsR11(0x0102_0304_0526_1708), &[], Pad::None),
    shape(Class::J, "endbr;push rbx", &[Op::Endbr], Op::Push(RBX), &[Op::SubImm8(16)], Pad::None),
    shape(Class::J, "push;mov rbp", &[Op::Push(RBP)], Op::MovRbpRsp, &[Op::Push(RBX)], Pad::None),
    shape(Class::J, "frame;push r15", FRAME, Op::Push(15), &[Op::SubImm8(24)], Pad::None),
    shape(Class::J, "pushes;sub", PUSHES, Op::SubImm32(0x2188), &[], Pad::None),
    shape(Class::J, "sub 24;add al", &[Op::SubImm8(24)], Op::AddAl(0x44), &[Op::Push(RBX)], Pad::None),
    shape(Class::J, "four;push rbx", FOUR, Op::Push(RBX), &[Op::SubImm8(8)], Pad::None),
    shape(Class::J, "long;xor r11d", LONG, Op::XorR11, &[Op::Push(RBX)], Pad::None),

    shape(Class::W, "push r12;push", &[], Op::Push(12), &[Op::Push(RBX), Op::SubImm8(8)], Pad::None),
    shape(Class::W, "mov eax,eax", &[], Op::MovEaxEax, &[Op::Push(RBP), Op::MovRbpRsp], Pad::None),
    shape(Class::W, "xor r11d", &[], Op::XorR11, &[Op::Push(RBX)], Pad::None),
    shape(Class::W, "sub rsp,24", &[], Op::SubImm8(24), &[Op::AddAl(0x33)], Pad::None),
    shape(Class::W, "spill", &[], Op::SpillR11, &[], Pad::None),
    shape(Class::W, "mov r11d", &[], Op::MovR11d(0x1357_9bdf), &[Op::Push(RBX)], Pad::None),
    shape(Class::W, "movabs", &[], Op::MovabsR11(0x0102_0304_0526_1708), &[], Pad::None),
    shape(Class::W, "endbr;push r13", &[Op::Endbr], Op::Push(13), &[Op::SubImm8(16)], Pad::None),
    shape(Class::W, "push;mov rbp", &[Op::Push(RBP)], Op::MovRbpRsp, &[Op::Push(RBX)], Pad::None),
    shape(Class::W, "frame;push r15", FRAME, Op::Push(15), &[Op::SubImm8(24)], Pad::None),
    shape(Class::W, "four;sub", FOUR, Op::SubImm8(8), &[Op::Push(RBX)], Pad::None),
    shape(Class::W, "long;xor r11d", LONG, Op::XorR11, &[Op::Push(RBX)], Pad::None),
];

/// Page offsets a site is tried at: start of a line, end of a line, end of a page, each at all
/// eight offsets in the word.
pub const PLACES: [u64; 3] = [0x800, 0x838, 0xff8];

/// A shape at one alignment.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// The shape.
    pub shape: Shape,
    /// Offset of the site in its page.
    pub offset: u64,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = match self.offset {
            0xff8.. => "page end",
            o if o % 64 >= 56 => "line end",
            _ => "line start",
        };
        write!(f, "{} {:<15} {:<10} +{}", self.shape.class, self.shape.name, place, self.offset % 8)
    }
}

/// All cases of a class: every shape at every alignment the class accepts.
pub fn cases(class: Class) -> Vec<Case> {
    let shapes = SHAPES.iter().filter(|shape| shape.class == class);
    shapes
        .flat_map(|&shape| {
            PLACES
                .iter()
                .flat_map(|place| (0..8).map(move |k| place + k))
                .filter(move |&offset| class.accepts(offset))
                .map(move |offset| Case { shape, offset })
        })
        .collect()
}

/// The shape of this class and name.
///
/// # Panics
/// If the catalogue has none: callers name shapes that exist.
pub fn named(class: Class, name: &str) -> Shape {
    let found = SHAPES.iter().find(|shape| shape.class == class && shape.name == name);
    *found.expect("the catalogue has the shape")
}
