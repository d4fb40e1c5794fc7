//! Code of the runtime that has no call frame information: stubs, dispatchers, copies, the trampolines
//! of a doorbell.

use std::ops::Range;

/// Address ranges where a walk stops: whoever stands there has not decided yet which code it runs, or
/// is about to return into old code.
#[derive(Clone, Debug, Default)]
pub(crate) struct Arenas(Vec<Range<u64>>);

impl Arenas {
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

    pub fn contains(&self, addr: u64) -> bool {
        let after = self.0.partition_point(|r| r.start <= addr);
        self.0[..after].last().is_some_and(|r| addr < r.end)
    }
}
