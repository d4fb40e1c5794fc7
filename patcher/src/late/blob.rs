//! Putting a recipe into bytes.

use suture_abi::batch::Table;
use suture_abi::late::{Head, LateSite, Piece, Reloc, Word};
use suture_redirect::RecipePlan;

/// Rows of integers without padding.
///
/// # Safety
/// Only for `repr(C)` types without padding, whose bytes are therefore all initialised.
#[allow(unsafe_code)]
unsafe trait Row {}
#[allow(unsafe_code)]
// SAFETY: two u64, then tables of two u32 each.
unsafe impl Row for Head {}
#[allow(unsafe_code)]
// SAFETY: two u64, four u32.
unsafe impl Row for Piece {}
#[allow(unsafe_code)]
// SAFETY: two u32.
unsafe impl Row for Reloc {}
#[allow(unsafe_code)]
// SAFETY: a site, which has no padding, and two u64.
unsafe impl Row for LateSite {}
#[allow(unsafe_code)]
// SAFETY: three u64, two u32.
unsafe impl Row for Word {}

#[allow(unsafe_code)]
fn bytes_of<T: Row>(rows: &[T]) -> &[u8] {
    // SAFETY: `Row` says that every byte is initialised; the length is that of the slice.
    unsafe { std::slice::from_raw_parts(rows.as_ptr().cast(), size_of_val(rows)) }
}

/// The blob of a row of words.
#[must_use]
pub fn words(words: &[Word]) -> Vec<u8> {
    bytes_of(words).to_vec()
}

/// The blob of a recipe. `data` is the plan's with the words filled that stubs jump through.
#[must_use]
pub fn to_bytes(plan: &RecipePlan, sites: &[LateSite], data: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; size_of::<Head>()];
    let mut append = |rows: &[u8], count: usize| {
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        let offset = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        bytes.extend_from_slice(rows);
        Table { offset, count: u32::try_from(count).unwrap_or(u32::MAX) }
    };
    let head = Head {
        start: plan.start,
        end: plan.end,
        pieces: append(bytes_of(&plan.pieces), plan.pieces.len()),
        relocs: append(bytes_of(&plan.relocs), plan.relocs.len()),
        sites: append(bytes_of(sites), sites.len()),
        data: append(data, data.len()),
    };
    bytes[..size_of::<Head>()].copy_from_slice(bytes_of(std::slice::from_ref(&head)));
    bytes
}
