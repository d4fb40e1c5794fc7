//! Pages of the harness: text under attack, code arenas with their slots, and punned pages that
//! share physical pages of one memfd.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsRawFd as _, FromRawFd as _, RawFd};

use region::Protection;

use crate::error::{Error, Result};

/// Page size of x86-64.
pub const PAGE: u64 = 4096;

/// Maps `len` bytes at exactly `addr`, or fails: never over something that is there.
///
/// `file` is mapped privately from its byte `offset`; without one the pages are anonymous.
pub fn map_at(addr: u64, len: usize, prot: i32, file: Option<(RawFd, u64)>) -> Result<()> {
    let anonymous = if file.is_none() { libc::MAP_ANONYMOUS } else { 0 };
    let flags = libc::MAP_PRIVATE | libc::MAP_FIXED_NOREPLACE | anonymous;
    let (fd, offset) = file.unwrap_or((-1, 0));
    // SAFETY: a new mapping; MAP_FIXED_NOREPLACE never replaces one that exists.
    let got = unsafe { libc::mmap(addr as *mut libc::c_void, len, prot, flags, fd, offset as i64) };
    if got as u64 == addr {
        return Ok(());
    }
    let source = io::Error::last_os_error();
    if got != libc::MAP_FAILED {
        // Old kernels take the address as a hint.
        // SAFETY: the mapping was just made by the call above and nobody knows it.
        unsafe { libc::munmap(got, len) };
    }
    Err(Error::Map { addr, len, source })
}

/// Changes the protection of whole pages.
pub fn protect(addr: u64, len: usize, protection: Protection) -> Result<()> {
    // SAFETY: callers pass pages of the harness or of a victim library, whose code stays executable.
    unsafe { region::protect(addr as *const u8, len, protection) }
        .map_err(|source| Error::Protect { addr, source })
}

/// Copies `bytes` to `addr`.
///
/// # Safety
/// The destination is mapped writable and nobody executes or reads it yet.
pub unsafe fn fill(addr: u64, bytes: &[u8]) {
    // SAFETY: by this function's contract.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), addr as *mut u8, bytes.len()) };
}

/// Bytes of an arena that hold code; the slots lie behind them in their own pages.
const CODE_LEN: u64 = 0x8_0000;
/// Bytes of an arena that hold slots.
const SLOTS_LEN: u64 = 0x1_0000;
/// Address space of an arena.
pub const ARENA_LEN: u64 = CODE_LEN + SLOTS_LEN;

/// Words that belong to one site, in a data page.
#[derive(Clone, Copy, Debug, Default)]
pub struct Slot {
    /// Address of the slot; the words behind it are the dispatcher's.
    pub addr: u64,
}

impl Slot {
    /// Address of the word that tells the dispatcher which side to take.
    pub fn side(self) -> u64 {
        self.addr + 8
    }

    /// Address of the word the dispatcher counts in.
    pub fn passes(self) -> u64 {
        self.addr + 16
    }
}

/// Stubs, copies, dispatchers and slots within reach of a text.
#[derive(Debug)]
pub struct Arena {
    base: u64,
    code: Vec<u8>,
    slots: u64,
}

impl Arena {
    /// Reserves an arena at `base`.
    pub fn at(base: u64) -> Result<Self> {
        map_at(base, ARENA_LEN as usize, libc::PROT_READ | libc::PROT_WRITE, None)?;
        Ok(Self { base, code: Vec::new(), slots: 0 })
    }

    /// Reserves an arena in the first hole within reach of `near`.
    pub fn near(near: u64) -> Result<Self> {
        let start = near & !0xf_ffff;
        let mut last = Self::at(start + 0x100_0000);
        for step in 1..1024 {
            if last.is_ok() {
                break;
            }
            last = Self::at(start - step * 0x10_0000);
        }
        last
    }

    /// Address the next code will get.
    pub fn next_code(&self) -> u64 {
        self.base + self.code.len() as u64
    }

    /// Adds code emitted for [`Self::next_code`]; the next one starts on a 16-byte boundary.
    pub fn push_code(&mut self, code: &[u8]) {
        self.code.extend_from_slice(code);
        self.code.resize(self.code.len().next_multiple_of(16), 0xcc);
        assert!((self.code.len() as u64) < CODE_LEN, "code arena is full");
    }

    /// Takes the next slot; each has a cache line's half for itself.
    pub fn next_slot(&mut self) -> Slot {
        let addr = self.base + CODE_LEN + self.slots * 32;
        self.slots += 1;
        assert!(self.slots * 32 <= SLOTS_LEN, "slot arena is full");
        Slot { addr }
    }

    /// Writes the code and makes it immutable.
    pub fn seal(&mut self) -> Result<()> {
        // SAFETY: `at` mapped these pages writable and no site leads here before the seal.
        unsafe { fill(self.base, &self.code) };
        protect(self.base, CODE_LEN as usize, Protection::READ_EXECUTE)
    }
}

/// Jumps at addresses dictated by the bytes of their sites.
#[derive(Debug, Default)]
pub struct Punned {
    pages: BTreeMap<u64, Vec<(usize, [u8; 5])>>,
}

impl Punned {
    /// Adds `jmp to` at `target`. Fails where the jump would cross a page end.
    pub fn add(&mut self, target: u64, to: u64) -> Result<()> {
        let offset = (target % PAGE) as usize;
        if offset + 5 > PAGE as usize {
            return Err(Error::Site { class: 'J', site: target, reason: "stub straddles a page end" });
        }
        let stubs = self.pages.entry(target - offset as u64).or_default();
        if stubs.iter().any(|(other, _)| other.abs_diff(offset) < 5) {
            return Err(Error::Site { class: 'J', site: target, reason: "stub overlaps another" });
        }
        stubs.push((offset, jump(target, to)?));
        Ok(())
    }

    /// Maps all pages from one memfd, sites with disjoint offsets on shared physical pages. Returns
    /// the numbers of virtual and of physical pages.
    pub fn seal(&self) -> Result<(usize, usize)> {
        let mut physical: Vec<Vec<u8>> = Vec::new();
        let mut used: Vec<Vec<bool>> = Vec::new();
        let mut placed = Vec::new();
        for (&page, stubs) in &self.pages {
            let free = |used: &Vec<bool>| stubs.iter().all(|&(o, _)| used[o..o + 5].iter().all(|u| !u));
            let index = used.iter().position(free).unwrap_or_else(|| {
                physical.push(vec![0xcc; PAGE as usize]);
                used.push(vec![false; PAGE as usize]);
                used.len() - 1
            });
            for &(offset, bytes) in stubs {
                physical[index][offset..offset + 5].copy_from_slice(&bytes);
                used[index][offset..offset + 5].fill(true);
            }
            placed.push((page, index as u64 * PAGE));
        }
        if placed.is_empty() {
            return Ok((0, 0));
        }
        let file = executable_memfd()?;
        let written = (&file).write_all(&physical.concat());
        written.map_err(|source| Error::System { what: "write punned pages", source })?;
        for &(page, offset) in &placed {
            let prot = libc::PROT_READ | libc::PROT_EXEC;
            map_at(page, PAGE as usize, prot, Some((file.as_raw_fd(), offset)))?;
        }
        Ok((placed.len(), physical.len()))
    }
}

/// A memfd whose pages may be executed.
pub fn executable_memfd() -> Result<File> {
    let name = c"suture-stress punned";
    let make = |flags| {
        // SAFETY: the name is a NUL-terminated string.
        unsafe { libc::memfd_create(name.as_ptr(), flags) }
    };
    let mut fd = make(libc::MFD_CLOEXEC | libc::MFD_EXEC);
    if fd < 0 {
        // Kernels before 6.3 do not know MFD_EXEC and make every memfd executable.
        fd = make(libc::MFD_CLOEXEC);
    }
    if fd < 0 {
        return Err(Error::last("create a memfd for punned pages"));
    }
    // SAFETY: the descriptor was just made and belongs to nobody else.
    Ok(unsafe { File::from_raw_fd(fd) })
}

/// Bytes of `jmp to` placed at `from`.
pub fn jump(from: u64, to: u64) -> Result<[u8; 5]> {
    let distance = displacement(from + 5, to)?;
    let mut bytes = [0xe9; 5];
    bytes[1..].copy_from_slice(&distance.to_le_bytes());
    Ok(bytes)
}

/// The 32-bit displacement that leads from the address after an instruction to `to`.
pub fn displacement(from: u64, to: u64) -> Result<i32> {
    i32::try_from(to.wrapping_sub(from).cast_signed()).map_err(|_| Error::Reach { from, to })
}
