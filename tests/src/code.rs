//! Live code against the files it came from.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use suture_elf::{MapsSnapshot, ObjectFile, Vaddr};

/// Bytes of an entry that are compared.
const ENTRY: u64 = 16;

/// A stretch of code that is not the file's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Mapped file.
    pub file: String,
    /// Offset in it.
    pub offset: u64,
    /// The live bytes.
    pub live: Vec<u8>,
    /// The file's.
    pub original: Vec<u8>,
}

/// The memory map of a process.
///
/// # Panics
/// When it cannot be read.
#[must_use]
pub fn maps(pid: i32) -> MapsSnapshot {
    let text = fs::read_to_string(format!("/proc/{pid}/maps")).expect("a memory map");
    MapsSnapshot::parse(&text).expect("a memory map")
}

/// Every stretch of file-backed executable memory whose bytes are not those of the file.
///
/// # Panics
/// When the process or a file cannot be read.
#[must_use]
pub fn changes(pid: i32) -> Vec<Change> {
    let memory = fs::File::open(format!("/proc/{pid}/mem")).expect("the process's memory");
    let mut changes = Vec::new();
    for region in maps(pid).regions.iter().filter(|r| r.exec && r.inode != 0) {
        let name = region.path.clone().unwrap_or_default();
        // Mappings of the runtime's own memfds have no file to compare with.
        let Ok(file) = fs::File::open(&name) else { continue };
        let mut live = vec![0; usize::try_from(region.end - region.start).expect("a mapping fits memory")];
        memory.read_exact_at(&mut live, region.start).expect("mapped code");
        let mut original = vec![0; live.len()];
        let in_file = read_up_to(&file, &mut original, region.offset);
        let differs: Vec<usize> = (0..in_file).filter(|&i| live[i] != original[i]).collect();
        // One change per run of differing bytes.
        for run in differs.chunk_by(|a, b| a + 1 == *b) {
            let range = run[0]..run[run.len() - 1] + 1;
            changes.push(Change {
                file: name.clone(),
                offset: region.offset + run[0] as u64,
                live: live[range.clone()].to_vec(),
                original: original[range].to_vec(),
            });
        }
    }
    changes
}

fn read_up_to(file: &fs::File, buffer: &mut [u8], offset: u64) -> usize {
    let mut done = 0;
    while done < buffer.len() {
        match file.read_at(&mut buffer[done..], offset + done as u64) {
            Ok(0) | Err(_) => break,
            Ok(n) => done += n,
        }
    }
    done
}

fn object(path: &Path) -> ObjectFile {
    ObjectFile::open(path).unwrap_or_else(|e| panic!("{e}"))
}

fn function(object: &ObjectFile, name: &str) -> (Vaddr, u64) {
    let functions = object.symbols().functions_named(name);
    assert_eq!(functions.len(), 1, "functions named {name} in {}", object.path());
    (functions[0].addr, functions[0].size)
}

/// Where a function of a file begins in a process.
///
/// # Panics
/// When there is no such function, or the file is not mapped.
#[must_use]
pub fn address(pid: i32, path: &Path, name: &str) -> u64 {
    let object = object(path);
    let (addr, _) = function(&object, name);
    let segment = object.segments().iter().find(|s| s.backs(addr)).expect("a segment with the function");
    let offset = addr.0 - segment.addr.0 + segment.offset;
    let maps = maps(pid);
    let is_there = |r: &&suture_elf::Region| {
        r.path.as_deref() == path.to_str() && (r.offset..r.offset + (r.end - r.start)).contains(&offset)
    };
    let region = maps.regions.iter().find(|r| r.exec && is_there(r));
    let region = region.unwrap_or_else(|| panic!("{} is not mapped in process {pid}", path.display()));
    region.start + (offset - region.offset)
}

/// Offset of a function in its file.
///
/// # Panics
/// When there is no such function.
#[must_use]
pub fn file_offset(path: &Path, name: &str) -> u64 {
    let object = object(path);
    let (addr, _) = function(&object, name);
    let segment = object.segments().iter().find(|s| s.backs(addr)).expect("a segment with the function");
    addr.0 - segment.addr.0 + segment.offset
}

/// First bytes of a function, at most as many as it has, in a process.
///
/// # Panics
/// When there is no such function.
#[must_use]
pub fn live_entry(pid: i32, path: &Path, name: &str) -> Vec<u8> {
    let (_, size) = function(&object(path), name);
    read(pid, address(pid, path, name), usize::try_from(size.min(ENTRY)).expect("small"))
}

/// The same bytes of the file.
///
/// # Panics
/// When there is no such function.
#[must_use]
pub fn file_entry(path: &Path, name: &str) -> Vec<u8> {
    let object = object(path);
    let (addr, size) = function(&object, name);
    object.bytes_at(addr, size.min(ENTRY)).expect("a function's bytes").to_vec()
}

/// Memory of a process.
///
/// # Panics
/// When it cannot be read.
#[must_use]
pub fn read(pid: i32, addr: u64, len: usize) -> Vec<u8> {
    let memory = fs::File::open(format!("/proc/{pid}/mem")).expect("the process's memory");
    let mut bytes = vec![0; len];
    memory.read_exact_at(&mut bytes, addr).unwrap_or_else(|e| panic!("cannot read {addr:#x} of {pid}: {e}"));
    bytes
}

/// Writes memory of a process, code included, as a debugger does.
///
/// # Panics
/// When it cannot be written.
pub fn write(pid: i32, addr: u64, bytes: &[u8]) {
    let memory = fs::OpenOptions::new().write(true).open(format!("/proc/{pid}/mem"));
    let memory = memory.expect("the process's memory");
    memory.write_all_at(bytes, addr).unwrap_or_else(|e| panic!("cannot write {addr:#x} of {pid}: {e}"));
}
