//! The memory map of a process: what is mapped where, and where there is room.

use std::ops::Range;
use thiserror::Error;

/// Address after the last one user space can map (x86-64, four-level page tables).
pub const USER_END: u64 = 0x7fff_ffff_f000;
/// Lowest address worth asking for: below it `vm.mmap_min_addr` may forbid mappings.
pub const USER_START: u64 = 0x1_0000;
/// Room that stays free above the break, for `brk(2)` to grow into.
pub const BRK_ZONE: u64 = 512 << 20;
/// Least room that stays free below a growing stack.
pub const STACK_ZONE: u64 = 1 << 30;
/// How far a 32-bit displacement reaches, with a page to spare.
pub const REACH: u64 = (1 << 31) - 0x1000;

/// One line of `/proc/PID/maps`.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Region {
    /// First address.
    pub start: u64,
    /// Address after the last byte.
    pub end: u64,
    /// Readable.
    pub read: bool,
    /// Writable.
    pub write: bool,
    /// Executable.
    pub exec: bool,
    /// Shared with other processes through the file.
    pub shared: bool,
    /// Offset in the file.
    pub offset: u64,
    /// Device as (major, minor).
    pub dev: (u32, u32),
    /// Inode; 0 = anonymous.
    pub inode: u64,
    /// Path or `[name]`, with the kernel's escape of newlines (`\012`) undone.
    pub path: Option<String>,
    /// Grows downwards by itself (`[stack]`, or `gd` among the flags of `smaps`).
    pub grows_down: bool,
}

impl Region {
    /// Whether the address lies in it.
    #[must_use]
    pub fn contains(&self, addr: u64) -> bool {
        (self.start..self.end).contains(&addr)
    }
}

/// A line that is not in the kernel's format.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("line {line} of the memory map makes no sense: {text:?}")]
pub struct MapsError {
    /// Line number, from 1.
    pub line: usize,
    /// The line.
    pub text: String,
}

/// All mappings of a process at one moment, in ascending order.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct MapsSnapshot {
    /// Mappings.
    pub regions: Vec<Region>,
    /// The current break, where it is known (end of `[heap]`).
    pub brk: Option<u64>,
    /// Hard limit of the stack size in bytes, where it is known and finite.
    pub stack_limit: Option<u64>,
}

impl MapsSnapshot {
    /// Reads the text of `/proc/PID/maps`; that of `/proc/PID/smaps` works too and also tells which
    /// mappings besides `[stack]` grow downwards.
    ///
    /// # Errors
    /// When a line is not in the kernel's format.
    pub fn parse(text: &str) -> Result<Self, MapsError> {
        let mut regions: Vec<Region> = Vec::new();
        for (number, line) in text.lines().enumerate() {
            let first = line.split_ascii_whitespace().next().unwrap_or("");
            if first.ends_with(':') {
                if let (Some(flags), Some(last)) = (line.strip_prefix("VmFlags:"), regions.last_mut()) {
                    last.grows_down |= flags.split_ascii_whitespace().any(|f| f == "gd");
                }
            } else if !first.is_empty() {
                let bad = || MapsError { line: number + 1, text: line.to_owned() };
                regions.push(region(line).ok_or_else(bad)?);
            }
        }
        regions.sort_by_key(|r| r.start);
        let brk = regions.iter().filter(|r| r.path.as_deref() == Some("[heap]")).map(|r| r.end).max();
        Ok(Self { regions, brk, stack_limit: None })
    }

    /// The mapping an address lies in.
    #[must_use]
    pub fn region_at(&self, addr: u64) -> Option<&Region> {
        let after = self.regions.partition_point(|r| r.start <= addr);
        self.regions[..after].last().filter(|r| r.contains(addr))
    }

    /// What can be read without a gap, in order.
    #[must_use]
    pub fn readable_runs(&self) -> Vec<Range<u64>> {
        let mut runs: Vec<Range<u64>> = Vec::new();
        for region in self.regions.iter().filter(|r| r.read) {
            match runs.last_mut() {
                Some(run) if run.end == region.start => run.end = region.end,
                _ => runs.push(region.start..region.end),
            }
        }
        runs
    }

    /// Whether nothing is mapped in the range.
    #[must_use]
    pub fn is_free(&self, range: &Range<u64>) -> bool {
        let after = self.regions.partition_point(|r| r.start < range.end);
        self.regions[..after].last().is_none_or(|r| r.end <= range.start)
    }

    /// Ranges that are not mapped but belong to the break or to a growing stack.
    #[must_use]
    pub fn reserved(&self) -> Vec<Range<u64>> {
        let zone = self.stack_limit.unwrap_or(0).max(STACK_ZONE);
        let stacks = self.regions.iter().filter(|r| r.grows_down);
        let below = stacks.map(|r| r.start.saturating_sub(zone)..r.start);
        let above = self.brk.map(|brk| brk..brk.saturating_add(BRK_ZONE).min(USER_END));
        below.chain(above).collect()
    }

    /// Unmapped ranges of user space outside [`MapsSnapshot::reserved`], ascending.
    #[must_use]
    pub fn holes(&self) -> Vec<Range<u64>> {
        let mut taken: Vec<Range<u64>> = self.regions.iter().map(|r| r.start..r.end).collect();
        taken.extend(self.reserved());
        taken.sort_by_key(|r| r.start);
        let mut holes = Vec::new();
        let mut from = USER_START;
        for range in taken.into_iter().chain(std::iter::once(USER_END..USER_END)) {
            if from < range.start {
                holes.push(from..range.start.min(USER_END));
            }
            from = from.max(range.end);
        }
        holes
    }

    /// Page-aligned addresses for `len` bytes, nearest to `near` first, one below and one above per
    /// suitable hole at most. Each is `guard` bytes away from every neighbour, and the whole of it
    /// can be reached from the whole of `near` with displacements of less than `reach` bytes.
    #[must_use]
    pub fn holes_near(&self, near: &Range<u64>, len: u64, guard: u64, reach: u64) -> Vec<u64> {
        let round = |x: u64| x.checked_next_multiple_of(0x1000).unwrap_or(!0xfff);
        let len = round(len.max(1));
        let guard = round(guard);
        let lowest = round(near.end.saturating_sub(reach));
        let highest = near.start.saturating_add(reach).saturating_sub(len) & !0xfff;
        let mut found: Vec<(u64, u64)> = Vec::new();
        for hole in self.holes() {
            let first = round(hole.start.saturating_add(guard)).max(lowest);
            let Some(last) = hole.end.checked_sub(guard.saturating_add(len)) else { continue };
            let last = (last & !0xfff).min(highest);
            if first > last {
                continue;
            }
            // The hole lies wholly on one side of `near`, unless nothing is mapped there.
            let place = if last < near.start { last } else { first };
            found.push((place.abs_diff(near.start), place));
        }
        found.sort_unstable();
        found.into_iter().map(|(_, place)| place).collect()
    }

    /// The first of [`MapsSnapshot::holes_near`].
    #[must_use]
    pub fn free_hole_near(&self, near: &Range<u64>, len: u64, guard: u64, reach: u64) -> Option<u64> {
        self.holes_near(near, len, guard, reach).first().copied()
    }
}

fn region(line: &str) -> Option<Region> {
    let hex = |text: &str| u64::from_str_radix(text, 16).ok();
    let mut rest = line;
    let mut field = || {
        let text = rest.trim_start_matches(' ');
        let (head, tail) = text.split_once(' ').unwrap_or((text, ""));
        rest = tail;
        head
    };
    let (start, end) = field().split_once('-')?;
    let (start, end) = (hex(start)?, hex(end)?);
    let prot = field().as_bytes();
    let offset = hex(field())?;
    let (major, minor) = field().split_once(':')?;
    let dev = (u32::from_str_radix(major, 16).ok()?, u32::from_str_radix(minor, 16).ok()?);
    let inode = field().parse().ok()?;
    let path = rest.trim_start_matches(' ').replace("\\012", "\n");
    if start >= end || prot.len() != 4 {
        return None;
    }
    Some(Region {
        start,
        end,
        read: prot[0] == b'r',
        write: prot[1] == b'w',
        exec: prot[2] == b'x',
        shared: prot[3] == b's',
        offset,
        dev,
        inode,
        grows_down: path == "[stack]",
        path: (!path.is_empty()).then_some(path),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
00400000-00401000 r--p 00000000 fe:01 1234                               /tmp/a b (deleted)
00401000-00402000 r-xp 00001000 fe:01 1234                               /tmp/a b (deleted)
10000000-10021000 rw-p 00000000 00:00 0                                  [heap]
7f0000000000-7f0000200000 r-xp 00000000 fe:01 99                         /lib/libc.so.6
7f0000300000-7f0000301000 rw-s 00000000 00:05 7                          /dev/zero
7ffc00000000-7ffc00021000 rw-p 00000000 00:00 0                          [stack]
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]
";

    #[test]
    fn reads_the_kernels_lines() {
        let maps = MapsSnapshot::parse(TEXT).unwrap();
        assert_eq!(maps.regions.len(), 7);
        let text = maps.region_at(0x40_1fff).unwrap();
        assert!(text.exec && text.read && !text.write && !text.shared);
        assert_eq!((text.offset, text.dev, text.inode), (0x1000, (0xfe, 1), 1234));
        assert_eq!(text.path.as_deref(), Some("/tmp/a b (deleted)"));
        assert!(maps.region_at(0x40_2000).is_none());
        assert!(maps.region_at(0x7f00_0030_0000).unwrap().shared);
        assert_eq!(maps.brk, Some(0x1002_1000));
        assert!(maps.regions[5].grows_down);
        assert_eq!(maps.readable_runs()[..2], [0x40_0000..0x40_2000, 0x1000_0000..0x1002_1000]);
        assert_eq!(maps.readable_runs().len(), 5);
        let own = std::fs::read_to_string("/proc/self/smaps").unwrap();
        assert!(MapsSnapshot::parse(&own).unwrap().regions.iter().any(|r| r.grows_down));
        for bad in ["zz", "1-2 r-x 0 0:0 0", "2-1 r-xp 0 0:0 0", "1-2 r-xp 0 00 0"] {
            assert_eq!(MapsSnapshot::parse(bad).unwrap_err().line, 1, "{bad}");
        }
    }

    #[test]
    fn free_means_no_mapping_touches_the_range() {
        let maps = MapsSnapshot::parse(TEXT).unwrap();
        assert!(maps.is_free(&(0x40_2000..0x50_0000)));
        assert!(maps.is_free(&(0x1000..0x40_0000)));
        assert!(!maps.is_free(&(0x1000..0x40_0001)));
        assert!(!maps.is_free(&(0x40_1000..0x40_1001)));
        assert!(!maps.is_free(&(0x3f_0000..0x50_0000)));
    }

    #[test]
    fn holes_keep_away_from_the_break_and_the_stack() {
        let maps = MapsSnapshot::parse(TEXT).unwrap();
        let holes = maps.holes();
        assert_eq!(holes[0], USER_START..0x40_0000);
        assert_eq!(holes[1], 0x40_2000..0x1000_0000);
        assert_eq!(holes[2].start, 0x1002_1000 + BRK_ZONE);
        assert!(!holes.iter().any(|h| h.contains(&0x7ffb_ffff_f000)));
        assert!(holes.iter().all(|h| maps.is_free(h)));
    }

    #[test]
    fn the_nearest_hole_has_room_for_guards_and_is_in_reach() {
        let maps = MapsSnapshot::parse(TEXT).unwrap();
        let libc = 0x7f00_0000_0000..0x7f00_0020_0000;
        let found = maps.holes_near(&libc, 0x5000, 0x1_0000, REACH);
        // Just below libc is nearer to its start than the gap above it.
        assert_eq!(found[..2], [0x7f00_0000_0000 - 0x1_0000 - 0x5000, 0x7f00_0021_0000]);
        assert_eq!(maps.free_hole_near(&libc, 0x20_0000, 0, REACH), Some(0x7eff_ffe0_0000));
        assert!(maps.holes_near(&libc, 0x5000, 0x1_0000, 0x10_0000).is_empty());
        assert_eq!(maps.free_hole_near(&(0..u64::MAX), 1, 0, REACH), None);
    }
}
