//! What patched functions add to a program's fork(): mappings and touched pages are copied with it.

use super::calls::check;
use crate::error::Error;
use crate::lab::{CALL_FUNCTIONS, Lab, SHORT};
use crate::row::{Budget, Row};
use crate::stats::interleave;
use crate::suture;
use crate::target::Subject;

const FUNCTIONS: usize = 100;

/// fork, exit and wait with 100 functions patched, by the usual classes and by J alone.
///
/// # Errors
/// When a target or the command fails, or a patch does not do what it says.
pub fn fork(lab: &Lab, rows: &mut Vec<Row>) -> Result<(), Error> {
    let program = lab.subject(CALL_FUNCTIONS, SHORT)?;
    let patch = lab.patch(FUNCTIONS)?;
    let mut plain = Subject::start(&program, Some(&lab.runtime))?;
    for (name, classes, budget) in [("fork.patched.100", "PSA", 1.2), ("fork.patched-j.100", "J", 2.0)] {
        let mut patched = Subject::start(&program, Some(&lab.runtime))?;
        let sum = format!("sum {FUNCTIONS}");
        let old = patched.ask(&sum)?;
        suture::apply(lab, &patch, &[patched.pid()], Some(classes))?;
        check("apply", old + FUNCTIONS as f64, patched.ask(&sum)?)?;
        let (ours, baseline) = interleave(lab.rounds(200), || patched.ask("fork"), || plain.ask("fork"))?;
        let row = Row::new(name, "us", &ours.scaled(1e-3), &baseline.scaled(1e-3));
        rows.push(row.budget(Budget::Factor(budget)).against("the same program unpatched"));
    }
    Ok(())
}
