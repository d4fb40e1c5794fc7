//! The worker's side of the channel: makes the memfd, waits for requests, answers them.
//!
//! Runs on the worker only. [`suture_abi::channel`] is the protocol.
//!
//! # Safety
//!
//! The page is shared with another process. Its plain fields are read and written through raw pointers
//! by value, only between a request and its reply, when they are the worker's.
#![allow(unsafe_code)]

use crate::block::BLOCK;
use crate::sys::fd::{self, Fd, MemfdUse};
use crate::sys::mem::{self, PROT_READ, PROT_WRITE};
use crate::sys::{Errno, thread};
use core::ptr::{addr_of, addr_of_mut};
use core::sync::atomic::{AtomicU32, Ordering};
use suture_abi::ABI_VERSION;
use suture_abi::channel::{CHANNEL_MAGIC, Header, MIN_SIZE, PAYLOAD_OFFSET, error, op};

/// How long a worker without a client lives, in nanoseconds.
const PATIENCE: u64 = 2_000_000_000;
/// How often an idle worker looks whether its client still lives, in nanoseconds.
const IDLE: u32 = 50_000_000;

/// `ETIMEDOUT`.
const ETIMEDOUT: Errno = Errno(110);

/// What the worker says to a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reply {
    /// 0 or one of [`error`].
    pub error: u32,
    /// Kernel errno, or 0.
    pub errno: u32,
    /// Meaning depends on operation and error.
    pub results: [u64; 4],
}

impl Reply {
    /// Done, with one number.
    pub fn ok(first: u64, second: u64) -> Self {
        Reply { error: error::OK, errno: 0, results: [first, second, 0, 0] }
    }

    /// Not done.
    pub fn err(error: u32) -> Self {
        Reply { error, ..Reply::default() }
    }
}

/// The open channel.
#[derive(Debug)]
pub struct Channel {
    fd: Fd,
    header: *mut Header,
}

impl Channel {
    /// Makes the memfd, publishes its number and waits for a client to size it.
    pub fn open() -> Result<Self, Errno> {
        let fd = fd::memfd_create(c"suture-channel", MemfdUse::Data)?;
        BLOCK.channel_fd().store(fd.number(), Ordering::Release);
        wait_for_size(&fd)?;
        // Without the seal a client could truncate the file under us and kill the process.
        fd::seal_shrink(&fd)?;
        let page = mem::map_shared(&fd, 0, PAYLOAD_OFFSET, PROT_READ | PROT_WRITE)?;
        let header: *mut Header = core::ptr::with_exposed_provenance_mut(page as usize);
        // SAFETY: a page of our own that is long enough; the client does not write these fields.
        unsafe {
            addr_of_mut!((*header).abi).write_volatile(ABI_VERSION);
            addr_of_mut!((*header).magic).write_volatile(CHANNEL_MAGIC);
        }
        Ok(Channel { fd, header })
    }

    fn request(&self) -> &AtomicU32 {
        // SAFETY: the page stays mapped as long as `self`; the field is an atomic.
        unsafe { &(*self.header).request }
    }

    fn reply(&self) -> &AtomicU32 {
        // SAFETY: as `request`.
        unsafe { &(*self.header).reply }
    }

    /// Answers requests until the client leaves or dies.
    pub fn serve(&mut self) {
        let give_up = thread::monotonic().saturating_add(PATIENCE);
        let mut met = false;
        loop {
            let answered = self.reply().load(Ordering::Relaxed);
            // pairs with: the client's release store of `request`
            if self.request().load(Ordering::Acquire) != answered {
                met = true;
                if self.answer(answered) {
                    return;
                }
                continue;
            }
            if thread::futex_wait(self.request(), answered, IDLE) != Err(ETIMEDOUT) {
                continue;
            }
            match fd::try_lock(&self.fd) {
                // Nobody there any more. The lock goes with the descriptor.
                Ok(true) if met => return,
                Ok(true) => {
                    let _ = fd::unlock(&self.fd);
                    if thread::monotonic() > give_up {
                        return;
                    }
                }
                Ok(false) => met = true,
                Err(_) => return,
            }
        }
    }

    /// Answers one request; true if it was the last.
    fn answer(&mut self, answered: u32) -> bool {
        let header = self.header;
        // SAFETY: between request and reply the page is the worker's.
        let op = unsafe { addr_of!((*header).op).read_volatile() };
        let reply = match op {
            op::HELLO => {
                let block = BLOCK.as_ptr().expose_provenance() as u64;
                Reply::ok(BLOCK.generation().load(Ordering::Relaxed), block)
            }
            op::SYNC => match thread::sync_core() {
                Ok(()) => Reply::ok(0, 0),
                Err(errno) => Reply { errno: errno.0, ..Reply::err(error::BARRIER) },
            },
            op::BYE => Reply::ok(0, 0),
            _ => Reply::err(error::UNKNOWN_OP),
        };
        // SAFETY: as above.
        unsafe {
            addr_of_mut!((*header).error).write_volatile(reply.error);
            addr_of_mut!((*header).errno).write_volatile(reply.errno as i32);
            addr_of_mut!((*header).results).write_volatile(reply.results);
        }
        // pairs with: the client's acquire load of `reply`
        self.reply().store(answered.wrapping_add(1), Ordering::Release);
        thread::futex_wake(self.reply());
        op == op::BYE
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        // SAFETY: the page was mapped by `open` and nothing refers to it any more.
        let _ = unsafe { mem::unmap(self.header.expose_provenance() as u64, PAYLOAD_OFFSET) };
    }
}

fn wait_for_size(fd: &Fd) -> Result<(), Errno> {
    let give_up = thread::monotonic().saturating_add(PATIENCE);
    let mut nap: u32 = 20_000;
    while fd::size(fd)? < MIN_SIZE {
        if thread::monotonic() > give_up {
            return Err(ETIMEDOUT);
        }
        thread::pause(nap);
        nap = nap.saturating_mul(2).min(1_000_000);
    }
    Ok(())
}
