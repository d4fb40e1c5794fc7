//! Attributes of patches, read from inside the process: by callbacks, by patched functions, by any thread.
//!
//! The tree is the one that the command serves from outside (`suture get`), with numbers for values. Nothing is
//! written from in here: patches are changed by the command only, so whoever tries is told why not.
//!
//! Pure but for the places of objects that come and go, which are read as they are: no system call, no allocation, no lock.

pub mod api;

use crate::books::Books;
use crate::late;
use crate::sys::{EACCES, EINVAL, ENOENT, Errno};
use suture_abi::batch::HOOK_NONE;
use suture_abi::block::{PATCH_ENABLED, PATCH_REPLACE, PatchRow, StateRow};
use suture_abi::descriptor::{STATE_BLOCK_DISABLE, STATE_IS_SHADOW};

const EISDIR: Errno = Errno(21);
const EOPNOTSUPP: Errno = Errno(95);

/// What the process has besides its books.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Patches may be enabled.
    pub hooking: bool,
    /// Milliseconds between two attempts to complete a transition.
    pub tick_ms: u32,
}

/// The value of an attribute.
///
/// # Errors
/// `ENOENT` no such path, `EISDIR` it holds others, `EACCES` it can only be written, `EOPNOTSUPP` it is a text that
/// only the command shows.
pub fn get(books: &Books, settings: Settings, path: &[u8]) -> Result<i64, Errno> {
    let path = trimmed(path, b'/');
    match path {
        b"" => return Err(EISDIR),
        b"hooking" => return Ok(i64::from(settings.hooking)),
        b"tick_ms" => return Ok(i64::from(settings.tick_ms)),
        _ => {}
    }
    let (name, rest) = split(path);
    let (index, patch) = listed(books, name).ok_or(ENOENT)?;
    let Some(rest) = rest else { return Err(EISDIR) };
    match rest {
        b"enabled" => Ok(i64::from(books.is_enabled(patch))),
        b"transition" => Ok(i64::from(books.transition.first().is_some_and(|t| t.patch == patch.id))),
        b"force" => Err(EACCES),
        b"replace" => Ok(i64::from(patch.flags & PATCH_REPLACE != 0)),
        b"stack_order" => Ok(i64::try_from(index).unwrap_or(i64::MAX).saturating_add(1)),
        b"last_callback" | b"pending" => Err(EOPNOTSUPP),
        b"states" => Err(EISDIR),
        _ => match rest.strip_prefix(b"states/") {
            Some(rest) => of_state(books, patch, rest),
            None => of_object(books, patch, rest),
        },
    }
}

/// Whether a value could be written to an attribute, were it the command that does it. `Ok(false)`: it would change
/// nothing.
///
/// # Errors
/// As [`get`]; `EACCES` if it can only be read, `EINVAL` for what is no value of it.
pub fn would_set(books: &Books, settings: Settings, path: &[u8], value: &[u8]) -> Result<bool, Errno> {
    let path = trimmed(path, b'/');
    let attribute = split(path).1.unwrap_or(path);
    match get(books, settings, path) {
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
    books.patches.iter().enumerate().find(|(_, p)| text(&p.name) == name)
}

/// `ID`, or `ID/ATTRIBUTE`.
fn of_state(books: &Books, patch: &PatchRow, rest: &[u8]) -> Result<i64, Errno> {
    let (id, attribute) = split(rest);
    let id = number(id).ok_or(ENOENT)?;
    let own = |s: &&StateRow| s.patch == patch.id && s.plan.id == id;
    let plan = books.states.iter().find(own).map(|s| s.plan).ok_or(ENOENT)?;
    let Some(attribute) = attribute else { return Err(EISDIR) };
    match attribute {
        b"holders" => {
            // A patch has an id once.
            let holds = books.states.iter().filter(|s| s.plan.id == id && books.patch(s.patch).is_some());
            Ok(i64::try_from(holds.count()).unwrap_or(i64::MAX))
        }
        b"is_shadow" => Ok(i64::from(plan.flags & STATE_IS_SHADOW != 0)),
        b"block_disable" => Ok(i64::from(plan.flags & STATE_BLOCK_DISABLE != 0)),
        b"callbacks" => {
            let all =
                [plan.pre_patch, plan.post_patch, plan.pre_unpatch, plan.post_unpatch, plan.shadow_dtor];
            let bits = (0u32..).zip(all).filter(|(_, code)| *code != 0);
            Ok(bits.fold(0, |set, (bit, _)| set | 1i64.wrapping_shl(bit)))
        }
        _ => Err(ENOENT),
    }
}

/// `OBJECT`, or `OBJECT/patched`. The name of an object may be a path.
fn of_object(books: &Books, patch: &PatchRow, rest: &[u8]) -> Result<i64, Errno> {
    let known = |name: &[u8]| {
        let mut own = books.named.iter().filter(|o| o.patch == patch.id);
        own.find(|o| text(o.row.name.as_flattened()) == name)
    };
    let Some(name) = rest.strip_suffix(b"/patched") else {
        return Err(if known(rest).is_some() { EISDIR } else { ENOENT });
    };
    let object = known(name).ok_or(ENOENT)?;
    let there = object.row.stays != 0 || is_there(books, patch, name);
    Ok(i64::from(patch.state == PATCH_ENABLED && there))
}

/// Whether an object that may come and go is there and has functions of the patch.
fn is_there(books: &Books, patch: &PatchRow, name: &[u8]) -> bool {
    let file = name.rsplit(|b| *b == b'/').next().unwrap_or(name);
    let own = books.funcs.iter().filter(|f| f.patch == patch.id && f.plan.hook == HOOK_NONE);
    let mut rows = own.filter_map(|f| books.recipe(books.site(f.site)?.plan.recipe));
    rows.any(|row| text(row.plan.name.as_flattened()) == file && late::is_patched(row))
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
fn text(field: &[u8]) -> &[u8] {
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
