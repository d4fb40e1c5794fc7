//! A process as the linker sees it: what is loaded, from which files.

use crate::error::Error;
use crate::sys::proc;
use crate::target::Target;
use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::sync::{Mutex, PoisonError};
use suture_elf::{ElfError, MapsSnapshot, ObjectFile};
use suture_link::{Facts, FileRequest, ProcessView};
use suture_redirect::ObjectAnalysis;

/// Device, inode, size, time of change.
type FileKey = (u64, u64, u64, i64, i64);

/// Files that were opened before, by device, inode, size and time of change: fifty processes of one
/// program share one parsed file and one analysis.
#[derive(Debug, Default)]
pub struct Cache {
    files: Mutex<HashMap<FileKey, ObjectFile>>,
    analyses: Mutex<HashMap<(String, usize), ObjectAnalysis>>,
}

impl Cache {
    fn open(&self, pid: i32, request: &FileRequest<'_>) -> Result<ObjectFile, ElfError> {
        let shown = request.path.to_owned();
        let io = |source| ElfError::Io { path: shown.clone(), source };
        let file = open_mapped(pid, request).map_err(io)?;
        let meta = file.metadata().map_err(io)?;
        let key = (meta.dev(), meta.ino(), meta.size(), meta.ctime(), meta.ctime_nsec());
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = files.get(&key) {
            return Ok(known.clone());
        }
        let object = ObjectFile::from_file(&file, shown.clone())?;
        files.insert(key, object.clone());
        Ok(object)
    }

    /// Opens a file by its path in a process's own file system view.
    ///
    /// # Errors
    /// When there is none, or it is no object file.
    pub fn open_path(&self, pid: i32, path: &str) -> Result<ObjectFile, ElfError> {
        self.open(pid, &FileRequest { path, deleted: false, mapped: 0..0 })
    }

    /// The analysis of a file, made on first use.
    #[must_use]
    pub fn analysis(&self, file: &ObjectFile) -> ObjectAnalysis {
        // Files of one cache are never dropped, so the address of their bytes tells them apart.
        let key = (file.path().to_owned(), file.data().as_ptr().addr());
        let mut analyses = self.analyses.lock().unwrap_or_else(PoisonError::into_inner);
        analyses.entry(key).or_insert_with(|| ObjectAnalysis::new(file)).clone()
    }
}

/// The very file that is mapped, where the kernel gives it to us; else what its path leads to in the
/// process's own file system view. The linker proves the build-id against memory in both cases.
fn open_mapped(pid: i32, request: &FileRequest<'_>) -> std::io::Result<File> {
    let mapped = format!("/proc/{pid}/map_files/{:x}-{:x}", request.mapped.start, request.mapped.end);
    match File::open(mapped) {
        Ok(file) => Ok(file),
        Err(_) => File::open(format!("/proc/{pid}/root{}", request.path)),
    }
}

/// A snapshot of the memory map with what the planners want to know besides.
///
/// # Errors
/// When the process is gone or out of reach.
pub fn maps(target: &Target) -> Result<MapsSnapshot, Error> {
    let mut maps = target.maps()?;
    let hard = proc::limit(target.via, "Max stack size").map_or(u64::MAX, |limit| limit.hard);
    maps.stack_limit = (hard != u64::MAX).then_some(hard);
    Ok(maps)
}

/// Reads what is loaded.
///
/// # Errors
/// When the process is gone, statically linked, or its loader is in the middle of something.
pub fn process<'t>(target: &'t Target, maps: MapsSnapshot, cache: &Cache) -> Result<ProcessView<'t>, Error> {
    let pid = target.pid();
    let auxv = proc::auxv(target.via).map_err(|e| Error::from_proc(pid, &e))?;
    let exe = std::fs::read_link(format!("/proc/{}/exe", target.via)).unwrap_or_default();
    let facts = Facts { auxv, exe: exe.display().to_string(), maps };
    ProcessView::read(&target.memory, facts, &|request| cache.open(target.via, request)).map_err(|e| {
        match target.still_there() {
            Err(gone) => gone,
            Ok(()) => Error::Patch { what: format!("process {pid}: {e}"), errno: "EINVAL", hint: None },
        }
    })
}
