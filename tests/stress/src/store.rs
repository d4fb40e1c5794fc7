//! The arming store: the one rule, and the protocols that break it.

use std::fs::{File, OpenOptions};
use std::hint::spin_loop;
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::{
    AtomicU8, AtomicU64,
    Ordering::{Relaxed, Release},
};

use suture_abi::batch::Site;

use crate::error::{Error, Result};

/// How bytes get to their place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Means {
    /// One store instruction.
    Direct,
    /// One pwrite to the process's memory file, as the command does it.
    Pwrite,
}

/// In which steps a site is armed and disarmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// One byte, or one aligned word.
    OneStore,
    /// The changed bytes one after the other, as memcpy may write them.
    ByteByByte,
    /// The second byte of a two-byte store before the first.
    SecondByteFirst,
    /// The slot of a site whose jump is straight changes before the jump is back on its stub.
    SlotFirst,
    /// A displacement that lies in two words is stored in two halves.
    Halves,
    /// `CC` on the first byte, then the rest, then the first byte; a handler finishes traps.
    Int3,
}

/// Makes the stores of one process.
#[derive(Debug)]
pub struct Writer {
    memory: File,
    protocol: Protocol,
}

impl Writer {
    /// Opens this process's own memory.
    pub fn new(protocol: Protocol) -> Result<Self> {
        let opened = OpenOptions::new().read(true).write(true).open("/proc/self/mem");
        let memory = opened.map_err(|source| Error::System { what: "open /proc/self/mem", source })?;
        membarrier(libc::MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED_SYNC_CORE)?;
        Ok(Self { memory, protocol })
    }

    /// Makes the site lead to its stub (`on`) or puts the old bytes back.
    ///
    /// # Safety
    /// The site was planned for code that is mapped, writable when `means` is direct, and its stub
    /// and slot are in place.
    pub unsafe fn set(&self, site: &Site, on: bool, means: Means) -> Result<()> {
        let value = if on { site.new_word } else { site.old_word };
        if matches!(self.protocol, Protocol::OneStore | Protocol::SlotFirst | Protocol::Halves) {
            if means == Means::Pwrite {
                return self.pwrite(site, value);
            }
            // SAFETY: handed on to the caller.
            unsafe { store_direct(site, value) };
            return Ok(());
        }
        let first = (site.site - site.store_addr) as usize;
        let bytes = value.to_le_bytes();
        let changed = (site.old_word ^ site.new_word).to_le_bytes();
        let last = changed.iter().rposition(|&byte| byte != 0).unwrap_or(first);
        let order: Vec<usize> = match self.protocol {
            Protocol::SecondByteFirst => vec![first + 1, first],
            Protocol::Int3 => (first + 1..=last).chain([first]).collect(),
            _ => (first..=last).collect(),
        };
        if self.protocol == Protocol::Int3 {
            // SAFETY: handed on to the caller.
            unsafe { store_byte(site.site, 0xcc) };
            serialize_cores()?;
        }
        for at in order {
            if self.protocol == Protocol::Int3 && at == first {
                serialize_cores()?;
            }
            // SAFETY: handed on to the caller.
            unsafe { store_byte(site.store_addr + at as u64, bytes[at]) };
            if self.protocol == Protocol::SecondByteFirst {
                // A writer may be interrupted here; a little of that keeps the control short.
                (0..16).for_each(|_| spin_loop());
            }
        }
        Ok(())
    }

    /// Replaces the displacement at `place` in one store, or in two where it lies in two words.
    ///
    /// # Safety
    /// As [`Self::set`], for the one or two words.
    pub unsafe fn aim(&self, place: u64, displacement: u32, means: Means) -> Result<()> {
        let shift = place % 8 * 8;
        let (mask, value) = (u128::from(u32::MAX) << shift, u128::from(displacement) << shift);
        let words = if shift <= 32 { 1 } else { 2 };
        for half in 0..words {
            let word = (place & !7) + 8 * half;
            let (mask, value) = ((mask >> (64 * half)) as u64, (value >> (64 * half)) as u64);
            // SAFETY: handed on to the caller; text is written by one thread.
            let live = unsafe { AtomicU64::from_ptr(word as *mut u64) }.load(Relaxed);
            let new = live & !mask | value;
            if means == Means::Pwrite {
                self.pwrite_at(word, &new.to_le_bytes())?;
            } else {
                // SAFETY: handed on to the caller; the address is a multiple of 8.
                unsafe { AtomicU64::from_ptr(word as *mut u64) }.store(new, Release);
            }
            // A writer may be interrupted here; a little of that keeps the control short.
            (1..words * 16).for_each(|_| spin_loop());
        }
        Ok(())
    }

    fn pwrite(&self, site: &Site, value: u64) -> Result<()> {
        self.pwrite_at(site.store_addr, &value.to_le_bytes()[..usize::from(site.store_len)])
    }

    fn pwrite_at(&self, addr: u64, bytes: &[u8]) -> Result<()> {
        let written = self.memory.write_all_at(bytes, addr);
        written.map_err(|source| Error::System { what: "write a site by pwrite", source })
    }
}

/// Makes every core that runs a thread of this process forget what it has fetched.
pub fn serialize_cores() -> Result<()> {
    membarrier(libc::MEMBARRIER_CMD_PRIVATE_EXPEDITED_SYNC_CORE)
}

fn membarrier(command: i32) -> Result<()> {
    // SAFETY: plain system call without pointers.
    match unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) } {
        0 => Ok(()),
        _ => Err(Error::last("make a memory barrier")),
    }
}

/// The arming store as one instruction.
///
/// # Safety
/// The word is mapped and writable.
unsafe fn store_direct(site: &Site, value: u64) {
    if site.store_len == 1 {
        // SAFETY: by this function's contract.
        unsafe { store_byte(site.store_addr, value as u8) };
        return;
    }
    // SAFETY: by this function's contract; plans align eight-byte stores.
    let word = unsafe { AtomicU64::from_ptr(site.store_addr as *mut u64) };
    word.store(value, Release);
}

/// # Safety
/// The byte is mapped and writable.
unsafe fn store_byte(addr: u64, value: u8) {
    // SAFETY: by this function's contract.
    let byte = unsafe { AtomicU8::from_ptr(addr as *mut u8) };
    byte.store(value, Release);
}
