use super::*;
use proptest::prelude::*;
use std::cell::Cell;
use suture_elf::Addr;
use suture_scan::Interval;

/// Words from an address on; what lies behind them cannot be read. Counts the bytes that were.
struct Words(u64, Vec<u64>, Cell<usize>);

impl Memory for Words {
    fn read(&self, addr: Addr, buf: &mut [u8]) -> Result<(), MemoryError> {
        let bytes: Vec<u8> = self.1.iter().flat_map(|w| w.to_le_bytes()).collect();
        let from = addr.0.checked_sub(self.0).map(|at| at as usize);
        let found = from.and_then(|at| bytes.get(at..at + buf.len()));
        self.2.set(self.2.get() + buf.len());
        buf.copy_from_slice(found.ok_or(MemoryError { addr, len: buf.len() })?);
        Ok(())
    }
}

/// Whole pages of zeros with some words.
fn stack(words: &[(usize, u64)]) -> Words {
    let mut memory = vec![0; 1024];
    words.iter().for_each(|(at, word)| memory[*at] = *word);
    Words(SP, memory, Cell::default())
}

const SP: u64 = 0x7ffd_0000_1000;
const END: u64 = SP + 8 * 1000;
const MAIN: OwnThread = OwnThread { tid: 7, main: true, block: None };

/// A hooked function at `0x40_1000`.
const HOOKED: Interval = Interval { first: 0x40_1001, last: 0x40_1100 };

fn check(registers: Registers, memory: &Words, contexts: &[Interval]) -> Result<By, Refusal> {
    check_in(&[], MAIN, registers, memory, contexts)
}

fn check_in(
    readable: &[Range<u64>],
    thread: OwnThread,
    registers: Registers,
    memory: &Words,
    contexts: &[Interval],
) -> Result<By, Refusal> {
    StackCheck {
        searched: Ranges::new(&[HOOKED]).unwrap(),
        contexts: Ranges::new(contexts).unwrap(),
        layout: ThreadLayout { thread_id: 0x2d0, main_stack_end: END, linked: false },
        stacks: 0,
        memory,
        readable,
        unwinder: &mut Unwinder::new(Vec::<Module>::new(), Vec::new()),
    }
    .check(thread, registers, memory)
}

#[test]
fn a_clean_scan_is_enough_and_anything_else_asks_for_a_walk() {
    let at = |pc| Registers::from_pc_sp(pc, SP);
    // Without objects every walk is refused: that it was made is what the refusal shows.
    let walks = |result| matches!(result, Err(Refusal::Unreliable(Doubt::Walk(_))));
    assert_eq!(check(at(0x1234), &stack(&[(1, 0x40_1000), (2, 0x40_1101)]), &[]), Ok(By::Scan));
    assert!(walks(check(at(0x1234), &stack(&[(1, 0x40_1100)]), &[])), "a return address at the end");
    assert!(walks(check(at(0x1234).with(Register::RBX, 0x40_1010), &stack(&[]), &[])), "in a register");
    let context = [Interval { first: 0x7f00_0000, last: 0x7f00_0010 }];
    assert!(walks(check(at(0x1234), &stack(&[(3, 0x7f00_0000)]), &context)), "a coroutine's frame");
    assert!(walks(check(at(0x1234), &stack(&[(3, 0x4650_5853)]), &[])), "a handler's frame");
    let short = Words(SP, vec![0; 512], Cell::default());
    assert!(walks(check(at(0x1234), &short, &[])), "without a proven end");
    // Behind the end nothing counts.
    assert_eq!(check(at(0x1234), &stack(&[(1001, 0x40_1010)]), &[]), Ok(By::Scan));
}

#[test]
fn a_stack_whose_end_cannot_be_proven_is_not_scanned() {
    let at = Registers::from_pc_sp(0x1234, SP);
    let read = |readable: &[Range<u64>], thread| {
        let memory = stack(&[]);
        let walks = check_in(readable, thread, at, &memory, &[HOOKED]) != Ok(By::Scan);
        (walks, memory.2.get() > 4096)
    };
    let held = |block| OwnThread { block: Some(block), ..MAIN };
    let stops_short = [SP - 4096..SP + 4096, END..END + 4096];
    assert_eq!(read(&stops_short, held(END + 64)), (true, false), "neither end is where it can be read");
    assert_eq!(read(&stops_short, held(SP - 64)), (true, false), "its block lies below");
    let other = OwnThread { main: false, ..held(END + 64) };
    let whole = std::slice::from_ref(&(SP..END));
    assert_eq!(read(whole, other), (true, false));
    // The end of the first thread's stack is in it.
    assert_eq!(read(whole, held(END + 64)), (false, true));
    // Its block may be, for all one knows.
    assert!(read(&stops_short, OwnThread { main: false, ..MAIN }).1);
    assert!(read(&stops_short, held(SP + 64)).1);
    // What was mapped since is not known.
    assert_eq!(read(&stops_short[1..], held(END + 64)), (false, true));
}

#[test]
fn a_thread_that_stands_in_searched_code_needs_no_scan() {
    let on_stack = |pc| Err(Refusal::OnStack { pc, frames: vec![pc] });
    for (pc, inside) in [(0x40_1000, false), (0x40_1001, true), (0x40_10ff, true), (0x40_1100, false)] {
        let expected = if inside { on_stack(pc) } else { Ok(By::Scan) };
        assert_eq!(check(Registers::from_pc_sp(pc, SP), &stack(&[]), &[]), expected, "{pc:#x}");
    }
    let unknown = check(Registers::default(), &stack(&[]), &[]);
    assert_eq!(unknown, Err(Refusal::Unreliable(Doubt::NoStackPointer)));
}

#[test]
fn holes_are_passed_over() {
    let words = stack(&[(4, 0x40_1010), (700, 0x40_1020)]);
    let ranges = Ranges::new(&[HOOKED]).unwrap();
    let seen = |holes: &[std::ops::Range<u64>]| {
        let scanned = scan(SP, End::Address(END), &ranges, &words, holes);
        (scanned.outcome.seen, scanned.first)
    };
    assert_eq!(seen(&[]), (2, Some(0x40_1010)));
    assert_eq!(seen(std::slice::from_ref(&(SP + 32..SP + 40))), (1, Some(0x40_1020)));
    assert_eq!(seen(&[SP + 5600..SP + 5608, SP..SP + 40]), (0, None));
}

fn frame(pc: u64, kind: FrameKind) -> Frame {
    Frame { pc, cfa: 0, kind, trampoline: false, module: 0, by_height: false }
}

/// Sorted and joined, as the runtime makes the table.
fn table(code: &[(u64, u64, bool)]) -> Vec<Interval> {
    let mut all: Vec<_> = code
        .iter()
        .map(|(start, end, hooked)| Interval { first: start + u64::from(*hooked), last: *end })
        .collect();
    all.sort_unstable();
    let mut joined: Vec<Interval> = Vec::new();
    for next in all.into_iter().filter(|i| i.first <= i.last) {
        match joined.last_mut().filter(|last| next.first <= last.last) {
            Some(last) => last.last = last.last.max(next.last),
            None => joined.push(next),
        }
    }
    joined
}

#[test]
fn frames_are_compared_by_what_they_are() {
    use FrameKind::{Caller, Innermost, Interrupted};
    let table = table(&[(0x100, 0x200, true), (0x900, 0x980, false)]);
    let searched = Ranges::new(&table).unwrap();
    for (pc, kind, inside) in [
        (0x100, Innermost, false),
        (0x100, Interrupted, false),
        (0x100, Caller, false),
        (0x102, Caller, true),
        (0x101, Innermost, true),
        (0x200, Innermost, false),
        (0x200, Interrupted, false),
        (0x200, Caller, true),
        (0x900, Caller, false),
        (0x900, Innermost, true),
        (0x900, Interrupted, true),
        (0x980, Interrupted, false),
        (0x980, Caller, true),
    ] {
        assert_eq!(is_live(&frame(pc, kind), &searched), inside, "{pc:#x} {kind:?}");
    }
}

proptest! {
    /// However pieces of code overlap or touch, the joined table answers like each of them by itself.
    #[test]
    fn joined_intervals_keep_the_rules(code in proptest::collection::vec((0u64..120, 2u64..40, any::<bool>()), 1..24)) {
        let code: Vec<_> = code.into_iter().map(|(start, len, hooked)| (start, start + len, hooked)).collect();
        let table = table(&code);
        let searched = Ranges::new(&table).unwrap();
        for pc in 1..200 {
            // No call is one byte long, so none returns to the second byte of a function.
            let call = |start: u64| pc >= start + 2;
            let returns = code.iter().any(|(start, end, _)| call(*start) && pc <= *end);
            let possible = code.iter().all(|(start, _, _)| pc != start + 1);
            if possible {
                prop_assert_eq!(is_live(&frame(pc, FrameKind::Caller), &searched), returns, "{} returned to", pc);
            }
            let stands = code.iter().any(|(s, e, hooked)| s + u64::from(*hooked) <= pc && pc < *e);
            prop_assert_eq!(is_live(&frame(pc, FrameKind::Interrupted), &searched), stands, "{} stood at", pc);
        }
    }
}
