//! Builds the demo service's C library with the system's compiler and lets the service find it.

use std::env;
use std::path::PathBuf;
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=lib/demo.c");
    println!("cargo:rerun-if-env-changed=CC");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let compiler = env::var_os("CC").unwrap_or_else(|| "cc".into());
    let status = Command::new(&compiler)
        .args(["-O2", "-g", "-Wall", "-Wextra", "-fPIC", "-shared", "-Wl,-soname,libsuture-demo.so"])
        .args(["-Wl,--build-id", "lib/demo.c", "-o"])
        .arg(out.join("libsuture-demo.so"))
        .status()
        .unwrap_or_else(|error| panic!("cannot run the C compiler {}: {error}", compiler.display()));
    assert!(status.success(), "cannot compile lib/demo.c");
    println!("cargo:rustc-link-search=native={}", out.display());
    println!("cargo:rustc-link-lib=dylib=suture-demo");
    println!("cargo:rustc-link-arg-bins=-Wl,-rpath,{},--build-id", out.display());
}
