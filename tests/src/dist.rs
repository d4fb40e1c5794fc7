//! The product under test, as `cargo xtask build` leaves it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The two files that are shipped.
#[derive(Debug)]
pub struct Dist {
    /// The command.
    pub suture: PathBuf,
    /// The runtime, to be preloaded.
    pub runtime: PathBuf,
}

/// Root of the sources.
#[must_use]
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("/"))
}

/// The product: from `SUTURE_DIST` if that is set (the runner built it), else built now.
///
/// # Panics
/// When it cannot be built.
pub fn dist() -> &'static Dist {
    static DIST: OnceLock<Dist> = OnceLock::new();
    DIST.get_or_init(|| {
        let folder = std::env::var_os("SUTURE_DIST").map_or_else(build, PathBuf::from);
        let file = |name: &str| {
            let path = folder.join(name);
            // Absolute: LD_PRELOAD is read by processes with other working directories.
            path.canonicalize().unwrap_or_else(|e| panic!("{} is not built: {e}", path.display()))
        };
        Dist { suture: file("suture"), runtime: file("libsuture.so") }
    })
}

fn build() -> PathBuf {
    let status = Command::new(env!("CARGO")).args(["xtask", "build"]).current_dir(root()).status();
    let status = status.unwrap_or_else(|e| panic!("cannot run cargo xtask build: {e}"));
    assert!(status.success(), "cargo xtask build failed");
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    root().join(target).join("dist")
}
