//! What installing 1, 100 and 10 000 functions costs, per function.
//!
//! Ours is the whole command: process start, reading both files, planning, linking, shipping,
//! storing, switching. `inside` is the part of it from the message with the plan until the process has it and
//! the transition has begun: mapping, comparing, storing, the books. The baseline is what hook libraries do for the store alone, inside the
//! process and without any of the rest: make the page writable, write a jump, make it executable
//! again, for each function, while another thread runs.

use super::calls::check;
use crate::error::{Error, io};
use crate::lab::{INSTALL_FUNCTIONS, Lab};
use crate::row::{Budget, Row};
use crate::stats::{Samples, interleave};
use crate::suture;
use crate::target::Subject;
use region::Protection;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// Bytes from one function to the next, in targets and baseline: about the average of a library.
const SPACING: usize = 256;
const HOOKS: &str = "mprotect, write, mprotect per function, in-process";

/// All rows about installing.
///
/// # Errors
/// When a target or the command fails, or a patch does not do what it says.
pub fn install(lab: &Lab, rows: &mut Vec<Row>) -> Result<(), Error> {
    for (count, rounds) in [(1, 60), (100, 60), (INSTALL_FUNCTIONS, 15)] {
        let (mut warm, mut inside) = (Samples::default(), Samples::default());
        let (cold, hooks) = interleave(
            lab.rounds(rounds),
            || {
                let (first, again) = ours(lab, count)?;
                warm.push(again.wall);
                inside.push(again.inside);
                Ok(first.wall)
            },
            || hook_library(count),
        )?;
        let row = |name: &str, samples: &Samples| {
            Row::new(format!("install.{name}.{count}"), "us/fn", samples, &hooks).against(HOOKS)
        };
        let budget = if count == INSTALL_FUNCTIONS { Budget::AtMost(5.0) } else { Budget::None };
        rows.extend([row("cold", &cold), row("warm", &warm), row("inside", &inside).budget(budget)]);
    }
    Ok(())
}

/// Microseconds per function.
#[derive(Clone, Copy, Debug)]
struct Took {
    /// The whole command.
    wall: f64,
    /// From the message with the plan to the begin of the transition.
    inside: f64,
}

/// Applies a patch to a fresh process (every text page is touched for the first time), disables it
/// and applies it again.
fn ours(lab: &Lab, count: usize) -> Result<(Took, Took), Error> {
    let patch = lab.patch(count)?;
    let mut subject = Subject::start(&lab.subject(INSTALL_FUNCTIONS, SPACING)?, Some(&lab.runtime))?;
    let (pid, sum) = (subject.pid(), format!("sum {count}"));
    let old = subject.ask(&sum)?;
    let mut once = || {
        let run = suture::apply(lab, &patch, &[pid], Some("PSA"))?;
        check("apply", old + count as f64, subject.ask(&sum)?)?;
        let per_function = |us: f64| us / count as f64;
        let inside = per_function(run.detail("commit_us")?);
        Ok::<Took, Error>(Took { wall: per_function(run.wall.as_secs_f64() * 1e6), inside })
    };
    let first = once()?;
    suture::disable(lab, &Lab::patch_name(count), &[pid])?;
    Ok((first, once()?))
}

/// Microseconds per function in the manner of hook libraries, on warm pages.
fn hook_library(count: usize) -> Result<f64, Error> {
    let mut text = region::alloc(count * SPACING, Protection::READ_WRITE).map_err(protection)?;
    let base = text.as_mut_ptr::<u8>();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                std::hint::spin_loop();
            }
        });
        let took = (|| {
            hook_all(base, count)?;
            let start = Instant::now();
            hook_all(base, count)?;
            Ok(start.elapsed().as_secs_f64() * 1e6 / count as f64)
        })();
        stop.store(true, Ordering::Relaxed);
        took
    })
}

fn hook_all(base: *mut u8, count: usize) -> Result<(), Error> {
    for index in 0..count {
        let entry = base.wrapping_add(index * SPACING);
        // SAFETY: the page belongs to the allocation of the caller, in which nothing is executed and
        // no reference points.
        unsafe { region::protect(entry, 5, Protection::READ_WRITE_EXECUTE) }.map_err(protection)?;
        // SAFETY: the five bytes lie inside the allocation (`SPACING` bytes per index), which was
        // made writable above, and only this thread uses it.
        unsafe { entry.cast::<[u8; 5]>().write_volatile([0xe9, 0, 0, 0, 0]) };
        // SAFETY: as above.
        unsafe { region::protect(entry, 5, Protection::READ_EXECUTE) }.map_err(protection)?;
    }
    Ok(())
}

fn protection(error: region::Error) -> Error {
    io("protect pages")(std::io::Error::other(error))
}
