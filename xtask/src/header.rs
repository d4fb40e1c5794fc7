//! `cargo xtask header`: the C face of the contract.
//!
//! The structures of `include/suture.h` are generated from the Rust descriptor, so the two cannot
//! drift apart; the author's macros are the hand-written `abi/author.h`, appended as it stands.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use cbindgen::{Builder, Config};

use crate::step::Project;

/// Writes `include/suture.h`, or with `check` fails when the committed file differs.
pub fn run(project: &Project, check: bool) -> Result<()> {
    let root = &project.root;
    let wanted = generate(root)?;
    let path = root.join("include/suture.h");
    if !check {
        fs::write(&path, wanted).with_context(|| format!("cannot write {}", path.display()))?;
        println!("wrote include/suture.h");
        return Ok(());
    }
    let found = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    if found == wanted {
        println!("include/suture.h is up to date");
        return Ok(());
    }
    let line = found.lines().zip(wanted.lines()).take_while(|(a, b)| a == b).count() + 1;
    bail!("include/suture.h differs from what the descriptor says (line {line}); run `cargo xtask header`")
}

fn generate(root: &Path) -> Result<String> {
    let abi = root.join("abi");
    let mut config = Config::from_file(abi.join("cbindgen.toml").to_string_lossy().as_ref())
        .map_err(|error| anyhow::anyhow!("cannot read abi/cbindgen.toml: {error}"))?;
    let author = abi.join("author.h");
    config.trailer =
        Some(fs::read_to_string(&author).with_context(|| format!("cannot read {}", author.display()))?);
    config.after_includes = Some(format!(
        "\n// The version of these structures.\n#define SUTURE_ABI {}\n\nstruct {};\nstruct suture_state;",
        suture_abi::DESCRIPTOR_VERSION,
        suture_abi::PATCH_SYMBOL
    ));
    let bindings = Builder::new()
        .with_src(abi.join("src/descriptor.rs"))
        .with_config(config)
        .generate()
        .context("cannot generate include/suture.h")?;
    let mut text = Vec::new();
    bindings.write(&mut text);
    String::from_utf8(text).context("the generated header is not text")
}
