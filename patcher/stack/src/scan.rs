//! Every word of a stack, read page by page.

use std::ops::Range;
use suture_elf::{Addr, Memory};
use suture_scan::{End, Hit, Outcome, Ranges, Scanner, Step};

/// What a scan found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scanned {
    /// As the scanner has it.
    pub outcome: Outcome,
    /// The first word that leads into one of the ranges.
    pub first: Option<u64>,
}

impl Scanned {
    /// No word found, up to a proven end.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.outcome.is_clean()
    }
}

/// Most bytes of one stack that are scanned.
const MOST_SCANNED: u64 = 64 << 20;
const PAGE: usize = 4096;

/// Scans from a stack pointer on. Words in `holes` count as zeros.
#[must_use]
pub fn scan(sp: u64, end: End, ranges: &Ranges<'_>, memory: &dyn Memory, holes: &[Range<u64>]) -> Scanned {
    let mut hits = [Hit::default(); 1];
    let mut scanner = Scanner::new(ranges, &mut hits, sp, end);
    let mut bytes = [0; PAGE];
    while scanner.next() < sp.saturating_add(MOST_SCANNED) {
        let at = scanner.next();
        // To the end of the page: what comes after it may not be there.
        let piece = &mut bytes[..PAGE - at as usize % PAGE];
        if memory.read(Addr(at), piece).is_err() {
            break;
        }
        let to_word = |b: &[u8; 8]| u64::from_le_bytes(*b);
        let mut words: Vec<u64> = piece.as_chunks::<8>().0.iter().map(to_word).collect();
        for (word, at) in words.iter_mut().zip((at..).step_by(8)) {
            if holes.iter().any(|hole| hole.contains(&at)) {
                *word = 0;
            }
        }
        if scanner.feed(&words) == Step::Ended {
            break;
        }
    }
    let outcome = scanner.finish();
    let first = (outcome.hits > 0).then(|| memory.read_u64(Addr(hits[0].at)).ok()).flatten();
    Scanned { outcome, first }
}
