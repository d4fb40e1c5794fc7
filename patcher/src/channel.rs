//! The command's end of the channel.
//!
//! See `suture_abi::channel` for the protocol. The mapping is made of a file that only grows, so an
//! access can never fault while the target lives; when it dies the pages stay ours.
//!
//! # Safety
//! One `Channel` owns its mapping. The header is shared with the worker: `request == reply` says
//! that the fields and the payload are ours, and both words are atomics.
#![allow(unsafe_code)]

use crate::error::Error;
use crate::sys::time::{Backoff, Deadline};
use crate::sys::{futex, seal};
use crate::target::watch::Watch;
use crate::target::worker::task_dir;
use crate::target::{Target, books};
use std::fs::{File, OpenOptions};
use std::io;
use std::mem::offset_of;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use suture_abi::block::RuntimeBlock;
use suture_abi::channel::{CHANNEL_MAGIC, Header, MIN_SIZE, PAYLOAD_OFFSET, error, op};
use suture_elf::Addr;

/// Longest wait for one answer.
const ANSWER: Duration = Duration::from_secs(60);

/// Size the channel starts with.
const INITIAL_SIZE: usize = 1 << 20;

/// A worker's answer that is not an error.
pub type Results = [u64; 4];

/// A worker's refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// One of `suture_abi::channel::error`.
    pub code: u32,
    /// Kernel errno that goes with it, or 0.
    pub errno: i32,
    /// Depends on the code.
    pub results: Results,
}

/// Why a request got no positive answer.
#[derive(Debug)]
pub enum RequestError {
    /// The worker answered no.
    Refused(Refusal),
    /// The worker or the whole process is gone, or did not answer in time.
    Lost(Error),
}

/// An open channel to a living worker.
#[derive(Debug)]
pub struct Channel {
    file: File,
    map: NonNull<u8>,
    len: usize,
    /// `/proc/PID/task/WORKER`, under which the worker's own descriptors are found.
    task: String,
    pid: i32,
    block: Addr,
}

// SAFETY: the mapping belongs to this value alone and may be used from any one thread.
unsafe impl Send for Channel {}

impl Channel {
    /// Opens the channel of the worker that is there or was just made; `None` when it left before.
    ///
    /// # Errors
    /// When the worker does not come up in time, or another command holds the channel.
    pub fn open(target: &Target, block: Addr, deadline: Deadline) -> Result<Option<Self>, Error> {
        let pid = target.pid();
        let (file, task) = loop {
            let Some((task, fd)) = await_fd(target, block, deadline)? else { return Ok(None) };
            let path = format!("{task}/fd/{fd}");
            if !is_channel(Path::new(&path)) {
                target.still_there()?;
                if deadline.passed() {
                    return Err(Error::NoAnswer { pid, what: "its start" });
                }
                continue;
            }
            // The worker of the command before may have left between the two.
            let Ok(file) = OpenOptions::new().read(true).write(true).open(&path) else {
                target.still_there()?;
                continue;
            };
            lock(&file, pid, deadline)?;
            if await_fd(target, block, deadline)? == Some((task.clone(), fd)) {
                break (file, task);
            }
        };
        let io =
            |e: io::Error| Error::Io { what: format!("cannot size the channel of process {pid}"), source: e };
        let len = INITIAL_SIZE.max(usize::try_from(MIN_SIZE).unwrap_or(0));
        if file.metadata().map_err(io)?.len() < len as u64 {
            file.set_len(len as u64).map_err(io)?;
        }
        let map = map_shared(&file, len).map_err(io)?;
        let mut channel = Self { file, map, len, task, pid, block };
        channel
            .request(target, op::HELLO, [0; 4], &[])
            .map_err(|e| crate::session::explain(target, "the first request", e))?;
        match channel.header_field(offset_of!(Header, magic)) {
            CHANNEL_MAGIC => Ok(Some(channel)),
            _ => Err(Error::Unreadable { pid, what: "the worker's channel is not one".into() }),
        }
    }

    /// One request and its answer.
    ///
    /// # Errors
    /// See [`RequestError`].
    pub fn request(
        &mut self,
        target: &Target,
        op: u32,
        args: [u64; 4],
        payload: &[u8],
    ) -> Result<Results, RequestError> {
        let needed = usize::try_from(PAYLOAD_OFFSET).unwrap_or(0) + payload.len();
        self.grow(needed).map_err(|source| {
            RequestError::Lost(Error::Io {
                what: format!("cannot grow the channel of process {}", self.pid),
                source,
            })
        })?;
        let header = self.map.cast::<Header>();
        // SAFETY: the worker answered the last request (or none was made), so by the protocol fields
        // and payload are ours until `request` moves; both lie inside the mapping (`grow`).
        unsafe {
            let place = self.map.add(usize::try_from(PAYLOAD_OFFSET).unwrap_or(0));
            place.copy_from_nonoverlapping(NonNull::from(payload).cast(), payload.len());
            (*header.as_ptr()).op = op;
            (*header.as_ptr()).args = args;
            (*header.as_ptr()).payload_len = payload.len() as u64;
        }
        let number = self.word(offset_of!(Header, request)).fetch_add(1, Ordering::Release).wrapping_add(1);
        // What the worker sleeps on. Moved after `request`, so that it cannot miss it.
        self.word(offset_of!(Header, bell)).fetch_add(1, Ordering::Release);
        futex::wake(self.word(offset_of!(Header, bell)));
        self.await_reply(target, number).map_err(RequestError::Lost)?;
        // SAFETY: `reply == request` was read with acquire: the answer's fields are ours again.
        let (code, errno, results) =
            unsafe { ((*header.as_ptr()).error, (*header.as_ptr()).errno, (*header.as_ptr()).results) };
        if code == error::OK {
            Ok(results)
        } else {
            Err(RequestError::Refused(Refusal { code, errno, results }))
        }
    }

    fn await_reply(&self, target: &Target, number: u32) -> Result<(), Error> {
        // A worker answers in microseconds; it may be slow on a loaded machine, but it never waits
        // for the program. So long as it lives and runs the answer will come.
        let mut watch = Watch::new(target, Deadline::after(ANSWER));
        loop {
            let reply = self.word(offset_of!(Header, reply));
            let seen = reply.load(Ordering::Acquire);
            if seen == number {
                return Ok(());
            }
            futex::wait(reply, seen, Duration::from_millis(100));
            if reply.load(Ordering::Acquire) != number && !Path::new(&self.task).exists() {
                target.still_there()?;
                check_worker(target, self.block)?;
                return Err(Error::NoAnswer { pid: self.pid, what: "a request (its worker is gone)" });
            }
            if !watch.look()? {
                return Err(Error::NoAnswer { pid: self.pid, what: "a request" });
            }
        }
    }

    /// Creates a memfd of that name in the worker and fills and seals it from here.
    ///
    /// # Errors
    /// As [`Channel::request`], or when the file cannot be written.
    pub fn code_file(&mut self, target: &Target, name: &str, content: &[u8]) -> Result<(), RequestError> {
        let mut payload = name.as_bytes().to_vec();
        payload.push(0);
        let fd = self.request(target, op::CODE_FILE, [0; 4], &payload)?[0];
        let write = || -> io::Result<()> {
            let file = OpenOptions::new().read(true).write(true).open(format!("{}/fd/{fd}", self.task))?;
            std::os::unix::fs::FileExt::write_all_at(&file, content, 0)?;
            seal::seal_contents(&file)
        };
        write().map_err(|source| {
            let what = format!("cannot fill the code file in process {}", self.pid);
            RequestError::Lost(Error::Io { what, source })
        })
    }

    /// The worker's thread id, in our pid namespace.
    #[must_use]
    pub fn worker(&self) -> Option<i32> {
        self.task.rsplit('/').next()?.parse().ok()
    }

    /// Says good-bye; true if the worker stays for a transition.
    #[must_use]
    pub fn close(mut self, target: &Target) -> bool {
        // An unheard good-bye is noticed by the lost lock.
        self.request(target, op::BYE, [0; 4], &[]).is_ok_and(|[stays, ..]| stays != 0)
    }

    fn grow(&mut self, needed: usize) -> io::Result<()> {
        if needed <= self.len {
            return Ok(());
        }
        let len = needed.next_multiple_of(1 << 20);
        self.file.set_len(len as u64)?;
        let map = map_shared(&self.file, len)?;
        unmap(self.map, self.len);
        (self.map, self.len) = (map, len);
        Ok(())
    }

    fn word(&self, offset: usize) -> &AtomicU32 {
        // SAFETY: page 0 is mapped for as long as `self` lives; the offset is that of an AtomicU32
        // field of the header, whose alignment the contract asserts.
        unsafe { self.map.add(offset).cast::<AtomicU32>().as_ref() }
    }

    fn header_field(&self, offset: usize) -> u64 {
        // SAFETY: as in `word`; written once by the worker, read volatile until it shows.
        unsafe { self.map.add(offset).cast::<u64>().as_ptr().read_volatile() }
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        unmap(self.map, self.len);
    }
}

/// Whether a descriptor is a worker's channel. What a number leads to is looked at before it is opened: after
/// a fork it may be a thread and a file of the program.
#[must_use]
pub fn is_channel(path: &Path) -> bool {
    let leads_to = std::fs::read_link(path).unwrap_or_default();
    leads_to.to_string_lossy().starts_with("/memfd:suture-channel")
}

/// Takes the lock that says "a command is here". The worker holds it for moments, another command
/// for as long as it works.
fn lock(file: &File, pid: i32, deadline: Deadline) -> Result<(), Error> {
    let mut backoff = Backoff::default();
    while seal::lock_exclusive(file).is_err() {
        if deadline.passed() {
            return Err(Error::Busy { pid });
        }
        backoff.pause();
    }
    Ok(())
}

fn map_shared(file: &File, len: usize) -> io::Result<NonNull<u8>> {
    // SAFETY: a new mapping at an address the kernel chooses; the file is at least `len` long.
    let map = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            len,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED,
            file.as_raw_fd(),
            0,
        )
    };
    if map == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    NonNull::new(map.cast()).ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))
}

fn unmap(map: NonNull<u8>, len: usize) {
    // SAFETY: `map` and `len` are those of one `map_shared`, and its owner gives it up.
    unsafe {
        libc::munmap(map.as_ptr().cast(), len);
    }
}

/// Waits for the worker's channel and gives the worker's task directory and the descriptor number;
/// `None` when there is no worker (any more).
fn await_fd(target: &Target, block: Addr, deadline: Deadline) -> Result<Option<(String, u32)>, Error> {
    let pid = target.pid();
    let mut watch = Watch::new(target, deadline);
    loop {
        let worker = books::word(target, block, offset_of!(RuntimeBlock, worker))?;
        let fd = books::word(target, block, offset_of!(RuntimeBlock, channel_fd))?;
        if worker == 0 {
            check_worker(target, block)?;
            return Ok(None);
        }
        if !matches!(worker, 0 | u32::MAX)
            && fd.cast_signed() >= 0
            && let Some(task) = task_dir(pid, worker)
        {
            return Ok(Some((task, fd)));
        }
        if !watch.pause()? {
            return Err(Error::NoAnswer { pid, what: "its start" });
        }
    }
}

/// Whether the worker left a reason for being gone.
fn check_worker(target: &Target, block: Addr) -> Result<(), Error> {
    match books::word(target, block, offset_of!(RuntimeBlock, worker_errno))? {
        0 => Ok(()),
        errno => Err(Error::NoChannel { pid: target.pid(), errno: errno.cast_signed() }),
    }
}
