use super::*;
use suture_elf::MemoryError;

const CODE: u64 = 0x40_1000;
const TABLE: [Interval; 1] = [Interval { first: CODE + 1, last: CODE + 0x80 }];

/// Pages by number: entry and first word.
struct Process(Vec<(u64, u64, u64)>);

impl Memory for Process {
    fn read(&self, addr: Addr, buf: &mut [u8]) -> Result<(), MemoryError> {
        for (i, byte) in buf.iter_mut().enumerate() {
            let at = addr.0 + i as u64;
            let page = self.0.iter().find(|p| p.0 == at / PAGE).ok_or(MemoryError { addr, len: 1 })?;
            *byte = if at % PAGE < 8 { page.2.to_le_bytes()[(at % 8) as usize] } else { 0 };
        }
        Ok(())
    }
}

impl Pages for Process {
    fn entries(&self, page: u64, entries: &mut [u64]) -> Result<(), PagesError> {
        for (i, entry) in entries.iter_mut().enumerate() {
            *entry = self.0.iter().find(|p| p.0 == page + i as u64).map_or(0, |p| p.1);
        }
        Ok(())
    }
}

const MAPS: &str = "\
400000-402000 r-xp 00000000 fe:01 5                                      /bin/x
500000-510000 rw-p 00000000 fe:01 5                                      /bin/x
600000-700000 rw-p 00000000 00:00 0                                      [heap]
800000-801000 rw-s 00000000 00:05 7                                      /memfd:x (deleted)
900000-980000 rw-p 00000000 00:00 0                                      [stack]
";

fn run(process: &Process, known: &[Range<u64>], most: u64) -> Hidden {
    let maps = MapsSnapshot::parse(MAPS).unwrap();
    // Even addresses follow a call.
    let follows_call = |addr: u64| addr.is_multiple_of(2);
    let search = Search {
        maps: &maps,
        memory: process,
        pages: process,
        table: &TABLE,
        known,
        follows_call: &follows_call,
        most,
    };
    super::search(&search).unwrap()
}

#[test]
fn only_memory_that_the_process_wrote_is_read() {
    let hit = CODE + 0x10;
    let process = Process(vec![
        (0x400, PRESENT | FILE_OR_SHARED, hit),
        (0x500, PRESENT | FILE_OR_SHARED, hit),
        (0x501, PRESENT, hit),
        (0x600, PRESENT, 7),
        (0x601, SWAPPED, hit + 2),
        (0x602, PRESENT, CODE),
        (0x603, PRESENT, CODE + 0x80),
        (0x604, PRESENT, CODE + 0x11),
        (0x6ff, 0, hit),
        (0x800, PRESENT, hit),
        (0x900, PRESENT, hit),
        (0x970, PRESENT, hit),
    ]);
    let stack = 0x90_0000u64..0x97_1000;
    let hidden = run(&process, std::slice::from_ref(&stack), u64::MAX);
    let found: Vec<(u64, u64)> = hidden.words.iter().map(|w| (w.at, w.word)).collect();
    // The start of the function is none, nor what follows no call; its end is one.
    assert_eq!(found, [(0x50_1000, hit), (0x60_1000, hit + 2), (0x60_3000, CODE + 0x80)]);
    assert_eq!((hidden.found, hidden.searched, hidden.capped), (3, 6 * PAGE, false));
    assert!(!hidden.is_clear());
    // Half a page is known.
    let half = 0x50_1000u64..0x50_1008;
    let known = [stack.clone(), half, 0x60_0000..0x60_4000];
    let hidden = run(&process, &known, u64::MAX);
    assert!(hidden.is_clear(), "{hidden:?}");
    assert_eq!(hidden.searched, 2 * PAGE - 8);
    // Without knowing the stack its frames are hits.
    assert_eq!(run(&process, &[], u64::MAX).found, 5);
}

#[test]
fn a_limit_is_kept_and_said() {
    let process = Process((0x600..0x620).map(|page| (page, PRESENT, CODE + 2)).collect());
    let hidden = run(&process, &[], 4 * PAGE);
    assert_eq!((hidden.found, hidden.searched, hidden.capped), (4, 4 * PAGE, true));
    assert!(!run(&process, &[], 32 * PAGE).capped);
    assert_eq!(run(&process, &[], 32 * PAGE).found, 32);
    let none = Process((0x600..0x620).map(|page| (page, PRESENT, 0)).collect());
    assert!(!run(&none, &[], 4 * PAGE).is_clear(), "what was not looked at is not clear");
}

#[test]
fn what_went_away_is_counted() {
    // The page map says more than the memory has.
    struct Gone(Process);
    impl Pages for Gone {
        fn entries(&self, page: u64, entries: &mut [u64]) -> Result<(), PagesError> {
            self.0.entries(page, entries)?;
            entries.iter_mut().for_each(|e| *e |= if page == 0x600 { PRESENT } else { 0 });
            Ok(())
        }
    }
    let process = Process(vec![(0x600, PRESENT, 0)]);
    let maps = MapsSnapshot::parse(MAPS).unwrap();
    let gone = Gone(Process(vec![(0x600, PRESENT, 0)]));
    let hidden = search(&Search {
        maps: &maps,
        memory: &process,
        pages: &gone,
        table: &TABLE,
        known: &[],
        follows_call: &|_| true,
        most: u64::MAX,
    })
    .unwrap();
    assert_eq!((hidden.unreadable, hidden.searched), (256 * PAGE, 0));
    assert!(!hidden.is_clear());
}

/// Two words of memory.
struct Words([(u64, u64); 2]);

impl Memory for Words {
    fn read(&self, addr: Addr, buf: &mut [u8]) -> Result<(), MemoryError> {
        let found = self.0.iter().find(|(at, _)| *at == addr.0);
        let (_, word) = found.ok_or(MemoryError { addr, len: buf.len() })?;
        buf.copy_from_slice(&word.to_le_bytes());
        Ok(())
    }
}

#[test]
fn a_saved_context_is_told_from_a_frame() {
    let context = |fpregs: u64| Words([(0x10a8, CODE + 0x10), (0x10e0, fpregs)]);
    assert!(is_saved_context(&context(0x11a8), 0x10a8));
    assert!(!is_saved_context(&context(0x11a0), 0x10a8), "its vector state lies elsewhere");
    assert!(!is_saved_context(&context(0x11a8), 0x10b0), "another word of it");
    assert!(!is_saved_context(&context(0x11a8), 0x10), "nothing to be read there");
}
