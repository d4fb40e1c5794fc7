//! Addresses that cannot be mixed up.

use std::fmt;
use std::ops::{Add, Sub};

/// Size of a page of memory.
pub const PAGE: u64 = 4096;

macro_rules! address {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub u64);

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:#x})"), self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }
    };
}

address!(
    /// An address as the ELF file states it (`st_value`, `p_vaddr`).
    Vaddr
);
address!(
    /// An address in the target process.
    Addr
);
address!(
    /// A load address: what the loader adds to every [`Vaddr`] of an object (`l_addr`).
    Base
);

impl Add<Vaddr> for Base {
    type Output = Addr;
    fn add(self, vaddr: Vaddr) -> Addr {
        Addr(self.0.wrapping_add(vaddr.0))
    }
}

impl Sub<Base> for Addr {
    type Output = Vaddr;
    fn sub(self, base: Base) -> Vaddr {
        Vaddr(self.0.wrapping_sub(base.0))
    }
}

impl Add<u64> for Vaddr {
    type Output = Vaddr;
    fn add(self, n: u64) -> Vaddr {
        Vaddr(self.0.wrapping_add(n))
    }
}

impl Add<u64> for Addr {
    type Output = Addr;
    fn add(self, n: u64) -> Addr {
        Addr(self.0.wrapping_add(n))
    }
}
