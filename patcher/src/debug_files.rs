//! Symbols of stripped objects: their debug files, and what they carry compressed.
//!
//! Places in this order: the debug file that the build-id names, the one that `.gnu_debuglink` names, where gdb
//! looks for it, and `.gnu_debugdata` inside the object. A debug file of another build would name other
//! addresses, and one that others can write could lead a privileged command anywhere: neither is used, and a
//! note says so.

use crate::patch::distrust;
use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::File;
use std::path::Path;
use suture_elf::{BuildId, ObjectFile};
use suture_link::LoadedObject;

/// Where distributions install debug files.
const STORE: &str = "/usr/lib/debug";

/// Looks for the debug files of one process's objects.
#[derive(Debug)]
pub struct DebugFiles {
    /// The process, whose files may be others than ours.
    pid: i32,
    notes: RefCell<Vec<String>>,
    /// What was found for a path and a build-id: a library that may come is looked at in several views of its own.
    found: RefCell<HashMap<(String, BuildId), Option<ObjectFile>>>,
}

/// What proves that a debug file is of the object's build.
#[derive(Clone, Copy)]
enum Proof {
    BuildId,
    Crc(u32),
}

impl DebugFiles {
    /// For the objects of a process.
    #[must_use]
    pub fn of(pid: i32) -> Self {
        Self { pid, notes: RefCell::default(), found: RefCell::default() }
    }

    /// The file with the symbols of an object.
    #[must_use]
    pub fn find(&self, object: &LoadedObject) -> Option<ObjectFile> {
        // Without a build-id nobody could tell that it is the same file again.
        let Some(id) = object.file.build_id() else { return self.look_for(object) };
        let key = (object.path.clone(), id.clone());
        let known = self.found.borrow().get(&key).cloned();
        known.unwrap_or_else(|| {
            let found = self.look_for(object);
            self.found.borrow_mut().insert(key, found.clone());
            found
        })
    }

    fn look_for(&self, object: &LoadedObject) -> Option<ObjectFile> {
        let file = &object.file;
        let by_id =
            file.build_id().and_then(|id| self.open(file, &by_build_id(&id.to_string())?, Proof::BuildId));
        by_id.or_else(|| self.linked(file, &object.path)).or_else(|| self.inside(file))
    }

    /// What was found and not used, and why.
    #[must_use]
    pub fn notes(&self) -> Vec<String> {
        self.notes.take()
    }

    fn linked(&self, file: &ObjectFile, path: &str) -> Option<ObjectFile> {
        let link = file.debug_link()?;
        let folder = Path::new(path).parent()?.display().to_string();
        let name = &link.name;
        let places = [
            format!("{folder}/{name}"),
            format!("{folder}/.debug/{name}"),
            format!("{STORE}{folder}/{name}"),
        ];
        places.iter().find_map(|place| self.open(file, place, Proof::Crc(link.crc)))
    }

    fn inside(&self, file: &ObjectFile) -> Option<ObjectFile> {
        file.mini_debug_info()?.map_err(|error| self.note(format!("{error}; its symbols are not used"))).ok()
    }

    /// A debug file in our own file system view, or in the process's.
    fn open(&self, of: &ObjectFile, path: &str, proof: Proof) -> Option<ObjectFile> {
        let views = [path.to_owned(), format!("/proc/{}/root{path}", self.pid)];
        let file = views.iter().find_map(|view| File::open(view).ok())?;
        self.check(of, &file, path, proof).map_err(|why| self.note(format!("{path} is not used: {why}"))).ok()
    }

    fn check(&self, of: &ObjectFile, file: &File, path: &str, proof: Proof) -> Result<ObjectFile, String> {
        let meta = file.metadata().map_err(|error| error.to_string())?;
        if let Some(why) = distrust(&meta) {
            return Err(format!("{why}, and this command runs as root"));
        }
        let found = ObjectFile::debug_from_file(file, path.to_owned()).map_err(|error| error.to_string())?;
        let id = |file: &ObjectFile| file.build_id().map_or_else(|| "none".to_owned(), ToString::to_string);
        match (proof, found.build_id()) {
            (Proof::BuildId, id) | (Proof::Crc(_), id @ Some(_)) if id != of.build_id() => {}
            (Proof::Crc(crc), _) if found.crc() != crc => {
                return Err(format!(
                    "its checksum is {:08x}, the object's debug link says {crc:08x}",
                    found.crc()
                ));
            }
            _ => return Ok(found),
        }
        Err(format!("it belongs to another build (build-id {}, the object has {})", id(&found), id(of)))
    }

    fn note(&self, text: String) {
        let mut notes = self.notes.borrow_mut();
        if !notes.contains(&text) {
            notes.push(text);
        }
    }
}

/// `/usr/lib/debug/.build-id/ab/cdef….debug`.
fn by_build_id(id: &str) -> Option<String> {
    let (first, rest) = id.split_at_checked(2).filter(|(_, rest)| !rest.is_empty())?;
    Some(format!("{STORE}/.build-id/{first}/{rest}.debug"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_build_id_names_the_file() {
        assert_eq!(by_build_id("abcdef").unwrap(), "/usr/lib/debug/.build-id/ab/cdef.debug");
        assert_eq!(by_build_id("ab"), None);
        assert_eq!(by_build_id(""), None);
    }
}
