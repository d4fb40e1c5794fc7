//! gdb's JIT interface: makes a debugger see the patch images.
//!
//! Runs on the worker only. gdb puts a breakpoint into `__jit_debug_register_code` and reads
//! `__jit_debug_descriptor`; it finds both in the symbol table of `libsuture.so`, where they are local
//! symbols: a program with a JIT of its own keeps its own pair. The worker has SIGTRAP unblocked for
//! that breakpoint.
//!
//! # Safety
//!
//! The descriptor has one writer, the worker; gdb reads while the process is stopped in the breakpoint.
#![allow(unsafe_code)]

use crate::list::{self, NoMemory};
use core::arch::global_asm;
use core::ptr::{addr_of_mut, null_mut};
use core::sync::atomic::{AtomicPtr, Ordering};

global_asm!(
    ".pushsection .text.suture_jit, \"ax\", @progbits",
    ".globl __jit_debug_register_code",
    ".hidden __jit_debug_register_code",
    ".type __jit_debug_register_code, @function",
    "__jit_debug_register_code:",
    ".cfi_startproc",
    "nop",
    "ret",
    ".cfi_endproc",
    ".size __jit_debug_register_code, . - __jit_debug_register_code",
    ".popsection",
    ".pushsection .data.suture_jit, \"aw\", @progbits",
    ".globl __jit_debug_descriptor",
    ".hidden __jit_debug_descriptor",
    ".type __jit_debug_descriptor, @object",
    ".balign 8",
    "__jit_debug_descriptor:",
    ".long 1, 0",
    ".quad 0, 0",
    ".size __jit_debug_descriptor, . - __jit_debug_descriptor",
    ".popsection",
);

#[repr(C)]
struct Entry {
    next: *mut Entry,
    prev: *mut Entry,
    symfile: u64,
    symfile_len: u64,
}

#[repr(C)]
struct Descriptor {
    version: u32,
    action: u32,
    relevant: *mut Entry,
    first: *mut Entry,
}

const JIT_REGISTER_FN: u32 = 1;
const JIT_UNREGISTER_FN: u32 = 2;

/// Entries that were taken off the list, to be used again. They are never freed: a child that was forked while its
/// parent's worker was at work has a list in memory of an arena it has given up. Only the worker touches it; an
/// entry is taken off one list before it is put on the other, so a fork in between leaves it on none.
static SPARE: AtomicPtr<Entry> = AtomicPtr::new(null_mut());

// SAFETY: both are defined above with these types; the function takes and changes nothing.
unsafe extern "C" {
    static mut __jit_debug_descriptor: Descriptor;
    safe fn __jit_debug_register_code();
}

/// An entry that has its place in memory.
#[derive(Debug)]
pub struct Ready(*mut Entry);

/// Makes the entry for an ELF file in memory that stays there until [`forget`].
pub fn ready(addr: u64, len: u64) -> Result<Ready, NoMemory> {
    let entry = Entry { next: null_mut(), prev: null_mut(), symfile: addr, symfile_len: len };
    let spare = SPARE.load(Ordering::Relaxed);
    if spare.is_null() {
        return list::keep(entry).map(Ready);
    }
    // SAFETY: entries on this list are whole, never freed, and only the worker knows them.
    unsafe {
        SPARE.store((*spare).next, Ordering::Relaxed);
        spare.write(entry);
    }
    Ok(Ready(spare))
}

/// Takes the entry for the ELF file at an address back, if there is one: a debugger forgets it before its memory
/// goes. Only the worker may call it.
pub fn forget(addr: u64) {
    let descriptor = &raw mut __jit_debug_descriptor;
    // SAFETY: as in `Ready::show`; entries are whole and never freed.
    unsafe {
        let mut entry = (*descriptor).first;
        while !entry.is_null() && (*entry).symfile != addr {
            entry = (*entry).next;
        }
        if entry.is_null() {
            return;
        }
        let (next, prev) = ((*entry).next, (*entry).prev);
        match prev.is_null() {
            true => addr_of_mut!((*descriptor).first).write_volatile(next),
            false => addr_of_mut!((*prev).next).write_volatile(next),
        }
        if !next.is_null() {
            addr_of_mut!((*next).prev).write_volatile(prev);
        }
        addr_of_mut!((*descriptor).relevant).write_volatile(entry);
        addr_of_mut!((*descriptor).action).write_volatile(JIT_UNREGISTER_FN);
        __jit_debug_register_code();
        addr_of_mut!((*descriptor).relevant).write_volatile(null_mut());
        (*entry).next = SPARE.load(Ordering::Relaxed);
        SPARE.store(entry, Ordering::Relaxed);
    }
}

impl Ready {
    /// Tells a debugger. Only the worker may call it.
    pub fn show(self) {
        let descriptor = &raw mut __jit_debug_descriptor;
        // SAFETY: the descriptor is ours, the worker is its only writer, and so for all entries.
        unsafe {
            let first = (*descriptor).first;
            (*self.0).next = first;
            if !first.is_null() {
                (*first).prev = self.0;
            }
            addr_of_mut!((*descriptor).first).write_volatile(self.0);
            addr_of_mut!((*descriptor).relevant).write_volatile(self.0);
            addr_of_mut!((*descriptor).action).write_volatile(JIT_REGISTER_FN);
        }
        __jit_debug_register_code();
    }
}
