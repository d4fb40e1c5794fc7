//! The tags of a bucket's slots, compared at once, and what is fetched before it is needed.
//!
//! # Safety
//!
//! Other threads write the line meanwhile, so it is read in assembly: to the processor this is four loads of
//! 16 aligned bytes. Each half of one is as atomic as a load of 8 bytes: processors with AVX promise it for the
//! whole, and the older ones that split such a load do it at 8 bytes. No order among them is needed, and they come
//! after the load of the bucket's word, as loads do on this processor.
#![allow(unsafe_code)]

use core::arch::asm;
use core::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
use suture_table::memory::Line;
use suture_table::word::HOME;

const _: () = assert!(size_of::<Line>() == 64 && align_of::<Line>() == 64 && HOME == 7);

/// Slots of the line whose upper 16 bits are the lowest of the hash, as bits. Above those is what the bucket's own word
/// looks like, and all of it once more.
#[inline]
pub fn tagged(line: &Line, hash: u64) -> u32 {
    let found: u32;
    // SAFETY: reads the 64 bytes of the line, which is aligned to that; changes registers only. Not `pure`,
    // because the same line may hold something else the next time.
    unsafe {
        asm!(
            "movaps {a}, [{line}]",
            "movaps {b}, [{line} + 32]",
            "shufps {a}, [{line} + 16], 0xdd", // the upper halves of the words 0 to 3
            "shufps {b}, [{line} + 48], 0xdd",
            "movd {tag}, {hash:e}",
            "pshuflw {tag}, {tag}, 0",
            "pshufd {tag}, {tag}, 0",
            "psrad {a}, 16", // their upper halves, which fit into 16 bits again
            "psrad {b}, 16",
            "packssdw {a}, {b}",
            "pcmpeqw {a}, {tag}",
            "packsswb {a}, {a}",
            "pmovmskb {found:e}, {a}", // twice 8 bits
            line = in(reg) &raw const *line,
            hash = in(reg) hash,
            a = out(xmm_reg) _,
            b = out(xmm_reg) _,
            tag = out(xmm_reg) _,
            found = lateout(reg) found,
            options(readonly, nostack, preserves_flags),
        );
    }
    found
}

/// Fetches the line of an address into the cache. Of any address: the processor ignores one that is not mapped.
#[inline]
pub fn prefetch(addr: u64) {
    let place = core::ptr::with_exposed_provenance::<i8>(addr as usize);
    // SAFETY: the instruction reads nothing that the program could see and never faults.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(place) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn it_says_what_a_loop_says(words in prop::array::uniform8(any::<u64>()), hash: u64, same: u8) {
            let line = Line { slots: core::array::from_fn(|k| AtomicU64::new(words[k])), meta: AtomicU64::new(words[7]) };
            for (k, slot) in line.slots.iter().enumerate().filter(|(k, _)| same & (1 << k) != 0) {
                slot.store(hash << 48 | words[k], Relaxed);
            }
            if same & 0x80 != 0 {
                line.meta.store(hash << 48 | 3, Relaxed);
            }
            prop_assert_eq!(tagged(&line, hash) & 0x7f, suture_table::bucket::tagged(&line.slots, hash));
        }
    }
}
