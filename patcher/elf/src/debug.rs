//! Symbols that a stripped object keeps elsewhere: in a debug file, or compressed inside itself.

use crate::{ElfError, ObjectFile};
use std::io::{self, Write};

/// What `.gnu_debugdata` may unfold to. Fedora's largest are a few MiB.
const MOST: usize = 256 << 20;

/// What `.gnu_debuglink` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DebugLink {
    /// Name of the debug file, without directories.
    pub name: String,
    /// CRC-32 of its whole content.
    pub crc: u32,
}

impl ObjectFile {
    /// The name and checksum of the debug file, if the object has them.
    #[must_use]
    pub fn debug_link(&self) -> Option<DebugLink> {
        let (_, bytes) = self.section(".gnu_debuglink")?;
        let end = bytes.iter().position(|&b| b == 0)?;
        let name = std::str::from_utf8(&bytes[..end]).ok()?;
        let crc = bytes.get((end + 1).next_multiple_of(4)..)?.first_chunk()?;
        // A name that leads elsewhere is none: it would be joined to directories.
        let plain = !name.is_empty() && !name.contains('/');
        plain.then(|| DebugLink { name: name.to_owned(), crc: u32::from_le_bytes(*crc) })
    }

    /// The checksum that a debug link to this file has.
    #[must_use]
    pub fn crc(&self) -> u32 {
        crc32fast::hash(self.data())
    }

    /// The object inside `.gnu_debugdata` ("mini debuginfo"): `.symtab` without what `.dynsym` has. `None`
    /// when there is no such section.
    ///
    /// # Errors
    /// When it is no xz stream, unfolds to more than 256 MiB, or what it holds is no ELF file.
    pub fn mini_debug_info(&self) -> Option<Result<Self, ElfError>> {
        let (_, packed) = self.section(".gnu_debugdata")?;
        let path = format!("{}[.gnu_debugdata]", self.path());
        Some(match unpack(packed, MOST) {
            Ok(bytes) => Self::debug_from_bytes(bytes, path),
            Err(why) => Err(ElfError::Malformed { path, what: format!("it cannot be unpacked ({why})") }),
        })
    }
}

fn unpack(mut packed: &[u8], most: usize) -> Result<Vec<u8>, String> {
    let mut room = Bounded { bytes: Vec::new(), most };
    match lzma_rs::xz_decompress(&mut packed, &mut room) {
        Ok(()) => Ok(room.bytes),
        Err(lzma_rs::error::Error::IoError(error)) => Err(error.to_string()),
        Err(error) => Err(format!("{error:?}")),
    }
}

/// Takes so many bytes and no more.
struct Bounded {
    bytes: Vec<u8>,
    most: usize,
}

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > self.most {
            return Err(io::Error::other("it unfolds to too much"));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::{Path, PathBuf};
    use std::process::Command;
    use tempfile::TempDir;

    const OWN: &str = "/proc/self/exe";
    const SMALL: &str = "/bin/true";

    /// A stripped program, with a section added.
    fn with_section(dir: &TempDir, of: &str, name: &str, content: &[u8]) -> ObjectFile {
        let (section, program) = (dir.path().join("section"), dir.path().join("program"));
        std::fs::write(&section, content).unwrap();
        let add = format!("{name}={}", section.display());
        // Distributions link their programs to debug files.
        let remove = format!("--remove-section={name}");
        run("objcopy", &["--strip-all", &remove, "--add-section", &add, of], &program);
        ObjectFile::open(&program).unwrap()
    }

    fn run(tool: &str, args: &[&str], output: &Path) {
        // Not /proc/self/exe of the tool.
        let own = std::env::current_exe().unwrap();
        let args = args.iter().map(|a| if *a == OWN { own.as_os_str() } else { a.as_ref() });
        assert!(Command::new(tool).args(args).arg(output).status().unwrap().success());
    }

    fn xz(dir: &TempDir, content: &[u8]) -> Vec<u8> {
        let path: PathBuf = dir.path().join("plain");
        std::fs::write(&path, content).unwrap();
        let done = Command::new("xz").arg("-c").arg(&path).output().unwrap();
        assert!(done.status.success());
        done.stdout
    }

    #[test]
    fn the_inner_object_has_the_symbols_that_were_stripped() {
        let dir = tempfile::tempdir().unwrap();
        let only = dir.path().join("only");
        run("objcopy", &["-S", "--keep-symbol=main", "--only-keep-debug", OWN], &only);
        let inner = std::fs::read(&only).unwrap();
        let outer = with_section(&dir, OWN, ".gnu_debugdata", &xz(&dir, &inner));
        let whole = ObjectFile::open(Path::new(OWN)).unwrap();
        assert!(outer.symbols().functions_named("main").is_empty());
        let found = outer.mini_debug_info().unwrap().unwrap();
        let main = found.symbols().functions_named("main");
        assert_eq!(main[0].addr, whole.symbols().functions_named("main")[0].addr);
        assert!(whole.mini_debug_info().is_none());
    }

    /// elfutils leaves the program headers as they were.
    #[test]
    fn segments_need_not_be_in_a_debug_file() {
        let mut bytes = std::fs::read(SMALL).unwrap();
        let headers = u64::from_le_bytes(*bytes[32..].first_chunk().unwrap()) as usize;
        let count = u16::from_le_bytes(*bytes[56..].first_chunk().unwrap()) as usize;
        for header in (0..count).map(|i| headers + i * 56) {
            let offset = header + 8;
            bytes[offset..offset + 8].copy_from_slice(&(1u64 << 40).to_le_bytes());
        }
        assert!(ObjectFile::from_bytes(bytes.clone(), "x".into()).is_err());
        let whole = ObjectFile::open(Path::new(SMALL)).unwrap();
        let debug = ObjectFile::debug_from_bytes(bytes, "x".into()).unwrap();
        assert!(whole.build_id().is_some());
        assert_eq!(debug.build_id(), whole.build_id());
        assert_eq!(debug.symbols().all().count(), whole.symbols().all().count());
    }

    #[test]
    fn damaged_streams_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let mut cut = xz(&dir, b"\x7fELF and so on");
        cut.truncate(cut.len() - 12);
        for (content, why) in [
            (b"no stream".to_vec(), "cannot be unpacked"),
            (cut, "cannot be unpacked"),
            (xz(&dir, b"text"), "not an ELF file"),
            (xz(&dir, b"\x7fELF"), "damaged"),
        ] {
            let error =
                with_section(&dir, SMALL, ".gnu_debugdata", &content).mini_debug_info().unwrap().unwrap_err();
            let text = error.to_string();
            assert!(text.contains(why) || text.contains("object"), "{text}");
            assert!(text.contains("[.gnu_debugdata]"), "{text}");
        }
    }

    #[test]
    fn bombs_do_not_unfold() {
        let dir = tempfile::tempdir().unwrap();
        let packed = xz(&dir, &vec![0; 1 << 20]);
        assert!(packed.len() < 1000, "{}", packed.len());
        assert_eq!(unpack(&packed, 1 << 20).unwrap().len(), 1 << 20);
        assert_eq!(unpack(&packed, (1 << 20) - 1).unwrap_err(), "it unfolds to too much");
    }

    #[test]
    fn a_link_has_a_name_and_a_checksum() {
        let dir = tempfile::tempdir().unwrap();
        let link = |content: &[u8]| with_section(&dir, SMALL, ".gnu_debuglink", content).debug_link();
        let expected = DebugLink { name: "x.debug".into(), crc: 0x0403_0201 };
        assert_eq!(link(b"x.debug\0\x01\x02\x03\x04"), Some(expected));
        for bad in
            [&b"x.debug"[..], b"x.debug\0\x01\x02", b"\0\0\0\0\x01\x02\x03\x04", b"../x.de\0\x01\x02\x03\x04"]
        {
            assert_eq!(link(bad), None, "{bad:?}");
        }
    }
}
