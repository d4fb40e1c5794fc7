//! The functions patches call. [`suture_abi::author`] declares them for Rust, `suture.h` for C.
//!
//! They run on any thread and in handlers. Nobody waits: a reader counts itself in, and books it may be reading are
//! freed later ([`crate::publish`]).
//!
//! # Safety
//!
//! Exported under names no program has. Strings come from the patch, which promises that they end.
#![allow(unsafe_code)]

use super::Settings;
use crate::block::BLOCK;
use crate::host;
use crate::publish;
use crate::sys::{EINVAL, EPERM, Errno};
use core::ffi::{c_char, c_int};
use core::sync::atomic::Ordering;

const EDEADLK: Errno = Errno(35);

/// Longest path or value, without its NUL.
const LONGEST: usize = 255;

/// Reads an attribute; gives its value, or a negative errno.
///
/// # Safety
///
/// `path` is null or a string that ends with a NUL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn suture_attribute_get(path: *const c_char) -> i64 {
    // SAFETY: the caller's promise.
    let value = unsafe { string(path) }
        .and_then(|path| publish::with_current(|books| super::get(books, settings(), path)));
    value.unwrap_or_else(|errno| i64::from(errno.0).wrapping_neg())
}

/// Refuses to write an attribute, and says why; 0 where the write would have changed nothing.
///
/// # Safety
///
/// `path` and `value` are null or strings that end with a NUL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn suture_attribute_set(path: *const c_char, value: *const c_char) -> c_int {
    // SAFETY: the caller's promise.
    let both = unsafe { string(path).and_then(|path| Ok((path, string(value)?))) };
    let changes = both.and_then(|(path, value)| {
        publish::with_current(|books| super::would_set(books, settings(), path, value))
    });
    let errno = match changes {
        Ok(false) => return 0,
        Ok(true) if host::is_caller() => EDEADLK,
        Ok(true) => EPERM,
        Err(errno) => errno,
    };
    (errno.0 as c_int).wrapping_neg()
}

fn settings() -> Settings {
    Settings {
        hooking: BLOCK.hooking_off().load(Ordering::Relaxed) == 0,
        tick_ms: BLOCK.tick_ms().load(Ordering::Relaxed),
    }
}

/// The bytes of a string in front of its NUL.
///
/// # Safety
///
/// `start` is null or a string that ends with a NUL, and stays as it is.
unsafe fn string<'s>(start: *const c_char) -> Result<&'s [u8], Errno> {
    if start.is_null() {
        return Err(EINVAL);
    }
    let start = start.cast::<u8>();
    // SAFETY: bytes of the string: none behind the first NUL is read.
    let is_end = |at: &usize| unsafe { start.wrapping_add(*at).read() } == 0;
    let len = (0..=LONGEST).find(is_end).ok_or(EINVAL)?;
    // SAFETY: so many bytes were just read.
    Ok(unsafe { core::slice::from_raw_parts(start, len) })
}
