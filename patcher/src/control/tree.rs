//! The tree of attributes: names, access, values.
//!
//! | path | access | meaning |
//! |---|---|---|
//! | `hooking` | rw | patches may be enabled |
//! | `tick_ms` | rw | milliseconds between two attempts to complete a transition |
//! | `PATCH/enabled` | rw | write 0: disable, or reverse an unfinished enable; 1: reverse an unfinished disable |
//! | `PATCH/transition` | r | threads are moving to or from it |
//! | `PATCH/force` | w | 1: move the threads that hold the transition up without a look |
//! | `PATCH/replace` | r | it took the place of all patches before it |
//! | `PATCH/stack_order` | r | its position in the list, from 1 |
//! | `PATCH/OBJECT/patched` | r | its functions in that object are in effect |
//! | `PATCH/OBJECT/FUNC,SYMPOS/` | directory | one for each function, empty |
//! | `PATCH/states/ID/holders` | r | listed patches that have the state, oldest first |
//! | `PATCH/states/ID/is_shadow`, `block_disable` | r | its flags |
//! | `PATCH/states/ID/callbacks` | r | the callbacks it has |
//! | `PATCH/last_callback` | r | how the last callback of the patch ended, or that it is running |
//! | `PATCH/pending` | r | threads that hold the transition up, one to a line, with the reason |
//!
//! The main executable is called `main`. All but the last six are the kernel's.

use crate::status::{PatchStatus, ProcessStatus};
use serde::Serialize;

/// Who may do what with an attribute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Access {
    /// Read and write.
    ReadWrite,
    /// Read only.
    Read,
    /// Write only.
    Write,
    /// It holds others.
    Directory,
}

impl Access {
    /// As in a listing.
    #[must_use]
    pub fn letters(self) -> &'static str {
        match self {
            Self::ReadWrite => "rw",
            Self::Read => "r-",
            Self::Write => "-w",
            Self::Directory => "d",
        }
    }

    /// It has a value to read.
    #[must_use]
    pub fn reads(self) -> bool {
        matches!(self, Self::ReadWrite | Self::Read)
    }

    /// It takes a value.
    #[must_use]
    pub fn writes(self) -> bool {
        matches!(self, Self::ReadWrite | Self::Write)
    }
}

/// An attribute or a directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Node {
    /// Path, from the process down.
    pub path: String,
    /// Access.
    pub access: Access,
    /// Value; `None` for directories and what can only be written.
    pub value: Option<String>,
}

/// Every node of a process, directories before what they hold.
#[must_use]
pub fn nodes(status: &ProcessStatus) -> Vec<Node> {
    let mut nodes = Vec::new();
    add(&mut nodes, "hooking", Access::ReadWrite, bit(status.hooking));
    add(&mut nodes, "tick_ms", Access::ReadWrite, status.tick_ms.to_string());
    status.patches.iter().for_each(|patch| of_patch(&mut nodes, status, patch));
    nodes
}

fn of_patch(nodes: &mut Vec<Node>, status: &ProcessStatus, patch: &PatchStatus) {
    let name = &patch.name;
    directory(nodes, name);
    let at = |attribute: &str| format!("{name}/{attribute}");
    add(nodes, &at("enabled"), Access::ReadWrite, bit(patch.enabled));
    add(nodes, &at("transition"), Access::Read, bit(patch.transition));
    nodes.push(Node { path: at("force"), access: Access::Write, value: None });
    add(nodes, &at("replace"), Access::Read, bit(patch.replace));
    add(nodes, &at("stack_order"), Access::Read, patch.stack_order.to_string());
    let last = patch.last_callback.as_ref().map(|c| c.text()).unwrap_or_default();
    add(nodes, &at("last_callback"), Access::Read, last);
    let transition = status.transition.as_ref().filter(|t| t.patch == *name);
    let line = |b: &crate::transition::Blocker| format!("{} {}: {}", b.tid, b.name, b.why);
    let pending: Vec<String> = transition.iter().flat_map(|t| t.blockers.iter().map(line)).collect();
    add(nodes, &at("pending"), Access::Read, pending.join("\n"));
    directory(nodes, &at("states"));
    for state in &patch.states {
        let path = at(&format!("states/{}", state.id));
        directory(nodes, &path);
        add(nodes, &format!("{path}/holders"), Access::Read, state.holders.join(" "));
        add(nodes, &format!("{path}/is_shadow"), Access::Read, bit(state.is_shadow));
        add(nodes, &format!("{path}/block_disable"), Access::Read, bit(state.block_disable));
        add(nodes, &format!("{path}/callbacks"), Access::Read, state.callbacks.join(" "));
    }
    for object in &patch.objects {
        let path = at(&object.name);
        directory(nodes, &path);
        add(nodes, &format!("{path}/patched"), Access::Read, bit(object.patched));
        object.functions.iter().for_each(|f| directory(nodes, &format!("{path}/{f}")));
    }
}

fn add(nodes: &mut Vec<Node>, path: &str, access: Access, value: String) {
    nodes.push(Node { path: path.to_owned(), access, value: Some(value) });
}

fn directory(nodes: &mut Vec<Node>, path: &str) {
    nodes.push(Node { path: path.to_owned(), access: Access::Directory, value: None });
}

fn bit(set: bool) -> String {
    u8::from(set).to_string()
}

/// A truth value in one of the spellings the kernel takes. From inside the process the same are taken.
#[must_use]
pub fn boolean(text: &str) -> Option<bool> {
    suture_runtime::attributes::boolean(text.as_bytes())
}
