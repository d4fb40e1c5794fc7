//! The command's side of the channel.

use super::eventually;
use super::target::Target;
use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU32, Ordering};
use suture_abi::channel::{Header, PAYLOAD_OFFSET};

pub struct Client {
    pub worker: u32,
    pid: i32,
    file: File,
    header: *mut Header,
}

/// Error, errno and results of an answer.
pub type Answer = (u32, i32, [u64; 4]);

impl Client {
    /// Opens the channel of the worker that is there or coming.
    pub fn connect(target: &Target) -> Self {
        let (worker, fd) = eventually("the channel", || {
            let seen = (target.worker(), target.channel_fd());
            (seen.0 != 0 && seen.0 != u32::MAX && seen.1 != u32::MAX).then_some(seen)
        });
        let path = format!("/proc/{}/task/{worker}/fd/{fd}", target.pid);
        let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
        // SAFETY: plain calls on an open descriptor; the mapping is as long as the file is made.
        let header = unsafe {
            assert_eq!(libc::flock(file.as_raw_fd(), libc::LOCK_EX), 0);
            file.set_len(1 << 20).unwrap();
            let prot = libc::PROT_READ | libc::PROT_WRITE;
            libc::mmap(std::ptr::null_mut(), 4096, prot, libc::MAP_SHARED, file.as_raw_fd(), 0)
        };
        assert_ne!(header, libc::MAP_FAILED);
        Client { worker, pid: target.pid, file, header: header.cast() }
    }

    pub fn header(&self) -> *mut Header {
        self.header
    }

    /// One request and its answer.
    pub fn request(&self, op: u32, args: [u64; 4], payload: &[u8]) -> Answer {
        self.file.write_all_at(payload, PAYLOAD_OFFSET).unwrap();
        // SAFETY: page 0 of the channel is mapped; between answers its fields are ours.
        let (request, reply): (&AtomicU32, &AtomicU32) = unsafe {
            (*self.header).op = op;
            (*self.header).args = args;
            (*self.header).payload_len = payload.len() as u64;
            (&(*self.header).request, &(*self.header).reply)
        };
        let number = request.fetch_add(1, Ordering::Release) + 1;
        // SAFETY: the page is mapped; the word is an atomic, and waiters of it are woken.
        unsafe {
            (*self.header).bell.fetch_add(1, Ordering::Release);
            libc::syscall(libc::SYS_futex, (*self.header).bell.as_ptr(), libc::FUTEX_WAKE, i32::MAX);
        }
        eventually("an answer", || (reply.load(Ordering::Acquire) == number).then_some(()));
        // SAFETY: as above.
        unsafe { ((*self.header).error, (*self.header).errno, (*self.header).results) }
    }

    /// One request that must be granted.
    #[track_caller]
    pub fn expect(&self, op: u32, args: [u64; 4], payload: &[u8]) -> [u64; 4] {
        let (error, errno, results) = self.request(op, args, payload);
        assert_eq!((error, errno), (0, 0), "op {op} was refused: {results:x?}");
        results
    }

    /// The client's descriptor of the channel.
    pub fn fd(&self) -> i32 {
        self.file.as_raw_fd()
    }

    /// How many descriptors the worker has.
    pub fn worker_fds(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/task/{}/fd", self.pid, self.worker)).unwrap().count()
    }

    /// Opens a descriptor of the worker.
    pub fn open_fd(&self, number: u64) -> File {
        let path = format!("/proc/{}/task/{}/fd/{number}", self.pid, self.worker);
        OpenOptions::new().read(true).write(true).open(path).unwrap()
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // SAFETY: mapped by `connect`.
        unsafe { libc::munmap(self.header.cast(), 4096) };
    }
}
