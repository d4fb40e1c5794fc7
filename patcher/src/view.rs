//! A process as the linker sees it: what is loaded, from which files.

use crate::error::Error;
use crate::sys::proc;
use crate::sys::time::Backoff;
use crate::target::Target;
use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::sync::{Mutex, PoisonError};
use suture_elf::{ElfError, MapsSnapshot, ObjectFile};
use suture_link::{Facts, FileRequest, ProcessError, ProcessView};
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
    /// Looks at a process that loads and unloads all the time.
    const LOOKS: u32 = 200;
    /// Of them, looks at one of which something may be wrong with.
    const DOUBTS: u32 = 20;
    let mut maps = maps;
    let mut backoff = Backoff::default();
    let (mut looks, mut doubts) = (0, 0);
    loop {
        looks += 1;
        let error = match process_once(target, maps, cache) {
            Ok(view) => return Ok(view),
            Err(Failed::Final(error)) => return Err(error),
            Err(Failed::Changing(error)) => error,
            Err(Failed::Doubtful(error)) => {
                doubts += 1;
                error
            }
        };
        if looks == LOOKS || doubts == DOUBTS {
            return Err(error);
        }
        backoff.pause();
        maps = self::maps(target)?;
    }
}

/// Why one look failed.
enum Failed {
    /// Because the loader was at work.
    Changing(Error),
    /// Perhaps because an object was unloaded meanwhile, perhaps for good.
    Doubtful(Error),
    /// For good.
    Final(Error),
}

fn process_once<'t>(
    target: &'t Target,
    maps: MapsSnapshot,
    cache: &Cache,
) -> Result<ProcessView<'t>, Failed> {
    let pid = target.pid();
    let auxv = proc::auxv(target.via).map_err(|e| Failed::Final(Error::from_proc(pid, &e)))?;
    let exe = std::fs::read_link(format!("/proc/{}/exe", target.via)).unwrap_or_default();
    let facts = Facts { auxv, exe: exe.display().to_string(), maps };
    ProcessView::read(&target.memory, facts, &|request| cache.open(target.via, request)).map_err(|e| {
        if let Err(gone) = target.still_there() {
            return Failed::Final(gone);
        }
        let error = Error::Patch { what: format!("process {pid}: {e}"), errno: "EINVAL", hint: None };
        match e {
            ProcessError::Changing => Failed::Changing(error),
            // What was unloaded cannot be read, or something else is there already.
            ProcessError::Memory { .. }
            | ProcessError::Endless { .. }
            | ProcessError::File { .. }
            | ProcessError::Replaced { .. } => Failed::Doubtful(error),
            _ => Failed::Final(error),
        }
    })
}
