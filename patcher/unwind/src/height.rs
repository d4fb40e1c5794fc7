//! Stack heights computed from the code.
//!
//! Of a thread in a system call `/proc` tells only the stack pointer and the program counter. Code that
//! keeps a frame pointer describes its frames by `rbp`, so a walk from those two cannot start in it, and
//! cannot continue into it from code that did not save `rbp`. But how far the stack pointer is below the
//! frame is a property of the code: it is followed here, instruction by instruction, from the entry of
//! the function to the place in question.
//!
//! What the call frame information says is believed on the way: where it gives the CFA by `rsp`, the
//! height is that; where by another register, that register is known. In between, constant pushes, pops
//! and additions are counted, and copies of the stack pointer in registers are remembered. Where the
//! height depends on values of the run (`alloca`, variable arrays, frames aligned by `and`), or ways that
//! meet disagree, there is no height.

mod flow;
mod sources;
mod state;
mod table;

use crate::module::Module;
use flow::{Region, Rows};
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use suture_elf::Vaddr;
use thiserror::Error;

/// Why the height of the stack at a place is not known from the code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum NoHeight {
    /// The stack pointer was changed by a value of the run.
    #[error("it makes room on the stack by a computed amount")]
    Dynamic,
    /// The stack pointer was aligned.
    #[error("it aligns the stack")]
    Aligned,
    /// Ways that lead there disagree.
    #[error("ways of different stack heights lead there")]
    Conflict,
    /// No known way leads there.
    #[error("no way there from the function's entry is known")]
    Unreached,
    /// The function is longer than anybody's.
    #[error("the function is too long to be followed")]
    TooLong,
}

/// A place in the code that a frame stands at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Place {
    /// In front of the instruction there.
    Before(Vaddr),
    /// In the call that returns there.
    Call(Vaddr),
}

/// Heights of one object, remembered.
#[derive(Debug, Default)]
pub(crate) struct Heights {
    regions: HashMap<Vaddr, Arc<Region>>,
    /// The ranges that jump into a range which is not entered by calls.
    parents: HashMap<Vaddr, Arc<[Range<Vaddr>]>>,
}

/// Parts of parts that are followed upwards to find the function.
const MAX_DEPTH: usize = 4;

impl Heights {
    /// Distance from the stack pointer up to the CFA at a place inside an unwind range.
    pub fn at(&mut self, module: &Module, frame: &Range<Vaddr>, place: Place) -> Result<i64, NoHeight> {
        self.through(module, &Rows::of(module), frame, place, MAX_DEPTH)
    }

    /// The height at a place, on the ways that start in `frame`.
    fn through(
        &mut self,
        module: &Module,
        rows: &Rows<'_>,
        frame: &Range<Vaddr>,
        place: Place,
        depth: usize,
    ) -> Result<i64, NoHeight> {
        let own = self.region(module, rows, frame.start).height(place);
        if own != Err(NoHeight::Unreached) || depth == 0 || rows.is_entered_by_call(frame.start) {
            return own;
        }
        // Part of a function: only that function knows how high the stack is at the jump. Most parts
        // jump back to it; to find who jumps into one takes longer.
        let back = sources::jumps_out_of(module, rows, frame);
        let height = self.above(module, rows, &back, place, depth);
        if height != Err(NoHeight::Unreached) {
            return height;
        }
        let parents = self.parents(module, rows, frame);
        self.above(module, rows, &parents, place, depth)
    }

    /// The height at a place, on the ways that start in any of the frames.
    fn above(
        &mut self,
        module: &Module,
        rows: &Rows<'_>,
        frames: &[Range<Vaddr>],
        place: Place,
        depth: usize,
    ) -> Result<i64, NoHeight> {
        let mut height = Err(NoHeight::Unreached);
        for frame in frames {
            let above = self.through(module, rows, frame, place, depth - 1);
            height = match (height, above) {
                (Err(NoHeight::Unreached), other) | (other, Err(NoHeight::Unreached)) => other,
                (Ok(a), Ok(b)) if a == b => Ok(a),
                (Ok(_), Ok(_)) => Err(NoHeight::Conflict),
                (Err(why), _) | (_, Err(why)) => Err(why),
            };
        }
        height
    }

    fn region(&mut self, module: &Module, rows: &Rows<'_>, start: Vaddr) -> Arc<Region> {
        let follow = || Arc::new(Region::follow(module, rows, start, None));
        Arc::clone(self.regions.entry(start).or_insert_with(follow))
    }

    fn parents(&mut self, module: &Module, rows: &Rows<'_>, frame: &Range<Vaddr>) -> Arc<[Range<Vaddr>]> {
        let look = || sources::jumps_into(module, rows, frame).into();
        Arc::clone(self.parents.entry(frame.start).or_insert_with(look))
    }

    /// The same for a function without call frame information, whose code lies in `bounds`.
    pub fn without_cfi(
        &mut self,
        module: &Module,
        bounds: &Range<Vaddr>,
        place: Place,
    ) -> Result<i64, NoHeight> {
        let follow =
            || Arc::new(Region::follow(module, &Rows::of(module), bounds.start, Some(bounds.clone())));
        self.regions.entry(bounds.start).or_insert_with(follow).height(place)
    }
}
