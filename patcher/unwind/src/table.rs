//! The search table of `.eh_frame_hdr`.
//!
//! Read here and not by gimli, whose reader overflows on damaged ones, and because it is looked into at
//! every new place of a walk.

use suture_elf::Vaddr;

/// The encodings that every linker writes: version 1, pc-relative pointer, 4-byte count, pairs of
/// 4-byte offsets from the header.
const ENCODINGS: [u8; 4] = [1, 0x1b, 0x03, 0x3b];
const HEADER: usize = 12;

/// A search table: for each FDE its first address and where it lies.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SearchTable<'a> {
    at: Vaddr,
    /// Address of `.eh_frame`.
    pub frames: Vaddr,
    rows: &'a [[u8; 8]],
}

impl<'a> SearchTable<'a> {
    /// Reads the header at `at`, of which `bytes` is the beginning.
    pub fn new(at: Vaddr, bytes: &'a [u8]) -> Option<Self> {
        let (header, rest) = bytes.split_at_checked(HEADER)?;
        if !header.starts_with(&ENCODINGS) {
            return None;
        }
        let word = |from: usize| header.get(from..from + 4)?.first_chunk().copied().map(i32::from_le_bytes);
        let count = usize::try_from(word(8)?).ok()?;
        let rows = rest.as_chunks::<8>().0.get(..count)?;
        let frames = Vaddr(at.0.wrapping_add(4).wrapping_add_signed(i64::from(word(4)?)));
        Some(Self { at, frames, rows })
    }

    fn row(&self, index: usize) -> Option<(Vaddr, Vaddr)> {
        let [a, b, c, d, e, f, g, h] = *self.rows.get(index)?;
        let address = |bytes| Vaddr(self.at.0.wrapping_add_signed(i64::from(i32::from_le_bytes(bytes))));
        Some((address([a, b, c, d]), address([e, f, g, h])))
    }

    /// Index of the first row that starts behind an address.
    fn behind(&self, addr: Vaddr) -> usize {
        let (mut from, mut to) = (0, self.rows.len());
        while from < to {
            let middle = from + (to - from) / 2;
            match self.row(middle) {
                Some((start, _)) if start <= addr => from = middle + 1,
                _ => to = middle,
            }
        }
        from
    }

    /// Offset in `.eh_frame` of the last FDE that starts at or before an address.
    pub fn lookup(&self, addr: Vaddr) -> Option<usize> {
        let (_, entry) = self.row(self.behind(addr).checked_sub(1)?)?;
        usize::try_from(entry.0.checked_sub(self.frames.0)?).ok()
    }

    /// Start of the first FDE behind an address.
    pub fn next(&self, addr: Vaddr) -> Option<Vaddr> {
        self.row(self.behind(addr)).map(|row| row.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn table(rows: &[(i32, i32)]) -> Vec<u8> {
        let mut bytes = ENCODINGS.to_vec();
        bytes.extend(0x100i32.to_le_bytes());
        bytes.extend((rows.len() as i32).to_le_bytes());
        rows.iter().for_each(|(a, b)| bytes.extend([a.to_le_bytes(), b.to_le_bytes()].concat()));
        bytes
    }

    #[test]
    fn rows_are_relative_to_the_header() {
        let bytes = table(&[(-0x800, 0x204), (-0x700, 0x224), (0x300, 0x244)]);
        let table = SearchTable::new(Vaddr(0x2000), &bytes).unwrap();
        assert_eq!(table.frames, Vaddr(0x2104));
        for (addr, offset) in
            [(0x17ff, None), (0x1800, Some(0x100)), (0x18ff, Some(0x100)), (0x2300, Some(0x140))]
        {
            assert_eq!(table.lookup(Vaddr(addr)), offset, "{addr:#x}");
        }
        assert_eq!(
            [0, 0x1800, 0x1900, 0x2300].map(|a| table.next(Vaddr(a)).map(|n| n.0)),
            [Some(0x1800), Some(0x1900), Some(0x2300), None]
        );
        assert!(SearchTable::new(Vaddr(0x2000), &bytes[..bytes.len() - 1]).is_none());
        // An entry in front of the section.
        let bytes = super::tests::table(&[(0, 0)]);
        assert_eq!(SearchTable::new(Vaddr(0x2000), &bytes).unwrap().lookup(Vaddr(0x2000)), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_searched(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), at: u64, addr: u64, usual: bool) {
            if usual && bytes.len() > HEADER {
                bytes[..4].copy_from_slice(&ENCODINGS);
                bytes[9..12].fill(0);
            }
            if let Some(table) = SearchTable::new(Vaddr(at), &bytes) {
                let _ = (table.lookup(Vaddr(addr)), table.next(Vaddr(addr)));
            }
        }
    }
}
