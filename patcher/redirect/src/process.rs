//! The process a plan is made for.

use crate::error::{Refusal, TargetFault};
use std::collections::BTreeMap;
use std::ops::Range;
use suture_abi::batch::Site;
use suture_abi::dispatch::Constants;
use suture_elf::maps::{USER_END, USER_START};
use suture_elf::{Addr, Base, MapsSnapshot, Memory, Vaddr};

/// A site the process already has.
#[derive(Clone, Copy, Debug)]
pub struct ExistingSite {
    /// [`suture_abi::block::SiteRow::id`].
    pub id: u32,
    /// What it was planned as.
    pub site: Site,
}

/// What the planner knows of a process.
#[derive(Clone, Copy, Default)]
pub struct ProcessView<'a> {
    /// Its memory map. Mappings that the same batch makes for other reasons must be in it.
    pub maps: Option<&'a MapsSnapshot>,
    /// Its sites, armed or not.
    pub existing: &'a [ExistingSite],
    /// Its memory, to compare code with the file's.
    pub memory: Option<&'a dyn Memory>,
    /// What dispatchers need to know of it. All zero where nothing will be committed.
    pub dispatch: Constants,
}

impl std::fmt::Debug for ProcessView<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ProcessView").field("existing", &self.existing.len()).finish_non_exhaustive()
    }
}

/// Address ranges that belong to sites: what they change, and what must stay as it is for them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Claims {
    /// Ends by start; of ranges with one start the longest.
    ends: BTreeMap<u64, u64>,
    /// Length of the longest range: no other that begins further in front can reach an address.
    longest: u64,
}

impl Claims {
    pub fn of_existing(existing: &[ExistingSite]) -> Self {
        let mut claims = Self::default();
        for ExistingSite { site, .. } in existing {
            claims.add(site);
        }
        claims
    }

    pub fn add(&mut self, site: &Site) {
        for Range { start, end } in claimed(site) {
            let longest = self.ends.entry(start).or_insert(end);
            *longest = end.max(*longest);
            self.longest = self.longest.max(end - start);
        }
    }

    /// A claimed byte among the ranges.
    pub fn conflict(&self, ranges: &[Range<u64>]) -> Option<u64> {
        ranges.iter().find_map(|r| {
            let mut near = self.ends.range(r.start.saturating_sub(self.longest)..r.end.max(r.start));
            near.find(|(_, end)| r.start < **end).map(|(start, _)| r.start.max(*start))
        })
    }
}

/// Ranges of a site. A class that stores a word owns the whole word: its neighbours' bytes are
/// written with it.
pub(crate) fn claimed(site: &Site) -> [Range<u64>; 3] {
    [
        site.site..site.site + u64::from(site.window_len),
        site.store_addr..site.store_addr + u64::from(site.store_len),
        site.pad_addr..site.pad_addr + u64::from(site.pad_len),
    ]
}

/// Where punned pages may go.
#[derive(Debug)]
pub(crate) struct Room<'a> {
    maps: Option<&'a MapsSnapshot>,
    reserved: Vec<Range<u64>>,
    /// What the plan itself takes: arenas, and the images of objects that have no memory map.
    taken: Vec<Range<u64>>,
}

impl<'a> Room<'a> {
    pub fn new(maps: Option<&'a MapsSnapshot>) -> Self {
        Self { maps, reserved: maps.map(MapsSnapshot::reserved).unwrap_or_default(), taken: Vec::new() }
    }

    pub fn take(&mut self, range: Range<u64>) {
        self.taken.push(range);
    }

    /// Whether the page can be mapped.
    pub fn check(&self, page: u64) -> Result<(), TargetFault> {
        let range = page..page.wrapping_add(0x1000);
        if page < USER_START || range.end > USER_END || range.end < range.start {
            return Err(TargetFault::Outside);
        }
        let meets = |r: &Range<u64>| r.start < range.end && range.start < r.end;
        if self.reserved.iter().any(meets) {
            return Err(TargetFault::Reserved);
        }
        if self.taken.iter().any(meets) || self.maps.is_some_and(|m| !m.is_free(&range)) {
            return Err(TargetFault::Taken);
        }
        Ok(())
    }
}

/// Rule 1: compares the process's bytes with the file's. `file` starts at `start`.
///
/// # Errors
/// [`Refusal::Bytes`] with the first difference; unreadable memory counts as one.
pub fn check_bytes(memory: &dyn Memory, base: Base, start: Vaddr, file: &[u8]) -> Result<(), Refusal> {
    let mut live = vec![0; file.len()];
    let addr: Addr = base + start;
    let unreadable = memory.read(addr, &mut live).is_err();
    let differs = live.iter().zip(file).position(|(a, b)| a != b);
    let Some(at) = differs.or(unreadable.then_some(0)) else { return Ok(()) };
    let part = |bytes: &[u8]| bytes[at..bytes.len().min(at + 8)].to_vec();
    let whose = match live[at] {
        _ if unreadable => "the memory cannot be read",
        0xcc | 0xf1 => "a debugger's breakpoint or a uprobe",
        0xe9 | 0xeb | 0xff => "perhaps a jump of another hooking tool",
        _ => "changed by somebody else, or another build of the file",
    };
    Err(Refusal::Bytes { at: start + at as u64, found: part(&live), expected: part(file), whose })
}

#[cfg(test)]
mod tests {
    use super::*;
    use suture_elf::MemoryError;

    struct Bytes(Vec<u8>);
    impl Memory for Bytes {
        fn read(&self, addr: Addr, buf: &mut [u8]) -> Result<(), MemoryError> {
            let from = addr.0 as usize;
            let bytes = self.0.get(from..from + buf.len());
            buf.copy_from_slice(bytes.ok_or(MemoryError { addr, len: buf.len() })?);
            Ok(())
        }
    }

    #[test]
    fn a_breakpoint_is_named() {
        let memory = Bytes(vec![0x55, 0xcc, 0x89, 0xe5]);
        assert_eq!(check_bytes(&memory, Base(0), Vaddr(2), &[0x89, 0xe5]), Ok(()));
        let why = check_bytes(&memory, Base(0), Vaddr(0), &[0x55, 0x48, 0x89]).unwrap_err();
        assert_eq!(
            why.to_string(),
            "its bytes at 0x1 are [cc, 89] instead of the file's [48, 89]: a debugger's breakpoint or a uprobe"
        );
        assert!(check_bytes(&memory, Base(0), Vaddr(3), &[0xe5, 0]).is_err());
    }

    #[test]
    fn a_word_store_owns_its_word() {
        let mut claims = Claims::default();
        let site = Site { site: 0x1004, window_len: 2, store_addr: 0x1000, store_len: 8, ..Site::default() };
        claims.add(&site);
        assert_eq!(claims.conflict(&[0x0ff8..0x1000, 0x1008..0x1010]), None);
        assert_eq!(claims.conflict(&[0x1007..0x100c, 0..1]), Some(0x1007));
    }

    #[test]
    fn claims_of_different_lengths_are_all_found() {
        let of = |at: u64, len: u8| Site { pad_addr: at, pad_len: len, ..Site::default() };
        let mut claims = Claims::default();
        for site in [of(0x1000, 16), of(0x1004, 1), of(0x1004, 5), of(0x1020, 8)] {
            claims.add(&site);
        }
        let plain = [(0x1000, 16), (0x1004, 5), (0x1020, 8)];
        for start in 0xff8..0x1030 {
            for len in 1..10 {
                let asked = start..start + len;
                let expected = plain.iter().any(|(at, len)| asked.start < at + len && *at < asked.end);
                assert_eq!(claims.conflict(&[0..1, asked.clone()]).is_some(), expected, "{asked:x?}");
            }
        }
    }

    #[test]
    fn pages_of_the_heap_and_the_stack_are_not_taken() {
        let text = "\
10000000-10021000 rw-p 00000000 00:00 0                                  [heap]
7f0000000000-7f0000200000 r-xp 00000000 fe:01 99                         /lib/libc.so.6
7ffc00000000-7ffc00021000 rw-p 00000000 00:00 0                          [stack]
";
        let maps = MapsSnapshot::parse(text).unwrap();
        let mut room = Room::new(Some(&maps));
        room.take(0x7f00_0100_0000..0x7f00_0100_2000);
        let of = |page| room.check(page);
        assert_eq!(of(0x1000), Err(TargetFault::Outside));
        assert_eq!(of(!0xfff), Err(TargetFault::Outside));
        assert_eq!(of(0x1002_1000 + (100 << 20)), Err(TargetFault::Reserved));
        assert_eq!(of(0x7ffc_0000_0000 - (1 << 29)), Err(TargetFault::Reserved));
        assert_eq!(of(0x7f00_0010_0000), Err(TargetFault::Taken));
        assert_eq!(of(0x7f00_0100_1000), Err(TargetFault::Taken));
        assert_eq!(of(0x7f00_0030_0000), Ok(()));
        assert_eq!(of(0x1002_1000 + (600 << 20)), Ok(()));
    }
}
