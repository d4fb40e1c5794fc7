//! Which redirect classes may be used.

use serde::{Deserialize, Serialize};
use std::fmt;

/// How an entry is redirected; every class is one store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Class {
    /// Compiler pad: a short jump over two NOPs into the pad in front of the entry.
    P,
    /// Short jump into verified padding nearby.
    S,
    /// One instruction of five bytes or more becomes a near jump.
    A,
    /// Opcode pun: one byte becomes `E9`, the four bytes behind it *are* the displacement.
    J,
    /// Wide pun: the first instruction becomes the beginning of a jump, only the bytes behind it stay and are the
    /// rest of the displacement.
    W,
}

impl Class {
    /// All classes in the order they are tried.
    pub const ALL: [Self; 5] = [Self::P, Self::S, Self::A, Self::J, Self::W];

    /// Its letter, as [`suture_abi::batch::Site::class`] has it.
    #[must_use]
    pub fn letter(self) -> u8 {
        match self {
            Self::P => b'P',
            Self::S => b'S',
            Self::A => b'A',
            Self::J => b'J',
            Self::W => b'W',
        }
    }

    /// Whether the jump leads to a page of its own, at an address the bytes behind the store have a say in.
    #[must_use]
    pub fn is_pun(self) -> bool {
        matches!(self, Self::J | Self::W)
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        char::from(self.letter()).fmt(f)
    }
}

/// A set of classes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Classes(u8);

impl Classes {
    /// Every class.
    pub const ALL: Self = Self(0b1_1111);

    /// From letters, in any order and case; `None` for a letter that is no class, or none at all.
    #[must_use]
    pub fn parse(letters: &str) -> Option<Self> {
        let mut set = 0;
        for letter in letters.bytes() {
            let class = Class::ALL.iter().position(|c| c.letter() == letter.to_ascii_uppercase())?;
            set |= 1 << class;
        }
        (set != 0).then_some(Self(set))
    }

    /// Whether the class is in the set.
    #[must_use]
    pub fn contains(self, class: Class) -> bool {
        self.0 & (1 << class as u8) != 0
    }
}

/// What the planner may do.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Classes that may be used.
    pub classes: Classes,
    /// Most punned pages a process may get, those it already has included.
    pub max_pun_pages: usize,
    /// The process's `vm.max_map_count`; punned pages may take an eighth of what is left of it.
    pub max_map_count: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { classes: Classes::ALL, max_pun_pages: 1_000, max_map_count: 65_530 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_make_a_set() {
        let set = Classes::parse("sJ").unwrap();
        assert!(set.contains(Class::S) && set.contains(Class::J));
        assert!(!set.contains(Class::P) && !set.contains(Class::A));
        assert_eq!(Classes::parse("PSAJW"), Some(Classes::ALL));
        assert_eq!(Classes::parse(""), None);
        assert_eq!(Classes::parse("PX"), None);
    }
}
