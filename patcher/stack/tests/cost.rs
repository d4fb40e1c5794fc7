//! What a look costs. Figures are printed; only ratios of two of them can fail.

#[path = "../../unwind/tests/common/mod.rs"]
mod common;

use common::{Target, build};
use std::hint::black_box;
use std::time::{Duration, Instant};
use suture_elf::{Addr, Memory};
use suture_scan::{End, Interval, Ranges, Scanner};
use suture_unwind::{Module, Registers, StackCopy, Unwinder};

/// The shortest of several runs.
fn best(runs: usize, mut run: impl FnMut()) -> Duration {
    let once = |_| {
        let start = Instant::now();
        run();
        start.elapsed()
    };
    (0..runs).map(once).min().unwrap()
}

/// Two hundred functions in three objects, as a large patch has.
fn table() -> Vec<Interval> {
    let clump = |base: u64, n: u64| {
        (0..n).map(move |i| Interval { first: base + 0x4000 * i, last: base + 0x4000 * i + 0x300 })
    };
    clump(0x5555_5555_0000, 100)
        .chain(clump(0x7f00_0000_0000, 60))
        .chain(clump(0x7f10_0000_0000, 40))
        .collect()
}

#[test]
fn scanning_costs_little_more_than_reading() {
    let table = table();
    let ranges = Ranges::new(&table).unwrap();
    let sp = 0x7ffd_0000_0000u64;
    // A stack of small numbers, heap and stack pointers.
    let words: Vec<u64> = (0..65_536u64)
        .map(|i| [i, 0x5556_0000_1000 + 8 * i, sp + 24 * i, 0x7f08_1234_0000 + i][i as usize % 4])
        .collect();
    let end = End::Address(sp + 8 * words.len() as u64);
    let scan = best(50, || {
        let mut scanner = Scanner::new(&ranges, &mut [], sp, end);
        black_box(scanner.feed(black_box(&words)));
        assert!(scanner.finish().is_clean());
    });
    let sum = best(50, || {
        black_box(black_box(&words).iter().fold(0u64, |a, w| a.rotate_left(1) ^ w));
    });
    let each = best(50, || {
        black_box(
            black_box(&words)
                .iter()
                .filter(|w| table.iter().any(|i| i.first <= **w && **w <= i.last))
                .count(),
        );
    });
    let per = |d: Duration| d.as_nanos() as f64 / words.len() as f64;
    println!(
        "per word: scan {:.2} ns, sum {:.2} ns, comparing with every range {:.1} ns",
        per(scan),
        per(sum),
        per(each)
    );
    assert!(scan * 4 < each, "{scan:?} {each:?}");
}

#[test]
fn a_walk_costs_little_once_the_code_is_known() {
    let source = "#include <unistd.h>\n__attribute__((noipa)) int wait_here(int x) { char c; return x + read(0, &c, 1); }\n\
        __attribute__((noipa)) int down(int n) { return n ? down(n - 1) + 1 : wait_here(n) + 1; }\nint main() { return down(14) + 1; }\n";
    for (flags, what) in
        [("-fomit-frame-pointer", "by descriptions"), ("-fno-omit-frame-pointer", "with a height from code")]
    {
        let target = Target::start(&build(source, "c", &["-O2", "-fno-optimize-sibling-calls", flags]), &[]);
        let at = target.reading();
        let modules = target.modules();
        let memory = target.memory();
        let end = target.maps().region_at(at.sp).unwrap().end;
        let stack = memory.read_vec(Addr(at.sp), (end - at.sp) as usize).unwrap();
        let copy = StackCopy::new(at.sp, &stack);
        let registers = Registers::from_pc_sp(at.pc, at.sp);
        let mut unwinder = Unwinder::new(&modules, Vec::new());
        let start = Instant::now();
        let frames = unwinder.walk(registers, &copy).unwrap().frames.len();
        let first = start.elapsed();
        let warm = best(200, || {
            assert_eq!(black_box(unwinder.walk(registers, &copy)).unwrap().frames.len(), frames);
        });
        let start = Instant::now();
        let contexts = modules.iter().filter_map(Module::context_return).count();
        println!("where contexts return to found in {:?}", start.elapsed());
        assert_eq!(contexts, 1);
        println!("{frames} frames {what}: first {first:?}, then {warm:?}");
        assert!(frames == 21 || frames == 20, "{frames}");
        assert!(warm * 5 < first, "{warm:?} {first:?}");
    }
}
