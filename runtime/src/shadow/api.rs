//! The functions patches call. [`suture_abi::author`] declares them for C and Rust.
//!
//! They run on any thread and in handlers, as `suture.h` says of each; constructors and destructors run on
//! the caller's stack and must return.
//!
//! # Safety
//!
//! Exported under names no program has. Function pointers come from the patch and are called as its header
//! declares them. Objects are numbers here, a pointer's register holds the same: nothing is dereferenced on
//! a caller's word.
#![allow(unsafe_code)]

use super::MAP;
use super::blocks;
use super::sweep;
use crate::events::{self, About};
use core::ffi::{c_int, c_void};
use core::ptr::{null_mut, with_exposed_provenance_mut};
use core::sync::atomic::Ordering::Relaxed;
use suture_abi::event::word;
use suture_table::get::{Glance, get, glance};
use suture_table::guard::{self, Place};
use suture_table::hash::Key;
use suture_table::insert::{self, Inserted, insert};
use suture_table::remove::{self, Afterwards, remove};

/// A constructor: object, zeroed bytes, the caller's argument; not 0 is its error.
pub type Ctor = unsafe extern "C" fn(obj: *mut c_void, data: *mut c_void, arg: *mut c_void) -> c_int;
/// A destructor: object, bytes.
pub type Dtor = unsafe extern "C" fn(obj: *mut c_void, data: *mut c_void);

const ENOMEM: u32 = 12;
const EEXIST: u32 = 17;
const EDEADLK: u32 = 35;

fn pointer(addr: u64) -> *mut c_void {
    with_exposed_provenance_mut(addr as usize)
}

/// The variable of an object, or null.
#[unsafe(no_mangle)]
pub extern "C" fn suture_shadow_get(obj: u64, id: u64) -> *mut c_void {
    pointer(get(&MAP, Key { obj, id }).unwrap_or(0))
}

/// Makes a variable; null if there is one already, or none can be made.
#[unsafe(no_mangle)]
pub extern "C" fn suture_shadow_alloc(
    obj: u64,
    id: u64,
    size: usize,
    ctor: Option<Ctor>,
    arg: *mut c_void,
) -> *mut c_void {
    match make(obj, id, size, ctor, arg) {
        Inserted::New(data) => pointer(data),
        other => refuse(id, other),
    }
}

/// The variable of an object, made if there is none; null if none can be made.
#[unsafe(no_mangle)]
pub extern "C" fn suture_shadow_get_or_alloc(
    obj: u64,
    id: u64,
    size: usize,
    ctor: Option<Ctor>,
    arg: *mut c_void,
) -> *mut c_void {
    match glance(&MAP, Key { obj, id }) {
        Glance::Found(found, _) => pointer(found.data),
        _ => get_or_make(obj, id, size, ctor, arg),
    }
}

/// [`suture_shadow_get_or_alloc`] of what was not found at once. By itself, so that nothing is prepared for it when it
/// is; what it looks at again is in the processor's cache by now.
#[inline(never)]
fn get_or_make(obj: u64, id: u64, size: usize, ctor: Option<Ctor>, arg: *mut c_void) -> *mut c_void {
    match make(obj, id, size, ctor, arg) {
        Inserted::New(data) | Inserted::Exists(data) => pointer(data),
        other => refuse(id, other),
    }
}

/// Frees the variable of an object, if it has one.
#[unsafe(no_mangle)]
pub extern "C" fn suture_shadow_free(obj: u64, id: u64, dtor: Option<Dtor>) {
    let mut call = |data| {
        if let Some(dtor) = dtor {
            // SAFETY: a function of the patch with this signature, given the variable it is for.
            unsafe { dtor(pointer(obj), pointer(data)) }
        }
    };
    let called = dtor.map(|_| &mut call as remove::Dtor<'_>);
    if remove(&MAP, Key { obj, id }, called, Afterwards::Reclaim).is_err() {
        refuse(id, Inserted::NoMemory);
    }
}

/// Frees the variables of all objects with that id.
#[unsafe(no_mangle)]
pub extern "C" fn suture_shadow_free_all(id: u64, dtor: Option<Dtor>) {
    let mut each = |_| ();
    let freed = match dtor {
        Some(dtor) => {
            // SAFETY: as in `suture_shadow_free`.
            let mut call = |obj, data| unsafe { dtor(pointer(obj), pointer(data)) };
            sweep::free_all(&MAP, id, Some(&mut call), Afterwards::Reclaim, &mut each)
        }
        None => sweep::free_all(&MAP, id, None, Afterwards::Reclaim, &mut each),
    };
    if freed.is_err() {
        refuse(id, Inserted::NoMemory);
    }
}

/// Begins a guard: what is found from now on stays readable until [`suture_shadow_leave`].
#[unsafe(no_mangle)]
pub extern "C" fn suture_shadow_enter() -> u32 {
    MAP.guards.enter(blocks::stripe() % guard::STRIPES).0
}

/// Ends the guard that [`suture_shadow_enter`] gave. On any thread.
#[unsafe(no_mangle)]
pub extern "C" fn suture_shadow_leave(guard: u32) {
    MAP.leave(Place(guard));
}

#[inline]
fn make(obj: u64, id: u64, size: usize, ctor: Option<Ctor>, arg: *mut c_void) -> Inserted {
    let mut call = |data| match ctor {
        // SAFETY: a function of the patch with this signature, given the zeroed bytes it is to fill.
        Some(ctor) => unsafe { ctor(pointer(obj), pointer(data), arg) },
        None => 0,
    };
    // One place for both: what is inlined here is not little.
    let called = ctor.map(|_| &mut call as insert::Ctor<'_>);
    insert(&MAP, Key { obj, id }, size, called)
}

/// Reports why there is no variable: once per id and reason, until the id's variables are freed.
#[cold]
fn refuse(id: u64, why: Inserted) -> *mut c_void {
    let (errno, bit) = match why {
        Inserted::Exists(_) | Inserted::New(_) => (EEXIST, 1),
        Inserted::InProgress => (EDEADLK, 2),
        Inserted::NoMemory => (ENOMEM, 4),
        Inserted::Failed(errno) => (errno.unsigned_abs(), 8),
    };
    let reported = MAP.blocks.known(id).map_or(0, |known| known.reported.fetch_or(bit, Relaxed));
    if reported & bit == 0 {
        let about = About { subject: id, value: u64::from(errno), ..About::default() };
        events::write(word::SHADOW_REFUSED, about);
    }
    null_mut()
}
