//! From a key to 64 bits. Pure.
//!
//! Two 64 × 64 → 128 bit multiplications: of the two halves of the key, each mixed with a secret word of
//! the process, and of what comes out with a constant. (After one alone, objects at regular distances
//! fill some buckets twice as much as others.) Programs choose the keys (object addresses), sometimes at the wish of strangers: without
//! the secret somebody could fill one bucket.

/// What a variable is found by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    /// Address of the object. Only a number here.
    pub obj: u64,
    /// Which variable of the object.
    pub id: u64,
}

/// The secret words. Neither is 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seeds(pub u64, pub u64);

/// 2⁶⁴ divided by the golden ratio.
pub const MIX: u64 = 0x9e37_79b9_7f4a_7c15;

/// Multiplies and folds the halves of the product together.
#[inline]
pub const fn fold(a: u64, b: u64) -> u64 {
    let product = (a as u128).wrapping_mul(b as u128);
    product as u64 ^ (product >> 64) as u64
}

impl Key {
    /// The hash. Its upper bits choose the bucket, its lowest 16 are the slot's tag.
    #[inline]
    pub const fn hash(self, seeds: Seeds) -> u64 {
        fold(fold(self.obj ^ seeds.0, self.id ^ seeds.1), MIX)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    /// Counts how often each of 256 values occurs among 65 536 and gives χ², 255 for a perfect hash.
    fn chi_square(values: impl Iterator<Item = u8>) -> f64 {
        let mut counts = [0f64; 256];
        values.for_each(|v| counts[usize::from(v)] += 1.0);
        let expected = counts.iter().sum::<f64>() / 256.0;
        counts.iter().map(|c| (c - expected).powi(2) / expected).sum()
    }

    /// A number that looks like any other.
    fn random(n: u64) -> u64 {
        fold(fold(n, 0xd134_2543_de82_ef95) ^ MIX, MIX) | 1
    }

    #[test]
    fn keys_as_programs_have_them_spread_evenly() {
        for seed in 1..=20u64 {
            let seeds = Seeds(random(seed), random(seed + 1000));
            type Keys = Box<dyn Fn(u64) -> Key>;
            let sets: [(&str, Keys); 5] = [
                ("objects 64 apart", Box::new(|i| Key { obj: 0x55aa_1234_0000 + i * 64, id: 0x1234 })),
                ("objects 4096 apart", Box::new(|i| Key { obj: 0x7fff_0000_0000 + i * 4096, id: 7 })),
                ("no object", Box::new(|i| Key { obj: 0, id: i })),
                ("two ids", Box::new(|i| Key { obj: 0x1000 + i / 2 * 48, id: 1 + i % 2 })),
                ("diagonal", Box::new(|i| Key { obj: i * 16, id: i })),
            ];
            for (name, key) in sets {
                for (part, shift) in [("bucket", 56), ("next level", 48), ("tag", 0), ("tag", 8)] {
                    let chi = chi_square((0..65536).map(|i| (key(i).hash(seeds) >> shift) as u8));
                    // 255 ± 22.6 for a perfect one.
                    assert!(chi < 255.0 + 6.0 * 22.6, "{name}, {part}, seed {seed}: χ² = {chi}");
                }
            }
        }
    }

    #[test]
    fn other_seeds_give_other_buckets() {
        let key = Key { obj: 0x5555_0000_1000, id: 10 };
        let hashes: std::collections::BTreeSet<u64> =
            (1..100).map(|s| key.hash(Seeds(random(s), random(s + 1000))) >> 56).collect();
        assert!(hashes.len() > 60, "{}", hashes.len());
    }
}
