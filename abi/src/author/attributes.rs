//! Attributes of patches, for a patch in Rust.
//!
//! # Safety
//!
//! The functions are the runtime's; they are given strings that end.
#![allow(unsafe_code)]

use core::ffi::{CStr, c_char, c_int};

unsafe extern "C" {
    fn suture_attribute_get(path: *const c_char) -> i64;
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
