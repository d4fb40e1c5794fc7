//! Rules 1 to 3, 5 and 6 of a site: everything that needs only the file.

use crate::analysis::ObjectAnalysis;
use crate::error::{Refusal, Source};
use crate::function::Function;
use crate::options::Class;
use crate::pointers;
use crate::refs::References;
use crate::window::{Boundary, Candidate, JUMP, LONGEST, movable};
use std::ops::Range;
use suture_elf::Vaddr;

/// How far around an entry references are needed: the prologue, pads within a short jump, and all of
/// the padding these lie in.
pub(crate) const AROUND: u64 = 144 + LONGEST;

/// The addresses of a function about which the whole object is asked.
pub(crate) fn neighbourhood(function: &Function, places: &[Boundary]) -> Range<Vaddr> {
    let last = places.last().map_or(function.entry, |p| p.at);
    Vaddr(function.entry.0.saturating_sub(AROUND))..last + AROUND
}

/// Checks one candidate against the file.
pub(crate) fn check(
    object: &ObjectAnalysis,
    function: &Function,
    places: &[Boundary],
    candidate: &Candidate,
    references: &References,
) -> Result<(), Refusal> {
    let place = &places[candidate.boundary];
    let insn = &function.code[place.index];
    movable(insn).map_err(|what| Refusal::Instruction { at: place.at, what })?;
    if insn.mnemonic() == iced_x86::Mnemonic::Int3 {
        return Err(Refusal::Instruction { at: place.at, what: "a breakpoint instruction" });
    }
    let own = function.entry..function.end;
    if object.restartable().iter().any(|at| own.contains(at)) {
        return Err(Refusal::Instruction { at: place.at, what: "part of a restartable sequence" });
    }
    let first = places[0].at;
    // Behind the prologue: nothing may arrive without having run all of it.
    if place.at > first {
        if let Some(jump) = function.tables.unresolved {
            return Err(Refusal::UnknownJump(jump));
        }
        no_arrival(object, function, &(first + 1..place.at + 1), references)?;
    }
    // Of a pun the bytes that stay may be arrived at: they are what they were.
    let changed = match (candidate.class, candidate.wide) {
        (Class::J, _) => 1,
        (_, Some(wide)) => wide.stored(),
        _ => candidate.window.end.0 - place.at.0,
    };
    no_arrival(object, function, &(place.at + 1..place.at + changed), references)?;
    if let Some(pad) = candidate.pad {
        no_arrival(object, function, &(pad.run..pad.at + JUMP), references)?;
    }
    let changed = function.entry..candidate.window.end.max(place.at + insn.len() as u64);
    if let Some(place) = pointers::relocated_places(object.file(), &(changed.start.0..changed.end.0)).first()
    {
        return Err(Refusal::TextRelocation(*place));
    }
    Ok(())
}

/// Rule 3: nothing continues anywhere in the range.
fn no_arrival(
    object: &ObjectAnalysis,
    function: &Function,
    range: &Range<Vaddr>,
    references: &References,
) -> Result<(), Refusal> {
    if range.start >= range.end {
        return Ok(());
    }
    let arrival = |at, from| Err(Refusal::Arrival { at, from });
    if let Some(branch) = references.branches(range).first() {
        return arrival(branch.target, Source::Branch(branch.source.0));
    }
    if let Some(at) = references.pointers(range).first() {
        return arrival(*at, Source::Pointer);
    }
    let frame = object.frames().next_start(Vaddr(range.start.0 - 1)).filter(|f| *f < range.end);
    if let Some(at) = object.symbol_in(range).or(frame) {
        return arrival(at, Source::Entry);
    }
    if let Some(at) = function.landing_pads.iter().find(|p| range.contains(p)) {
        return arrival(*at, Source::LandingPad);
    }
    if let Some((_, at)) = function.tables.targets.iter().find(|t| range.contains(&t.1)) {
        return arrival(*at, Source::Table);
    }
    Ok(())
}
