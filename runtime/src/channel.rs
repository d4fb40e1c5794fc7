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
use crate::commit::Engine;
use crate::host;
use crate::reply::Reply;
use crate::sys::fd::{self, Fd, MemfdUse};
use crate::sys::mem::{self, PROT_READ, PROT_WRITE};
use crate::sys::{EINVAL, Errno, thread};
use core::ptr::{addr_of, addr_of_mut};
use core::sync::atomic::{AtomicU32, Ordering};
use suture_abi::ABI_VERSION;
use suture_abi::channel::{CHANNEL_MAGIC, Header, MIN_SIZE, PAYLOAD_OFFSET, error, op};

/// How long a worker without a client lives, in nanoseconds.
const PATIENCE: u64 = 2_000_000_000;
/// How often an idle worker looks whether its client still lives, in nanoseconds.
const IDLE: u64 = 50_000_000;

/// `ETIMEDOUT`.
const ETIMEDOUT: Errno = Errno(110);

/// The open channel.
#[derive(Debug)]
pub struct Channel {
    fd: Fd,
    header: *mut Header,
    payload: u64,
    payload_len: u64,
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
        let channel = Channel { fd, header, payload: 0, payload_len: 0 };
        host::set_bell(channel.bell());
        Ok(channel)
    }

    fn request(&self) -> &AtomicU32 {
        // SAFETY: the page stays mapped as long as `self`; the field is an atomic.
        unsafe { &(*self.header).request }
    }

    fn reply(&self) -> &AtomicU32 {
        // SAFETY: as `request`.
        unsafe { &(*self.header).reply }
    }

    fn bell(&self) -> &AtomicU32 {
        // SAFETY: as `request`.
        unsafe { &(*self.header).bell }
    }

    /// Answers requests until nobody is there any more and nothing is left to do.
    pub fn serve(&mut self, engine: &mut Engine) {
        let give_up = thread::monotonic().saturating_add(PATIENCE);
        let (mut met, mut there) = (false, true);
        loop {
            // Before the look at `request`: what comes after that moves the bell.
            let bell = self.bell().load(Ordering::Acquire);
            let answered = self.reply().load(Ordering::Relaxed);
            // pairs with: the client's release store of `request`
            if self.request().load(Ordering::Acquire) != answered {
                (met, there) = (true, true);
                if self.answer(answered, engine) {
                    there = false;
                    if !engine.is_busy() {
                        return;
                    }
                }
                continue;
            }
            let due = engine.tick();
            if !there && !engine.is_busy() {
                // The transition that kept the worker is over. Whoever has the lock by now is about to make
                // his first request.
                match fd::try_lock(&self.fd) {
                    Ok(false) => (met, there) = (true, true),
                    _ => return,
                }
            }
            let wait = if there { due.min(IDLE) } else { due };
            if thread::futex_wait(self.bell(), bell, wait as u32) != Err(ETIMEDOUT) || !there {
                continue;
            }
            match fd::try_lock(&self.fd) {
                // Nobody there any more.
                Ok(true) if met => {
                    there = false;
                    engine.client_gone();
                    if !engine.is_busy() {
                        // The lock goes with the descriptor.
                        return;
                    }
                    let _ = fd::unlock(&self.fd);
                }
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
    fn answer(&mut self, answered: u32, engine: &mut Engine) -> bool {
        let header = self.header;
        // SAFETY: between request and reply the page is the worker's.
        let (op, args, len) = unsafe {
            (
                addr_of!((*header).op).read_volatile(),
                addr_of!((*header).args).read_volatile(),
                addr_of!((*header).payload_len).read_volatile(),
            )
        };
        let reply = match self.payload(len) {
            Ok(payload) => engine.answer(op, args, payload),
            Err(errno) => {
                let field = core::mem::offset_of!(Header, payload_len) as u64;
                Reply::refused(error::MALFORMED).with(field, len, 0).because(errno)
            }
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

    /// The request's payload, mapped on demand.
    fn payload<'p>(&mut self, len: u64) -> Result<&'p [u8], Errno> {
        if len == 0 {
            return Ok(&[]);
        }
        let end = len.checked_add(PAYLOAD_OFFSET).ok_or(EINVAL)?;
        if end > fd::size(&self.fd)? {
            return Err(EINVAL);
        }
        if self.payload_len < len {
            let pages = len.checked_next_multiple_of(mem::PAGE).ok_or(EINVAL)?;
            let mapped = mem::map_shared(&self.fd, PAYLOAD_OFFSET, pages, PROT_READ)?;
            self.unmap_payload();
            (self.payload, self.payload_len) = (mapped, pages);
        }
        let start = core::ptr::with_exposed_provenance(self.payload as usize);
        // SAFETY: `len` bytes are mapped there and backed by the file, which cannot shrink. The slice is
        // used until the reply only (by `answer`), so that long the client does not write, and should
        // it do so all the same, values are copied out once before they are checked.
        Ok(unsafe { core::slice::from_raw_parts(start, len as usize) })
    }

    fn unmap_payload(&mut self) {
        if self.payload_len != 0 {
            // SAFETY: mapped by `payload`; no slice of it outlives a request.
            let _ = unsafe { mem::unmap(self.payload, self.payload_len) };
            self.payload_len = 0;
        }
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        self.unmap_payload();
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
