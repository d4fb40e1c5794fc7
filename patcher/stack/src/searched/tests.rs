use super::*;
use proptest::prelude::*;

fn build(members: &[(u32, Kind, Range<u64>)]) -> Searched {
    let mut builder = SearchedBuilder::new();
    members.iter().for_each(|(function, kind, range)| builder.add(*function, *kind, range.clone()));
    builder.build()
}

fn found(matched: Option<Match>) -> Option<(u32, Kind)> {
    matched.map(|m| (m.function, m.kind))
}

/// The three rules, at every bound of every kind.
#[test]
fn bounds_of_every_kind() {
    for kind in [Kind::Original, Kind::Part, Kind::New, Kind::Copy, Kind::Runtime] {
        let searched = build(&[(7, kind, 0x100..0x200)]);
        let hooked = kind == Kind::Original;
        let is = |inside: bool| inside.then_some((7, kind));
        for (addr, returns, stands, word) in [
            (0xff, false, false, false),
            (0x100, false, !hooked, !hooked),
            (0x101, true, true, true),
            (0x1ff, true, true, true),
            (0x200, true, false, true),
            (0x201, false, false, false),
        ] {
            assert_eq!(found(searched.return_address(addr)), is(returns), "{kind:?} {addr:#x} returned to");
            assert_eq!(found(searched.pc(addr)), is(stands), "{kind:?} {addr:#x} stood at");
            let ranges = Ranges::new(searched.table()).unwrap();
            assert_eq!(ranges.find(addr).is_some(), word, "{kind:?} {addr:#x} on a stack");
        }
    }
}

#[test]
fn neighbours_share_a_word_and_nothing_else() {
    let searched = build(&[(1, Kind::Original, 0x100..0x200), (2, Kind::Original, 0x200..0x300)]);
    assert_eq!(found(searched.return_address(0x200)), Some((1, Kind::Original)));
    assert_eq!(found(searched.pc(0x200)), None, "at the hooked entry of the second");
    assert_eq!(found(searched.pc(0x201)), Some((2, Kind::Original)));
    let searched = build(&[(1, Kind::New, 0x100..0x200), (2, Kind::New, 0x200..0x300)]);
    let ranges = Ranges::new(searched.table()).unwrap();
    let owners: Vec<u32> = searched.owners(ranges.find(0x200).unwrap()).map(|m| m.function).collect();
    assert_eq!(owners, [1, 2], "the end of one or the start of the other");
    assert_eq!(found(searched.return_address(0x200)), Some((1, Kind::New)));
    assert_eq!(found(searched.pc(0x200)), Some((2, Kind::New)));
}

#[test]
fn a_shared_part_belongs_to_all_and_a_marker_is_not_searched() {
    let searched = build(&[
        (1, Kind::Part, 0x100..0x120),
        (2, Kind::Part, 0x100..0x120),
        (0, Kind::SignalReturn, 0x500..0x510),
        (0, Kind::Runtime, 0x110..0x118),
        (9, Kind::New, 0x40..0x40),
    ]);
    let ranges = Ranges::new(searched.table()).unwrap();
    let owners = |word| searched.owners(ranges.find(word).unwrap()).map(|m| m.function).collect::<Vec<_>>();
    assert_eq!(owners(0x108), [1, 2]);
    assert_eq!(owners(0x114), [1, 2, 0]);
    assert!(ranges.find(0x508).is_some() && ranges.find(0x40).is_none());
    assert_eq!((searched.pc(0x508), searched.return_address(0x508)), (None, None));
    assert_eq!(found(searched.pc(0x104)), Some((1, Kind::Part)));
}

#[test]
fn a_scan_needs_both_registers() {
    let searched = build(&[
        (3, Kind::Original, 0x40_1000..0x40_1100),
        (0, Kind::SignalReturn, 0x7f00_0000..0x7f00_0010),
    ]);
    let sp = 0x7ffd_0000_1000u64;
    let stack = |words: &[u64]| words.iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<_>>();
    let scan =
        |pc, words: &[u64]| searched.scan(pc, sp, &stack(words), End::Address(sp + 8 * words.len() as u64));
    assert!(scan(0x1234, &[1, 2, 0x40_1000, 0x40_1101]).is_clean());
    // A thread that stands in the function has no return address into it.
    assert!(!scan(0x40_1010, &[1, 2]).is_clean());
    assert!(scan(0x40_1000, &[1, 2]).is_clean());
    let hit = scan(0x1234, &[1, 0x40_1100, 3]);
    assert_eq!((hit.is_clean(), hit.hits[0].at), (false, sp + 8));
    assert!(!scan(0x1234, &[1, 0x7f00_0000]).is_clean(), "a handler's frame");
    // Without a proven end nothing is clean.
    let unproven = searched.scan(0x1234, sp, &stack(&[1, 2]), End::Address(sp + 64));
    assert!(!unproven.is_clean() && unproven.hits.is_empty());
}

proptest! {
    /// However ranges overlap, the answers are those of asking each range by itself.
    #[test]
    fn overlapping_ranges(
        members in proptest::collection::vec((0u32..5, 0u8..7, 0u64..120, 0u64..40), 0..24),
    ) {
        const KINDS: [Kind; 7] = [
            Kind::Original,
            Kind::Part,
            Kind::New,
            Kind::Copy,
            Kind::Runtime,
            Kind::SignalReturn,
            Kind::ContextReturn,
        ];
        let members: Vec<(u32, Kind, Range<u64>)> =
            members.into_iter().map(|(f, k, at, len)| (f, KINDS[usize::from(k)], at..at + len)).collect();
        let searched = build(&members);
        let ranges = Ranges::new(searched.table()).unwrap();
        for addr in 0..200u64 {
            let real = members.iter().filter(|m| !m.2.is_empty());
            let ra = real.clone().filter(|m| m.1.is_searched() && m.2.start < addr && addr <= m.2.end);
            let pc = real.clone().filter(|m| {
                m.1.is_searched() && m.2.contains(&addr) && !(m.1 == Kind::Original && addr == m.2.start)
            });
            prop_assert_eq!(searched.return_address(addr).is_some(), ra.count() > 0);
            prop_assert_eq!(searched.pc(addr).is_some(), pc.count() > 0);
            let mut word: Vec<(u32, Kind)> = real
                .filter(|m| m.2.start + u64::from(m.1 == Kind::Original) <= addr && addr <= m.2.end)
                .map(|m| (m.0, m.1))
                .collect();
            word.sort();
            word.dedup();
            let mut owners: Vec<(u32, Kind)> = ranges
                .find(addr)
                .map_or(Vec::new(), |i| searched.owners(i).map(|m| (m.function, m.kind)).collect());
            owners.sort();
            owners.dedup();
            prop_assert_eq!(owners, word);
        }
    }
}
