//! The event ring.
//!
//! Written by the worker, by the host and by threads that ask for shadow variables; read from outside
//! ([`suture_abi::event`]), and by threads that ask for attributes ([`of_patch`]). In `.bss`: costs nothing before
//! the first event.
//!
//! # Protocol
//!
//! A record is words. Its writer stores 0 into the first, then the others, then the record's number into the first
//! ([`seal`]); a reader takes the others only if the first is that number before and after ([`sealed`]). It waits for
//! nobody: a record that is being written is not there for it. A number has one writer; a record has another one at the
//! same time only when 256 events are being written at a time.
//!
//! # Safety
//!
//! A record of the ring is the words of an [`Event`], which is integers without padding.
#![allow(unsafe_code)]

use crate::block::BLOCK;
use crate::sys::thread;
use crate::word::Word;
use core::sync::atomic::{AtomicU64, Ordering};
use suture_abi::event::{EVENT_RING_LEN, Event};

/// Words of a record.
const WORDS: usize = size_of::<Event>() / size_of::<u64>();

/// The ring.
#[repr(C, align(64))]
#[derive(Debug)]
pub struct Ring([[AtomicU64; WORDS]; EVENT_RING_LEN]);

/// The ring the block names.
pub static RING: Ring = Ring([const { [const { AtomicU64::new(0) }; WORDS] }; EVENT_RING_LEN]);

impl Ring {
    /// Address of the first record.
    pub fn as_ptr(&self) -> *const Event {
        self.0.as_ptr().cast()
    }

    /// The record of the event that was taken as the `index`th, from 0.
    fn record(&self, index: u64) -> Option<&[AtomicU64; WORDS]> {
        self.0.get(index.checked_rem(EVENT_RING_LEN as u64)? as usize)
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

fn count() -> &'static AtomicU64 {
    // SAFETY: the pointer is a static's and the field an atomic.
    unsafe { &(*BLOCK.as_ptr()).event_count }
}

/// Writes one record.
pub fn write(word: u32, about: About<'_>) {
    // Each number has one writer.
    let index = count().fetch_add(1, Ordering::Relaxed);
    let mut name = [0; 56];
    for (place, byte) in name.iter_mut().zip(about.name.iter().take_while(|b| **b != 0)) {
        *place = *byte;
    }
    let (time_ns, tid) = (thread::realtime(), thread::gettid());
    let About { patch, subject, value, .. } = about;
    let number = index.wrapping_add(1);
    let event = Event { number, time_ns, word, tid, patch, reserved: 0, subject, value, name };
    // SAFETY: integers without padding, and as many words.
    let words = unsafe { core::mem::transmute::<Event, [u64; WORDS]>(event) };
    if let Some(record) = RING.record(index) {
        seal(record, &words);
    }
}

/// Events about a patch that are whole in the ring, the newest first.
pub fn of_patch(patch: u32) -> impl Iterator<Item = Event> {
    let taken = count().load(Ordering::Acquire);
    let whole = |index: u64| {
        let mut words = [0; WORDS];
        let is_whole = sealed(RING.record(index)?, index.wrapping_add(1), &mut words);
        // SAFETY: any words are an event.
        is_whole.then(|| unsafe { core::mem::transmute::<[u64; WORDS], Event>(words) })
    };
    (0..taken).rev().take(EVENT_RING_LEN).filter_map(whole).filter(move |event| event.patch == patch)
}

/// Writes a record: its number is the first word.
pub fn seal<W: Word<u64>>(record: &[W], words: &[u64]) {
    let (Some((seal, places)), Some((number, words))) = (record.split_first(), words.split_first()) else {
        return;
    };
    seal.store(0, Ordering::Relaxed);
    // pairs with: the fence in `sealed`, and the one of readers outside
    W::fence(Ordering::Release);
    places.iter().zip(words).for_each(|(place, word)| place.store(*word, Ordering::Relaxed));
    // pairs with: the first look at it in `sealed`
    seal.store(*number, Ordering::Release);
}

/// Copies a record out if it is the one of that number, and whole.
pub fn sealed<W: Word<u64>>(record: &[W], number: u64, words: &mut [u64]) -> bool {
    let (Some((seal, places)), Some((first, words))) = (record.split_first(), words.split_first_mut()) else {
        return false;
    };
    // pairs with: the last store of `seal`
    if seal.load(Ordering::Acquire) != number {
        return false;
    }
    *first = number;
    places.iter().zip(words).for_each(|(place, word)| *word = place.load(Ordering::Relaxed));
    // pairs with: the fence in `seal`: whoever saw a word of the next record sees its seal, too
    W::fence(Ordering::Acquire);
    seal.load(Ordering::Relaxed) == number
}
