//! Builds programs and patches with the system's compilers, runs them, and lets a program carry out
//! a plan by itself (`agent/agent.c`).
#![allow(dead_code, reason = "each test file uses its part")]

use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::OnceLock;
use suture_elf::{Addr, ElfError, MapsSnapshot, Memory, MemoryError, ObjectFile};
use suture_link::{Facts, FileRequest, LinkError, LinkOptions, LinkPlan, ProcessError, ProcessView};

/// A directory that all programs of one test binary are built in.
pub fn dir() -> &'static Path {
    static DIR: OnceLock<tempfile::TempDir> = OnceLock::new();
    DIR.get_or_init(|| tempfile::Builder::new().prefix("suture-link-").tempdir().unwrap()).path()
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// Compiles `source` (C, or C++ where the compiler's name ends in `++`) and returns the output's path.
pub fn compile(name: &str, compiler: &str, source: &str, flags: &[&str]) -> PathBuf {
    let cxx = compiler.ends_with("++");
    let path = dir().join(format!("{name}.{}", if cxx { "cpp" } else { "c" }));
    std::fs::write(&path, source).unwrap();
    let out = dir().join(name);
    let include = repository().join("include");
    let mut command = Command::new(compiler);
    command.arg(&path).args(flags).arg("-I").arg(include).arg("-o").arg(&out).arg("-g0");
    let result = command.output().unwrap_or_else(|e| panic!("{compiler}: {e}"));
    assert!(result.status.success(), "{name}: {command:?}\n{}", String::from_utf8_lossy(&result.stderr));
    out
}

/// Whether a program of that name can be run here.
pub fn have(program: &str) -> bool {
    Command::new(program).arg("--version").output().is_ok_and(|o| o.status.success())
}

/// A patch with the usual options.
pub fn patch(name: &str, compiler: &str, source: &str, flags: &[&str]) -> ObjectFile {
    let mut all = vec!["-O2", "-fPIC", "-shared", "-nostartfiles", "-Wl,--build-id"];
    all.extend(flags);
    ObjectFile::open(&compile(&format!("{name}.so"), compiler, source, &all)).unwrap()
}

/// A host program: `source` with the agent linked in.
pub fn host(name: &str, compiler: &str, source: &str, flags: &[&str]) -> PathBuf {
    let agent = dir().join("agent.o");
    static AGENT: OnceLock<()> = OnceLock::new();
    AGENT.get_or_init(|| {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/agent/agent.c");
        let mut command = Command::new("gcc");
        command.args(["-O1", "-c", "-fPIE", "-Wall", "-Werror"]).arg(source).arg("-o").arg(&agent);
        assert!(command.status().unwrap().success());
    });
    let agent = agent.to_str().unwrap();
    let mut all = vec!["-O1", agent, "-Wl,--export-dynamic-symbol=_dl_find_object", "-Wl,--build-id"];
    all.extend(flags);
    compile(name, compiler, source, &all)
}

/// Memory of a process we may trace.
pub struct ProcessMemory(pub i32);

impl Memory for ProcessMemory {
    fn read(&self, addr: Addr, buf: &mut [u8]) -> Result<(), MemoryError> {
        let local = libc::iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: buf.len() };
        let remote = libc::iovec { iov_base: addr.0 as *mut libc::c_void, iov_len: buf.len() };
        // SAFETY: `local` describes `buf`, which outlives the call; the kernel checks `remote`.
        let got = unsafe { libc::process_vm_readv(self.0, &raw const local, 1, &raw const remote, 1, 0) };
        if usize::try_from(got) == Ok(buf.len()) { Ok(()) } else { Err(MemoryError { addr, len: buf.len() }) }
    }
}

/// A running host program that waits for a plan.
pub struct Host {
    child: Child,
    stdin: Option<ChildStdin>,
    stderr: BufReader<std::process::ChildStderr>,
    memory: ProcessMemory,
}

impl Host {
    /// Starts a host and waits until it is ready.
    pub fn start(program: &Path, env: &[(&str, &str)]) -> Self {
        let mut command = Command::new(program);
        command.envs(env.iter().copied()).env("LD_LIBRARY_PATH", dir());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let memory = ProcessMemory(i32::try_from(child.id()).unwrap());
        let mut host = Self { stdin: child.stdin.take(), child, stderr, memory };
        let line = host.line();
        assert_eq!(line, "ready", "{program:?}");
        host
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.stderr.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    pub fn id(&self) -> i32 {
        self.memory.0
    }

    pub fn facts(&self) -> Facts {
        let proc = PathBuf::from(format!("/proc/{}", self.child.id()));
        let maps = std::fs::read_to_string(proc.join("maps")).unwrap();
        Facts {
            auxv: std::fs::read(proc.join("auxv")).unwrap(),
            exe: std::fs::read_link(proc.join("exe")).unwrap().to_str().unwrap().to_owned(),
            maps: MapsSnapshot::parse(&maps).unwrap(),
        }
    }

    pub fn view(&self) -> Result<ProcessView<'_>, ProcessError> {
        ProcessView::read(&self.memory, self.facts(), &open_file)
    }

    pub fn link(&self, patch: &ObjectFile) -> Result<LinkPlan, LinkError> {
        suture_link::link(&self.view().unwrap(), patch, &LinkOptions::default())
    }

    /// Sends the plan, and returns the first function's result and what the program printed.
    pub fn run(mut self, plan: &LinkPlan, argument: u64) -> (String, String) {
        let message = encode(plan, argument);
        let mut stdin = self.stdin.take().unwrap();
        // A program that dies while it reads says so below.
        let _ = stdin.write_all(&message);
        let mut answer = self.line();
        let mut output = String::new();
        self.child.stdout.take().unwrap().read_to_string(&mut output).unwrap();
        let status = self.child.wait().unwrap();
        if !status.success() {
            answer = format!("{answer} ({status})");
        }
        (answer, output)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn open_file(request: &FileRequest<'_>) -> Result<ObjectFile, ElfError> {
    ObjectFile::open(Path::new(request.path))
}

/// The agent's message: counts, then the tables, then the blob.
fn encode(plan: &LinkPlan, argument: u64) -> Vec<u8> {
    let mut out = Vec::new();
    let mut quad = |words: &[u64]| words.iter().for_each(|w| out.extend(w.to_le_bytes()));
    quad(&[plan.mappings.len() as u64, plan.fixups.len() as u64 + plan.old_refs.len() as u64]);
    quad(&[plan.objects.len() as u64, plan.blob.len() as u64]);
    quad(&[plan.image.start, plan.image.end, plan.image.eh_frame_hdr]);
    quad(&[plan.funcs.first().map_or(0, |f| f.new_addr.0), argument]);
    let pair = |a: u32, b: u32| u64::from(a) | u64::from(b) << 32;
    for m in &plan.mappings {
        quad(&[m.addr, m.len, m.offset, pair(m.kind, m.prot), pair(m.final_prot, m.role)]);
    }
    // Nothing is redirected here, so the old function is still called at its own entry.
    let old = plan.old_refs.iter().map(|r| r.fixup(plan.funcs[r.func].old_addr));
    for f in plan.fixups.iter().copied().chain(old) {
        quad(&[f.place, pair(f.kind, f.object), f.addend]);
    }
    plan.objects.iter().for_each(|o| quad(&[o.row.base]));
    out.extend_from_slice(&plan.blob);
    out
}
