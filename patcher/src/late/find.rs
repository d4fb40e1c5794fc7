//! The file of a library that a process has not loaded, as its own loader would find it.

use crate::error::Error;
use crate::target::Target;
use crate::view::Cache;
use std::collections::HashMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use suture_elf::ObjectFile;
use suture_link::ProcessView;

/// Where a loader looks last.
const DEFAULT: [&str; 6] =
    ["/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib64", "/usr/lib64", "/lib", "/usr/lib"];
const DT_RPATH: u64 = 15;
const DT_RUNPATH: u64 = 29;

/// Opens the files that the user gave.
///
/// # Errors
/// When one cannot be read.
pub fn open(paths: &[PathBuf]) -> Result<Vec<ObjectFile>, Error> {
    paths.iter().map(|path| ObjectFile::open(path).map_err(Error::from)).collect()
}

/// Whether a file is what a patch means by a name.
#[must_use]
pub fn is_named(file: &ObjectFile, name: &str) -> bool {
    let path = file.path();
    file.soname() == Some(name) || path == name || path.rsplit('/').next() == Some(name)
}

/// Finds the file: among those the user gave, else where the target's loader looks.
#[must_use]
pub fn find(
    target: &Target,
    view: &ProcessView<'_>,
    name: &str,
    given: &[ObjectFile],
    cache: &Cache,
) -> Option<ObjectFile> {
    if let Some(file) = given.iter().find(|f| is_named(f, name)) {
        return Some(file.clone());
    }
    let candidates = if name.contains('/') { vec![name.to_owned()] } else { places(target, view, name) };
    candidates.iter().find_map(|path| cache.open_path(target.via, path).ok())
}

/// Paths in the order of the loader's search.
fn places(target: &Target, view: &ProcessView<'_>, name: &str) -> Vec<String> {
    let mut directories = run_paths(view);
    directories.extend(environment(target));
    let in_directory = |d: &String| format!("{}/{name}", d.trim_end_matches('/'));
    let mut paths: Vec<String> = directories.iter().map(in_directory).collect();
    let bytes = fs::read(format!("/proc/{}/root/etc/ld.so.cache", target.via)).unwrap_or_default();
    paths.extend(cached(&bytes).remove(name).unwrap_or_default());
    paths.extend(DEFAULT.iter().map(|d| format!("{d}/{name}")));
    paths
}

/// `DT_RUNPATH` and `DT_RPATH` of everything that is loaded: any of it may be the one that asks.
fn run_paths(view: &ProcessView<'_>) -> Vec<String> {
    let mut paths = Vec::new();
    for object in view.objects.iter().filter(|o| !o.vdso) {
        for tag in [DT_RUNPATH, DT_RPATH] {
            let Some(text) = object.file.dynamic_value(tag).and_then(|at| object.file.dynamic_string(at))
            else {
                continue;
            };
            let origin = object.path.rsplit_once('/').map_or("", |(directory, _)| directory);
            let spelled = text.replace("${ORIGIN}", origin).replace("$ORIGIN", origin);
            paths.extend(spelled.split(':').filter(|p| !p.is_empty()).map(str::to_owned));
        }
    }
    paths
}

/// `LD_LIBRARY_PATH` as the process was started with it: the loader looks at no other.
fn environment(target: &Target) -> Vec<String> {
    let bytes = fs::read(format!("/proc/{}/environ", target.via)).unwrap_or_default();
    let value = bytes.split(|b| *b == 0).find_map(|v| v.strip_prefix(b"LD_LIBRARY_PATH="));
    let path = PathBuf::from(std::ffi::OsStr::from_bytes(value.unwrap_or_default()));
    let text = path.to_string_lossy();
    text.split([':', ';']).filter(|p| p.starts_with('/')).map(str::to_owned).collect()
}

/// What `ldconfig` has found, by name (glibc's format 1.1).
fn cached(bytes: &[u8]) -> HashMap<String, Vec<String>> {
    const MAGIC: &[u8] = b"glibc-ld.so.cache1.1";
    const HEADER: usize = 48;
    const ENTRY: usize = 24;
    let mut found: HashMap<String, Vec<String>> = HashMap::new();
    let Some(start) = bytes.windows(MAGIC.len()).step_by(4).position(|w| w == MAGIC).map(|n| n * 4) else {
        return found;
    };
    let bytes = &bytes[start..];
    let word = |at: usize| bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_le_bytes);
    let text = |at: u32| {
        let rest = bytes.get(at as usize..)?;
        let end = rest.iter().position(|b| *b == 0)?;
        Some(String::from_utf8_lossy(&rest[..end]).into_owned())
    };
    let count = word(MAGIC.len()).unwrap_or(0) as usize;
    for entry in (0..count).map(|n| HEADER + n * ENTRY) {
        let Some((key, value)) = word(entry + 4).zip(word(entry + 8)) else { break };
        if let Some((name, path)) = text(key).zip(text(value)) {
            found.entry(name).or_default().push(path);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_of_this_machine_knows_its_c_library() {
        let known = cached(&fs::read("/etc/ld.so.cache").unwrap());
        let paths = &known["libc.so.6"];
        assert!(paths.iter().any(|p| ObjectFile::open(p.as_ref()).is_ok_and(|f| is_named(&f, "libc.so.6"))));
    }

    #[test]
    fn a_damaged_cache_is_an_empty_one() {
        let bytes = fs::read("/etc/ld.so.cache").unwrap();
        for len in [0, 3, 20, 47, 48, 60, 100] {
            assert!(cached(&bytes[..len]).values().flatten().count() < 5);
        }
    }
}
