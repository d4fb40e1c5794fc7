//! Linking into installed servers: large programs nobody built for patching.

mod common;

use common::{ProcessMemory, dir, open_file, patch};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use suture_elf::MapsSnapshot;
use suture_link::{Facts, LinkOptions, ProcessView};

/// A server that is stopped when the test ends.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn facts(pid: u32) -> Option<Facts> {
    let proc = Path::new("/proc").join(pid.to_string());
    Some(Facts {
        auxv: std::fs::read(proc.join("auxv")).ok()?,
        exe: std::fs::read_link(proc.join("exe")).ok()?.to_str()?.to_owned(),
        maps: MapsSnapshot::parse(&std::fs::read_to_string(proc.join("maps")).ok()?).ok()?,
    })
}

#[test]
fn redis_is_linked_against_with_its_own_allocator() {
    let program = "/usr/bin/redis-server";
    if !Path::new(program).exists() {
        return eprintln!("skipped: no {program}");
    }
    let mut command = Command::new(program);
    command.args(["--port", "0", "--save", "", "--unixsocket"]).arg(dir().join("redis.sock"));
    command.current_dir(dir()).stdin(Stdio::null());
    let server = Server(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    let memory = ProcessMemory(i32::try_from(server.0.id()).unwrap());
    // The server is there once its loader's books can be read and it has loaded what it needs.
    let deadline = Instant::now() + Duration::from_secs(20);
    let view = loop {
        let read = facts(server.0.id()).map(|facts| ProcessView::read(&memory, facts, &open_file));
        match read {
            Some(Ok(view)) if view.objects.len() > 5 && view.objects[0].path == program_path(program) => {
                break view;
            }
            other => assert!(Instant::now() < deadline, "{other:?}"),
        }
        std::thread::yield_now();
    };
    let source = r#"
        #include <stdlib.h>
        #include <string.h>
        #include <errno.h>
        #include <suture.h>
        static void fixed(void *c) { char *p = malloc(9); memcpy(p, "x", 2); errno = strlen(p) == 1 && c; free(p); }
        SUTURE_PATCH("redis", SUTURE_OBJECT(SUTURE_MAIN, SUTURE_FUNC("pingCommand", fixed)));
    "#;
    let file = patch("patch-redis", "gcc", source, &["-fno-builtin"]);
    let plan = match suture_link::link(&view, &file, &LinkOptions::default()) {
        Ok(plan) => plan,
        // Debian's build is stripped: then `pingCommand` can only be refused in these words.
        Err(error) => {
            assert!(error.to_string().contains("is stripped of the others"), "{error}");
            return eprintln!("skipped the plan: {program} has no symbols here");
        }
    };
    let malloc = plan.bound.iter().find(|b| b.name == "malloc").unwrap();
    let jemalloc = view.objects.iter().find(|o| o.name.starts_with("libjemalloc"));
    let expected = jemalloc.map_or("libc.so.6", |o| o.name.as_str());
    assert_eq!(malloc.object.as_deref(), Some(expected));
    let mut best = (Duration::MAX, Duration::MAX);
    for _ in 0..10 {
        let start = Instant::now();
        let view = ProcessView::read(&memory, facts(server.0.id()).unwrap(), &open_file).unwrap();
        let read = start.elapsed();
        suture_link::link(&view, &file, &LinkOptions::default()).unwrap();
        best = (best.0.min(read), best.1.min(start.elapsed() - read));
    }
    println!(
        "{} objects: read {:?}, link {:?} (best of 10, not an optimised build)",
        view.objects.len(),
        best.0,
        best.1
    );
}

fn program_path(program: &str) -> String {
    std::fs::canonicalize(program).unwrap().to_str().unwrap().to_owned()
}
