//! Keeping the command off the processor of the thread that is watched.
//!
//! Left alone, the scheduler starts the command on the processor of the spinning thread about every
//! third time, and then the gap tells how two processes share it. On a machine with one processor
//! nothing can be done.

use crate::error::{Error, io};
use std::mem::{size_of, zeroed};

/// While this lives the calling thread, and what it starts, avoids one processor.
#[derive(Debug)]
pub struct Avoiding {
    before: libc::cpu_set_t,
}

impl Avoiding {
    /// Avoids the processor on which the main thread of `pid` runs.
    ///
    /// # Errors
    /// When the processor of the process, or the own ones, cannot be told.
    pub fn processor_of(pid: i32) -> Result<Self, Error> {
        let path = format!("/proc/{pid}/stat");
        let stat = std::fs::read_to_string(&path).map_err(io(format!("read {path}")))?;
        // Field 39; the name, which may contain anything, is the second and ends at the last ')'.
        let processor = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(36));
        let processor: usize = processor
            .and_then(|p| p.parse().ok())
            .ok_or_else(|| Error::Answer { question: path, answer: stat.clone() })?;
        // SAFETY: `cpu_set_t` is an array of integers, for which zero is a value.
        let mut before: libc::cpu_set_t = unsafe { zeroed() };
        // SAFETY: the size is that of the set the kernel writes to, which lives on this stack.
        let told = unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut before) };
        if told != 0 {
            return Err(io("read the own processors")(std::io::Error::last_os_error()));
        }
        let mut others = before;
        if processor < 8 * size_of::<libc::cpu_set_t>() {
            // SAFETY: the number is below the number of bits of the set.
            unsafe { libc::CPU_CLR(processor, &mut others) };
        }
        // SAFETY: counts bits of a set on this stack.
        if unsafe { libc::CPU_COUNT(&others) } > 0 {
            run_on(&others)?;
        }
        Ok(Self { before })
    }
}

impl Drop for Avoiding {
    fn drop(&mut self) {
        // The set was in force before, so it is refused only when processors were taken away
        // meanwhile; then the measurements go on where they are.
        let _ = run_on(&self.before);
    }
}

fn run_on(processors: &libc::cpu_set_t) -> Result<(), Error> {
    // SAFETY: the size is that of the set the kernel reads, which the reference keeps alive.
    if unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), processors) } == 0 {
        return Ok(());
    }
    Err(io("choose processors")(std::io::Error::last_os_error()))
}
