//! What one call of a patched function costs, beside a call of an unpatched twin in the same process.

use crate::error::Error;
use crate::lab::{CALL_FUNCTIONS, Lab, SHORT};
use crate::row::{Budget, Row};
use crate::stats::{Pair, append, interleave};
use crate::suture;
use crate::target::Subject;
use std::cell::RefCell;

/// Sets of functions: one called directly, others through a table in random order.
const SIZES: [usize; 4] = [1, 64, 512, 2048];
/// Sizes class J is asked for: a process gets at most 1 000 such sites.
const PUNNED: [usize; 3] = [1, 64, 512];
const TWIN: &str = "an unpatched twin in the same process";

/// All rows about calls.
///
/// # Errors
/// When a target or the command fails, or a patch does not do what it says.
pub fn calls(lab: &Lab, rows: &mut Vec<Row>) -> Result<(), Error> {
    let program = lab.subject(CALL_FUNCTIONS, SHORT)?;
    let mut all = Pair::default();
    for _ in 0..lab.rounds(10) {
        let mut plain = Subject::start(&program, None)?;
        let mut loaded = Subject::start(&program, Some(&lab.runtime))?;
        append(&mut all, interleave(lab.rounds(30), || loaded.ask("subject 1"), || plain.ask("subject 1"))?);
    }
    let row = Row::new("call.plain", "ns", &all.0, &all.1);
    rows.push(row.budget(Budget::Factor(1.05)).against("the same call without preload"));
    rows.push(dispatcher(lab)?);
    for size in SIZES {
        rows.extend(patched_and_reverted(lab, size, None)?);
    }
    for size in PUNNED {
        rows.extend(patched_and_reverted(lab, size, Some("J"))?);
    }
    Ok(())
}

/// A call while a thread that stays in an old function holds the transition up.
fn dispatcher(lab: &Lab) -> Result<Row, Error> {
    let (program, patch) = (lab.subject(CALL_FUNCTIONS, SHORT)?, lab.held_patch()?);
    let mut all = Pair::default();
    for _ in 0..lab.rounds(10) {
        let subject = RefCell::new(Subject::start(&program, Some(&lab.runtime))?);
        let pid = subject.borrow().pid();
        let ask = |question: &str| subject.borrow_mut().ask(question);
        ask("stay")?;
        suture::begin(lab, &patch, pid)?;
        append(&mut all, interleave(lab.rounds(30), || ask("subject 1"), || ask("plain 1"))?);
    }
    let row = Row::new("call.dispatcher", "ns", &all.0, &all.1);
    Ok(row.budget(Budget::Added(6.0)).against(TWIN))
}

/// Rows about `size` functions of the classes asked for, from several processes: where address
/// randomisation puts things moves the cost of a call for the whole life of a process.
fn patched_and_reverted(lab: &Lab, size: usize, classes: Option<&str>) -> Result<Vec<Row>, Error> {
    let mut all: [Pair; 3] = Default::default();
    for _ in 0..lab.rounds(10) {
        let found = one_process(lab, size, classes)?;
        all.iter_mut().zip(found).for_each(|(all, found)| append(all, found));
    }
    let [patched, reverted, upgraded] = all;
    let class = if classes.is_some() { "-j" } else { "" };
    let row = |what: &str, (ours, baseline): Pair| {
        Row::new(format!("call.{what}{class}.{size}"), "ns", &ours, &baseline).against(TWIN)
    };
    // The budget was set for a call that is hot; with many functions the cache decides.
    let budget = if size == 1 { Budget::Added(0.5) } else { Budget::None };
    let mut rows =
        vec![row("patched", patched).budget(budget), row("reverted", reverted).budget(Budget::Factor(1.05))];
    // Puns keep their stubs.
    if classes.is_none() {
        // The design's figure: as if nothing stood between.
        let budget = if size == 1 { Budget::Added(0.0) } else { Budget::None };
        rows.insert(1, row("upgraded", upgraded).budget(budget));
    }
    Ok(rows)
}

/// Patches `size` functions of a fresh process, measures, takes it back and measures again; and once more with
/// entries that lead straight to the new functions.
fn one_process(lab: &Lab, size: usize, classes: Option<&str>) -> Result<[Pair; 3], Error> {
    let program = lab.subject(CALL_FUNCTIONS, SHORT)?;
    let subject = RefCell::new(Subject::start(&program, Some(&lab.runtime))?);
    let pid = subject.borrow().pid();
    let ask = |question: &str| subject.borrow_mut().ask(&format!("{question} {size}"));
    let pair = || interleave(lab.rounds(30), || ask("subject"), || ask("plain"));
    let old = ask("sum")?;
    let (patch, name) = (lab.patch(size)?, Lab::patch_name(size));
    let classes = classes.map(|letters| vec!["--classes", letters]).unwrap_or_default();
    let apply = |more: &[&str]| {
        suture::apply_with(lab, &patch, &[pid], &[classes.as_slice(), more].concat())?;
        check("apply", old + size as f64, ask("sum")?)
    };
    apply(&["--no-direct"])?;
    let patched = pair()?;
    suture::disable(lab, &name, &[pid])?;
    check("disable", old, ask("sum")?)?;
    let reverted = pair()?;
    apply(&[])?;
    let upgraded = pair()?;
    suture::disable(lab, &name, &[pid])?;
    check("disable", old, ask("sum")?)?;
    Ok([patched, reverted, upgraded])
}

/// Compares what the functions answer with what they should.
///
/// # Errors
/// When they differ.
pub fn check(step: &'static str, wanted: f64, found: f64) -> Result<(), Error> {
    if wanted == found { Ok(()) } else { Err(Error::Behaviour { step, wanted, found }) }
}
