//! The event ring.
//!
//! Written by the worker and by the host, read from outside ([`suture_abi::event`]). In `.bss`: costs nothing
//! before the first event.
//!
//! # Safety
//!
//! Every record has one writer at a time. Readers are other processes, which check `number` before and after
//! they copy.
#![allow(unsafe_code)]

use crate::block::BLOCK;
use crate::sys::thread;
use core::cell::UnsafeCell;
use core::ptr::addr_of_mut;
use core::sync::atomic::{AtomicU64, Ordering, fence};
use suture_abi::event::{EVENT_RING_LEN, Event};

/// The ring.
#[repr(C, align(64))]
#[derive(Debug)]
pub struct Ring(UnsafeCell<[Event; EVENT_RING_LEN]>);

// SAFETY: a record is written by whoever took its number, nobody inside reads.
unsafe impl Sync for Ring {}

const EMPTY: Event = Event {
    number: 0,
    time_ns: 0,
    word: 0,
    tid: 0,
    patch: 0,
    reserved: 0,
    subject: 0,
    value: 0,
    name: [0; 56],
};

/// The ring the block names.
pub static RING: Ring = Ring(UnsafeCell::new([EMPTY; EVENT_RING_LEN]));

impl Ring {
    /// Address of the first record.
    pub fn as_ptr(&self) -> *mut Event {
        self.0.get().cast()
    }
}

/// What an event is about.
#[derive(Clone, Copy, Debug, Default)]
pub struct About<'a> {
    /// Number of the patch, or 0.
    pub patch: u32,
    /// Its name.
    pub name: &'a [u8],
    /// Site, state or object, or 0.
    pub subject: u64,
    /// Address, errno or another number.
    pub value: u64,
}

/// Writes one record. The worker, or the host at its job.
pub fn write(word: u32, about: About<'_>) {
    let block = BLOCK.as_ptr();
    // SAFETY: the pointer is a static's and the field an atomic.
    let count: &AtomicU64 = unsafe { &(*block).event_count };
    // Each number has one writer.
    let number = count.fetch_add(1, Ordering::Relaxed);
    let position = number.checked_rem(EVENT_RING_LEN as u64).unwrap_or(0) as usize;
    let mut name = [0; 56];
    for (place, byte) in name.iter_mut().zip(about.name.iter().take_while(|b| **b != 0)) {
        *place = *byte;
    }
    let record = RING.as_ptr().wrapping_add(position);
    let number = number.wrapping_add(1);
    let (time_ns, tid) = (thread::realtime(), thread::gettid());
    let About { patch, subject, value, .. } = about;
    let event = Event { number: 0, time_ns, word, tid, patch, reserved: 0, subject, value, name };
    // SAFETY: `position` is below the length of the ring. Another writer has the same record only
    // when 256 events are being written at a time.
    unsafe {
        let seal = addr_of_mut!((*record).number);
        AtomicU64::from_ptr(seal).store(0, Ordering::Relaxed);
        // pairs with: the reader's first look at `number`
        fence(Ordering::Release);
        record.write_volatile(event);
        AtomicU64::from_ptr(seal).store(number, Ordering::Release);
    }
}
