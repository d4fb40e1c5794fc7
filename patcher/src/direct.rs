//! Entries that lead straight to the new function, past stub and slot.
//!
//! Made when a transition is over, for sites whose jump has its displacement in one aligned word and the new function
//! in reach; taken back before the next transition of a function there. What makes that safe stands in the
//! runtime's `commit/direct.rs`: the worker marks the sites first and takes the marks away last, the stores in
//! between are made from here.

use crate::error::Error;
use crate::session::Session;
use crate::stores::{self, Writer, unless_gone};
use crate::target::Target;
use crate::target::books;
use suture_abi::batch::Site;
use suture_abi::block::SiteRow;
use suture_abi::channel::op;
use suture_elf::{Addr, Memory};
use suture_runtime::books::direct::Jump;

/// Makes every entry lead straight to its new function that may. Gives how many were changed.
///
/// # Errors
/// When a store fails or the worker is gone. Every entry leads where it should all the same.
pub fn make_direct(session: &mut Session<'_>) -> Result<usize, Error> {
    session.expect("marking sites", op::DIRECT, [0; 4], &[])?;
    let books = books::read(session.target, session.block)?;
    let mut changed = 0;
    for (row, jump) in marked(&books.sites) {
        let Some(word) = word(session.target, &jump)? else { continue };
        // Also those that were marked by a command that died. Somebody else's bytes are left alone.
        if jump.is_to_stub(word) {
            store(session, &jump, word, jump.straight_to(word, row.direct))?;
            changed += 1;
        }
    }
    Ok(changed)
}

/// Makes those of some sites that may lead past their stubs lead to them again, and has every thread see that.
///
/// # Errors
/// When somebody else's bytes stand in a jump, a store fails or the worker is gone. The marks stay then.
pub fn put_back(
    session: &mut Session<'_>,
    sites: &[SiteRow],
    name_of: &dyn Fn(u64) -> String,
) -> Result<(), Error> {
    let mut ids = Vec::new();
    for (row, jump) in marked(sites) {
        ids.extend_from_slice(&row.id.to_le_bytes());
        let Some(word) = word(session.target, &jump)? else { continue };
        if jump.is_to_stub(word) || jump.is_undone(word) {
            continue;
        }
        let (at, stub) = (Addr(jump.word), jump.to_stub(word));
        if !jump.is_straight_to(word, row.direct) {
            return Err(stores::foreign(
                name_of(row.plan.entry),
                at,
                &word.to_le_bytes(),
                &stub.to_le_bytes(),
            ));
        }
        store(session, &jump, word, stub)?;
    }
    if ids.is_empty() {
        return Ok(());
    }
    match session.expect("going back to stubs", op::STUBS, [0; 4], &ids)? {
        [0, ..] => Ok(()),
        [left, ..] => Err(Error::Worker {
            pid: session.target.pid(),
            step: "going back to stubs",
            what: format!("{left} entries were changed by somebody else meanwhile"),
        }),
    }
}

/// The plan of a site as it stands, if its jump leads past the stub.
///
/// # Errors
/// When the process is gone.
pub fn straight(target: &Target, row: &SiteRow) -> Result<Option<Site>, Error> {
    let Some((row, jump)) = marked(std::slice::from_ref(row)).next() else { return Ok(None) };
    let leads = |word: u64| jump.is_straight_to(word, row.direct);
    let straight = word(target, &jump)?.is_some_and(leads);
    Ok(straight.then(|| jump.straight_plan(&row.plan, row.direct)))
}

/// Marked sites, with their jumps.
fn marked(sites: &[SiteRow]) -> impl Iterator<Item = (&SiteRow, Jump)> {
    sites.iter().filter(|s| s.direct != 0).filter_map(|s| Some((s, Jump::of(&s.plan)?)))
}

/// The word that holds a displacement, or `None` where nothing is mapped any more.
fn word(target: &Target, jump: &Jump) -> Result<Option<u64>, Error> {
    let at = Addr(jump.word);
    let read = target.memory.read_u64(at).map_err(|e| Error::from_memory(target, e));
    unless_gone(target, at, read)
}

fn store(session: &mut Session<'_>, jump: &Jump, old: u64, new: u64) -> Result<(), Error> {
    session.store(Addr(jump.word), &old.to_le_bytes(), &new.to_le_bytes())
}
