//! What a command leaves in the target about a patch, for whoever asks later.
//!
//! The runtime keeps these bytes and never looks into them. Names, files and reasons are the
//! command's business; the numbers that decide anything are in the runtime's rows.

use serde::{Deserialize, Serialize};
use suture_abi::batch::NamePart;

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

    /// Names of the functions for whoever asks from inside the process.
    #[must_use]
    pub fn name_parts(&self) -> Vec<NamePart> {
        let mut parts = Vec::new();
        for (object, description) in (0..).zip(&self.objects) {
            for function in &description.functions {
                let name = function.directory();
                let mut pieces = name.as_bytes().chunks(size_of_val(&NamePart::default().text)).peekable();
                while let Some(piece) = pieces.next() {
                    let more = u32::from(pieces.peek().is_some());
                    // Where the object may come and go, the site says the offset.
                    let entry = if function.old == 0 { function.offset } else { function.old };
                    let mut part = NamePart { object, more, entry, ..NamePart::default() };
                    part.text.as_flattened_mut()[..piece.len()].copy_from_slice(piece);
                    parts.push(part);
                }
            }
        }
        parts
    }

    /// Reads them back; what a newer command wrote is read as far as it is known.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice(bytes).ok()
    }
}

impl FunctionDescription {
    /// Name of its directory in the tree of attributes.
    #[must_use]
    pub fn directory(&self) -> String {
        format!("{},{}", self.name, self.sympos)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_in_parts() {
        let function = |name: &str, old, offset| FunctionDescription {
            name: name.into(),
            sympos: 2,
            old,
            offset,
            ..FunctionDescription::default()
        };
        let exact = "x".repeat(46);
        let objects = vec![
            ObjectDescription { functions: vec![function("f", 5, 0)], ..ObjectDescription::default() },
            ObjectDescription {
                functions: vec![function(&exact, 0, 7), function(&"y".repeat(60), 9, 9)],
                ..ObjectDescription::default()
            },
        ];
        let parts = Description { objects, ..Description::default() }.name_parts();
        let text =
            |p: &NamePart| String::from_utf8_lossy(p.text.as_flattened()).trim_end_matches('\0').to_owned();
        let shown: Vec<_> = parts.iter().map(|p| (p.object, p.more, p.entry, text(p))).collect();
        let expected = [
            (0, 0, 5, "f,2".into()),
            (1, 0, 7, format!("{exact},2")),
            (1, 1, 9, "y".repeat(48)),
            (1, 0, 9, format!("{},2", "y".repeat(12))),
        ];
        assert_eq!(shown, expected);
    }
}
