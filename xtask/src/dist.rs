//! `cargo xtask build` and `samples`: finished products in one directory.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::step::{Project, run, step};

/// What the command is built for. Named, so that the flags below are not those of build scripts.
const TARGET: &str = "x86_64-unknown-linux-gnu";
/// Linked statically at a fixed address the command starts in half the time (0.8 instead of 1.3 ms):
/// nothing has to be loaded and relocated. It names no users and no hosts, so it needs no plug-ins of libc.
const FLAGS: &str = "-C target-feature=+crt-static -C relocation-model=static";

/// Builds the command, and the runtime alone: built together with other packages it would get
/// their dependencies' `std` features.
pub fn build(project: &Project) -> Result<()> {
    step("building the command: suture");
    let mut command =
        project.cargo(["build", "--quiet", "--profile", "command", "--package", "suture-patcher"]);
    run(command.args(["--target", TARGET]).env("CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS", FLAGS))?;
    step("building the runtime: libsuture.so");
    run(&mut project.cargo(["build", "--quiet", "--profile", "runtime", "--package", "suture-preload"]))?;
    fs::create_dir_all(project.dist()).context("cannot make the dist directory")?;
    publish(&project.target.join(TARGET).join("command/suture"), &project.dist().join("suture"))?;
    publish(&project.target.join("runtime/libsuture.so"), &project.dist().join("libsuture.so"))
}

/// Writes manual pages and completions as a package would install them under `/usr`.
pub fn manual(project: &Project) -> Result<()> {
    step("writing manual pages and completions");
    let share = project.dist().join("share");
    let mut writer =
        project.cargo(["run", "--quiet", "--package", "suture-patcher", "--example", "manual", "--"]);
    run(writer.arg(&share))?;
    println!("wrote {}; try: man -l {}", share.display(), share.join("man/man1/suture.1").display());
    Ok(())
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
    for (name, made) in [("rust", "rust-fix"), ("rust-lock", "rust-lock")] {
        // In its own directory: cargo takes the sample's flags from there.
        let target = project.target.join("samples-rust");
        let mut rust = project.cargo(["build", "--quiet", "--release", "--target-dir"]);
        run(rust.arg(&target).current_dir(samples.join(name)))?;
        let library = format!("release/libsuture_sample_{}.so", name.replace('-', "_"));
        publish(&target.join(library), &dist.join(made).with_extension("so"))?;
    }
    Ok(())
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
