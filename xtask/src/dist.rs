//! `cargo xtask build` and `samples`: finished products in one directory.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::step::{Project, run, step};

/// Builds the command, and the runtime alone: built together with other packages it would get
/// their dependencies' `std` features.
pub fn build(project: &Project) -> Result<()> {
    step("building the command: suture");
    run(&mut project.cargo(["build", "--quiet", "--release", "--package", "suture-patcher"]))?;
    step("building the runtime: libsuture.so");
    run(&mut project.cargo(["build", "--quiet", "--profile", "runtime", "--package", "suture-preload"]))?;
    fs::create_dir_all(project.dist()).context("cannot make the dist directory")?;
    publish(&project.target.join("release/suture"), &project.dist().join("suture"))?;
    publish(&project.target.join("runtime/libsuture.so"), &project.dist().join("libsuture.so"))
}

/// Compiles every sample, with all warnings as errors.
pub fn samples(project: &Project) -> Result<()> {
    step("compiling the sample patches");
    let dist = project.dist().join("samples");
    fs::create_dir_all(&dist).context("cannot make the directory of the samples")?;
    let samples = project.root.join("samples");
    for entry in fs::read_dir(&samples).context("cannot read samples")? {
        let source = entry?.path();
        let compiler = match source.extension().and_then(|extension| extension.to_str()) {
            Some("c") => env::var_os("CC").unwrap_or_else(|| "cc".into()),
            Some("cpp") => env::var_os("CXX").unwrap_or_else(|| "c++".into()),
            _ => continue,
        };
        compile(project, compiler, &source, &dist)?;
    }
    // In its own directory: cargo takes the sample's flags from there.
    let target = project.target.join("samples-rust");
    let mut rust = project.cargo(["build", "--quiet", "--release", "--target-dir"]);
    run(rust.arg(&target).current_dir(samples.join("rust")))?;
    publish(&target.join("release/libsuture_sample_rust.so"), &dist.join("rust-fix.so"))
}

fn compile(project: &Project, compiler: OsString, source: &Path, dist: &Path) -> Result<()> {
    let name = source.file_stem().context("a sample has no name")?;
    let made = project.target.join("sample.so");
    let mut command = Command::new(compiler);
    command
        .current_dir(&project.root)
        .args(["-O2", "-fPIC", "-shared", "-nostartfiles", "-I", "include"])
        .args(["-Wall", "-Wextra", "-pedantic", "-Werror"])
        .arg(source)
        .arg("-o")
        .arg(&made);
    run(&mut command)?;
    publish(&made, &dist.join(name).with_extension("so"))
}

/// Puts a finished file in place. By renaming: a process that has the old one mapped keeps it,
/// where overwriting would change code under its feet.
fn publish(from: &Path, to: &Path) -> Result<()> {
    let fresh = to.with_extension("new");
    fs::copy(from, &fresh)
        .and_then(|_| fs::rename(&fresh, to))
        .with_context(|| format!("cannot put {} in place as {}", from.display(), to.display()))
}
