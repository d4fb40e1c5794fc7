//! Sets of addresses.

use std::ops::Range;

/// Addresses in ranges. Asking takes a binary search.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct AddressSet(Vec<Range<u64>>);

impl AddressSet {
    /// The addresses of one range.
    #[must_use]
    pub fn one(range: Range<u64>) -> Self {
        Self(std::iter::once(range).collect())
    }

    /// Those of several, which may overlap or be empty.
    #[must_use]
    pub fn new(mut ranges: Vec<Range<u64>>) -> Self {
        ranges.retain(|r| r.start < r.end);
        ranges.sort_unstable_by_key(|r| r.start);
        let mut merged: Vec<Range<u64>> = Vec::new();
        for range in ranges {
            match merged.last_mut() {
                Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
                _ => merged.push(range),
            }
        }
        Self(merged)
    }

    /// Whether an address is in it.
    #[must_use]
    pub fn contains(&self, addr: u64) -> bool {
        let after = self.0.partition_point(|r| r.start <= addr);
        self.0[..after].last().is_some_and(|r| addr < r.end)
    }

    /// Its ranges, disjoint and ascending.
    #[must_use]
    pub fn ranges(&self) -> &[Range<u64>] {
        &self.0
    }

    /// From the first address to the last.
    #[must_use]
    pub fn hull(&self) -> Range<u64> {
        let start = self.0.first().map_or(0, |r| r.start);
        start..self.0.last().map_or(start, |r| r.end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_that_overlap_or_touch_are_one() {
        let set = AddressSet::new(vec![30..40, 10..20, 15..25, 50..50, 40..45]);
        assert_eq!(set.ranges(), [10..25, 30..45]);
        let inside = [10, 24, 30, 44];
        assert!(inside.iter().all(|addr| set.contains(*addr)));
        assert!([9, 25, 29, 45, 50].iter().all(|addr| !set.contains(*addr)));
        assert_eq!((set.hull(), AddressSet::default().hull()), (10..45, 0..0));
    }
}
