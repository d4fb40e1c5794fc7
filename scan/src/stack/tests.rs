use super::*;
use crate::Interval;
use proptest::prelude::*;

const TABLE: [Interval; 3] = [
    Interval { first: 0x40_1001, last: 0x40_1080 },
    Interval { first: 0x40_2001, last: 0x40_2080 },
    Interval { first: 0x7f00_0000_0000, last: 0x7f00_0000_2000 },
];
const SP: u64 = 0x7ffd_0000_1008;
const TID: u32 = 4711;
const OFFSET: u32 = 0x2d0;

/// Scans in pieces and gives the outcome with the stored hits.
fn scan_in(words: &[u64], piece: usize, end: End, room: usize) -> (Outcome, Vec<Hit>) {
    let ranges = Ranges::new(&TABLE).unwrap();
    let mut hits = vec![Hit::default(); room];
    let mut scanner = Scanner::new(&ranges, &mut hits, SP, end);
    for part in words.chunks(piece) {
        if scanner.feed(part) == Step::Ended {
            break;
        }
    }
    let outcome = scanner.finish();
    hits.truncate(outcome.hits);
    (outcome, hits)
}

fn scan(words: &[u64], end: End) -> (Outcome, Vec<Hit>) {
    scan_in(words, 512, end, 8)
}

fn block_end() -> End {
    End::ThreadBlock { tid: TID, tid_offset: OFFSET }
}

/// Frames, then a control block at word `at` of the stack, then what lies above it.
fn with_block(frames: &[u64], tid: u32, above: &[u64]) -> (Vec<u64>, u64) {
    let mut words = frames.to_vec();
    while !(SP + 8 * words.len() as u64).is_multiple_of(64) {
        words.push(0);
    }
    let at = SP + 8 * words.len() as u64;
    let mut block = vec![0u64; 0x900 / 8];
    block[0] = at;
    block[2] = at;
    block[OFFSET as usize / 8] = u64::from(tid) | 0xffff_0000_0000_0000;
    words.extend(block);
    words.extend(above);
    (words, at)
}

#[test]
fn the_bounds_of_a_function_are_those_of_return_addresses() {
    let (outcome, hits) = scan(&[0x40_1000, 0x40_1001, 0x40_1080, 0x40_1081, 7], End::Address(SP + 40));
    assert_eq!(outcome.end, StackEnd::Proven(SP + 40));
    assert_eq!(hits, [Hit { at: SP + 8, range: 0 }, Hit { at: SP + 16, range: 0 }]);
    assert!(!outcome.is_clean());
}

#[test]
fn the_main_threads_stack_ends_where_the_loader_says() {
    let words = [1, 2, 3, 4, 0x40_1010];
    let clean = scan(&words, End::Address(SP + 32)).0;
    assert!(clean.is_clean(), "{clean:?}");
    // One word more belongs to the stack: it counts.
    assert_eq!(scan(&words, End::Address(SP + 40)).0.seen, 1);
    // Not reached, or below the stack pointer: another stack.
    assert_eq!(scan(&words, End::Address(SP + 48)).0.end, StackEnd::Unproven);
    assert_eq!(scan(&words, End::Address(SP)).0.end, StackEnd::Unproven);
    assert_eq!(scan(&words, End::Address(SP + 12)).0.end, StackEnd::Unproven);
}

#[test]
fn a_threads_stack_ends_at_its_control_block() {
    for piece in [1, 3, 16, 17, 512] {
        let (words, at) = with_block(&[1, 0x40_2010, 3], TID, &[0x40_1010, 0x40_1010]);
        let (outcome, hits) = scan_in(&words, piece, block_end(), 8);
        assert_eq!(outcome.end, StackEnd::Proven(at), "pieces of {piece}");
        assert_eq!(hits, [Hit { at: SP + 8, range: 1 }]);
        assert_eq!(outcome.seen, 1);
    }
}

#[test]
fn words_inside_the_control_block_are_no_frames() {
    let (mut words, at) = with_block(&[1, 2], TID, &[]);
    let start = (at - SP) as usize / 8;
    words[start + 5] = 0x40_1010;
    words[start + 7] = u64::from(SIGNAL_MAGIC);
    let outcome = scan(&words, block_end()).0;
    assert!(outcome.is_clean(), "{outcome:?}");
    // The same block of another thread proves nothing, and its words count.
    let outcome = scan(&words, End::ThreadBlock { tid: TID + 1, tid_offset: OFFSET }).0;
    assert_eq!((outcome.end, outcome.seen), (StackEnd::Unproven, 1));
    assert_eq!(outcome.signal_frame, Some(at + 56));
}

#[test]
fn a_stale_control_block_below_does_not_end_the_stack() {
    // A thread that had this stack before left its block with another number.
    let (stale, _) = with_block(&[9, 9], TID - 1, &[0x40_1010]);
    let (words, at) = with_block(&stale, TID, &[]);
    let (outcome, hits) = scan(&words, block_end());
    assert_eq!(outcome.end, StackEnd::Proven(at));
    assert_eq!(hits.len(), 1);
    assert!(hits[0].at < at);
}

#[test]
fn empty_list_heads_do_not_hide_the_block() {
    // Words that point to themselves, as empty lists do, at every aligned place.
    let mut frames: Vec<u64> = (0..4_096).map(|i| SP + 8 * i).collect();
    frames.extend([0; 4]);
    let (words, at) = with_block(&frames, TID, &[]);
    assert_eq!(scan(&words, block_end()).0.end, StackEnd::Proven(at));
}

#[test]
fn a_signal_frame_is_reported() {
    let words = [1, 2, u64::from(SIGNAL_MAGIC) | 0x344 << 32, 4, u64::from(SIGNAL_MAGIC)];
    let outcome = scan(&words, End::Address(SP + 40)).0;
    assert_eq!(outcome.signal_frame, Some(SP + 16));
    assert!(!outcome.is_clean());
    // Deep in a stack, too, where nothing else asks for a closer look.
    let mut words = [7; 100];
    words[50] = u64::from(SIGNAL_MAGIC) | 0x344 << 32;
    let outcome = scan(&words, End::Address(SP + 800)).0;
    assert_eq!((outcome.signal_frame, outcome.end), (Some(SP + 400), StackEnd::Proven(SP + 800)));
    assert!(!outcome.is_clean());
    let ranges = Ranges::new(&TABLE).unwrap();
    let mut scanner = Scanner::new(&ranges, &mut [], SP, End::Address(SP + 800));
    assert_eq!((scanner.feed(&words[..50]), scanner.has_hit()), (Step::More, false));
    assert_eq!((scanner.feed(&words[50..60]), scanner.has_hit()), (Step::More, true));
    // The number alone in the upper half is a coincidence.
    assert!(scan(&[u64::from(SIGNAL_MAGIC) << 32], End::Address(SP + 8)).0.is_clean());
}

#[test]
fn hits_beyond_the_room_are_counted() {
    let (outcome, hits) = scan_in(&[0x40_1010; 100], 7, End::Address(SP + 800), 3);
    assert_eq!((outcome.hits, outcome.seen, hits.len()), (3, 100, 3));
}

#[test]
fn nonsense_never_ends_proven() {
    let ranges = Ranges::new(&TABLE).unwrap();
    for (sp, end) in [
        (SP + 1, End::Address(SP + 9)),
        (SP, End::Unknown),
        (SP, End::ThreadBlock { tid: 0, tid_offset: 0 }),
        (SP, End::ThreadBlock { tid: 0, tid_offset: 0x10 }),
        (SP, End::ThreadBlock { tid: 0, tid_offset: 0x2d1 }),
        (u64::MAX - 7, End::Address(0)),
    ] {
        let mut scanner = Scanner::new(&ranges, &mut [], sp, end);
        for _ in 0..10 {
            scanner.feed(&[SP, 0, SP, 0]);
        }
        assert_eq!(scanner.finish().end, StackEnd::Unproven, "{sp:#x} {end:?}");
    }
}

/// The same by looking at all words at once: hits, the first sign of a signal frame, the end.
fn plain(words: &[u64], end: End) -> (Vec<Hit>, Option<u64>, StackEnd) {
    let at = |i: usize| SP + 8 * i as u64;
    let block = |i: usize, twice: bool, tid: u32, offset: u64| {
        let second = !twice || words.get(i + 2) == Some(&at(i));
        let half = words.get(i + offset as usize / 8).map(|w| (w >> (8 * (offset & 4))) as u32);
        words[i] == at(i) && (!twice || at(i).is_multiple_of(16)) && second && half == Some(tid)
    };
    let stop = match end {
        End::Address(end) => (0..words.len()).find(|&i| at(i) + 8 == end).map(|i| i + 1),
        End::ThreadBlock { tid, tid_offset } => {
            (0..words.len()).find(|&i| block(i, true, tid, u64::from(tid_offset)))
        }
        End::LinkedBlock { tid, tid_offset } => {
            (0..words.len()).find(|&i| block(i, false, tid, u64::from(tid_offset)))
        }
        End::Unknown => None,
    };
    let proven = stop.map_or(StackEnd::Unproven, |i| StackEnd::Proven(at(i)));
    let hit = |i: usize| {
        let range = TABLE.iter().rposition(|r| r.first <= words[i] && words[i] <= r.last)?;
        Some(Hit { at: at(i), range: range as u32 })
    };
    let stack = 0..stop.unwrap_or(words.len());
    let frame = stack.clone().find(|&i| words[i] as u32 == SIGNAL_MAGIC).map(at);
    (stack.filter_map(hit).collect(), frame, proven)
}

/// A word of a stack: anything, one near a range, one of a signal frame, or one that points to itself or two words
/// back.
fn word() -> impl Strategy<Value = (u64, u8)> {
    prop_oneof![
        6 => any::<u64>().prop_map(|w| (w, 0)),
        2 => (0u64..3, 0u64..3).prop_map(|(r, d)| (TABLE[r as usize].last - 1 + d, 0)),
        1 => any::<u32>().prop_map(|high| (u64::from(SIGNAL_MAGIC) | u64::from(high) << 32, 0)),
        2 => Just((0, 1)),
        2 => Just((0, 2)),
        2 => Just((u64::from(TID), 0)),
    ]
}

proptest! {
    /// In pieces of any length the scan finds what a look at the whole finds.
    #[test]
    fn pieces_do_not_matter(
        words in proptest::collection::vec(word(), 1..400),
        piece in 1usize..70,
        end in prop_oneof![
            (0u64..4_000).prop_map(|n| End::Address(SP + n)),
            (0x14u32..0x100).prop_map(|o| End::ThreadBlock { tid: TID, tid_offset: o & !3 }),
            (0x14u32..0x100).prop_map(|o| End::LinkedBlock { tid: TID, tid_offset: o & !3 }),
            Just(End::Unknown),
        ],
    ) {
        let at = |i: usize| SP + 8 * i as u64;
        let words: Vec<u64> = words.iter().enumerate().map(|(i, (word, kind))| match kind {
            1 => at(i),
            2 => at(i) - 0x10,
            _ => *word,
        }).collect();
        let (outcome, hits) = scan_in(&words, piece, end, 1_000);
        let (expected, frame, first) = plain(&words, end);
        // Many false blocks at once may hide the true one: then nothing is proven, or a later one, which is no
        // less of a stack.
        let hidden = match (end, outcome.end, first) {
            (End::ThreadBlock { .. } | End::LinkedBlock { .. }, StackEnd::Unproven, _) => true,
            (End::LinkedBlock { .. }, StackEnd::Proven(at), StackEnd::Proven(first)) => at > first,
            _ => false,
        };
        if hidden {
            prop_assert!(hits.starts_with(&expected));
        } else {
            prop_assert_eq!((hits, outcome.signal_frame, outcome.end), (expected, frame, first));
        }
    }
}
