//! `libsuture.so`: what makes a library of the runtime.
//!
//! Panic handler, global allocator, constructor and the few memory functions the compiler calls by
//! name. The logic is in `suture-runtime`. Built alone (`cargo build -p suture-preload --profile
//! runtime`), so that no other member can turn a dependency's `std` on.
#![no_std]

mod mem;

use core::panic::PanicInfo;
use suture_runtime::alloc::GlobalArena;
use suture_runtime::{init, worker};

#[global_allocator]
static ALLOCATOR: GlobalArena = GlobalArena;

/// Called by the loader.
extern "C" fn constructor() {
    // SAFETY: `.init_array` runs it once, before anything can know the block.
    unsafe { init::init() };
}

#[used]
// SAFETY: the section holds pointers to functions the loader calls with (argc, argv, envp), which a
// function without parameters may ignore.
#[unsafe(link_section = ".init_array")]
static CONSTRUCTOR: extern "C" fn() = constructor;

/// Nothing in the runtime panics; should it happen after all, the worker ends and the program goes on
/// with the code it has.
#[panic_handler]
fn panic(_: &PanicInfo<'_>) -> ! {
    worker::give_up()
}
