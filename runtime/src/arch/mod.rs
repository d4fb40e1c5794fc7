//! What depends on the processor: entries that are not functions of any calling convention.

mod x86_64;

pub use x86_64::dispatch::{THREAD_ID, birth, own_thread_id, path, self_look, slow_path};
pub use x86_64::doorbell::doorbell_entry;
pub use x86_64::host;
pub use x86_64::late;
pub use x86_64::tags::{prefetch, tagged};
pub use x86_64::tlsdesc::tlsdesc_static;
