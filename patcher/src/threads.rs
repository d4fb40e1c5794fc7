//! What a process's C library says of its threads.
//!
//! glibc's own description for thread debuggers (`libthread_db`) is exported data: where the thread id lies in
//! a thread's header. musl has none, but its `gettid` reads the id there. Dispatchers do the same. glibc's
//! loader exports where the first thread's stack ends.

use crate::error::Error;
use crate::target::Target;
use iced_x86::{Decoder, DecoderOptions, Mnemonic, Register};
use suture_elf::{Addr, Memory};
use suture_link::{LoadedObject, ProcessView};

/// What dispatchers and looks at threads need to know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ThreadLayout {
    /// Offset of the thread id from `fs`.
    pub thread_id: u32,
    /// Where the main thread's stack ends (`__libc_stack_end`), 0 = not known.
    pub main_stack_end: u64,
    /// Threads' headers are in a ring (musl), instead of naming themselves twice (glibc).
    pub linked: bool,
}

/// Whether the header of a thread of musl is at an address: its neighbours in the ring say so.
#[must_use]
pub fn is_linked(memory: &dyn Memory, at: Addr) -> bool {
    const PREV: u64 = 0x10;
    const NEXT: u64 = 0x18;
    let word = |at: Addr| memory.read_u64(at).unwrap_or(0);
    let (prev, next) = (word(at + PREV), word(at + NEXT));
    // A thread that was made is never alone in it.
    prev != at.0 && next != at.0 && word(Addr(prev) + NEXT) == at.0 && word(Addr(next) + PREV) == at.0
}

/// `struct pthread`'s thread id: bits, count, offset.
const TID: &str = "_thread_db_pthread_tid";
const STACK_END: &str = "__libc_stack_end";

/// Where musl has its threads' ids.
const GETTID: &str = "gettid";

/// The C library: the object that describes its threads.
#[must_use]
pub fn library<'v>(view: &'v ProcessView<'_>) -> Option<&'v LoadedObject> {
    let has = |name| view.objects.iter().find(move |o| o.namespace == 0 && o.defined(name).is_some());
    has(TID).or_else(|| has(GETTID))
}

/// Reads the layout.
///
/// # Errors
/// When the C library says nothing that is understood: threads could not be told apart.
pub fn layout(target: &Target, view: &ProcessView<'_>) -> Result<ThreadLayout, Error> {
    let unknown = |what: &str| Error::Unreadable { pid: target.pid(), what: what.into() };
    let libc = library(view).ok_or_else(|| unknown("no C library is loaded in it that is known"))?;
    let read = |name: &str, len: usize| {
        let at = libc.base + libc.defined(name)?;
        Some(target.memory.read_vec(at, len).map_err(|e| Error::from_memory(target, e)))
    };
    let (offset, linked) = match read(TID, 12) {
        Some(described) => (described_offset(&described?), false),
        None => (read(GETTID, 32).transpose()?.and_then(|code| offset_read_by(&code)), true),
    };
    let thread_id = offset.filter(|at| *at < 4096 && at % 4 == 0).ok_or_else(|| {
        unknown("its C library does not say how its threads are numbered (glibc 2.34 or later, or musl, is needed)")
    })?;
    let exported = view.objects.iter().filter(|o| o.namespace == 0).find_map(|o| {
        let at = o.base + o.defined(STACK_END)?;
        target.memory.read_u64(at).ok()
    });
    let main_stack_end = match exported {
        Some(end) => end,
        None => {
            target.maps()?.regions.iter().find(|r| r.path.as_deref() == Some("[stack]")).map_or(0, |r| r.end)
        }
    };
    Ok(ThreadLayout { thread_id, main_stack_end, linked })
}

/// From the description for debuggers.
fn described_offset(bytes: &[u8]) -> Option<u32> {
    let (words, _) = bytes.as_chunks::<4>();
    match words {
        [bits, count, offset] if (u32::from_le_bytes(*bits), u32::from_le_bytes(*count)) == (32, 1) => {
            Some(u32::from_le_bytes(*offset))
        }
        _ => None,
    }
}

/// From code that gives the id: `mov r, fs:[0]; mov eax, [r + offset]; ret`.
fn offset_read_by(code: &[u8]) -> Option<u32> {
    let mut decoder = Decoder::new(64, code, DecoderOptions::NONE);
    let header = decoder.decode();
    let id = decoder.decode();
    let reads_header = header.mnemonic() == Mnemonic::Mov
        && header.memory_segment() == Register::FS
        && header.memory_base() == Register::None
        && header.memory_displacement64() == 0;
    let reads_id = id.mnemonic() == Mnemonic::Mov
        && id.op0_register() == Register::EAX
        && id.memory_base() == header.op0_register()
        && id.memory_index() == Register::None;
    let ends = decoder.decode().mnemonic() == Mnemonic::Ret;
    (reads_header && reads_id && ends).then(|| u32::try_from(id.memory_displacement64()).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_offset_is_read_from_code_of_the_known_shape_only() {
        // mov rax, fs:[0]; mov eax, [rax + 0x30]; ret
        let musl = [0x64, 0x48, 0x8b, 0x04, 0x25, 0, 0, 0, 0, 0x8b, 0x40, 0x30, 0xc3, 0xcc, 0xcc];
        assert_eq!(offset_read_by(&musl), Some(0x30));
        // mov eax, 186; syscall; ret
        assert_eq!(offset_read_by(&[0xb8, 0xba, 0, 0, 0, 0x0f, 0x05, 0xc3]), None);
        let other = [0x64, 0x48, 0x8b, 0x04, 0x25, 0x10, 0, 0, 0, 0x8b, 0x40, 0x30, 0xc3, 0xcc];
        assert_eq!(offset_read_by(&other), None, "not the header");
    }
}
