//! Freeing all variables of an id: `suture_shadow_free_all`, and the end of a state.

use super::map::Map;
use core::sync::atomic::Ordering::{Acquire, Relaxed};
use suture_table::hash::Key;
use suture_table::memory::NoMemory;
use suture_table::remove::{self, Afterwards};
use suture_table::word::{Me, State};

/// A destructor: object, address of the bytes.
pub type Dtor<'d> = &'d mut dyn FnMut(u64, u64);

/// Frees every variable of an id, and calls `each` with its object afterwards; gives how many there were.
///
/// Takes as long as there are blocks of that id, whatever else is in the table. Runs on any thread; with
/// a destructor on one that may run it.
pub fn free_all(
    map: &Map,
    id: u64,
    mut dtor: Option<Dtor<'_>>,
    afterwards: Afterwards,
    each: &mut dyn FnMut(u64),
) -> Result<u64, NoMemory> {
    let mut count = 0u64;
    let mut failed = false;
    map.blocks.each(id, |_, header| {
        let state = State(header.state.load(Acquire));
        let key = Key { obj: header.obj.load(Relaxed), id: header.id.load(Relaxed) };
        // One that is not committed yet is live as well, but is not found.
        if !state.is_live() || key.id != id {
            return;
        }
        let has_dtor = dtor.is_some();
        let mut call = |data| {
            if let Some(dtor) = &mut dtor {
                dtor(key.obj, data);
            }
        };
        let called = has_dtor.then_some(&mut call as remove::Dtor<'_>);
        let removed = remove::remove(map, key, called, afterwards);
        failed |= removed.is_err();
        if removed == Ok(true) {
            count = count.saturating_add(1);
            each(key.obj);
        }
    });
    if let Some(known) = map.blocks.known(id) {
        known.reported.store(0, Relaxed);
    }
    if failed { Err(NoMemory) } else { Ok(count) }
}

/// Removes the variables of an id whose destructor a thread has begun and will not finish, because it
/// crashed there. It is not called again, and the memory stays.
pub fn bury_all(map: &Map, id: u64, is_over: impl Fn(Me) -> bool) {
    map.blocks.each(id, |block, header| {
        if header.id.load(Relaxed) == id {
            remove::bury_block(map, block, &is_over);
        }
    });
}
