//! What the bare preload costs: start-up, memory, and the two calls that a thread too many or an
//! interposed allocator would make slower.

use crate::error::{Error, io};
use crate::lab::{CALL_FUNCTIONS, Lab, SHORT};
use crate::row::{Budget, Row};
use crate::stats::{Pair, append, interleave};
use crate::suture;
use crate::target::{self, Subject};
use std::path::Path;
use std::time::Instant;

const PLAIN: &str = "the same program without preload";

/// Start of a trivial program, from spawn to wait.
///
/// # Errors
/// When the program cannot be built or run.
pub fn startup(lab: &Lab, rows: &mut Vec<Row>) -> Result<(), Error> {
    let program = lab.nothing()?;
    let start = |preload: Option<&Path>| {
        let start = Instant::now();
        let status = target::command(&program, preload).status().map_err(io("run a trivial program"))?;
        let took = start.elapsed().as_secs_f64() * 1e6;
        if status.success() {
            return Ok(took);
        }
        Err(Error::Answer { question: "run a trivial program".into(), answer: status.to_string() })
    };
    let (with, without) = interleave(lab.rounds(1500), || start(Some(&lab.runtime)), || start(None))?;
    rows.push(Row::new("startup", "us", &with, &without).budget(Budget::Added(80.0)).against(PLAIN));
    Ok(())
}

/// Private dirty memory of a waiting process, idle and after its first patch.
///
/// # Errors
/// When a target or the command fails.
pub fn memory(lab: &Lab, rows: &mut Vec<Row>) -> Result<(), Error> {
    let program = lab.subject(CALL_FUNCTIONS, SHORT)?;
    let patch = lab.patch(1)?;
    let start = |preload: Option<&Path>| Subject::start(&program, preload);
    let plain = || private_dirty(start(None)?.pid());
    let idle = || private_dirty(start(Some(&lab.runtime))?.pid());
    let (ours, baseline) = interleave(lab.rounds(20), idle, plain)?;
    rows.push(Row::new("memory.idle", "KiB", &ours, &baseline).budget(Budget::Added(64.0)).against(PLAIN));
    let applied = || {
        let subject = start(Some(&lab.runtime))?;
        suture::apply(lab, &patch, &[subject.pid()], None)?;
        private_dirty(subject.pid())
    };
    let (ours, baseline) = interleave(lab.rounds(20), applied, plain)?;
    rows.push(Row::new("memory.applied", "KiB", &ours, &baseline).against(PLAIN));
    Ok(())
}

fn private_dirty(pid: i32) -> Result<f64, Error> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = std::fs::read_to_string(&path).map_err(io(format!("read {path}")))?;
    let line = text.lines().find_map(|l| l.strip_prefix("Private_Dirty:"));
    let number = line.and_then(|l| l.trim().strip_suffix("kB")?.trim().parse().ok());
    number.ok_or_else(|| Error::Answer { question: path, answer: text.clone() })
}

/// malloc and free of 64 bytes.
///
/// # Errors
/// When a target or the command fails.
pub fn malloc(lab: &Lab, rows: &mut Vec<Row>) -> Result<(), Error> {
    undisturbed(lab, "malloc", rows)
}

/// fputc to a buffered stream.
///
/// # Errors
/// When a target or the command fails.
pub fn fputc(lab: &Lab, rows: &mut Vec<Row>) -> Result<(), Error> {
    undisturbed(lab, "fputc", rows)
}

/// A call of libc that nobody patches, under the bare preload and after a patch was applied.
///
/// In a given process both run a few percent faster or slower for good, as address randomisation
/// happened to lay out the caches; so many processes are asked, each for a short while.
fn undisturbed(lab: &Lab, operation: &str, rows: &mut Vec<Row>) -> Result<(), Error> {
    let program = lab.subject(CALL_FUNCTIONS, SHORT)?;
    let patch = lab.patch(1)?;
    for (name, patched) in [("preload", false), ("applied", true)] {
        let mut all = Pair::default();
        for _ in 0..lab.rounds(40) {
            let mut plain = Subject::start(&program, None)?;
            let mut loaded = Subject::start(&program, Some(&lab.runtime))?;
            if patched {
                suture::apply(lab, &patch, &[loaded.pid()], None)?;
            }
            append(&mut all, interleave(10, || loaded.ask(operation), || plain.ask(operation))?);
        }
        // "None" cannot be told from noise; a twentieth can.
        let row = Row::new(format!("{operation}.{name}"), "ns", &all.0, &all.1);
        rows.push(row.budget(Budget::Factor(1.05)).against(PLAIN));
    }
    Ok(())
}
