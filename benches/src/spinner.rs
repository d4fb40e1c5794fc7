//! The target that notices when it does not run.

use crate::error::{Error, io};
use crate::target;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::fd::FromRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

/// Offsets in the shared page (`struct page` in `targets/spinner.c`).
const EPOCH: u64 = 0;
const SEEN: u64 = 8;
const LONGEST: u64 = 16;
const VALUE: u64 = 24;
const TICKS_PER_MS: u64 = 32;

/// One spinning thread and any number of sleeping ones, killed when dropped.
#[derive(Debug)]
pub struct Spinner {
    child: Child,
    page: File,
    epoch: u64,
    ticks_per_us: f64,
}

impl Spinner {
    /// Starts the target, with the runtime preloaded or without, and waits until it spins.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(program: &Path, runtime: Option<&Path>, threads: usize) -> Result<Self, Error> {
        Self::with(program, runtime, &[&threads.to_string()])
    }

    /// The same, all of whose threads spin.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_busy(program: &Path, runtime: &Path, threads: usize) -> Result<Self, Error> {
        Self::with(program, Some(runtime), &[&threads.to_string(), "busy"])
    }

    fn with(program: &Path, runtime: Option<&Path>, args: &[&str]) -> Result<Self, Error> {
        let page = shared_page()?;
        let stdin = page.try_clone().map_err(io("share a page with a target"))?;
        let mut command = target::command(program, runtime);
        command.args(args).stdin(Stdio::from(stdin)).stdout(Stdio::piped());
        let mut child = command.spawn().map_err(io("start the spinning target"))?;
        let stdout = child.stdout.take();
        let mut spinner = Self { child, page, epoch: 0, ticks_per_us: 0.0 };
        let mut line = String::new();
        if let Some(stdout) = stdout {
            BufReader::new(stdout).read_line(&mut line).map_err(io("read a target's answer"))?;
        }
        if line.trim_end() != "ready" {
            return Err(Error::Answer {
                question: format!("start spinner {}", args.join(" ")),
                answer: line,
            });
        }
        spinner.ticks_per_us = spinner.word(TICKS_PER_MS)? as f64 / 1000.0;
        Ok(spinner)
    }

    /// Process id.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// What the function that is to be patched answers.
    ///
    /// # Errors
    /// When the page cannot be read.
    pub fn value(&self) -> Result<u64, Error> {
        self.word(VALUE)
    }

    /// Longest time in microseconds for which the spinning thread did not run while `work` was done.
    ///
    /// # Errors
    /// When the target does not spin, or `work` fails.
    pub fn longest_gap<T>(&mut self, work: impl FnOnce() -> Result<T, Error>) -> Result<(f64, T), Error> {
        self.next_epoch()?;
        let done = work()?;
        // The thread itself ends the measurement, so a gap it is in right now counts too.
        self.next_epoch()?;
        Ok((self.word(LONGEST)? as f64 / self.ticks_per_us, done))
    }

    fn next_epoch(&mut self) -> Result<(), Error> {
        self.epoch += 1;
        self.page.write_all_at(&self.epoch.to_le_bytes(), EPOCH).map_err(io("write the shared page"))?;
        let start = Instant::now();
        while self.word(SEEN)? != self.epoch {
            if start.elapsed() > Duration::from_secs(10) {
                return Err(Error::Deadline("begin a measurement"));
            }
            std::thread::yield_now();
        }
        Ok(())
    }

    fn word(&self, offset: u64) -> Result<u64, Error> {
        let mut bytes = [0; 8];
        self.page.read_exact_at(&mut bytes, offset).map_err(io("read the shared page"))?;
        Ok(u64::from_le_bytes(bytes))
    }
}

impl Drop for Spinner {
    fn drop(&mut self) {
        target::end(&mut self.child);
    }
}

/// A page of memory behind a descriptor: no file system writes it back, which would stop the thread
/// that dirties it.
fn shared_page() -> Result<File, Error> {
    // SAFETY: `memfd_create` reads a NUL-terminated name, which the literal is, and no other memory.
    let fd = unsafe { libc::memfd_create(c"gap".as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(io("make a shared page")(std::io::Error::last_os_error()));
    }
    // SAFETY: the kernel just handed out this descriptor, so it is open and nobody else owns it.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(4096).map_err(io("make a shared page"))?;
    Ok(file)
}
