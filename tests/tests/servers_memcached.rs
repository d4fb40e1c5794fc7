//! Debian's memcached, which has no symbols: its functions are named by build-id, offset and bytes.

use std::path::{Path, PathBuf};
use suture_elf::{ObjectFile, Vaddr};
use suture_tests::command::{apply, disable, suture};
use suture_tests::dist::root;
use suture_tests::server::memcached::Memcached;
use suture_tests::{Lab, Snapshot, code, report};

/// What the sample says, to be replaced when the distribution has another build.
const BUILD_ID: &str = "cb4951e778913a1598cb9fa92e8c377dfc545320";
const OFFSET: &str = "0xccc0";
const BYTES: &str = "41544989fc554889";

struct Program {
    path: PathBuf,
    file: ObjectFile,
}

impl Program {
    fn of(server: &Memcached) -> Self {
        let path = std::fs::read_link(format!("/proc/{}/exe", server.pid())).expect("the server's program");
        let file = ObjectFile::open(&path).expect("the server's program");
        Self { path, file }
    }

    fn build_id(&self) -> String {
        self.file.build_id().expect("a build-id").to_string()
    }

    fn code(&self) -> (Vaddr, &[u8]) {
        let text = self.file.segments().iter().find(|s| s.executable()).expect("code");
        (text.addr, self.file.bytes_at(text.addr, text.filesz).expect("code"))
    }

    /// The function that sends a line: where `process_command` has `lea line(%rip),%rsi` with the answer
    /// to `version`, it jumps to the end of that function, whose last jump is a tail call of it.
    fn out_string(&self) -> Vaddr {
        let line = b"VERSION 1.";
        let data = self.file.segments().iter().filter(|s| !s.executable());
        let mut at = data.filter_map(|s| {
            let bytes = self.file.bytes_at(s.addr, s.filesz)?;
            bytes.windows(line.len()).position(|w| w == line).map(|i| s.addr + i as u64)
        });
        let line = at.next_back().expect("the answer to version");
        let (text, bytes) = self.code();
        let target = |i: usize| {
            let distance = i32::from_le_bytes(bytes[i..i + 4].try_into().expect("four bytes"));
            (text.0 + i as u64 + 4).wrapping_add_signed(i64::from(distance))
        };
        let loads = |i: &usize| bytes[*i..].starts_with(&[0x48, 0x8d, 0x35]) && target(*i + 3) == line.0;
        let load = (0..bytes.len() - 16).find(loads).expect("where the answer is loaded");
        assert_eq!(bytes[load + 7], 0xe9, "a jump behind it");
        let end = usize::try_from(target(load + 8) - text.0).expect("an offset");
        // The way out of a function: add to rsp, move, pops, and the tail call.
        let call = (end..end + 64).find(|&i| bytes[i] == 0xe9).expect("a tail call");
        Vaddr(target(call + 1))
    }

    fn bytes(&self, at: Vaddr) -> String {
        let bytes = self.file.bytes_at(at, 8).expect("code");
        bytes.iter().map(|b| format!("{b:02x}")).collect()
    }

    /// The sample's text, for this build.
    fn sample(&self) -> String {
        let text = std::fs::read_to_string(root().join("samples/memcached-version.c")).expect("the sample");
        let at = self.out_string();
        let now = [self.build_id(), format!("{:#x}", at.0), self.bytes(at)];
        if now[0] == BUILD_ID {
            assert_eq!(now, [BUILD_ID, OFFSET, BYTES], "the sample is of this build");
        }
        text.replace(BUILD_ID, &now[0]).replace(OFFSET, &now[1]).replace(BYTES, &now[2])
    }
}

/// Whether the entry of the patched function is the file's.
fn is_original(server: &Memcached, program: &Program) -> bool {
    let at = program.out_string();
    let place =
        |c: &code::Change| Path::new(&c.file) == program.path && (at.0..at.0 + 16).contains(&c.offset);
    !code::changes(server.pid()).iter().any(place)
}

/// Connections come and go; what belongs to the server itself stays.
fn without_connections(pid: i32) -> Snapshot {
    let mut picture = Snapshot::of(pid);
    picture.fds.retain(|_, leads_to| !leads_to.starts_with("socket:"));
    picture
}

#[test]
fn a_function_without_a_symbol_is_patched_and_comes_back() {
    let lab = Lab::new();
    let server = Memcached::start(&lab);
    let program = Program::of(&server);
    let patch = lab.patch("memcached-version", &program.sample());
    let old = server.command("version");
    assert!(old.starts_with("VERSION 1."), "{old}");
    for _ in 0..5 {
        apply(&patch, server.pid()).expect(0);
        assert_eq!(server.command("version"), "VERSION patched");
        assert_eq!(server.command("no such command"), "ERROR", "other lines go through the old function");
        assert!(!is_original(&server, &program));
        disable("memcached-version", server.pid()).expect(0);
        assert_eq!(server.command("version"), old);
        assert!(is_original(&server, &program));
    }
}

#[test]
fn it_is_shown_by_its_offset() {
    let lab = Lab::new();
    let server = Memcached::start(&lab);
    let program = Program::of(&server);
    let patch = lab.patch("memcached-version", &program.sample());
    let name = format!("+{:#x}", program.out_string().0);
    let shown = suture(&["info", &patch.to_string_lossy()]).expect(0).stdout.clone();
    assert!(shown.contains(&name) && shown.contains(&program.build_id()), "{shown}");
    let pid = server.pid().to_string();
    let planned = suture(&["check", &patch.to_string_lossy(), "--pid", &pid]).expect(0).stdout.clone();
    assert!(planned.contains(&name), "{planned}");
    apply(&patch, server.pid()).expect(0);
    let status = report::status(server.pid());
    assert_eq!(status["patches"][0]["functions"][0]["name"], name.as_str(), "{status:#}");
}

#[test]
fn another_place_or_build_is_refused_by_name() {
    let lab = Lab::new();
    let server = Memcached::start(&lab);
    let program = Program::of(&server);
    let (text, at) = (program.sample(), program.out_string());
    let (id, offset, bytes) = (program.build_id(), format!("{:#x}", at.0), program.bytes(at));
    let before = without_connections(server.pid());
    let refuses = |name: &str, text: &str, words: &[&str]| {
        apply(&lab.patch(name, text), server.pid()).expect_refused(words);
    };
    let other = "00112233445566778899aabbccddeeff00112233";
    refuses("build", &text.replace(&id, other), &["build-id", other, &id]);
    refuses("bytes", &text.replace(&bytes, "5548"), &["fewer than four"]);
    refuses("text", &text.replace(&bytes, "push"), &["hexadecimal"]);
    let wrong = bytes.replace(&bytes[..2], "ff");
    refuses("wrong", &text.replace(&bytes, &wrong), &[&offset, &bytes, &wrong]);
    // The next instruction, with its own bytes: no function begins there.
    let inside = Vaddr(at.0 + 2);
    let moved = text.replace(&offset, &format!("{:#x}", inside.0)).replace(&bytes, &program.bytes(inside));
    refuses("inside", &moved, &["no function", &format!("{:#x}", inside.0), &offset]);
    let data = program.file.segments().iter().find(|s| s.writable()).expect("data").addr;
    let moved = text.replace(&offset, &format!("{:#x}", data.0));
    refuses("data", &moved, &["no function", &format!("{:#x}", data.0)]);
    let unbound = text.replace("SUTURE_OBJECT_ID(SUTURE_MAIN,", "SUTURE_OBJECT(SUTURE_MAIN,");
    let unbound = unbound.replace(&format!("\"{id}\","), "");
    refuses("unbound", &unbound, &["SUTURE_OBJECT_ID", "one build"]);
    without_connections(server.pid()).assert_untouched(&before);
}
