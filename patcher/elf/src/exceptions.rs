//! Exception tables: where an exception that comes out of a call continues.

use crate::Vaddr;
use std::ops::Range;

/// One row of a frame's exception table (LSDA).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallSite {
    /// Code that it is about.
    pub range: Range<Vaddr>,
    /// Where an exception continues; `None` lets it pass.
    pub pad: Option<Vaddr>,
}

impl CallSite {
    /// Reads the table at `addr`, of which `bytes` is the beginning, for a frame that starts at
    /// `start`. `None` when it makes no sense.
    #[must_use]
    pub fn read(bytes: &[u8], addr: Vaddr, start: Vaddr) -> Option<Vec<Self>> {
        let mut reader = Reader { bytes, addr: addr.0 };
        let base = reader.encoded()?.unwrap_or(start.0);
        let types = reader.byte()?;
        if types != OMIT {
            reader.uleb()?;
        }
        let encoding = reader.byte()?;
        let length = usize::try_from(reader.uleb()?).ok()?;
        let mut table = Reader { bytes: reader.bytes.get(..length)?, addr: reader.addr };
        let mut sites = Vec::new();
        while !table.bytes.is_empty() {
            let from = start.0.wrapping_add(table.value(encoding)?);
            let length = table.value(encoding)?;
            let pad = table.value(encoding)?;
            table.uleb()?;
            let range = Vaddr(from)..Vaddr(from.wrapping_add(length));
            sites.push(Self { range, pad: (pad != 0).then(|| Vaddr(base.wrapping_add(pad))) });
        }
        Some(sites)
    }
}

const OMIT: u8 = 0xff;

struct Reader<'a> {
    bytes: &'a [u8],
    addr: u64,
}

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, tail) = self.bytes.split_at_checked(N)?;
        self.bytes = tail;
        self.addr = self.addr.wrapping_add(N as u64);
        head.try_into().ok()
    }

    fn byte(&mut self) -> Option<u8> {
        self.take::<1>().map(|b| b[0])
    }

    fn uleb(&mut self) -> Option<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    /// A value in one of the formats of `DW_EH_PE_*`, without its application part.
    fn value(&mut self, encoding: u8) -> Option<u64> {
        match encoding & 0x0f {
            0x00 | 0x04 | 0x0c => self.take().map(u64::from_le_bytes),
            0x01 => self.uleb(),
            0x02 => self.take().map(|b| u64::from(u16::from_le_bytes(b))),
            0x03 => self.take().map(|b| u64::from(u32::from_le_bytes(b))),
            0x0b => self.take().map(|b| i64::from(i32::from_le_bytes(b)).cast_unsigned()),
            _ => None,
        }
    }

    /// An encoded pointer: `Some(None)` = omitted.
    fn encoded(&mut self) -> Option<Option<u64>> {
        let encoding = self.byte()?;
        if encoding == OMIT {
            return Some(None);
        }
        let here = self.addr;
        let value = self.value(encoding)?;
        match encoding & 0x70 {
            0x00 => Some(Some(value)),
            0x10 => Some(Some(here.wrapping_add(value))),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn rows_are_read_relative_to_their_bases() {
        // No base of its own, no types, LEB numbers: one site with a pad, one without.
        let table = [OMIT, OMIT, 1, 8, 0x10, 5, 0x40, 0, 0x20, 3, 0, 0];
        let sites = CallSite::read(&table, Vaddr(0x9000), Vaddr(0x1000)).unwrap();
        let site =
            |from, to, pad: Option<u64>| CallSite { range: Vaddr(from)..Vaddr(to), pad: pad.map(Vaddr) };
        assert_eq!(sites, [site(0x1010, 0x1015, Some(0x1040)), site(0x1020, 0x1023, None)]);
        // Pads relative to a base far away, in other code.
        let table = [0x1b, 0xff, 0x0f, 0, 0, OMIT, 1, 4, 0x10, 5, 0x40, 0];
        let sites = CallSite::read(&table, Vaddr(0x9000), Vaddr(0x1000)).unwrap();
        assert_eq!(sites[0].pad, Some(Vaddr(0x9001 + 0x0fff + 0x40)));
        assert_eq!(CallSite::read(&table[..9], Vaddr(0x9000), Vaddr(0x1000)), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100), at: u64, start: u64) {
            let _ = CallSite::read(&bytes, Vaddr(at), Vaddr(start));
        }
    }
}
