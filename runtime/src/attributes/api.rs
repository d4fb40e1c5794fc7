//! The functions patches call. [`suture_abi::author`] declares them for Rust, `suture.h` for C.
//!
//! They run on any thread and in handlers. Nobody waits: a reader counts itself in, and books it may be reading are
//! freed later ([`crate::publish`]).
//!
//! # Safety
//!
//! Exported under names no program has. Strings come from the patch, which promises that they end.
#![allow(unsafe_code)]

use super::Process;
use super::callback::{How, LastCallback};
use super::text::Cut;
use crate::block::BLOCK;
use crate::events;
use crate::held::{self, Pending};
use crate::host;
use crate::publish;
use crate::sys::{EINVAL, EPERM, Errno};
use core::ffi::{c_char, c_int, c_long};
use core::sync::atomic::Ordering;
use suture_abi::block::TransitionRow;
use suture_abi::host::{GIVEN, RUNNING};

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
    let value =
        unsafe { string(path) }.and_then(|path| publish::with_current(|books| super::get(books, &Own, path)));
    value.unwrap_or_else(|errno| i64::from(errno.0).wrapping_neg())
}

/// Reads an attribute as a text into a buffer, as far as it has room, with a NUL behind it; gives the length of the
/// whole text, or a negative errno.
///
/// # Safety
///
/// `path` is null or a string that ends with a NUL; `size` bytes at `buffer` can be written, by nobody else meanwhile.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn suture_attribute_read(
    path: *const c_char,
    buffer: *mut c_char,
    size: usize,
) -> c_long {
    let room = match size {
        0 => &mut [],
        _ if buffer.is_null() || size > isize::MAX as usize => return errno(EINVAL),
        // SAFETY: the caller's promise.
        _ => unsafe { core::slice::from_raw_parts_mut(buffer.cast::<u8>(), size) },
    };
    // SAFETY: the caller's promise.
    let len = unsafe { string(path) }.and_then(|path| {
        publish::with_current(|books| {
            let mut text = Cut::new(room);
            super::read(books, &Own, path, &mut text).map(|()| text.len())
        })
    });
    len.map_or_else(errno, |len| c_long::try_from(len).unwrap_or(c_long::MAX))
}

fn errno(errno: Errno) -> c_long {
    c_long::from(errno.0).wrapping_neg()
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
    let changes = both
        .and_then(|(path, value)| publish::with_current(|books| super::would_set(books, &Own, path, value)));
    let errno = match changes {
        Ok(false) => return 0,
        Ok(true) if host::is_caller() => EDEADLK,
        Ok(true) => EPERM,
        Err(errno) => errno,
    };
    (errno.0 as c_int).wrapping_neg()
}

/// This process.
struct Own;

impl Process for Own {
    fn hooking(&self) -> bool {
        BLOCK.hooking_off().load(Ordering::Relaxed) == 0
    }

    fn tick_ms(&self) -> u32 {
        BLOCK.tick_ms().load(Ordering::Relaxed)
    }

    fn last_callback(&self, patch: u32) -> Option<LastCallback> {
        let host = BLOCK.host();
        // pairs with: the worker's and the host's stores. The job may end and the next begin while it is read.
        let runs = matches!(host.state.load(Ordering::Acquire), GIVEN | RUNNING);
        if runs && host.patch.load(Ordering::Relaxed) == patch {
            return Some(LastCallback {
                callback: host.kind.load(Ordering::Relaxed),
                state: host.subject.load(Ordering::Relaxed),
                how: How::Running,
                since_ns: host.since_ns.load(Ordering::Relaxed),
            });
        }
        LastCallback::newest(events::of_patch(patch), LastCallback::is_one)
    }

    fn pending(&self, transition: &TransitionRow, each: impl FnMut(Pending)) {
        held::pending(transition, each);
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
