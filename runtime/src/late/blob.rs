//! Reading a recipe's blob: bounds-checked, by value.
//!
//! # Safety
//!
//! Structures are copied out of bytes; all of them are made of integers.
#![allow(unsafe_code)]

use suture_abi::batch::Table;
use suture_abi::late::{Head, LateSite, Piece, Reloc, Word};

/// Structures of integers: any bytes are a value.
///
/// # Safety
///
/// Every bit pattern must be valid and the type must not own anything.
unsafe trait Plain: Copy {}
// SAFETY: integers and arrays of integers only, in all of them.
unsafe impl Plain for Head {}
// SAFETY: as above.
unsafe impl Plain for Piece {}
// SAFETY: as above.
unsafe impl Plain for Reloc {}
// SAFETY: as above.
unsafe impl Plain for LateSite {}
// SAFETY: as above.
unsafe impl Plain for Word {}

fn copy_out<T: Plain>(bytes: &[u8], at: usize) -> Option<T> {
    let field = bytes.get(at..at.checked_add(size_of::<T>())?)?;
    // SAFETY: `field` is `size_of::<T>()` readable bytes and any bytes are a `T`.
    Some(unsafe { field.as_ptr().cast::<T>().read_unaligned() })
}

/// A blob whose bounds were checked.
#[derive(Clone, Copy, Debug)]
pub struct Blob<'a> {
    bytes: &'a [u8],
    /// The head.
    pub head: Head,
}

impl<'a> Blob<'a> {
    /// Checks bounds. `None`: it is damaged.
    pub fn new(bytes: &'a [u8]) -> Option<Self> {
        let blob = Blob { bytes, head: copy_out(bytes, 0)? };
        let Head { pieces, relocs, sites, data, start, end } = blob.head;
        blob.part(pieces, size_of::<Piece>())?;
        blob.part(relocs, size_of::<Reloc>())?;
        blob.part(sites, size_of::<LateSite>())?;
        blob.part(data, 1)?;
        let page = crate::sys::mem::PAGE;
        let whole = |n: u64| n.is_multiple_of(page);
        let fits = blob.pieces().all(|p| {
            p.len != 0
                && whole(p.at)
                && whole(p.len)
                && blob.bytes_of(&p).is_some()
                && p.exec < 2
                && p.moves < 2
        });
        let inside = |r: Reloc| {
            let piece = copy_out::<Piece>(blob.part(pieces, size_of::<Piece>())?, piece_at(r)?)?;
            (u64::from(r.at).checked_add(4)? <= piece.len).then_some(())
        };
        (fits && start <= end && blob.relocs().all(|r| inside(r).is_some())).then_some(blob)
    }

    fn part(&self, table: Table, size: usize) -> Option<&'a [u8]> {
        let start = table.offset as usize;
        self.bytes.get(start..start.checked_add((table.count as usize).checked_mul(size)?)?)
    }

    fn table<T: Plain>(&self, table: Table) -> Option<impl Iterator<Item = T> + use<'a, T>> {
        let part = self.part(table, size_of::<T>())?;
        // `chunks_exact` would panic for size 0; no table has entries of that size.
        Some(part.chunks_exact(size_of::<T>().max(1)).filter_map(|entry| copy_out(entry, 0)))
    }

    /// Pages to be mapped.
    pub fn pieces(&self) -> impl Iterator<Item = Piece> + use<'a> {
        self.table(self.head.pieces).into_iter().flatten()
    }

    /// Displacements that change when pieces are moved.
    pub fn relocs(&self) -> impl Iterator<Item = Reloc> + use<'a> {
        self.table(self.head.relocs).into_iter().flatten()
    }

    /// Sites.
    pub fn sites(&self) -> impl Iterator<Item = LateSite> + use<'a> {
        self.table(self.head.sites).into_iter().flatten()
    }

    /// What a piece is filled with.
    pub fn bytes_of(&self, piece: &Piece) -> Option<&'a [u8]> {
        let start = piece.data as usize;
        self.part(self.head.data, 1)?.get(start..start.checked_add(piece.len as usize)?)
    }
}

/// The words of a blob that is made of nothing else. `None`: it is damaged.
pub fn words(bytes: &[u8]) -> Option<impl Iterator<Item = Word> + '_> {
    let (size, len) = (size_of::<Word>().max(1), bytes.len());
    (len.checked_rem(size) == Some(0))
        .then(|| bytes.chunks_exact(size).filter_map(|entry| copy_out(entry, 0)))
}

fn piece_at(reloc: Reloc) -> Option<usize> {
    (reloc.piece as usize).checked_mul(size_of::<Piece>())
}
