//! Numbers in no order: after the same seed, the same ones (xorshift).

/// A sequence of such numbers.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Begins with a seed, which must not be 0.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next one.
    pub const fn number(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// The next one's rest of a division.
    ///
    /// # Panics
    /// When it is by 0.
    pub const fn below(&mut self, limit: u64) -> u64 {
        self.number() % limit
    }
}
