//! What a command leaves in the target about a patch, for whoever asks later.
//!
//! The runtime keeps these bytes and never looks into them. Names, files and reasons are the
//! command's business; the numbers that decide anything are in the runtime's rows.

use serde::{Deserialize, Serialize};

/// Version of this document.
pub const SCHEMA: u32 = 1;

/// A patch as it was applied.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Absolute path of the patch file.
    pub file: String,
    /// Build-id of the patch file, if it has one.
    pub build_id: Option<String>,
    /// Version of the command that applied it.
    pub command: String,
    /// Objects, in descriptor order.
    pub objects: Vec<ObjectDescription>,
}

/// One object of the patch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectDescription {
    /// Name in the descriptor; `None` = the main executable.
    pub name: Option<String>,
    /// Mapped file; `None` = the object was not loaded.
    pub path: Option<String>,
    /// File by which the object is patched when it is loaded.
    #[serde(default)]
    pub awaited: Option<String>,
    /// Its build-id.
    pub build_id: Option<String>,
    /// Functions, in descriptor order.
    pub functions: Vec<FunctionDescription>,
}

/// One replaced function.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FunctionDescription {
    /// Name in the descriptor.
    pub name: String,
    /// Position among symbols of that name, from 1.
    pub sympos: u64,
    /// Entry of the old function; 0 if its object was not loaded.
    pub old: u64,
    /// Its offset from the load base, where the object may come and go.
    #[serde(default)]
    pub offset: u64,
    /// Entry of the new function, or 0.
    pub new: u64,
}

impl Description {
    /// The bytes that are left in the target.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Reads them back; what a newer command wrote is read as far as it is known.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice(bytes).ok()
    }
}
