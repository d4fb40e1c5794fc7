//! A patch file, checked as far as it can be without a process.

use crate::error::Error;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use suture_elf::ObjectFile;
use suture_link::{DescriptorError, PatchDescriptor, PatchFile};

/// An opened patch.
#[derive(Debug)]
pub struct Patch {
    /// Absolute path.
    pub path: PathBuf,
    /// The file with its dynamic tables.
    pub file: PatchFile,
    /// What it says it replaces.
    pub descriptor: PatchDescriptor,
}

impl Patch {
    /// Opens and checks a patch file.
    ///
    /// # Errors
    /// Not readable, no ELF file for this machine, damaged, no or a malformed descriptor, or a file
    /// that other users could change under a privileged command.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let shown = path.display().to_string();
        let io = |source| Error::Elf(suture_elf::ElfError::Io { path: shown.clone(), source });
        let file = File::open(path).map_err(io)?;
        let absolute = std::fs::canonicalize(path).map_err(io)?;
        let meta = file.metadata().map_err(io)?;
        trusted(&shown, &meta)?;
        let object = ObjectFile::from_file(&file, shown.clone())?;
        let file = PatchFile::new(&object)?;
        let descriptor = PatchDescriptor::read(&file).map_err(|e| Error::Patch {
            what: format!("{shown}: {e}"),
            errno: descriptor_errno(&e),
            hint: e.hint().map(Into::into),
        })?;
        Ok(Self { path: absolute, file, descriptor })
    }
}

/// A privileged command must not run what somebody else can write.
fn trusted(shown: &str, meta: &std::fs::Metadata) -> Result<(), Error> {
    let Some(why) = distrust(meta) else { return Ok(()) };
    Err(Error::Patch {
        what: format!("{shown} is not trusted by a command that runs as root: {why}"),
        errno: "EACCES",
        hint: Some(format!("chown root {shown} && chmod go-w {shown}")),
    })
}

/// Why a command that runs as root must not believe a file.
#[must_use]
pub(crate) fn distrust(meta: &std::fs::Metadata) -> Option<&'static str> {
    let own = crate::sys::user::own();
    let others_write = meta.mode() & 0o022 != 0 && meta.is_file();
    let foreign_owner = meta.uid() != 0 && meta.uid() != own;
    match (own, others_write, foreign_owner) {
        (0, true, _) => Some("other users can write it"),
        (0, _, true) => Some("it belongs to another user"),
        _ => None,
    }
}

/// errno for a descriptor that is wrong.
#[must_use]
pub fn descriptor_errno(error: &DescriptorError) -> &'static str {
    match error {
        DescriptorError::Duplicate { .. } | DescriptorError::DuplicateObject { .. } => "EEXIST",
        _ => "EINVAL",
    }
}
