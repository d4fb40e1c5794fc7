//! Padding between functions: bytes that nothing runs and that a jump may be written to.

use crate::analysis::ObjectAnalysis;
use crate::function::is_terminal;
use iced_x86::Mnemonic;
use std::ops::Range;
use suture_elf::Vaddr;

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
    let limit = limit.min(bytes.len() as u64).min(256) as usize;
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

/// All padding that overlaps the range, of functions that unwind tables describe.
pub(crate) fn around(object: &ObjectAnalysis, range: &Range<Vaddr>) -> Vec<Range<Vaddr>> {
    let frames = object.frames();
    // The function that ends before the range may be followed by padding inside it.
    let first = frames.index_before(range.start).unwrap_or(0);
    let mut found = Vec::new();
    for index in first.. {
        let Some(frame) = frames.get(index).filter(|f| f.start < range.end) else { break };
        // A second frame inside the first one would make its "padding" code.
        let nested = frames.next_start(frame.start).is_some_and(|next| next < frame.end);
        if nested || frame.end >= range.end {
            continue;
        }
        let padding = behind(object, frame.start, frame.end);
        if padding.start < padding.end && padding.end > range.start {
            found.push(padding);
        }
    }
    found
}
