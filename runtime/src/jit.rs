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

// SAFETY: both are defined above with these types; the function takes and changes nothing.
unsafe extern "C" {
    static mut __jit_debug_descriptor: Descriptor;
    safe fn __jit_debug_register_code();
}

/// An entry that has its place in memory.
#[derive(Debug)]
pub struct Ready(*mut Entry);

/// Makes the entry for an ELF file in memory that stays there. Entries are never freed.
pub fn ready(addr: u64, len: u64) -> Result<Ready, NoMemory> {
    list::keep(Entry { next: null_mut(), prev: null_mut(), symfile: addr, symfile_len: len }).map(Ready)
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
