//! Who refers to an address: direct branches and pointers of the whole object.
//!
//! Two ways give the same answer. A *search* looks for the few bytes that a reference to the asked
//! ranges would have, at every offset of the code, and then checks the candidates: 1 ms for a C
//! library, right for one patch. An *index* decodes everything once and sorts it: right for a
//! census. Both see more than there is rather than less: a reference that is none only costs a site.

use crate::analysis::ObjectAnalysis;
use crate::pointers;
use crate::sweep;
use iced_x86::{Code, Instruction, OpKind};
use std::ops::Range;
use suture_elf::{AddressSet, Type, Vaddr};

/// A direct branch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Branch {
    pub target: Vaddr,
    /// The instruction, or its opcode behind prefixes.
    pub source: Vaddr,
    /// What follows it: the return address of a call.
    pub next: Vaddr,
    pub call: bool,
}

/// References into some ranges, by target.
#[derive(Clone, Debug, Default)]
pub(crate) struct References {
    branches: Vec<Branch>,
    pointers: Vec<Vaddr>,
}

impl References {
    /// Direct branches whose target lies in the range.
    pub fn branches(&self, range: &Range<Vaddr>) -> &[Branch] {
        let from = self.branches.partition_point(|b| b.target < range.start);
        let to = self.branches.partition_point(|b| b.target < range.end);
        &self.branches[from..to.max(from)]
    }

    /// Code pointers into the range.
    pub fn pointers(&self, range: &Range<Vaddr>) -> &[Vaddr] {
        let from = self.pointers.partition_point(|p| *p < range.start);
        let to = self.pointers.partition_point(|p| *p < range.end);
        &self.pointers[from..to.max(from)]
    }

    fn sort(&mut self) {
        self.branches.sort_unstable();
        self.branches.dedup();
        self.pointers.sort_unstable();
        self.pointers.dedup();
    }

    fn add(&mut self, insn: &Instruction, wanted: &AddressSet, absolute: bool) {
        if let Some(branch) = direct_branch(insn)
            && wanted.contains(branch.target.0)
        {
            self.branches.push(branch);
        }
        if insn.is_ip_rel_memory_operand() && insn.code() == Code::Lea_r64_m {
            let target = insn.ip_rel_memory_address();
            if wanted.contains(target) {
                self.pointers.push(Vaddr(target));
            }
        }
        if absolute {
            let kinds = [OpKind::Immediate32, OpKind::Immediate32to64];
            let operands = (0..insn.op_count()).filter(|&i| kinds.contains(&insn.op_kind(i)));
            for operand in operands {
                let value = insn.immediate(operand);
                if wanted.contains(value) {
                    self.pointers.push(Vaddr(value));
                }
            }
        }
    }
}

/// The direct branch an instruction is, if it is one.
pub(crate) fn direct_branch(insn: &Instruction) -> Option<Branch> {
    let near = (0..insn.op_count()).any(|i| insn.op_kind(i) == OpKind::NearBranch64);
    near.then(|| Branch {
        target: Vaddr(insn.near_branch_target()),
        source: Vaddr(insn.ip()),
        next: Vaddr(insn.next_ip()),
        call: insn.is_call_near(),
    })
}

/// Decodes the whole object.
pub(crate) fn index(object: &ObjectAnalysis) -> References {
    let hull = object.code_hull();
    let all = AddressSet::one(hull.start.0..hull.end.0);
    let absolute = object.file().kind() == Type::Exec;
    let mut found = References::default();
    object.each_instruction(&hull, |insn| found.add(insn, &all, absolute));
    pointers::each(object.file(), &(hull.start.0..hull.end.0), |target, _| {
        found.pointers.push(Vaddr(target))
    });
    found.sort();
    found
}

/// Longest reach of a short branch, its own length included, with room for prefixes.
const SHORT_REACH: u64 = 128 + 16;

/// Looks for references into the ranges only.
pub(crate) fn search(object: &ObjectAnalysis, wanted: &AddressSet) -> References {
    let mut found = References::default();
    let hull = wanted.hull();
    let absolute = object.file().kind() == Type::Exec;
    let filter = Filter::new(wanted);
    for (addr, bytes) in object.code() {
        let mut hit = |offset, target| {
            if wanted.contains(target) {
                classify(bytes, addr.0, offset, target, &mut found);
            }
        };
        match &filter {
            None => sweep::displacements(bytes, addr.0, wanted.ranges(), hit),
            Some(filter) => filter.displacements(bytes, addr.0, &mut hit),
        }
        if absolute {
            immediates(bytes, &hull, |value| {
                if wanted.contains(value) {
                    found.pointers.push(Vaddr(value));
                }
            });
        }
    }
    for range in wanted.ranges() {
        let near = Vaddr(range.start.saturating_sub(SHORT_REACH))..Vaddr(range.end + SHORT_REACH);
        object.each_instruction(&near, |insn| found.add(insn, wanted, absolute));
    }
    pointers::each(object.file(), &hull, |target, _| {
        if wanted.contains(target) {
            found.pointers.push(Vaddr(target));
        }
    });
    found.sort();
    found
}

/// Which pieces of the hull some range touches, for searches of many ranges.
struct Filter {
    hull: Range<u64>,
    pieces: Vec<u64>,
}

impl Filter {
    /// Bytes per piece, as a shift.
    const PIECE: u32 = 6;

    /// `None` for so few ranges that each is compared with.
    fn new(wanted: &AddressSet) -> Option<Self> {
        let hull = wanted.hull();
        if wanted.ranges().len() <= sweep::MOST {
            return None;
        }
        let count = ((hull.end - hull.start) >> Self::PIECE) as usize + 1;
        let mut pieces = vec![0u64; count / 64 + 1];
        for range in wanted.ranges() {
            for piece in
                (range.start - hull.start) >> Self::PIECE..=(range.end - 1 - hull.start) >> Self::PIECE
            {
                pieces[(piece / 64) as usize] |= 1 << (piece % 64);
            }
        }
        Some(Self { hull, pieces })
    }

    fn displacements(&self, bytes: &[u8], addr: u64, hit: &mut impl FnMut(usize, u64)) {
        let span = self.hull.end - self.hull.start;
        let mut end = addr.wrapping_add(4).wrapping_sub(self.hull.start);
        for (offset, word) in bytes.windows(4).enumerate() {
            let displacement = i32::from_le_bytes([word[0], word[1], word[2], word[3]]);
            let place = end.wrapping_add_signed(i64::from(displacement));
            end = end.wrapping_add(1);
            if place < span {
                let piece = place >> Self::PIECE;
                if self.pieces[(piece / 64) as usize] >> (piece % 64) & 1 != 0 {
                    hit(offset, self.hull.start + place);
                }
            }
        }
    }
}

/// What the bytes in front of a displacement say it may be.
fn classify(bytes: &[u8], addr: u64, offset: usize, target: u64, found: &mut References) {
    let before = |n: usize| offset.checked_sub(n).map(|at| bytes[at]);
    let branch = |back: u64, call| Branch {
        target: Vaddr(target),
        source: Vaddr(addr + offset as u64 - back),
        next: Vaddr(addr + offset as u64 + 4),
        call,
    };
    match (before(2), before(1)) {
        (_, Some(0xe8)) => found.branches.push(branch(1, true)),
        (_, Some(0xe9)) => found.branches.push(branch(1, false)),
        (Some(0x0f), Some(0x80..=0x8f)) | (Some(0xc7), Some(0xf8)) => {
            found.branches.push(branch(2, false));
        }
        (Some(0x8d), Some(modrm)) if modrm & 0xc7 == 0x05 => found.pointers.push(Vaddr(target)),
        _ => {}
    }
}

/// Every 32-bit word that is itself an address inside the hull.
fn immediates(bytes: &[u8], hull: &Range<u64>, mut hit: impl FnMut(u64)) {
    for word in bytes.windows(4) {
        let value = u64::from(u32::from_le_bytes([word[0], word[1], word[2], word[3]]));
        if hull.contains(&value) {
            hit(value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ObjectAnalysis;
    use std::path::Path;
    use suture_elf::ObjectFile;

    /// Whatever the index knows of a range, the search finds.
    #[test]
    fn search_finds_what_the_index_has() {
        let file = ObjectFile::open(Path::new("/proc/self/exe")).unwrap();
        let object = ObjectAnalysis::new(&file);
        let all = index(&object);
        let starts: Vec<Vaddr> = object.frames().starts().collect();
        let mut compared = 0;
        for start in starts.iter().step_by(starts.len() / 20 + 1) {
            let range = *start..*start + 300;
            let alone = AddressSet::one(start.0..start.0 + 300);
            // The same range among others, far away.
            let others = [
                start.0..start.0 + 300,
                starts[3].0..starts[3].0 + 9,
                starts[starts.len() - 2].0..starts[starts.len() - 1].0,
            ];
            let found = search(&object, &alone);
            let among = search(&object, &AddressSet::new(others.to_vec()));
            // More than a pass compares with.
            let spread = (0..20).map(|i| starts[starts.len() * i / 20]).map(|s| s.0..s.0 + 2);
            let many = search(&object, &AddressSet::new(spread.chain(others.to_vec()).collect()));
            assert_eq!(many.branches(&range), found.branches(&range));
            assert_eq!(many.pointers(&range), found.pointers(&range));
            assert_eq!(among.branches(&range), found.branches(&range));
            assert_eq!(among.pointers(&range), found.pointers(&range));
            let short = |bs: &[Branch]| bs.iter().map(|b| (b.target, b.call)).collect::<Vec<_>>();
            let (known, seen) = (short(all.branches(&range)), short(found.branches(&range)));
            for branch in &known {
                assert!(seen.contains(branch), "{branch:?}");
            }
            for pointer in all.pointers(&range) {
                assert!(found.pointers(&range).contains(pointer), "{pointer:?}");
            }
            compared += known.len();
        }
        assert!(compared > 20, "{compared}");
    }
}
