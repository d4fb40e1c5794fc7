//! Link arguments of `libsuture.so`.
//!
//! Here and not in `RUSTFLAGS`: `-nostartfiles` there would also reach build scripts and kill them.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    for arg in [
        // No crt files, no libraries: nothing of the program's libc is entered or needed.
        "-nostartfiles",
        "-nostdlib",
        "-Wl,--no-undefined",
        "-Wl,-soname,libsuture.so",
        // Threads may return into stubs and handlers at any time: never unloaded.
        "-Wl,-z,nodelete",
        "-Wl,-z,now",
        "-Wl,-z,relro",
        "-Wl,-z,noexecstack",
        "-Wl,--build-id=sha1",
        "-Wl,--hash-style=both",
        "-Wl,--eh-frame-hdr",
        // Our own symbols are ours, whatever else is loaded.
        "-Wl,-Bsymbolic",
    ] {
        println!("cargo:rustc-cdylib-link-arg={arg}");
    }
}
