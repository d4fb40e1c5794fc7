//! Attributes of patches, for a patch in Rust.
//!
//! # Safety
//!
//! The functions are the runtime's; they are given strings that end.
#![allow(unsafe_code)]

use core::ffi::{CStr, c_char, c_int, c_long};

unsafe extern "C" {
    fn suture_attribute_get(path: *const c_char) -> i64;
    fn suture_attribute_read(path: *const c_char, buffer: *mut c_char, size: usize) -> c_long;
    fn suture_attribute_set(path: *const c_char, value: *const c_char) -> c_int;
}

/// The value of an attribute: `c"hooking"`, `c"fix-price/enabled"`, `c"fix-price/states/10/holders"`. Any thread may
/// ask, and any signal handler; nobody waits.
///
/// ```no_run
/// # use suture_abi::author::attribute;
/// let moving = attribute(c"fix-price/transition") == Ok(1);
/// # let _ = moving;
/// ```
///
/// # Errors
/// A positive errno, as `suture_attribute_get` of `suture.h` has it.
pub fn attribute(path: &CStr) -> Result<i64, i32> {
    // SAFETY: a string that ends.
    let value = unsafe { suture_attribute_get(path.as_ptr()) };
    if value < 0 { Err(i32::try_from(-value).unwrap_or(i32::MAX)) } else { Ok(value) }
}

/// An attribute as the text that `suture get` shows, as far as `room` has place for it and a NUL behind it; gives how
/// long the whole text is, without a NUL. Any thread may ask, and any signal handler; nobody waits.
///
/// ```no_run
/// # use suture_abi::author::attribute_text;
/// let mut room = [0; 256];
/// if let Ok(length) = attribute_text(c"fix-price/pending", &mut room) {
///     let text = &room[..length.min(room.len() - 1)];
/// #   let _ = text;
/// }
/// ```
///
/// # Errors
/// A positive errno, as `suture_attribute_read` of `suture.h` has it.
pub fn attribute_text(path: &CStr, room: &mut [u8]) -> Result<usize, i32> {
    // SAFETY: a string that ends, and a place that is the caller's alone, of that length.
    let length = unsafe { suture_attribute_read(path.as_ptr(), room.as_mut_ptr().cast(), room.len()) };
    usize::try_from(length).map_err(|_| i32::try_from(-length).unwrap_or(i32::MAX))
}

/// Says why an attribute cannot be written from here: patches are changed by the command only.
///
/// # Errors
/// A positive errno, as `suture_attribute_set` of `suture.h` has it. `Ok` where the value would have changed nothing.
pub fn set_attribute(path: &CStr, value: &CStr) -> Result<(), i32> {
    // SAFETY: strings that end.
    match unsafe { suture_attribute_set(path.as_ptr(), value.as_ptr()) } {
        0 => Ok(()),
        errno => Err(-errno),
    }
}
