//! Where things are, and what is compiled for a run.
//!
//! Targets and patches are ordinary C, compiled when the run starts: the functions in them are
//! generated, so that the same source serves for one function and for ten thousand.

use crate::error::{Error, io};
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

/// Functions of each kind in the target for call costs.
pub const CALL_FUNCTIONS: usize = 2048;
/// Distance of functions with nothing between them: each is 8 bytes long and starts at a multiple of 16.
pub const SHORT: usize = 16;
/// Functions in the target for install costs.
pub const INSTALL_FUNCTIONS: usize = 10_000;

/// The built product, the sources of the targets and a place for what is compiled from them.
#[derive(Debug)]
pub struct Lab {
    /// The command.
    pub suture: PathBuf,
    /// The runtime.
    pub runtime: PathBuf,
    root: PathBuf,
    scratch: TempDir,
    /// Rounds are divided by this.
    hurry: usize,
    /// Beginning of the names of the rows that are asked for.
    only: String,
}

impl Lab {
    /// Finds the built product (`SUTURE_DIST`, else where `cargo xtask build` puts it).
    ///
    /// # Errors
    /// When it is not there.
    pub fn new(quick: bool, only: &str) -> Result<Self, Error> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let root = root.canonicalize().map_err(io("find the sources"))?;
        let built = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
        let dist = std::env::var_os("SUTURE_DIST").map_or_else(|| built.join("dist"), PathBuf::from);
        // Absolute, because LD_PRELOAD is read by processes with other working directories.
        let there = |name: &str| {
            let path = dist.join(name);
            path.canonicalize().map_err(|_| Error::NotBuilt(path))
        };
        let scratch = tempfile::tempdir().map_err(io("make a scratch directory"))?;
        let (suture, runtime) = (there("suture")?, there("libsuture.so")?);
        let hurry = if quick { 5 } else { 1 };
        Ok(Self { suture, runtime, root, scratch, hurry, only: only.to_owned() })
    }

    /// Whether a row of this name, or one whose name begins so, is asked for.
    #[must_use]
    pub fn wants(&self, name: &str) -> bool {
        name.starts_with(&self.only) || self.only.starts_with(name)
    }

    /// Rounds to make where a full run makes `full`.
    #[must_use]
    pub fn rounds(&self, full: usize) -> usize {
        (full / self.hurry).max(4)
    }

    /// Compiles `targets/nothing.c`.
    ///
    /// # Errors
    /// When the compiler refuses it.
    pub fn nothing(&self) -> Result<PathBuf, Error> {
        let program = self.at("nothing");
        self.compile(&self.source("nothing.c"), &program, &[])?;
        Ok(program)
    }

    /// Compiles the self-measuring target with `count` functions of each kind, `spacing` bytes (a
    /// multiple of 16) apart.
    ///
    /// # Errors
    /// When the compiler refuses it.
    pub fn subject(&self, count: usize, spacing: usize) -> Result<PathBuf, Error> {
        let program = self.at(&format!("subject-{count}"));
        if program.exists() {
            return Ok(program);
        }
        let generated = self.at(&format!("functions-{count}.c"));
        fs::write(&generated, functions(count, spacing)).map_err(io("write generated functions"))?;
        let count = format!("-DCOUNT={count}");
        self.compile(
            &self.source("subject.c"),
            &program,
            &[&path(&generated), &count, "-fno-toplevel-reorder"],
        )?;
        Ok(program)
    }

    /// Compiles the spinning target.
    ///
    /// # Errors
    /// When the compiler refuses it.
    pub fn spinner(&self) -> Result<PathBuf, Error> {
        let program = self.at("spinner");
        let generated = self.at("functions-1.c");
        fs::write(&generated, functions(1, SHORT)).map_err(io("write a generated function"))?;
        self.compile(&self.source("spinner.c"), &program, &[&path(&generated), "-pthread"])?;
        Ok(program)
    }

    /// Compiles the patch that replaces subjects 0 to `count` − 1; each answers one more than before.
    ///
    /// # Errors
    /// When the compiler refuses it.
    pub fn patch(&self, count: usize) -> Result<PathBuf, Error> {
        let patch = self.at(&format!("patch-{count}.so"));
        if patch.exists() {
            return Ok(patch);
        }
        let source = self.at(&format!("patch-{count}.c"));
        fs::write(&source, patch_source(count)).map_err(io("write a generated patch"))?;
        let include = path(&self.root.join("include"));
        self.compile(&source, &patch, &["-fPIC", "-shared", "-nostartfiles", "-I", &include])?;
        Ok(patch)
    }

    /// Compiles the patch that replaces the first subject and `stay`, in which a thread may be.
    ///
    /// # Errors
    /// When the compiler refuses it.
    pub fn held_patch(&self) -> Result<PathBuf, Error> {
        let (source, patch) = (self.at("held.c"), self.at("held.so"));
        let text = format!(
            "#include <suture.h>\n\
             static long changed(long x) {{ return x + {}; }}\n\
             static long gone(long x) {{ return x; }}\n\
             SUTURE_PATCH(\"held\", SUTURE_OBJECT(SUTURE_MAIN, SUTURE_FUNC(\"subject_0\", changed),\n\
             SUTURE_FUNC(\"stay\", gone)));\n",
            constant(0)
        );
        fs::write(&source, text).map_err(io("write a generated patch"))?;
        let include = path(&self.root.join("include"));
        self.compile(&source, &patch, &["-fPIC", "-shared", "-nostartfiles", "-I", &include])?;
        Ok(patch)
    }

    /// Name of the patch that replaces `count` functions.
    #[must_use]
    pub fn patch_name(count: usize) -> String {
        format!("bench-{count}")
    }

    fn at(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    fn source(&self, name: &str) -> PathBuf {
        self.root.join("benches/targets").join(name)
    }

    fn compile(&self, source: &Path, output: &Path, more: &[&str]) -> Result<(), Error> {
        let mut cc = Command::new("cc");
        cc.arg("-O2").arg(source).args(more).arg("-o").arg(output);
        let done = cc.output().map_err(io("run cc"))?;
        if done.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        Err(Error::Compiler { file: source.display().to_string(), said })
    }
}

fn path(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// What function `index` adds to its argument.
///
/// The instruction is `lea rax, [rdi + constant]` (48 8d 87 and the constant), followed by `ret` and
/// padding up to the next function, so every redirect class can be asked for. With class J its bytes
/// 1 to 4 are the displacement of the jump, so the two low bytes of the constant decide where it goes:
/// 0.5 to 1.75 GiB *below* the program, where a position-independent executable has nothing mapped
/// and no heap to grow into.
fn constant(index: usize) -> usize {
    (index + 1) << 16 | (0x9000 + index * 37 % 0x5000)
}

/// The functions of a target. Larger distances are filled with functions that nobody calls: an
/// assembler pads that much with a jump over it, which no compiled program has.
fn functions(count: usize, spacing: usize) -> String {
    let mut text = String::new();
    let filler = spacing.saturating_sub(2 * SHORT);
    // Writing to a string cannot fail.
    for kind in ["plain", "subject"] {
        for index in 0..count {
            // The first of each kind is called directly: both lie alike in their cache lines.
            if index == 0 {
                let _ = writeln!(text, "__attribute__((aligned(64)))");
            }
            let _ = writeln!(text, "long {kind}_{index}(long x) {{ return x + {}; }}", constant(index));
            if filler > 0 {
                let body = format!("__asm__ volatile(\".skip {filler}, 0x90\");");
                let _ = writeln!(text, "void {kind}_filler_{index}(void) {{ {body} }}");
            }
        }
        let _ = writeln!(text, "long (*const {kind}_table[])(long) = {{");
        (0..count).for_each(|index| _ = writeln!(text, "{kind}_{index},"));
        text.push_str("};\n");
    }
    text
}

fn patch_source(count: usize) -> String {
    let mut text = String::from("#include <suture.h>\n");
    for index in 0..count {
        let _ = writeln!(text, "static long new_{index}(long x) {{ return x + {}; }}", constant(index) + 1);
    }
    text.push_str("static const struct suture_func funcs[] = {\n");
    for index in 0..count {
        let _ = writeln!(text, "{{\"subject_{index}\", (const void *)new_{index}, 0, 0, 0}},");
    }
    let _ = writeln!(
        text,
        "{{0, 0, 0, 0, 0}}}};\n\
         static const struct suture_object objects[] = {{{{SUTURE_MAIN, 0, funcs}}, {{0, 0, 0}}}};\n\
         __attribute__((visibility(\"default\"))) struct suture_patch suture_patch = {{\n\
         SUTURE_ABI, sizeof(struct suture_patch), \"{}\", 0, objects, 0, 0}};",
        Lab::patch_name(count)
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constants_differ_and_point_class_j_below_the_program() {
        let all: std::collections::BTreeSet<usize> = (0..INSTALL_FUNCTIONS).map(constant).collect();
        assert_eq!(all.len(), INSTALL_FUNCTIONS);
        assert!(i32::try_from(*all.last().unwrap()).is_ok(), "must fit the instruction");
        for constant in all {
            let low = (constant & 0xffff) as u16;
            let displacement = i32::from_le_bytes([0x8d, 0x87, low.to_le_bytes()[0], low.to_le_bytes()[1]]);
            assert!((-1_880_000_000..-400_000_000).contains(&displacement), "{displacement}");
        }
    }

    #[test]
    fn a_patch_adds_one_to_each_function() {
        let (old, new) = (functions(2, SHORT), patch_source(2));
        for index in 0..2 {
            assert!(old.contains(&format!("subject_{index}(long x) {{ return x + {}; }}", constant(index))));
            assert!(new.contains(&format!("new_{index}(long x) {{ return x + {}; }}", constant(index) + 1)));
        }
    }
}
