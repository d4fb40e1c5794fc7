//! The loader's books, read on the thread that changes them.
//!
//! # Safety
//!
//! Lists and names belong to the loader, whose lock the calling thread holds; `r_debug` is where the command
//! found it. Loops are bounded, whatever stands there.
#![allow(unsafe_code)]

use core::sync::atomic::{AtomicU64, Ordering};

/// Address of `r_debug`. Written by the worker before the hook is reached for the first time.
pub static R_DEBUG: AtomicU64 = AtomicU64::new(0);

/// Most objects and namespaces that are looked at.
const MOST: usize = 8192;
const MOST_SPACES: usize = 64;
/// Longest path.
const LONGEST: usize = 4096;

/// An object of the loader's list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapped {
    /// Address of its link map.
    pub link_map: u64,
    /// Load base.
    pub base: u64,
    /// Address of its dynamic section.
    pub dynamic: u64,
    name: u64,
}

fn word(addr: u64) -> u64 {
    let place = core::ptr::with_exposed_provenance::<u64>(addr as usize);
    // SAFETY: a word of `r_debug` or of a link map, which the loader keeps aligned.
    unsafe { place.read_volatile() }
}

fn half(addr: u64) -> u32 {
    let place = core::ptr::with_exposed_provenance::<u32>(addr as usize);
    // SAFETY: as `word`.
    unsafe { place.read_volatile() }
}

/// All `r_debug`s: one for each namespace.
fn spaces() -> impl Iterator<Item = u64> {
    let mut next = R_DEBUG.load(Ordering::Acquire);
    core::iter::from_fn(move || {
        let this = (next != 0).then_some(next)?;
        // `r_next` exists from version 2 on.
        next = if half(this) >= 2 { word(this.wrapping_add(40)) } else { 0 };
        Some(this)
    })
    .take(MOST_SPACES)
}

/// True if no list is being changed.
pub fn is_consistent() -> bool {
    spaces().all(|debug| half(debug.wrapping_add(24)) == 0)
}

/// All objects that are mapped.
pub fn objects() -> impl Iterator<Item = Mapped> {
    let list = |debug: u64| {
        let mut next = word(debug.wrapping_add(8));
        core::iter::from_fn(move || {
            let link_map = (next != 0).then_some(next)?;
            next = word(link_map.wrapping_add(24));
            Some(Mapped {
                link_map,
                base: word(link_map),
                dynamic: word(link_map.wrapping_add(16)),
                name: word(link_map.wrapping_add(8)),
            })
        })
        .take(MOST)
    };
    spaces().flat_map(list)
}

impl Mapped {
    /// True if its file is called that (NUL padded), whatever the directory.
    pub fn is_called(&self, wanted: &[u8]) -> bool {
        let len = wanted.iter().position(|b| *b == 0).unwrap_or(wanted.len());
        let Some(wanted) = wanted.get(..len).filter(|w| !w.is_empty()) else { return false };
        if self.name == 0 {
            return false;
        }
        let byte = |at: usize| {
            let at = self.name.wrapping_add(at as u64);
            let place = core::ptr::with_exposed_provenance::<u8>(at as usize);
            // SAFETY: a byte of the object's name, not behind its NUL.
            unsafe { place.read_volatile() }
        };
        let Some(length) = (0..LONGEST).find(|at| byte(*at) == 0) else { return false };
        let Some(start) = length.checked_sub(wanted.len()) else { return false };
        let whole = start.checked_sub(1).is_none_or(|before| byte(before) == b'/');
        whole && wanted.iter().zip(start..).all(|(b, at)| byte(at) == *b)
    }
}
