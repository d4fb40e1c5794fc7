//! How many functions of an object can be redirected, by class and by reason.

use crate::analysis::ObjectAnalysis;
use crate::error::Refusal;
use crate::flow::LazyFlow;
use crate::function::Function;
use crate::options::Options;
use crate::plan::{LoadedObject, Planner, Subject, Tried, check_registers, displaced};
use crate::process::ProcessView;
use crate::refs::References;
use crate::relocate;
use crate::window::{boundaries, candidates};
use serde::Serialize;
use std::collections::BTreeMap;
use suture_elf::{Addr, Base, Type, Vaddr};

/// Where position independent objects are taken to be loaded when there is no process.
const SOMEWHERE: Base = Base(0x7f00_0000_0000);

/// Counts of one object.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Census {
    /// Functions, by unwind tables.
    pub functions: usize,
    /// Unwind ranges that are parts of other functions (`.cold`); not counted as functions.
    pub parts: usize,
    /// Functions that can be redirected.
    pub redirectable: usize,
    /// Redirectable functions by class letter.
    pub classes: BTreeMap<char, usize>,
    /// Redirectable functions by the number of prologue steps their stub undoes.
    pub undone_steps: BTreeMap<usize, usize>,
    /// Refused functions by rule.
    pub refused: BTreeMap<&'static str, usize>,
}

impl Census {
    /// Redirectable functions in per cent.
    #[must_use]
    pub fn share(&self) -> f64 {
        100.0 * self.redirectable as f64 / self.functions.max(1) as f64
    }
}

/// Counts the functions of an object, each taken by itself.
///
/// `loaded` is where the object is in the process; without it, all addresses outside the object count
/// as free.
#[must_use]
pub fn census(
    analysis: &ObjectAnalysis,
    loaded: Option<(&ProcessView<'_>, Base)>,
    options: &Options,
) -> Census {
    let nobody = ProcessView::default();
    let fallback = if analysis.file().kind() == Type::Exec { Base(0) } else { SOMEWHERE };
    let (process, base) = loaded.unwrap_or((&nobody, fallback));
    let object = [LoadedObject { analysis: analysis.clone(), base }];
    let planner = Planner::new(&object, 1, process, options);
    let references = analysis.index();
    let mut flow = LazyFlow::new(analysis);
    let mut census = Census::default();
    for start in analysis.frames().starts() {
        if is_part(analysis, references, start) {
            census.parts += 1;
            continue;
        }
        census.functions += 1;
        match judge(&planner, &object[0], references, &mut flow, start) {
            Ok((class, undo)) => {
                census.redirectable += 1;
                *census.classes.entry(class).or_default() += 1;
                *census.undone_steps.entry(undo).or_default() += 1;
            }
            Err(why) => *census.refused.entry(why.rule()).or_default() += 1,
        }
    }
    census
}

/// Nothing calls it, points to it or names it, but something jumps into it.
fn is_part(analysis: &ObjectAnalysis, references: &References, start: Vaddr) -> bool {
    let end = analysis.frames().starting_at(start).map_or(start + 1, |f| f.end);
    let here = start..start + 1;
    let called = references.branches(&here).iter().any(|b| b.call);
    let named = analysis.symbols_at(start).any(|s| !s.name.contains(".cold"));
    let entered = references.branches(&(start..end)).iter().any(|b| !(start..end).contains(&b.source));
    !called && !named && references.pointers(&here).is_empty() && entered
}

fn judge(
    planner: &Planner<'_>,
    loaded: &LoadedObject,
    references: &References,
    flow: &mut LazyFlow<'_>,
    entry: Vaddr,
) -> Result<(char, usize), Refusal> {
    let function = Function::new(&loaded.analysis, entry)?;
    let places = boundaries(&function);
    let subject = Subject { object: 0, loaded, function: &function, places: &places, references };
    check_registers(&subject, flow, None)?;
    let mut tried = Tried::default();
    // A copy behind the object stands for one in the nearest hole.
    let copy = Addr((loaded.base + Vaddr(loaded.analysis.image_hull().end)).0 + 0x1_0000);
    for candidate in candidates(&loaded.analysis, &function, &places) {
        if !planner.allows(candidate.class) {
            tried.off = true;
            continue;
        }
        let place = &places[candidate.boundary];
        let fits = planner
            .admit(&subject, &candidate)
            .and_then(|_| relocate::copy(displaced(&function, place, &candidate), loaded.base, copy));
        match fits {
            Ok(_) => return Ok((char::from(candidate.class.letter()), place.undo.len())),
            Err(why) => tried.add(&candidate, why),
        }
    }
    Err(tried.refusal(&function))
}
