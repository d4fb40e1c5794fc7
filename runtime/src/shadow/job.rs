//! The end of a state's variables, as work of the host: destructors are program code.
//!
//! The worker says what the job is about ([`prepare`]) and gives it to the host, which runs
//! [`free_variables`]. If a destructor ends the job (it crashes, or its thread ends), the worker takes the
//! rest away without calling any more, and leaks it ([`give_up`]).
//!
//! # Safety
//!
//! The host calls [`free_variables`] with an id and the address of a state's destructor, whose patch stays
//! mapped until the job is done.
#![allow(unsafe_code)]

use super::MAP;
use super::api::Dtor;
use super::sweep;
use crate::events::{self, About};
use core::ptr::with_exposed_provenance_mut;
use core::sync::atomic::Ordering::Relaxed;
use core::sync::atomic::{AtomicU32, AtomicU64};
use suture_abi::event::word;
use suture_table::remove::Afterwards;

/// Variables that have an event each: the ring holds a few hundred, and other things are in it.
const MOST_EVENTS: u64 = 64;

/// What the job is about. Written by the worker before it gives the job (the release of the host's state is
/// behind it), read by the host.
#[derive(Debug)]
struct Subject {
    patch: AtomicU32,
    leak: AtomicU32,
    name: [AtomicU64; 7],
}

static SUBJECT: Subject =
    Subject { patch: AtomicU32::new(0), leak: AtomicU32::new(0), name: [const { AtomicU64::new(0) }; 7] };

/// Says for which patch the next job is, and whether the memory is to stay. Worker only.
pub fn prepare(patch: u32, name: &[u8; 56], afterwards: Afterwards) {
    SUBJECT.patch.store(patch, Relaxed);
    SUBJECT.leak.store(u32::from(afterwards == Afterwards::Leak), Relaxed);
    for (place, word) in SUBJECT.name.iter().zip(name.as_chunks::<8>().0) {
        place.store(u64::from_le_bytes(*word), Relaxed);
    }
}

/// Address of [`free_variables`].
pub fn code() -> u64 {
    free_variables as *const () as u64
}

/// Whether the id has a variable at the moment.
pub fn has_variables(id: u64) -> bool {
    let mut found = false;
    MAP.blocks.each(id, |_, header| {
        let state = suture_table::word::State(header.state.load(Relaxed));
        found |= state.is_live() && header.id.load(Relaxed) == id;
    });
    found
}

/// Frees the variables of an id with a destructor, and writes an event for each. The host's.
extern "C" fn free_variables(id: u64, dtor: u64) -> u64 {
    let afterwards = if SUBJECT.leak.load(Relaxed) == 0 { Afterwards::Reclaim } else { Afterwards::Leak };
    let mut name = [0u8; 56];
    for (place, word) in name.as_chunks_mut::<8>().0.iter_mut().zip(&SUBJECT.name) {
        *place = word.load(Relaxed).to_le_bytes();
    }
    let patch = SUBJECT.patch.load(Relaxed);
    // SAFETY: the state's destructor (module); a pointer-sized function pointer that is not null.
    let dtor: Option<Dtor> = unsafe { core::mem::transmute(dtor as usize) };
    let mut call = |obj: u64, data: u64| {
        if let Some(dtor) = dtor {
            let pointer = |addr: u64| with_exposed_provenance_mut(addr as usize);
            // SAFETY: as above, given the variable it is for.
            unsafe { dtor(pointer(obj), pointer(data)) };
        }
    };
    let log = |word, value| events::write(word, About { patch, name: &name, subject: id, value });
    let mut reported = 0u64;
    let mut each = |obj| {
        if reported < MOST_EVENTS {
            log(word::DTOR, obj);
            reported = reported.saturating_add(1);
        }
    };
    let count = sweep::free_all(&MAP, id, Some(&mut call), afterwards, &mut each).unwrap_or(0);
    if count > MOST_EVENTS {
        log(word::SHADOW_FREED, count);
    }
    count
}

/// Takes away what a job left that did not come to its end on the thread `tid`. Worker only.
pub fn give_up(id: u64, tid: u32) {
    sweep::bury_all(&MAP, id, |who| who.tid() == tid);
    // Without a destructor nothing can fail.
    let _ = sweep::free_all(&MAP, id, None, Afterwards::Leak, &mut |_| ());
}

/// Frees the variables of an id that has no destructor. Any thread.
pub fn free_plainly(id: u64, afterwards: Afterwards) {
    // Without a destructor nothing can fail.
    let _ = sweep::free_all(&MAP, id, None, afterwards, &mut |_| ());
}
