//! Attributes of patches, read from inside the process: by callbacks, by patched functions, by any thread.
//!
//! The tree is the one that the command serves from outside (`suture get`), with numbers for values ([`get`]) or
//! the very texts ([`read`]). Nothing is written from in here: patches are changed by the command only, so whoever
//! tries is told why not.
//!
//! Pure but for the places of objects that come and go, which are read as they are, and what a [`Process`] says: no
//! system call, no allocation, no lock.

pub mod api;
pub mod callback;
pub mod text;

use crate::books::Books;
use crate::held::Pending;
use crate::late;
use crate::sys::{EACCES, EINVAL, ENOENT, Errno};
use callback::LastCallback;
use suture_abi::batch::{HOOK_NONE, NamePart};
use suture_abi::block::{PATCH_ENABLED, PATCH_REPLACE, PatchRow, StateRow, TransitionRow};
use suture_abi::descriptor::{STATE_BLOCK_DISABLE, STATE_IS_SHADOW};
use text::Out;

const EISDIR: Errno = Errno(21);
const EOPNOTSUPP: Errno = Errno(95);

/// What the process has besides its books.
pub trait Process {
    /// Patches may be enabled.
    fn hooking(&self) -> bool;
    /// Milliseconds between two attempts to complete a transition.
    fn tick_ms(&self) -> u32;
    /// How the last callback of a patch ended, as far as the event log still knows.
    fn last_callback(&self, patch: u32) -> Option<LastCallback>;
    /// Calls `each` with every thread that holds a transition up.
    fn pending(&self, transition: &TransitionRow, each: impl FnMut(Pending));
}

/// What is found at a path.
#[derive(Clone, Copy, Debug)]
enum Found<'b> {
    Number(i64),
    /// Listed patches that have this state.
    Holders(u64),
    /// Callbacks, a bit for each.
    Callbacks(i64),
    LastCallback(&'b PatchRow),
    Pending(&'b PatchRow),
}

/// The value of an attribute as a number: of a list its length, of callbacks a bit for each.
///
/// # Errors
/// `ENOENT` no such path, `EISDIR` it holds others, `EACCES` it can only be written, `EOPNOTSUPP` it is nothing but a
/// text.
pub fn get(books: &Books, process: &impl Process, path: &[u8]) -> Result<i64, Errno> {
    match find(books, process, path)? {
        Found::Number(value) | Found::Callbacks(value) => Ok(value),
        Found::Holders(id) => {
            // A patch has an id once.
            let holds = books.states.iter().filter(|s| s.plan.id == id && books.patch(s.patch).is_some());
            Ok(i64::try_from(holds.count()).unwrap_or(i64::MAX))
        }
        Found::LastCallback(_) => Err(EOPNOTSUPP),
        Found::Pending(patch) => {
            let mut count = 0i64;
            for_each_pending(books, process, patch, |_| count = count.saturating_add(1));
            Ok(count)
        }
    }
}

/// Writes the value of an attribute as the command shows it.
///
/// # Errors
/// As [`get`], but for `EOPNOTSUPP`; nothing was written then.
pub fn read(books: &Books, process: &impl Process, path: &[u8], out: &mut impl Out) -> Result<(), Errno> {
    match find(books, process, path)? {
        Found::Number(value) => text::number(out, value.unsigned_abs()),
        Found::Callbacks(set) => text::callbacks(out, set),
        Found::Holders(id) => text::holders(out, books, id),
        Found::LastCallback(patch) => {
            if let Some(last) = process.last_callback(patch.id) {
                last.show(out);
            }
        }
        Found::Pending(patch) => {
            let mut first = true;
            for_each_pending(books, process, patch, |pending| {
                if !core::mem::take(&mut first) {
                    out.put(b"\n");
                }
                text::pending(out, books, &pending);
            });
        }
    }
    Ok(())
}

fn for_each_pending(books: &Books, process: &impl Process, patch: &PatchRow, each: impl FnMut(Pending)) {
    if let Some(t) = books.transition.first().filter(|t| t.patch == patch.id) {
        process.pending(t, each);
    }
}

fn find<'b>(books: &'b Books, process: &impl Process, path: &[u8]) -> Result<Found<'b>, Errno> {
    let number = |value: i64| Ok(Found::Number(value));
    let path = trimmed(path, b'/');
    match path {
        b"" => return Err(EISDIR),
        b"hooking" => return number(i64::from(process.hooking())),
        b"tick_ms" => return number(i64::from(process.tick_ms())),
        _ => {}
    }
    let (name, rest) = split(path);
    let (index, patch) = listed(books, name).ok_or(ENOENT)?;
    let Some(rest) = rest else { return Err(EISDIR) };
    match rest {
        b"enabled" => number(i64::from(books.is_enabled(patch))),
        b"transition" => number(i64::from(books.transition.first().is_some_and(|t| t.patch == patch.id))),
        b"force" => Err(EACCES),
        b"replace" => number(i64::from(patch.flags & PATCH_REPLACE != 0)),
        b"stack_order" => number(i64::try_from(index).unwrap_or(i64::MAX).saturating_add(1)),
        b"last_callback" => Ok(Found::LastCallback(patch)),
        b"pending" => Ok(Found::Pending(patch)),
        b"states" => Err(EISDIR),
        _ => match rest.strip_prefix(b"states/") {
            Some(rest) => of_state(books, patch, rest),
            None => of_object(books, patch, rest).map(Found::Number),
        },
    }
}

/// Whether a value could be written to an attribute, were it the command that does it. `Ok(false)`: it would change
/// nothing.
///
/// # Errors
/// As [`get`]; `EACCES` if it can only be read, `EINVAL` for what is no value of it.
pub fn would_set(books: &Books, process: &impl Process, path: &[u8], value: &[u8]) -> Result<bool, Errno> {
    let path = trimmed(path, b'/');
    let attribute = split(path).1.unwrap_or(path);
    match get(books, process, path) {
        Err(EACCES) => boolean(value).ok_or(EINVAL),
        Err(EISDIR | EOPNOTSUPP) => Err(EACCES),
        Err(other) => Err(other),
        Ok(_) if attribute == b"tick_ms" => Ok(true),
        Ok(now) if matches!(attribute, b"enabled" | b"hooking") => {
            let wanted = boolean(value).ok_or(EINVAL)?;
            // As the kernel has it: what stands there already is no value to write.
            if attribute == b"enabled" && now == i64::from(wanted) { Err(EINVAL) } else { Ok(true) }
        }
        Ok(_) => Err(EACCES),
    }
}

/// The patch of that name, and its position in the list.
fn listed<'b>(books: &'b Books, name: &[u8]) -> Option<(usize, &'b PatchRow)> {
    books.patches.iter().enumerate().find(|(_, p)| until_nul(&p.name) == name)
}

/// `ID`, or `ID/ATTRIBUTE`.
fn of_state<'b>(books: &Books, patch: &PatchRow, rest: &[u8]) -> Result<Found<'b>, Errno> {
    let (id, attribute) = split(rest);
    let id = number(id).ok_or(ENOENT)?;
    let own = |s: &&StateRow| s.patch == patch.id && s.plan.id == id;
    let plan = books.states.iter().find(own).map(|s| s.plan).ok_or(ENOENT)?;
    let Some(attribute) = attribute else { return Err(EISDIR) };
    match attribute {
        b"holders" => Ok(Found::Holders(id)),
        b"is_shadow" => Ok(Found::Number(i64::from(plan.flags & STATE_IS_SHADOW != 0))),
        b"block_disable" => Ok(Found::Number(i64::from(plan.flags & STATE_BLOCK_DISABLE != 0))),
        b"callbacks" => {
            let all =
                [plan.pre_patch, plan.post_patch, plan.pre_unpatch, plan.post_unpatch, plan.shadow_dtor];
            let bits = (0u32..).zip(all).filter(|(_, code)| *code != 0);
            Ok(Found::Callbacks(bits.fold(0, |set, (bit, _)| set | 1i64.wrapping_shl(bit))))
        }
        _ => Err(ENOENT),
    }
}

/// `OBJECT`, `OBJECT/patched` or `OBJECT/FUNC,SYMPOS`. Names of objects may be paths, those of functions may have
/// anything in them.
fn of_object(books: &Books, patch: &PatchRow, rest: &[u8]) -> Result<i64, Errno> {
    for (index, object) in (0u32..).zip(books.named.iter().filter(|o| o.patch == patch.id)) {
        let name = until_nul(object.row.name.as_flattened());
        match rest.strip_prefix(name) {
            Some(b"") => return Err(EISDIR),
            Some(b"/patched") => {
                let there = object.row.stays != 0 || is_there(books, patch, name);
                return Ok(i64::from(patch.state == PATCH_ENABLED && there));
            }
            Some([b'/', function @ ..]) if has_function(books, patch, index, function) => return Err(EISDIR),
            _ => {}
        }
    }
    Err(ENOENT)
}

/// Whether a patch has a function of that name in its object of that number.
fn has_function(books: &Books, patch: &PatchRow, object: u32, name: &[u8]) -> bool {
    let mut rest = Some(name);
    for NamePart { more, text: piece, .. } in
        books.names.iter().filter(|n| n.patch == patch.id && n.part.object == object).map(|n| n.part)
    {
        rest = rest.and_then(|rest| rest.strip_prefix(until_nul(piece.as_flattened())));
        if more == 0 {
            if rest.is_some_and(<[u8]>::is_empty) {
                return true;
            }
            rest = Some(name);
        }
    }
    false
}

/// Whether an object that may come and go is there and has functions of the patch.
fn is_there(books: &Books, patch: &PatchRow, name: &[u8]) -> bool {
    let file = name.rsplit(|b| *b == b'/').next().unwrap_or(name);
    let own = books.funcs.iter().filter(|f| f.patch == patch.id && f.plan.hook == HOOK_NONE);
    let mut rows = own.filter_map(|f| books.recipe(books.site(f.site)?.plan.recipe));
    rows.any(|row| until_nul(row.plan.name.as_flattened()) == file && late::is_patched(row))
}

/// Without any of that byte at the end.
fn trimmed(text: &[u8], byte: u8) -> &[u8] {
    let end = text.iter().rposition(|b| *b != byte).map_or(0, |last| last.saturating_add(1));
    text.get(..end).unwrap_or_default()
}

/// In front of the first slash, and behind it.
fn split(path: &[u8]) -> (&[u8], Option<&[u8]>) {
    let mut parts = path.splitn(2, |b| *b == b'/');
    (parts.next().unwrap_or_default(), parts.next())
}

/// Up to the first NUL.
fn until_nul(field: &[u8]) -> &[u8] {
    field.split(|b| *b == 0).next().unwrap_or_default()
}

fn number(digits: &[u8]) -> Option<u64> {
    let digit = |value: u64, byte: &u8| {
        let digit = byte.checked_sub(b'0').filter(|d| *d < 10)?;
        value.checked_mul(10)?.checked_add(u64::from(digit))
    };
    (!digits.is_empty()).then(|| digits.iter().try_fold(0, digit))?
}

/// A truth value in one of the spellings the kernel takes, with or without newlines behind it.
pub fn boolean(value: &[u8]) -> Option<bool> {
    let value = trimmed(value, b'\n');
    let is = |spellings: &[&[u8]]| spellings.iter().any(|s| s.eq_ignore_ascii_case(value));
    match () {
        () if is(&[b"1", b"y", b"yes", b"t", b"true", b"on"]) => Some(true),
        () if is(&[b"0", b"n", b"no", b"f", b"false", b"off"]) => Some(false),
        () => None,
    }
}

#[cfg(test)]
mod tests;
