//! The `syscall` instruction.
#![allow(unsafe_code)]

use super::Errno;
use core::arch::asm;

/// Makes a system call with up to six arguments.
///
/// # Safety
///
/// The caller answers for everything the call does to this process.
#[inline]
pub unsafe fn syscall(number: u32, args: [u64; 6]) -> Result<u64, Errno> {
    let [a, b, c, d, e, f] = args;
    let result: i64;
    // SAFETY: the instruction clobbers rcx and r11 besides rax, all listed; what the call itself
    // does is the caller's promise.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") u64::from(number) => result,
            in("rdi") a,
            in("rsi") b,
            in("rdx") c,
            in("r10") d,
            in("r8") e,
            in("r9") f,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    // -4095..=-1 are errors, everything else is a result.
    if (-4095..0).contains(&result) { Err(Errno(result.unsigned_abs() as u32)) } else { Ok(result as u64) }
}
