//! The unwind answers: `_dl_find_object` and `dl_iterate_phdr` for the patch images.
//!
//! Both functions of the C library are redirected to these handlers with the runtime's own engine, so
//! that exceptions, cancellation and backtraces find the unwind tables of images no loader knows. The
//! handlers run on the program's threads, in the middle of an exception or in a signal handler: no
//! allocation, no lock, no thread-local storage.
//!
//! # Safety
//!
//! The handlers are called with the arguments of the functions they stand for and keep their contract.
#![allow(unsafe_code)]

pub mod ranges;

use core::ffi::{c_char, c_int, c_void};
use core::sync::atomic::{AtomicU64, Ordering};
use ranges::Range;
use suture_abi::batch::{HOOK_DL_FIND_OBJECT, HOOK_DL_ITERATE_PHDR};

/// `struct dl_find_object` of glibc on x86-64.
#[repr(C)]
#[derive(Debug)]
pub struct DlFindObject {
    flags: u64,
    map_start: u64,
    map_end: u64,
    link_map: u64,
    eh_frame: u64,
    reserved: [u64; 7],
}

/// `struct dl_phdr_info`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct DlPhdrInfo {
    addr: u64,
    name: *const c_char,
    phdr: u64,
    phnum: u16,
    adds: u64,
    subs: u64,
    tls_modid: usize,
    tls_data: *mut c_void,
}

const _: () = {
    assert!(size_of::<DlFindObject>() == 96);
    assert!(size_of::<DlPhdrInfo>() == 64);
};

type FindObject = extern "C" fn(u64, *mut DlFindObject) -> c_int;
type PhdrCallback = extern "C" fn(*mut DlPhdrInfo, usize, *mut c_void) -> c_int;
type IteratePhdr = extern "C" fn(PhdrCallback, *mut c_void) -> c_int;

/// Copies of the redirected functions. Written by the worker before the first slot leads to a handler.
static ORIGINAL_FIND: AtomicU64 = AtomicU64::new(0);
/// As [`ORIGINAL_FIND`].
static ORIGINAL_ITERATE: AtomicU64 = AtomicU64::new(0);

/// Address of the handler for a hook, 0 for none.
pub fn handler(hook: u32) -> u64 {
    match hook {
        HOOK_DL_FIND_OBJECT => find_object as FindObject as usize as u64,
        HOOK_DL_ITERATE_PHDR => iterate_phdr as IteratePhdr as usize as u64,
        _ => 0,
    }
}

/// Says where the old function of a hook stays callable. To be done before a slot leads to it.
pub fn set_original(hook: u32, copy: u64) {
    match hook {
        // pairs with: the handlers' loads (the slot's release store comes later still)
        HOOK_DL_FIND_OBJECT => ORIGINAL_FIND.store(copy, Ordering::Release),
        HOOK_DL_ITERATE_PHDR => ORIGINAL_ITERATE.store(copy, Ordering::Release),
        _ => {}
    }
}

/// `_dl_find_object`: our images, else what the loader knows.
extern "C" fn find_object(pc: u64, result: *mut DlFindObject) -> c_int {
    if let Some(range) = ranges::current().and_then(|table| table.find(pc)) {
        let Range { start, end, link_map, eh_frame_hdr, .. } = *range;
        // As glibc: an object without the table is found and has no unwind data.
        let found = DlFindObject {
            flags: 0,
            map_start: start,
            map_end: end,
            link_map,
            eh_frame: eh_frame_hdr,
            reserved: [0; 7],
        };
        // SAFETY: the caller passes a `struct dl_find_object` to be filled. The reserved words are not
        // ours to write: only the five fields are.
        unsafe {
            (&raw mut (*result).flags).write(found.flags);
            (&raw mut (*result).map_start).write(found.map_start);
            (&raw mut (*result).map_end).write(found.map_end);
            (&raw mut (*result).link_map).write(found.link_map);
            (&raw mut (*result).eh_frame).write(found.eh_frame);
        }
        return 0;
    }
    let original = ORIGINAL_FIND.load(Ordering::Acquire);
    if original == 0 {
        return -1;
    }
    // SAFETY: the copy of the redirected function, which has this type.
    let original: FindObject = unsafe { core::mem::transmute(original as usize) };
    original(pc, result)
}

/// One run of `dl_iterate_phdr` on behalf of a caller.
struct Walk {
    callback: PhdrCallback,
    data: *mut c_void,
    /// Images ever added: makes caches that compare the loader's count see a change.
    added: u64,
    /// Images ever taken out.
    removed: u64,
    /// The loader's counts, as last seen.
    adds: u64,
    subs: u64,
}

/// `dl_iterate_phdr`: what the loader knows, then our images.
extern "C" fn iterate_phdr(callback: PhdrCallback, data: *mut c_void) -> c_int {
    let original = ORIGINAL_ITERATE.load(Ordering::Acquire);
    if original == 0 {
        return 0;
    }
    // SAFETY: the copy of the redirected function, which has this type.
    let original: IteratePhdr = unsafe { core::mem::transmute(original as usize) };
    let Some(table) = ranges::current() else { return original(callback, data) };
    let mut walk = Walk { callback, data, added: table.added, removed: table.removed, adds: 0, subs: 0 };
    let stopped = original(pass_on, (&raw mut walk).cast());
    if stopped != 0 {
        return stopped;
    }
    for range in table.all() {
        let mut info = DlPhdrInfo {
            addr: range.base,
            name: range.name.as_ptr().cast(),
            phdr: range.phdr,
            phnum: range.phnum as u16,
            adds: walk.adds,
            subs: walk.subs,
            tls_modid: 0,
            tls_data: core::ptr::null_mut(),
        };
        let stopped = callback(&raw mut info, size_of::<DlPhdrInfo>(), data);
        if stopped != 0 {
            return stopped;
        }
    }
    0
}

/// Hands one of the loader's objects to the caller's callback, with our images counted in.
extern "C" fn pass_on(info: *mut DlPhdrInfo, size: usize, walk: *mut c_void) -> c_int {
    let walk: *mut Walk = walk.cast();
    // SAFETY: `iterate_phdr` passed a pointer to its own `Walk`, used by this thread only.
    let walk = unsafe { &mut *walk };
    if size != size_of::<DlPhdrInfo>() {
        // A C library with another structure: what we do not know is not copied, counts stay.
        return (walk.callback)(info, size, walk.data);
    }
    // SAFETY: the C library passes a structure of `size` bytes.
    let mut copy = unsafe { info.read() };
    copy.adds = copy.adds.wrapping_add(walk.added);
    copy.subs = copy.subs.wrapping_add(walk.removed);
    (walk.adds, walk.subs) = (copy.adds, copy.subs);
    (walk.callback)(&raw mut copy, size, walk.data)
}

#[cfg(test)]
mod tests;
