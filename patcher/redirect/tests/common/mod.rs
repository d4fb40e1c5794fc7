//! Builds small objects, loads them into this process, and installs plans in it.
//!
//! The worker of the runtime does this in earnest; here the same plan is carried out with plain
//! system calls, so that the planner is tested by what the processor makes of its bytes.
#![allow(dead_code)]

pub mod machine;

use std::ffi::CString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use suture_abi::batch::{MAPPING_FILE, Site};
use suture_elf::{Addr, Base, MapsSnapshot, Memory, MemoryError, ObjectFile};
use suture_redirect::{
    LoadedObject, ObjectAnalysis, Options, PlanError, PlannedSite, ProcessView, RedirectPlan, Request,
    plan_sites,
};

/// Compiles one source file to a shared object and returns its path.
pub fn build(source: &str, extension: &str, flags: &[&str]) -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let stem = format!("redirect-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let (from, to) = (dir.join(format!("{stem}.{extension}")), dir.join(format!("{stem}.so")));
    std::fs::write(&from, source).unwrap();
    let compiler = if extension == "cc" { "g++" } else { "gcc" };
    let out = Command::new(compiler)
        .args(["-shared", "-fPIC", "-Wl,-z,noexecstack", "-o"])
        .args([&to, &from])
        .args(flags)
        .output()
        .expect("gcc is installed");
    assert!(out.status.success(), "{}\n{source}", String::from_utf8_lossy(&out.stderr));
    std::fs::remove_file(from).unwrap();
    to
}

/// Assembly source of one function with unwind information.
pub fn function(name: &str, body: &str) -> String {
    format!(
        ".text\n.p2align 4\n.globl {name}\n.type {name},@function\n{name}:\n.cfi_startproc\n{body}\n\
         .cfi_endproc\n.size {name},.-{name}\n"
    )
}

/// A shared object loaded into this process, for the life of the process.
pub struct Loaded {
    pub object: LoadedObject,
    handle: usize,
}

/// Memory of this process.
pub struct OwnMemory;

impl Memory for OwnMemory {
    fn read(&self, addr: Addr, buf: &mut [u8]) -> Result<(), MemoryError> {
        let local = libc::iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: buf.len() };
        let remote = libc::iovec { iov_base: addr.0 as *mut libc::c_void, iov_len: buf.len() };
        // SAFETY: `local` is the caller's buffer; the kernel checks `remote`.
        let got = unsafe { libc::process_vm_readv(libc::getpid(), &local, 1, &remote, 1, 0) };
        let whole = usize::try_from(got).is_ok_and(|n| n == buf.len());
        if whole { Ok(()) } else { Err(MemoryError { addr, len: buf.len() }) }
    }
}

impl Loaded {
    pub fn open(path: &Path) -> Self {
        let name = CString::new(path.to_str().unwrap()).unwrap();
        // SAFETY: the object was built by this test and has no constructors.
        let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        assert!(!handle.is_null(), "dlopen {}", path.display());
        // Before the file is opened: that maps it a second time.
        let maps = own_maps();
        let file = ObjectFile::open(path).unwrap();
        let first = maps.regions.iter().find(|r| r.path.as_deref() == path.to_str()).unwrap();
        let base = Base(first.start - (file.segments()[0].addr.0 & !0xfff));
        Self { object: LoadedObject { analysis: ObjectAnalysis::new(&file), base }, handle: handle as usize }
    }

    pub fn assembled(source: &str) -> Self {
        Self::open(&build(source, "s", &["-nostdlib", "-Wl,-Bsymbolic"]))
    }

    pub fn address(&self, name: &str) -> u64 {
        let name = CString::new(name).unwrap();
        // SAFETY: the handle is open and the name is terminated.
        let at = unsafe { libc::dlsym(self.handle as *mut libc::c_void, name.as_ptr()) };
        assert!(!at.is_null(), "{name:?}");
        at as u64
    }

    pub fn request(&self, name: &str) -> Request {
        // Not by dlsym: that calls resolvers.
        let symbol = self.object.analysis.file().symbols().named(name).next();
        let entry = symbol.unwrap_or_else(|| panic!("no symbol {name}")).addr;
        Request { object: 0, entry, name: name.to_owned(), replacement: None }
    }

    pub fn plan(&self, names: &[&str], options: &Options) -> Result<RedirectPlan, PlanError> {
        let requests: Vec<Request> = names.iter().map(|n| self.request(n)).collect();
        let maps = own_maps();
        let view = ProcessView { maps: Some(&maps), memory: Some(&OwnMemory), ..ProcessView::default() };
        plan_sites(std::slice::from_ref(&self.object), &requests, &view, options)
    }
}

pub fn own_maps() -> MapsSnapshot {
    MapsSnapshot::parse(&std::fs::read_to_string("/proc/self/smaps").unwrap()).unwrap()
}

/// Maps everything of a plan and lets each slot point at its copy.
pub fn map(plan: &RedirectPlan) {
    for mapping in &plan.mappings {
        let (addr, len) = (mapping.addr as *mut libc::c_void, mapping.len as usize);
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
        // SAFETY: NOREPLACE never touches an existing mapping.
        let got = unsafe { libc::mmap(addr, len, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
        assert_eq!(got, addr, "mapping at {:#x}", mapping.addr);
        if mapping.kind == MAPPING_FILE {
            let bytes = &plan.blob[mapping.offset as usize..][..len];
            // SAFETY: the mapping was made just now, writable, of that length.
            unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), addr.cast(), len) };
        }
        // SAFETY: the whole of the mapping made above.
        assert_eq!(unsafe { libc::mprotect(addr, len, mapping.final_prot as i32) }, 0);
    }
    for planned in &plan.sites {
        set_slot(&planned.site, planned.site.copy);
    }
}

pub fn set_slot(site: &Site, to: u64) {
    assert_eq!(site.slot % 8, 0);
    // SAFETY: an aligned word in a writable mapping of the plan.
    unsafe { (site.slot as *mut u64).write_volatile(to) };
}

fn writable(addr: u64) {
    let page = (addr & !0xfff) as *mut libc::c_void;
    let prot = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
    // SAFETY: text of an object this test loaded; only the protection changes.
    assert_eq!(unsafe { libc::mprotect(page, 0x2000, prot) }, 0);
}

/// Makes the stores of a site, the padding first.
pub fn arm(planned: &PlannedSite) {
    let site = &planned.site;
    writable(site.site.min(site.store_addr));
    if site.pad_len > 0 {
        writable(site.pad_addr);
        let pad = site.pad_addr as *mut u8;
        for (i, byte) in site.pad_new[..usize::from(site.pad_len)].iter().enumerate() {
            // SAFETY: padding between two functions, made writable above.
            unsafe {
                assert_eq!(pad.add(i).read_volatile(), site.pad_old[i]);
                pad.add(i).write_volatile(*byte);
            }
        }
    }
    store(site, site.old_word, site.new_word);
}

/// Takes the store back, and then the jump in the padding.
pub fn disarm(planned: &PlannedSite) {
    let site = &planned.site;
    store(site, site.new_word, site.old_word);
    for (i, byte) in site.pad_old[..usize::from(site.pad_len)].iter().enumerate() {
        // SAFETY: padding that `arm` made writable.
        unsafe { (site.pad_addr as *mut u8).add(i).write_volatile(*byte) };
    }
}

fn store(site: &Site, from: u64, to: u64) {
    // SAFETY: made writable by `arm`; the word is aligned, the byte needs no alignment.
    unsafe {
        if site.store_len == 1 {
            let at = site.store_addr as *mut u8;
            assert_eq!(at.read_volatile(), from as u8);
            at.write_volatile(to as u8);
        } else {
            assert_eq!((site.store_len, site.store_addr % 8), (8, 0));
            let at = site.store_addr as *mut u64;
            assert_eq!(at.read_volatile(), from);
            at.write_volatile(to);
        }
    }
}

/// Calls a function of two integers.
pub fn call(addr: u64, a: u64, b: u64) -> u64 {
    // SAFETY: the callers pass entries or copies of functions with this signature.
    let function: extern "C" fn(u64, u64) -> u64 = unsafe { std::mem::transmute(addr as usize) };
    function(a, b)
}

/// Runs `work` in a forked child; `Err` says how it died or what it complained of.
pub fn in_child(work: impl FnOnce() -> Result<(), String>) -> Result<(), String> {
    let mut pipe = [0; 2];
    // SAFETY: an array of two descriptors.
    assert_eq!(unsafe { libc::pipe(pipe.as_mut_ptr()) }, 0);
    // SAFETY: the child only runs `work` and leaves by `_exit`; a hang ends with the alarm.
    let child = unsafe { libc::fork() };
    assert!(child >= 0);
    if child == 0 {
        // SAFETY: plain system call.
        unsafe { libc::alarm(20) };
        let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        let said = match caught {
            Ok(Ok(())) => String::new(),
            Ok(Err(why)) => why,
            Err(_) => "panic".to_owned(),
        };
        // SAFETY: the text is alive; the child ends here.
        unsafe {
            libc::write(pipe[1], said.as_ptr().cast(), said.len());
            libc::_exit(i32::from(!said.is_empty()));
        }
    }
    let mut said = vec![0u8; 4096];
    // SAFETY: descriptors of this process, a buffer of that length.
    let got = unsafe {
        libc::close(pipe[1]);
        let got = libc::read(pipe[0], said.as_mut_ptr().cast(), said.len());
        libc::close(pipe[0]);
        got
    };
    let mut status = 0;
    // SAFETY: waits for the child made above.
    unsafe { libc::waitpid(child, &mut status, 0) };
    said.truncate(usize::try_from(got).unwrap_or(0));
    if libc::WIFSIGNALED(status) {
        return Err(format!("died of signal {}", libc::WTERMSIG(status)));
    }
    if status == 0 { Ok(()) } else { Err(String::from_utf8_lossy(&said).into_owned()) }
}

/// Installs the plan of one function in a child and compares: the original, the entry with its slot on
/// the copy, the copy called directly, and the entry after the store was taken back.
pub fn same_behaviour(loaded: &Loaded, plan: &RedirectPlan, name: &str) -> Result<(), String> {
    let entry = loaded.address(name);
    in_child(|| {
        let seeds = [0, 1, 7, 0x1234_5678, u64::MAX - 3];
        let before: Vec<_> = seeds.iter().map(|s| machine::run(entry, *s)).collect();
        let planned = &plan.sites[0];
        let compare = |what: &str, at: u64| {
            for (seed, expected) in seeds.iter().zip(&before) {
                let found = machine::run(at, *seed);
                if found != *expected {
                    return Err(format!("{what}, seed {seed:#x}: {found:x?} instead of {expected:x?}"));
                }
            }
            Ok(())
        };
        map(plan);
        compare("copy before the store", planned.site.copy)?;
        arm(planned);
        compare("entry with its slot on the copy", entry)?;
        compare("copy behind the store", planned.site.copy)?;
        set_slot(&planned.site, marker as *const () as u64);
        if call(entry, 20, 3) != 17 {
            return Err("the new function was not reached".into());
        }
        disarm(planned);
        compare("entry after the store was taken back", entry)
    })
}

/// A new function that is told by its result.
pub extern "C" fn marker(a: u64, b: u64) -> u64 {
    a - b
}
