//! Address ranges that words are compared with.

/// A closed interval of addresses: `first` and `last` both belong to it.
///
/// Closed, because which bound counts depends on what the range is and on what the word may be:
///
/// * A function whose *entry is hooked*: `[start + 1, end]`. A return address may equal `end`: 30 % of
///   redis-server's functions end with a call. `start` does not count: as a word it is nearly always a
///   function pointer, and a thread that stands exactly there has still to pass the hook.
/// * Everything else that must not be live (split parts, new functions, relocated copies, stubs, the
///   runtime's own code): `[start, end]`. Such code has no hook at its start, so a program counter that
///   a signal interrupted exactly there, which lies as a word in the signal's frame, is inside.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Interval {
    /// First address.
    pub first: u64,
    /// Last address.
    pub last: u64,
}

/// A table that is not sorted, or has an interval that ends before it starts, or two that overlap by
/// more than one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Disorder {
    /// Index of the interval.
    pub at: usize,
}

/// Words looked at together.
pub(crate) const BLOCK: usize = 16;
/// Most clusters the table is divided into for the quick check.
const CLUSTERS: usize = 4;

/// A sorted table of intervals with what is needed to pass over other words quickly.
///
/// Ranges lie in a few clumps (the executable, a library, the stubs near each), with most of the
/// process's pointers between them: a single hull would let every heap pointer through. The quick check
/// compares with at most four hulls, divided at the widest gaps.
///
/// The default is an empty table.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ranges<'a> {
    list: &'a [Interval],
    /// Hulls as first address and length − 1; unused ones repeat the first.
    clusters: [(u64, u64); CLUSTERS],
    used: usize,
}

impl<'a> Ranges<'a> {
    /// Checks a table. Neighbours may share one address: the end of one function, as a return
    /// address, is often the start of the next.
    ///
    /// # Errors
    /// When it is not in order.
    pub fn new(list: &'a [Interval]) -> Result<Self, Disorder> {
        let mut previous: Option<&Interval> = None;
        // The widest gaps by the index of the interval behind them, 0 = none.
        let mut gaps = [(0u64, 0usize); CLUSTERS - 1];
        for (at, interval) in list.iter().enumerate() {
            if interval.first > interval.last {
                return Err(Disorder { at });
            }
            if let Some(before) = previous {
                if before.last > interval.first || before.first >= interval.first {
                    return Err(Disorder { at });
                }
                note_gap(&mut gaps, interval.first.wrapping_sub(before.last), at);
            }
            previous = Some(interval);
        }
        let mut cuts = gaps.map(|(_, at)| at);
        cuts.sort_unstable();
        let mut clusters = [(0, 0); CLUSTERS];
        let mut used = 0usize;
        let mut from = 0usize;
        for to in cuts.into_iter().chain([list.len()]) {
            let piece = list.get(from..to).unwrap_or_default();
            if let (Some(first), Some(last), Some(slot)) =
                (piece.first(), piece.last(), clusters.get_mut(used))
            {
                *slot = (first.first, last.last.wrapping_sub(first.first));
                used = used.wrapping_add(1);
                from = to;
            }
        }
        Ok(Self { list, clusters, used })
    }

    /// The intervals.
    #[must_use]
    pub fn list(&self) -> &'a [Interval] {
        self.list
    }

    /// Index of an interval the word lies in. Of two that share it, the later one.
    #[must_use]
    pub fn find(&self, word: u64) -> Option<u32> {
        if !self.may_contain(word) {
            return None;
        }
        let at = self.list.partition_point(|r| r.first <= word).checked_sub(1)?;
        self.list.get(at).filter(|r| word <= r.last)?;
        u32::try_from(at).ok()
    }

    /// Calls `hit(index of the word, index of the interval)` for every word that lies in one.
    pub fn each_hit(&self, words: &[u64], mut hit: impl FnMut(usize, u32)) {
        let mut first = 0usize;
        for block in words.chunks(BLOCK) {
            if self.may_contain_any(block) {
                for (i, word) in block.iter().enumerate() {
                    if let Some(range) = self.find(*word) {
                        hit(first.wrapping_add(i), range);
                    }
                }
            }
            first = first.wrapping_add(block.len());
        }
    }

    /// Whether the word lies in one of the hulls.
    #[inline]
    fn may_contain(&self, word: u64) -> bool {
        let used = self.clusters.get(..self.used).unwrap_or_default();
        used.iter().fold(false, |any, &(first, length)| any | (word.wrapping_sub(first) <= length))
    }

    /// Whether any of the words lies in one of the hulls: a few instructions per word, no branch.
    #[inline]
    pub(crate) fn may_contain_any(&self, words: &[u64]) -> bool {
        let used = self.clusters.get(..self.used).unwrap_or_default();
        let mut any = false;
        for &(first, length) in used {
            for word in words {
                any |= word.wrapping_sub(first) <= length;
            }
        }
        any
    }
}

/// Keeps the widest gaps.
fn note_gap(gaps: &mut [(u64, usize); CLUSTERS - 1], gap: u64, at: usize) {
    let mut carried = (gap, at);
    for kept in gaps {
        if kept.1 == 0 || kept.0 < carried.0 {
            core::mem::swap(kept, &mut carried);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn interval(first: u64, last: u64) -> Interval {
        Interval { first, last }
    }

    #[test]
    fn bounds_belong_to_the_interval() {
        let table = [interval(10, 20), interval(20, 30), interval(50, 50)];
        let ranges = Ranges::new(&table).unwrap();
        let cases = [(9, None), (10, Some(0)), (19, Some(0)), (20, Some(1)), (30, Some(1)), (31, None)];
        for (word, found) in cases.into_iter().chain([(49, None), (50, Some(2)), (51, None)]) {
            assert_eq!(ranges.find(word), found, "{word}");
        }
        assert_eq!(Ranges::new(&[]).unwrap().find(0), None);
        let whole = [interval(0, u64::MAX)];
        assert_eq!(Ranges::new(&whole).unwrap().find(u64::MAX), Some(0));
    }

    #[test]
    fn disorder_is_refused() {
        let refused = |list: &[Interval]| Ranges::new(list).err().map(|d| d.at);
        assert_eq!(refused(&[interval(5, 4)]), Some(0));
        assert_eq!(refused(&[interval(5, 9), interval(8, 12)]), Some(1));
        assert_eq!(refused(&[interval(5, 9), interval(1, 2)]), Some(1));
        assert_eq!(refused(&[interval(5, 5), interval(5, 5)]), Some(1));
    }

    #[test]
    fn clusters_keep_heap_pointers_out() {
        let table = [
            interval(0x5555_0000_1000, 0x5555_0000_2000),
            interval(0x5555_0010_0000, 0x5555_0010_0100),
            interval(0x7f00_0000_0000, 0x7f00_0000_1000),
            interval(0x7f80_0000_0000, 0x7f80_0000_1000),
        ];
        let ranges = Ranges::new(&table).unwrap();
        assert!(!ranges.may_contain_any(&[0x5556_0000_0000, 0x7f40_0000_0000, 0x7ffc_0000_0000, 0, 7]));
        assert!(ranges.may_contain_any(&[0, 0x7f80_0000_0800]));
    }

    proptest! {
        /// However the table is divided, the answer is that of looking at each interval.
        #[test]
        fn find_is_a_plain_search(
            steps in proptest::collection::vec((1u64..1 << 40, 0u64..1 << 20), 0..60),
            words in proptest::collection::vec(any::<u64>(), 20),
        ) {
            let mut at = 0u64;
            let mut table = Vec::new();
            for (gap, length) in steps {
                let first = at + gap;
                at = first + length;
                table.push(interval(first, at));
            }
            let ranges = Ranges::new(&table).unwrap();
            let near = table.iter().flat_map(|r| [r.first.wrapping_sub(1), r.first, r.last, r.last + 1]);
            for word in words.into_iter().chain(near.collect::<Vec<_>>()) {
                let plain = table.iter().rposition(|r| r.first <= word && word <= r.last);
                prop_assert_eq!(ranges.find(word), plain.map(|p| p as u32));
                prop_assert!(plain.is_none() || ranges.may_contain_any(&[0, word]));
                let mut found = Vec::new();
                ranges.each_hit(&[[word; 3].as_slice(), &[0; 20], &[word]].concat(), |i, r| found.push((i, r)));
                found.retain(|f| f.0 < 3 || f.0 == 23);
                let expected = plain.map_or(Vec::new(), |p| [0, 1, 2, 23].map(|i| (i, p as u32)).to_vec());
                prop_assert_eq!(found, expected);
            }
        }
    }
}
