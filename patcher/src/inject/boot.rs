//! The code that runs first in a process that was not prepared.
//!
//! It is position independent and lies in this binary's own text; the command copies the bytes
//! between the two labels into a cave of the target and appends a [`Table`]. A borrowed thread comes
//! through `suture_boot` exactly as through the runtime's doorbell: one `mmap` for a stack, one raw
//! clone, the interrupted call's fate, the mask, and back. The clone makes a memfd in a descriptor
//! table of its own, waits until the command has filled and sealed it, maps the runtime from it,
//! runs its initialiser and is gone, stack included. Nothing here touches libc, `fs`, a lock of the
//! program, or memory that is not its own, so the borrowed thread may stand anywhere.
//!
//! Every failure ends in "as before": the clone unmaps what it mapped, waits half a second for somebody to
//! read the reason from its stack and to say so, and exits. A command that dies meanwhile is waited for two
//! seconds; in that time the next one can take the clone over. It is told to leave by a seal that forbids
//! seals.
//!
//! The table is read only after the contents were sealed, so it must not change while a clone lives.
#![allow(unsafe_code)]

use std::arch::global_asm;

/// Most mappings of the runtime's image.
pub const MOST_MAPPINGS: usize = 8;

/// One mapping of the image.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct BootMapping {
    /// Address.
    pub addr: u64,
    /// Bytes, whole pages.
    pub len: u64,
    /// `PROT_*`.
    pub prot: u64,
    /// Offset in the memfd, or `u64::MAX` = anonymous.
    pub offset: u64,
}

/// What the boot code needs to know. Lies right behind the code in the cave.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Table {
    /// Address of the image.
    pub base: u64,
    /// Bytes of the image from first to last mapping.
    pub len: u64,
    /// Address of the runtime's initialiser.
    pub init: u64,
    /// Mappings in use.
    pub count: u64,
    /// The mappings.
    pub mappings: [BootMapping; MOST_MAPPINGS],
}

/// Written to `Frame::note` (upper half) by a borrowed thread that could not make the clone; the
/// lower half is the errno.
pub const NO_CLONE: u64 = 0x5355_5446;
/// The same by one that could not map a stack for it.
pub const NO_STACK: u64 = 0x5355_5447;

/// What a clone that failed was at, in the word at [`STEP`] below its stack pointer.
pub const STEPS: [&str; 3] = ["memfd_create", "fcntl", "mmap"];
/// How far below the stack pointer of a clone that failed the index into [`STEPS`] lies.
pub const STEP: u64 = 24;
/// How far below it the errno lies.
pub const ERRNO: u64 = 32;
/// How far below it the word lies that is not 0 when the reason was read.
pub const READ: u64 = 40;

unsafe extern "C" {
    static suture_boot: u8;
    static suture_boot_waits: u8;
    static suture_boot_failed: u8;
    static suture_boot_end: u8;
}

/// Offset in the code at which a clone that waits for its contents is asleep.
#[must_use]
pub fn waits_at() -> u64 {
    (&raw const suture_boot_waits).addr().wrapping_sub((&raw const suture_boot).addr()) as u64
}

/// Offset in the code at which a clone that failed is asleep.
#[must_use]
pub fn failed_at() -> u64 {
    (&raw const suture_boot_failed).addr().wrapping_sub((&raw const suture_boot).addr()) as u64
}

/// Bytes of the code, which the table follows.
#[must_use]
pub fn code_len() -> usize {
    (&raw const suture_boot_end).addr().wrapping_sub((&raw const suture_boot).addr())
}

/// The boot code with its table.
#[must_use]
pub fn code(table: &Table) -> Vec<u8> {
    // SAFETY: two labels of one `global_asm!` block below, in this order; text is readable.
    let code = unsafe { std::slice::from_raw_parts(&raw const suture_boot, code_len()) };
    let mut bytes = code.to_vec();
    for word in [table.base, table.len, table.init, table.count] {
        bytes.extend(word.to_le_bytes());
    }
    for mapping in table.mappings {
        for word in [mapping.addr, mapping.len, mapping.prot, mapping.offset] {
            bytes.extend(word.to_le_bytes());
        }
    }
    bytes
}

global_asm!(
    ".pushsection .text.suture_boot, \"ax\", @progbits",
    ".balign 16",
    ".globl suture_boot",
    ".hidden suture_boot",
    "suture_boot:",
    suture_abi::doorbell_head!(),
    "cld",
    // A stack for the clone; its lowest part is the dummy TLS block.
    "mov eax, 9", // mmap
    "xor edi, edi",
    "mov esi, 0x4000",
    "mov edx, 3",     // PROT_READ | PROT_WRITE
    "mov r10d, 0x22", // MAP_PRIVATE | MAP_ANONYMOUS
    "mov r8, -1",
    "xor r9d, r9d",
    "syscall",
    "mov r12, rax",
    "mov r13d, 0x53555447", // NO_STACK
    "cmp rax, -4096",
    "ja 30f",
    "mov rbx, rax",
    "lea r8, [rbx + 0x200]",
    "mov qword ptr [r8], r8",
    "mov qword ptr [r8 + 0x10], r8",
    "mov eax, 56",      // clone
    "mov edi, 0xd0b00", // VM FS SIGHAND THREAD SYSVSEM SETTLS
    "lea rsi, [rbx + 0x4000]",
    "xor edx, edx",
    "xor r10d, r10d",
    "syscall",
    "test rax, rax",
    "jz 40f",
    "jns 3f",
    // No thread: give the stack back and leave a note.
    "mov r12, rax",
    "mov r13d, 0x53555446", // NO_CLONE
    "mov eax, 11",          // munmap
    "mov rdi, rbx",
    "mov esi, 0x4000",
    "syscall",
    "30:",
    "neg r12d",
    "mov dword ptr [rsp], r12d",
    "mov dword ptr [rsp + 4], r13d",
    suture_abi::doorbell_return!(),
    // ---- the clone, on its own stack, all signals blocked ----
    "40:",
    "mov eax, 436", // close_range: its own table only
    "xor edi, edi",
    "mov esi, -1",
    "xor edx, edx",
    "syscall",
    "lea rdi, [rip + 60f]",
    "mov esi, 0x13", // MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_EXEC
    "mov eax, 319",  // memfd_create
    "syscall",
    "test eax, eax",
    "jns 41f",
    // Kernels before 6.3 do not know MFD_EXEC; vm.memfd_noexec = 2 forbids it (for execve, not for mmap).
    "lea rdi, [rip + 60f]",
    "mov esi, 3",
    "mov eax, 319",
    "syscall",
    "xor ebp, ebp", // step: memfd_create
    "test eax, eax",
    "js 50f",
    "41:",
    "mov r12d, eax",
    // Until it is sealed: 13 000 × (0.1 ms and the kernel's slack of 0.05 ms).
    "mov r13d, 13000",
    "42:",
    "mov eax, 72", // fcntl
    "mov edi, r12d",
    "mov esi, 1034", // F_GET_SEALS
    "xor edx, edx",
    "syscall",
    "mov ebp, 1", // step: fcntl
    "test eax, eax",
    "js 50f",
    "test eax, 8", // F_SEAL_WRITE
    "jnz 43f",
    "test eax, 1", // F_SEAL_SEAL alone: told to leave
    "jnz 59f",
    "dec r13d",
    "jz 59f",
    "mov qword ptr [rsp - 16], 0",
    "mov qword ptr [rsp - 8], 100000",
    "lea rdi, [rsp - 16]",
    "xor esi, esi",
    "mov eax, 35", // nanosleep
    "syscall",
    ".globl suture_boot_waits",
    ".hidden suture_boot_waits",
    "suture_boot_waits:",
    "jmp 42b",
    // The whole range first, so that nothing of the program is ever replaced.
    "43:",
    "lea r14, [rip + suture_boot_end]",
    "mov rdi, qword ptr [r14]",
    "mov rsi, qword ptr [r14 + 8]",
    "xor edx, edx",       // PROT_NONE
    "mov r10d, 0x100022", // MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE
    "mov r8, -1",
    "xor r9d, r9d",
    "mov eax, 9",
    "syscall",
    "mov ebp, 2", // step: mmap
    "cmp rax, qword ptr [r14]",
    "je 44f",
    "cmp rax, -4096",
    "ja 50f",
    // An old kernel took the address for a hint.
    "mov rdi, rax",
    "mov rsi, qword ptr [r14 + 8]",
    "mov eax, 11",
    "syscall",
    "mov rax, -17", // EEXIST, as a newer one
    "jmp 50f",
    "44:",
    "lea r15, [r14 + 32]",
    "mov r13, qword ptr [r14 + 24]",
    "45:",
    "test r13, r13",
    "jz 48f",
    "mov rdi, qword ptr [r15]",
    "mov rsi, qword ptr [r15 + 8]",
    "mov rdx, qword ptr [r15 + 16]",
    "mov r9, qword ptr [r15 + 24]",
    "mov r10d, 0x12", // MAP_PRIVATE | MAP_FIXED, over our own reservation
    "mov r8d, r12d",
    "cmp r9, -1",
    "jne 46f",
    "mov r10d, 0x32", // and MAP_ANONYMOUS
    "mov r8, -1",
    "xor r9d, r9d",
    "46:",
    "mov eax, 9",
    "syscall",
    "cmp rax, -4096",
    "ja 47f",
    "add r15, 32",
    "dec r13",
    "jmp 45b",
    "47:", // all or nothing
    "mov r13, rax",
    "mov rdi, qword ptr [r14]",
    "mov rsi, qword ptr [r14 + 8]",
    "mov eax, 11",
    "syscall",
    "mov rax, r13",
    "jmp 50f",
    "48:",
    "call qword ptr [r14 + 16]",
    "jmp 59f",
    // A failure: errno and step stay on the stack until they were read, or for 100 × 5 ms.
    "50:",
    "neg rax",
    "mov qword ptr [rsp - 40], 0",
    "mov qword ptr [rsp - 32], rax",
    "mov qword ptr [rsp - 24], rbp",
    "mov r13d, 100",
    "51:",
    "mov qword ptr [rsp - 16], 0",
    "mov qword ptr [rsp - 8], 5000000",
    "lea rdi, [rsp - 16]",
    "xor esi, esi",
    "mov eax, 35",
    "syscall",
    ".globl suture_boot_failed",
    ".hidden suture_boot_failed",
    "suture_boot_failed:",
    "cmp qword ptr [rsp - 40], 0",
    "jne 59f",
    "dec r13d",
    "jnz 51b",
    "59:",
    "mov rdi, rbx",
    "mov esi, 0x4000",
    "mov eax, 11",
    "syscall",
    "xor edi, edi",
    "mov eax, 60", // exit of this thread; needs no stack
    "syscall",
    "ud2",
    "60:",
    ".asciz \"libsuture.so\"",
    ".balign 8",
    ".globl suture_boot_end",
    ".hidden suture_boot_end",
    "suture_boot_end:",
    ".popsection",
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_ends_where_its_table_begins() {
        let table = Table { base: 0x1234, count: 2, ..Table::default() };
        let bytes = code(&table);
        let code_len = bytes.len() - size_of::<Table>();
        assert_eq!(code_len % 8, 0);
        // It takes the unused end of one page.
        assert!((256..=1024).contains(&code_len), "{code_len}");
        assert_eq!(code_len, super::code_len());
        assert!(waits_at() < failed_at() && failed_at() < code_len as u64);
        assert_eq!(bytes[code_len..code_len + 8], 0x1234u64.to_le_bytes());
        let waits = suture_abi::doorbell::WAITS;
        assert_eq!(bytes.windows(waits.len()).filter(|code| **code == waits).count(), 1);
    }
}
