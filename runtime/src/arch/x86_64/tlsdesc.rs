//! The TLS descriptor resolver for static offsets.
//!
//! Code compiled for descriptors calls through a pair of words: a resolver and its argument, with the
//! pair's address in `rax`; the result in `rax` is the variable's offset from `fs:0`, and every other
//! register is preserved. For a variable in static TLS the argument *is* the offset.
#![allow(unsafe_code)]

use core::arch::naked_asm;

/// Address of the resolver.
pub fn tlsdesc_static() -> u64 {
    resolver as *const () as u64
}

#[unsafe(naked)]
unsafe extern "C" fn resolver() {
    naked_asm!("mov rax, qword ptr [rax + 8]", "ret")
}
