//! Passes over code in search of displacements that lead into a few ranges.
//!
//! Nearly no offset of a text has such a displacement, so blocks of 64 offsets are judged at once, with
//! the widest vector instructions the processor has: 1.4 MB and four ranges take 0.2 ms instead of 1.3.
//!
//! # Safety
//!
//! The one `unsafe` calls a function compiled for AVX2, on processors that were just found to have it.
#![allow(unsafe_code)]

use std::ops::Range;

/// Offsets judged at once.
const BLOCK: usize = 64;
/// Most ranges of one pass.
pub(crate) const MOST: usize = 8;

/// A block and what the last displacements in it reach into.
type Block = [u8; BLOCK + 3];

/// Ranges as the vector code compares with them: starts and lengths modulo 2³², padded with ranges that
/// hold nothing.
#[derive(Clone, Copy)]
struct Wanted<const N: usize> {
    starts: [u32; N],
    spans: [u32; N],
}

impl<const N: usize> Wanted<N> {
    fn new(ranges: &[Range<u64>]) -> Self {
        let mut wanted = Self { starts: [0; N], spans: [0; N] };
        for (i, range) in ranges.iter().enumerate().take(N) {
            wanted.starts[i] = range.start as u32;
            wanted.spans[i] = u32::try_from(range.end - range.start).unwrap_or(u32::MAX);
        }
        wanted
    }

    /// Whether some displacement of the block may lead into a range. `end` is the address behind the
    /// first displacement.
    #[inline(always)]
    fn meets(&self, block: &Block, end: u32) -> bool {
        // Words at one phase after the other lie side by side, as vector loads want them.
        let mut met = 0u32;
        for phase in 0..4 {
            let (words, _) = block[phase..phase + BLOCK].as_chunks::<4>();
            for (i, word) in (0u32..).zip(words) {
                let target = u32::from_le_bytes(*word).wrapping_add(end).wrapping_add(phase as u32 + 4 * i);
                for n in 0..N {
                    met |= u32::from(target.wrapping_sub(self.starts[n]) < self.spans[n]);
                }
            }
        }
        met != 0
    }

    /// Offsets of blocks that may hold a displacement into a range, and of the rest at the end.
    #[inline(always)]
    fn blocks(&self, bytes: &[u8], addr: u64, found: &mut Vec<usize>) {
        let mut at = 0;
        while let Some(block) = bytes[at..].first_chunk::<{ BLOCK + 3 }>() {
            if self.meets(block, (addr as u32).wrapping_add(at as u32).wrapping_add(4)) {
                found.push(at);
            }
            at += BLOCK;
        }
        found.push(at);
    }

    #[target_feature(enable = "avx2")]
    fn blocks_avx2(&self, bytes: &[u8], addr: u64, found: &mut Vec<usize>) {
        self.blocks(bytes, addr, found);
    }

    fn run(&self, bytes: &[u8], addr: u64) -> Vec<usize> {
        let mut found = Vec::new();
        if std::arch::is_x86_feature_detected!("avx2") {
            // SAFETY: the processor has AVX2, as just asked.
            unsafe { self.blocks_avx2(bytes, addr, &mut found) };
        } else {
            self.blocks(bytes, addr, &mut found);
        }
        found
    }
}

/// Calls `hit(offset, target)` for every offset whose 32-bit word, taken as a displacement from the
/// end of the word, leads into one of at most [`MOST`] ranges.
pub(crate) fn displacements(bytes: &[u8], addr: u64, ranges: &[Range<u64>], mut hit: impl FnMut(usize, u64)) {
    let blocks = match ranges.len() {
        1 => Wanted::<1>::new(ranges).run(bytes, addr),
        2 => Wanted::<2>::new(ranges).run(bytes, addr),
        3 | 4 => Wanted::<4>::new(ranges).run(bytes, addr),
        _ => Wanted::<MOST>::new(ranges).run(bytes, addr),
    };
    for block in blocks {
        // Exactly: the blocks were chosen modulo 2³².
        for offset in block..block + BLOCK {
            let Some(word) = bytes.get(offset..offset + 4).and_then(|w| w.try_into().ok()) else { break };
            let end = addr + offset as u64 + 4;
            let target = end.wrapping_add_signed(i64::from(i32::from_le_bytes(word)));
            if ranges.iter().any(|r| r.contains(&target)) {
                hit(offset, target);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hits(bytes: &[u8], addr: u64, ranges: &[Range<u64>]) -> Vec<(usize, u64)> {
        let mut hits = Vec::new();
        displacements(bytes, addr, ranges, |offset, target| hits.push((offset, target)));
        hits
    }

    #[test]
    fn every_offset_is_judged_whatever_the_length() {
        let mut state = 7u64;
        let mut random = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as u32
        };
        let addr = 0x7fff_0000;
        let all: Vec<Range<u64>> =
            (0..MOST as u64).map(|i| addr + i * 0x1000..addr + i * 0x1000 + 9).collect();
        for length in [0, 3, 4, 66, 67, 68, 130, 1000] {
            let mut bytes: Vec<u8> = (0..length).map(|_| random() as u8).collect();
            for count in 1..=MOST {
                // One displacement into a range, somewhere.
                if length >= 4 {
                    let at = random() as usize % (length - 3);
                    let range = &all[random() as usize % count];
                    let distance = range.start.wrapping_sub(addr + at as u64 + 4) as u32;
                    bytes[at..at + 4].copy_from_slice(&distance.to_le_bytes());
                }
                let ranges = &all[..count];
                let plain = (0..length.saturating_sub(3)).filter_map(|i| {
                    let word = i32::from_le_bytes(bytes[i..i + 4].try_into().unwrap());
                    let target = (addr + i as u64 + 4).wrapping_add_signed(i64::from(word));
                    ranges.iter().any(|r| r.contains(&target)).then_some((i, target))
                });
                let plain: Vec<_> = plain.collect();
                assert_eq!(hits(&bytes, addr, ranges), plain, "{length} bytes, {count} ranges");
                assert!(length < 4 || !plain.is_empty());
                let mut blocks = Vec::new();
                Wanted::<MOST>::new(ranges).blocks(&bytes, addr, &mut blocks);
                assert_eq!(Wanted::<MOST>::new(ranges).run(&bytes, addr), blocks, "with and without AVX2");
            }
        }
    }
}
