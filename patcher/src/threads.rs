//! What a process's C library says of its threads.

use crate::error::Error;
use crate::target::Target;
use suture_elf::Memory;
use suture_link::{LoadedObject, ProcessView};
use suture_stack::ends::{GETTID, LayoutError, STACK_END, TID};

pub use suture_stack::ends::ThreadLayout;

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
    let unknown = |what: String| Error::Unreadable { pid: target.pid(), what };
    let libc = library(view).ok_or_else(|| unknown("no C library is loaded in it that is known".into()))?;
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
    let defined = |name: &str| Some(libc.base + libc.defined(name)?);
    ThreadLayout::read(&target.memory, &defined, main_stack_end).map_err(|why| match why {
        LayoutError::Memory(e) => Error::from_memory(target, e),
        LayoutError::Unknown => unknown(why.to_string()),
    })
}
