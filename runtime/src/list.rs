//! Lists that can fail: a `Vec` whose growth is an error instead of a panic.
//!
//! Runs on the worker only (it allocates).
//!
//! # Safety
//!
//! The two raw helpers at the end own bytes whose address is published to other processes; the books
//! decide when they die.
#![allow(unsafe_code)]

use alloc_crate::alloc::{alloc, dealloc};
use alloc_crate::vec::Vec;
use core::alloc::Layout;

/// The runtime's arenas are full and the kernel gives no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoMemory;

/// Appends `item`. Never goes through the growth path of `Vec` that panics.
pub fn push<T>(list: &mut Vec<T>, item: T) -> Result<(), NoMemory> {
    if list.len() == list.capacity() {
        list.try_reserve(1).map_err(|_| NoMemory)?;
    }
    let len = list.len();
    let spare = list.spare_capacity_mut().first_mut().ok_or(NoMemory)?;
    spare.write(item);
    // SAFETY: the element at `len` was written the line above and lies within the capacity.
    unsafe { list.set_len(len.saturating_add(1)) };
    Ok(())
}

/// Inserts `item` before position `at` (at the end if there is none).
pub fn insert<T: Copy>(list: &mut Vec<T>, at: usize, item: T) -> Result<(), NoMemory> {
    push(list, item)?;
    if let Some(tail @ [_, ..]) = list.get_mut(at..) {
        tail.rotate_right(1);
    }
    Ok(())
}

/// A copy with room for `extra` more.
pub fn copy<T: Copy>(list: &[T], extra: usize) -> Result<Vec<T>, NoMemory> {
    let mut out = Vec::new();
    out.try_reserve_exact(list.len().saturating_add(extra)).map_err(|_| NoMemory)?;
    for (place, item) in out.spare_capacity_mut().iter_mut().zip(list) {
        place.write(*item);
    }
    // SAFETY: the capacity is at least `list.len()` and that many elements were written.
    unsafe { out.set_len(list.len()) };
    Ok(out)
}

/// So many times the same.
pub fn filled<T: Copy>(item: T, len: usize) -> Result<Vec<T>, NoMemory> {
    let mut out = Vec::new();
    out.try_reserve_exact(len).map_err(|_| NoMemory)?;
    for place in out.spare_capacity_mut().iter_mut().take(len) {
        place.write(item);
    }
    // SAFETY: the capacity is at least `len` and that many elements were written.
    unsafe { out.set_len(len) };
    Ok(out)
}

/// Sorts in place by heap. The core library's sorts can panic when an order contradicts itself. Most lists are in
/// order already.
pub fn sort<T: Copy, K: Ord>(list: &mut [T], key: impl Fn(&T) -> K) {
    if list.is_sorted_by_key(&key) {
        return;
    }
    let len = list.len();
    // Moves the element at `at` down until no child of it, below `end`, is greater.
    let sift = |list: &mut [T], mut at: usize, end: usize| loop {
        let left = at.saturating_mul(2).saturating_add(1);
        let right = left.saturating_add(1);
        let of = |list: &[T], i: usize| list.get(i).filter(|_| i < end).map(&key);
        let greater = if of(list, right) > of(list, left) { right } else { left };
        if of(list, greater) <= of(list, at) || greater >= end {
            break;
        }
        swap(list, at, greater);
        at = greater;
    };
    for at in (0..len / 2).rev() {
        sift(list, at, len);
    }
    for end in (1..len).rev() {
        swap(list, 0, end);
        sift(list, 0, end);
    }
}

fn swap<T: Copy>(list: &mut [T], a: usize, b: usize) {
    let (Some(first), Some(second)) = (list.get(a).copied(), list.get(b).copied()) else { return };
    for (at, value) in [(a, second), (b, first)] {
        if let Some(place) = list.get_mut(at) {
            *place = value;
        }
    }
}

/// Copies bytes to a place of their own; gives its address.
pub fn keep_bytes(bytes: &[u8]) -> Result<u64, NoMemory> {
    if bytes.is_empty() {
        return Ok(0);
    }
    let layout = Layout::for_value(bytes);
    // SAFETY: the layout is not empty.
    let place = unsafe { alloc(layout) };
    if place.is_null() {
        return Err(NoMemory);
    }
    // SAFETY: `place` has room for `bytes.len()` bytes and is fresh, so nothing overlaps.
    unsafe { core::ptr::copy_nonoverlapping(bytes.as_ptr(), place, bytes.len()) };
    Ok(place.expose_provenance() as u64)
}

/// Frees what [`keep_bytes`] gave.
///
/// # Safety
///
/// `addr` and `len` must come from one call of [`keep_bytes`], not freed since, by this arena.
pub unsafe fn free_bytes(addr: u64, len: u64) {
    let Ok(layout) = Layout::array::<u8>(len as usize) else { return };
    if addr != 0 && len != 0 {
        // SAFETY: the caller's promise.
        unsafe { dealloc(core::ptr::with_exposed_provenance_mut(addr as usize), layout) };
    }
}

/// Gives up a list and lets it stay where it is: its address and its length in bytes. To be freed with
/// [`free_all`].
pub fn keep_all<T: Copy>(mut list: Vec<T>) -> Result<(u64, u64), NoMemory> {
    // Exactly as long as its elements, so that the length says how to free it.
    let mut exact = copy(&list, 0)?;
    core::mem::swap(&mut list, &mut exact);
    let list = core::mem::ManuallyDrop::new(list);
    let len = list.len().saturating_mul(size_of::<T>()) as u64;
    Ok((if len == 0 { 0 } else { list.as_ptr().expose_provenance() as u64 }, len))
}

/// Frees what [`keep_all`] kept.
///
/// # Safety
///
/// `addr` and `len` must come from one call of [`keep_all`] with this type, not freed since, by this arena.
pub unsafe fn free_all<T: Copy>(addr: u64, len: u64) {
    let count = (len as usize).checked_div(size_of::<T>()).unwrap_or(0);
    let Ok(layout) = Layout::array::<T>(count) else { return };
    if addr != 0 && count != 0 {
        // SAFETY: the caller's promise; a list copied by `copy` has the capacity of its length.
        unsafe { dealloc(core::ptr::with_exposed_provenance_mut(addr as usize), layout) };
    }
}

/// Moves a value to a place of its own; gives its address, which stays valid until it is taken back
/// with `Vec::from_raw_parts(place, 1, 1)` or for ever.
pub fn keep<T>(value: T) -> Result<*mut T, NoMemory> {
    let mut one = Vec::new();
    one.try_reserve_exact(1).map_err(|_| NoMemory)?;
    push(&mut one, value)?;
    Ok(core::mem::ManuallyDrop::new(one).as_mut_ptr())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn insert_keeps_the_order_of_the_rest() {
        let mut list = vec![1, 2, 4];
        insert(&mut list, 2, 3).unwrap();
        insert(&mut list, 0, 0).unwrap();
        insert(&mut list, 99, 5).unwrap();
        assert_eq!(list, [0, 1, 2, 3, 4, 5]);
    }

    proptest::proptest! {
        #[test]
        fn sort_sorts(mut items in proptest::collection::vec(0u8..50, 0..200)) {
            let mut expected = items.clone();
            expected.sort_unstable();
            sort(&mut items, |i| *i);
            proptest::prop_assert_eq!(items, expected);
        }
    }

    #[test]
    fn copies_have_room_and_the_same_content() {
        let out = copy(&[7, 8, 9], 5).unwrap();
        assert_eq!(out, [7, 8, 9]);
        assert!(out.capacity() >= 8);
    }
}
