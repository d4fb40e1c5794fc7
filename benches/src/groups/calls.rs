//! What one call of a patched function costs, beside a call of an unpatched twin in the same process.

use crate::error::Error;
use crate::lab::{CALL_FUNCTIONS, Lab};
use crate::row::{Budget, Row};
use crate::stats::interleave;
use crate::suture;
use crate::target::Subject;

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
    let program = lab.subject(CALL_FUNCTIONS, 16)?;
    let rounds = lab.rounds(300);
    let mut plain = Subject::start(&program, None)?;
    let mut loaded = Subject::start(&program, Some(&lab.runtime))?;
    let (ours, baseline) = interleave(rounds, || loaded.ask("subject 1"), || plain.ask("subject 1"))?;
    let row = Row::new("call.plain", "ns", &ours, &baseline);
    rows.push(row.budget(Budget::Factor(1.05)).against("the same call without preload"));
    for size in SIZES {
        rows.extend(patched_and_reverted(lab, size, None)?);
    }
    for size in PUNNED {
        rows.extend(patched_and_reverted(lab, size, Some("J"))?);
    }
    Ok(())
}

/// Patches `size` functions of a fresh process, measures, takes it back and measures again.
fn patched_and_reverted(lab: &Lab, size: usize, classes: Option<&str>) -> Result<[Row; 2], Error> {
    let (rounds, patch) = (lab.rounds(300), lab.patch(size)?);
    let subject =
        std::cell::RefCell::new(Subject::start(&lab.subject(CALL_FUNCTIONS, 16)?, Some(&lab.runtime))?);
    let pid = subject.borrow().pid();
    let ask = |question: &str| subject.borrow_mut().ask(question);
    let pair = || interleave(rounds, || ask(&format!("subject {size}")), || ask(&format!("plain {size}")));
    let sum = || ask(&format!("sum {size}"));
    let old = sum()?;
    suture::apply(lab, &patch, &[pid], classes)?;
    check("apply", old + size as f64, sum()?)?;
    let patched = pair()?;
    suture::disable(lab, &Lab::patch_name(size), &[pid])?;
    check("disable", old, sum()?)?;
    let reverted = pair()?;
    let class = if classes.is_some() { "-j" } else { "" };
    let row = |what: &str, (ours, baseline)| {
        Row::new(format!("call.{what}{class}.{size}"), "ns", &ours, &baseline).against(TWIN)
    };
    // The budget was set for a call that is hot; with many functions the cache decides.
    let budget = if size == 1 { Budget::Added(0.5) } else { Budget::None };
    Ok([row("patched", patched).budget(budget), row("reverted", reverted).budget(Budget::Factor(1.05))])
}

/// Compares what the functions answer with what they should.
///
/// # Errors
/// When they differ.
pub fn check(step: &'static str, wanted: f64, found: f64) -> Result<(), Error> {
    if wanted == found { Ok(()) } else { Err(Error::Behaviour { step, wanted, found }) }
}
