//! Padding between functions: bytes that nothing runs and that a jump may be written to.

use crate::analysis::ObjectAnalysis;
use crate::function::is_terminal;
use crate::window::{JUMP, LONGEST};
use iced_x86::Mnemonic;
use std::ops::Range;
use suture_elf::Vaddr;

/// How much code without unwind tables is decoded.
const GAP_LIMIT: u64 = 4096;

/// Padding that starts at `end`, the end of a function or of a part of one. Empty when what stands
/// before it may fall through into it.
pub(crate) fn behind(object: &ObjectAnalysis, start: Vaddr, end: Vaddr) -> Range<Vaddr> {
    object.padding(start..end, |range| look(object, range.start, range.end))
}

fn look(object: &ObjectAnalysis, start: Vaddr, end: Vaddr) -> Range<Vaddr> {
    let none = end..end;
    let code = object.decode(&(start..end));
    if !code.last().is_some_and(|last| last.next_ip() == end.0 && is_terminal(last)) {
        return none;
    }
    let Some(bytes) = object.code_from(end) else { return none };
    let limit = object.frames().next_start(Vaddr(end.0 - 1)).map_or(u64::MAX, |n| n.0 - end.0);
    let limit = limit.min(bytes.len() as u64).min(LONGEST) as usize;
    let filler = |byte: u8| bytes[..limit].iter().take_while(|b| **b == byte).count();
    let mut len = filler(0xcc).max(filler(0));
    if len == 0 {
        let nops = object.decode(&(end..end + limit as u64));
        len = nops.iter().take_while(|i| i.mnemonic() == Mnemonic::Nop).map(|i| i.len()).sum();
    }
    // The next function may start with the same bytes.
    let stop = object.symbol_in(&(end..end + len as u64)).unwrap_or(end + len as u64);
    end..stop
}

/// Padding in front of a function where no unwind tables describe what comes before (the start-up code
/// that every program and library begins with, hand-written code): the NOPs that the assembler aligns a
/// function with, behind an instruction that does not fall through.
///
/// Such code may hold data, which decodes as anything. Therefore only the long NOPs count, up to the
/// start of a function at a multiple of 16: no data looks like that, and what an instruction in the
/// middle would take for its operand it would have to take to the very end.
fn before(object: &ObjectAnalysis, previous: Vaddr, start: Vaddr) -> Range<Vaddr> {
    let none = start..start;
    if !start.0.is_multiple_of(16) || !(JUMP..GAP_LIMIT).contains(&start.0.saturating_sub(previous.0)) {
        return none;
    }
    let code = object.decode(&(previous..start));
    let nops = code.iter().rev().take_while(|insn| insn.mnemonic() == Mnemonic::Nop).count();
    let Some((before, nops)) = code.len().checked_sub(nops).map(|at| code.split_at(at)) else { return none };
    let ends = before.last().is_some_and(is_terminal) && nops.last().is_some_and(|n| n.next_ip() == start.0);
    // One-byte NOPs in front of the long ones belong to them: the assembler fills up with them.
    let long = nops.iter().filter(|n| n.len() > 2).map(|n| n.len()).sum::<usize>() as u64;
    if ends && long >= JUMP { nops.first().map_or(none, |n| Vaddr(n.ip())..start) } else { none }
}

/// All padding that overlaps the range.
pub(crate) fn around(object: &ObjectAnalysis, range: &Range<Vaddr>) -> Vec<Range<Vaddr>> {
    let frames = object.frames();
    // The function that ends before the range may be followed by padding inside it.
    let first = frames.index_before(range.start).unwrap_or(0);
    let mut found = Vec::new();
    // Where what is known of the code ends: behind the last function and its padding.
    let mut known = first.checked_sub(1).and_then(|i| frames.get(i)).map(|f| f.end);
    for index in first.. {
        let Some(frame) = frames.get(index) else { break };
        let gap = known.or_else(|| object.segment_start(frame.start));
        found.extend(gap.map(|gap| before(object, gap, frame.start)));
        if frame.start >= range.end {
            break;
        }
        known = known.max(Some(frame.end));
        // A second frame inside the first one would make its "padding" code.
        let nested = frames.next_start(frame.start).is_some_and(|next| next < frame.end);
        if nested || frame.end >= range.end {
            continue;
        }
        let padding = behind(object, frame.start, frame.end);
        known = known.max(Some(padding.end));
        found.push(padding);
    }
    found.extend(object.file().segments().iter().filter_map(|s| object.file().page_tail(s)));
    found.retain(|padding| padding.start < range.end && padding.end > range.start && !padding.is_empty());
    found.sort_by_key(|padding| padding.start);
    // What stands behind one function stands in front of the next.
    found.dedup_by(|next, known| next.start < known.end);
    found
}
