//! What a process's C library says of its threads.
//!
//! Its own description for thread debuggers (`libthread_db`) is exported data: where the thread id lies in
//! a thread's header. Dispatchers read it there. The loader exports where the first thread's stack ends.

use crate::error::Error;
use crate::target::Target;
use suture_elf::{Memory, Vaddr};
use suture_link::{LoadedObject, ProcessView};

/// What dispatchers and looks at threads need to know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ThreadLayout {
    /// Offset of the thread id from `fs`.
    pub thread_id: u32,
    /// Where the main thread's stack ends (`__libc_stack_end`), 0 = not known.
    pub main_stack_end: u64,
}

/// `struct pthread`'s thread id: bits, count, offset.
const TID: &str = "_thread_db_pthread_tid";
const STACK_END: &str = "__libc_stack_end";

/// The C library: the object that describes its threads.
#[must_use]
pub fn library<'v>(view: &'v ProcessView<'_>) -> Option<&'v LoadedObject> {
    view.objects.iter().find(|o| o.namespace == 0 && symbol(o, TID).is_some())
}

fn symbol(object: &LoadedObject, name: &str) -> Option<Vaddr> {
    let named = object.tables.named(name);
    named.into_iter().find(|s| s.section != 0 && s.value != 0).map(|s| Vaddr(s.value))
}

/// Reads the layout.
///
/// # Errors
/// When the C library has no such description: threads could not be told apart.
pub fn layout(target: &Target, view: &ProcessView<'_>) -> Result<ThreadLayout, Error> {
    let pid = target.pid();
    let unknown = |what: &str| Error::Unreadable { pid, what: what.into() };
    let libc = library(view).ok_or_else(|| {
        unknown("its C library does not say how its threads are numbered (glibc 2.34 or later is needed)")
    })?;
    let at = libc.base + symbol(libc, TID).unwrap_or_default();
    let bytes = target.memory.read_vec(at, 12).map_err(|e| Error::from_memory(target, e))?;
    let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let (bits, count, thread_id) = (word(0), word(4), word(8));
    if (bits, count) != (32, 1) || thread_id >= 4096 || thread_id % 4 != 0 {
        return Err(unknown("its C library numbers its threads in an unknown way"));
    }
    let ends = view.objects.iter().filter(|o| o.namespace == 0).find_map(|o| {
        let at = o.base + symbol(o, STACK_END)?;
        target.memory.read_u64(at).ok()
    });
    Ok(ThreadLayout { thread_id, main_stack_end: ends.unwrap_or(0) })
}
