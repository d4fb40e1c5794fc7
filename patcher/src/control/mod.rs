//! The control tree of a process: attributes that are read and written by path, as the kernel's livepatch
//! shows them below `/sys/kernel/livepatch`.
//!
//! Served from outside: reading is a look at the books, writing one of the operations of [`crate::disable`].

mod tree;

pub use tree::{Access, Node, boolean};

use crate::context::Context;
use crate::disable::{self, Action};
use crate::error::Error;
use crate::status;
use crate::target::lock::Exclusive;
use crate::target::{Target, books, runtime};
use crate::view::Cache;
use serde::Serialize;
use std::mem::offset_of;
use suture_abi::block::{RuntimeBlock, UNPATCHING};

/// What is found at a path.
#[derive(Clone, Debug, Serialize)]
pub struct Found {
    /// The path, without a slash at the end; empty for the process itself.
    pub path: String,
    /// Access.
    pub access: Access,
    /// Value of an attribute.
    pub value: Option<String>,
    /// What a directory holds, all the way down.
    pub entries: Vec<Node>,
}

/// What a write did.
#[derive(Clone, Debug, Serialize)]
pub struct Written {
    /// The path.
    pub path: String,
    /// The value, as it was given.
    pub value: String,
    /// No transition goes on because of it.
    pub finished: bool,
}

/// Longest tick that can be set, in milliseconds.
const LONGEST_TICK: u32 = 60_000;

/// Reads an attribute, or lists a directory.
///
/// # Errors
/// No such path (`ENOENT`), an attribute that can only be written (`EACCES`), no runtime.
pub fn get(target: &Target, path: &str, cache: &Cache) -> Result<Found, Error> {
    let pid = target.pid();
    let nodes = tree::nodes(&status::read(target, false, cache)?);
    let path = path.trim_end_matches('/');
    if path.is_empty() {
        let root = Found { path: String::new(), access: Access::Directory, value: None, entries: nodes };
        return Ok(root);
    }
    let node = find(&nodes, pid, path)?.clone();
    if node.access == Access::Write {
        return Err(Error::AttributeAccess { pid, path: node.path, can: "written" });
    }
    let inside = format!("{path}/");
    let entries = nodes.into_iter().filter(|n| n.path.starts_with(&inside)).collect();
    Ok(Found { path: node.path, access: node.access, value: node.value, entries })
}

fn find<'n>(nodes: &'n [Node], pid: i32, path: &str) -> Result<&'n Node, Error> {
    if let Some(node) = nodes.iter().find(|n| n.path == path) {
        return Ok(node);
    }
    let (patch, rest) = path.split_once('/').unwrap_or((path, ""));
    let is_patch = nodes.iter().any(|n| n.path == patch && n.access == Access::Directory);
    match (is_patch, rest) {
        (true, _) => Err(Error::NoAttribute { pid, path: path.to_owned(), patch: patch.to_owned() }),
        (false, _) => Err(Error::NotEnabled { pid, name: patch.to_owned() }),
    }
}

/// Writes an attribute. Returns without waiting for threads that cannot be moved at once.
///
/// # Errors
/// No such path (`ENOENT`), an attribute that can only be read (`EACCES`), a value that is none or changes
/// nothing (`EINVAL`), and whatever speaks against the operation.
pub fn set(target: &Target, path: &str, value: &str, context: &Context<'_>) -> Result<Written, Error> {
    let pid = target.pid();
    let nodes = tree::nodes(&status::read(target, false, context.cache)?);
    let path = path.trim_end_matches('/');
    let node = find(&nodes, pid, path)?;
    if !node.access.writes() {
        return Err(Error::AttributeAccess { pid, path: path.to_owned(), can: "read" });
    }
    let finished = match path.split_once('/') {
        None if path == "tick_ms" => set_tick(target, value)?,
        None => set_hooking(target, truth(pid, path, value)?)?,
        Some((patch, "force")) => match truth(pid, path, value)? {
            true => disable::act(target, patch, Action::Force, context)?.moved.finished,
            false => true,
        },
        Some((patch, _)) => set_enabled(target, patch, truth(pid, path, value)?, context)?,
    };
    Ok(Written { path: path.to_owned(), value: value.to_owned(), finished })
}

fn truth(pid: i32, path: &str, value: &str) -> Result<bool, Error> {
    let wrong = || Error::AttributeValue {
        pid,
        path: path.to_owned(),
        value: value.to_owned(),
        wanted: "0 or 1 (also n, y, off, on)".into(),
    };
    boolean(value).ok_or_else(wrong)
}

/// `enabled`: 0 takes the patch off or turns its coming round, 1 turns its going round.
fn set_enabled(target: &Target, name: &str, wanted: bool, context: &Context<'_>) -> Result<bool, Error> {
    let pid = target.pid();
    let books = books::read(target, runtime::block(target)?)?;
    let patch = books.patch(name).ok_or_else(|| Error::NotEnabled { pid, name: name.to_owned() })?;
    if books.as_runtime().is_enabled(&patch.row) == wanted {
        let (name, value) = (name.to_owned(), u8::from(wanted));
        return Err(Error::Unchanged { pid, path: format!("{name}/enabled"), value });
    }
    let going = books.transition.is_some_and(|t| t.patch == patch.row.id && t.target == UNPATCHING);
    let action = match wanted {
        false => Action::Disable,
        true if going => Action::Reverse,
        true => return Err(Error::NotInTransition { pid, name: name.to_owned() }),
    };
    Ok(disable::act(target, name, action, context)?.moved.finished)
}

fn set_hooking(target: &Target, on: bool) -> Result<bool, Error> {
    let _alone = Exclusive::take(target)?;
    let block = runtime::block(target)?;
    let books = books::read(target, block)?;
    if !on && !books.patches.is_empty() {
        let patches = books.patches.iter().map(|p| p.name.clone()).collect();
        return Err(Error::HookingInUse { pid: target.pid(), patches });
    }
    books::write_word(target, block, offset_of!(RuntimeBlock, hooking_off), u32::from(!on))?;
    Ok(true)
}

fn set_tick(target: &Target, value: &str) -> Result<bool, Error> {
    let wrong = || Error::AttributeValue {
        pid: target.pid(),
        path: "tick_ms".into(),
        value: value.to_owned(),
        wanted: format!("a number from 1 to {LONGEST_TICK}"),
    };
    let length: u32 = value.trim_end_matches('\n').parse().map_err(|_| wrong())?;
    if !(1..=LONGEST_TICK).contains(&length) {
        return Err(wrong());
    }
    let block = runtime::block(target)?;
    books::write_word(target, block, offset_of!(RuntimeBlock, tick_ms), length)?;
    Ok(true)
}

#[cfg(test)]
mod tests;
