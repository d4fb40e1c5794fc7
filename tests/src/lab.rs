//! A directory for one test, and what is compiled in it.

use crate::dist::{dist, root};
use crate::target::{Options, Target};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

/// One test's workshop. Gone with everything in it when dropped.
#[derive(Debug)]
pub struct Lab {
    folder: TempDir,
}

impl Default for Lab {
    fn default() -> Self {
        Self::new()
    }
}

impl Lab {
    /// Makes the directory, readable for every user.
    ///
    /// # Panics
    /// When there is no room, or the tests do not run as root.
    #[must_use]
    pub fn new() -> Self {
        crate::need_root();
        let folder = tempfile::Builder::new().prefix("suture-test-").tempdir();
        let folder = folder.expect("a directory in /tmp");
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
        Self { folder }
    }

    /// A path in it.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a file.
    ///
    /// # Panics
    /// When that fails.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, content).unwrap_or_else(|e| panic!("cannot write {}: {e}", path.display()));
        path
    }

    /// Compiles a target. `source` is a file of `tests/targets` or `demo-target/targets`.
    ///
    /// # Panics
    /// When the compiler refuses it.
    pub fn compile_target(&self, source: &str, flags: &[&str]) -> PathBuf {
        self.compile_with(if source.ends_with(".cpp") { "g++" } else { "gcc" }, source, flags)
    }

    /// The same with a compiler of that name.
    ///
    /// # Panics
    /// When it refuses.
    pub fn compile_with(&self, compiler: &str, source: &str, flags: &[&str]) -> PathBuf {
        let folders = [root().join("tests/targets"), root().join("demo-target/targets")];
        let found = folders.iter().map(|f| f.join(source)).find(|p| p.is_file());
        let source_path = found.unwrap_or_else(|| panic!("there is no target {source}"));
        let program = self.path(source.split('.').next().unwrap_or(source));
        let include = folders.each_ref().map(|f| f.to_string_lossy());
        let mut all = vec!["-O2", "-g", "-pthread", "-Wl,--build-id", "-I", &include[0], "-I", &include[1]];
        all.extend(flags);
        compile_by(compiler, &source_path, &program, &all);
        program
    }

    /// Compiles and starts `several.c` with its twin.
    ///
    /// # Panics
    /// When either fails.
    pub fn start_several(&self) -> Target {
        self.start_several_with(Options::default())
    }

    /// The same, with options.
    ///
    /// # Panics
    /// When either fails.
    pub fn start_several_with(&self, options: Options) -> Target {
        let twin = root().join("tests/targets/several-twin.c").to_string_lossy().into_owned();
        let program = self.compile_target("several.c", &[&twin]);
        Target::start(&program, &[], options)
    }

    /// Compiles a target and starts it with the runtime preloaded.
    ///
    /// # Panics
    /// When either fails.
    pub fn start(&self, source: &str, args: &[&str]) -> Target {
        self.start_with(source, args, Options::default())
    }

    /// The same, with options.
    ///
    /// # Panics
    /// When either fails.
    pub fn start_with(&self, source: &str, args: &[&str], options: Options) -> Target {
        let program = self.compile_target(source, &[]);
        Target::start(&program, args, options)
    }

    /// Compiles C text into a patch `NAME.so`.
    ///
    /// # Panics
    /// When the compiler refuses it.
    pub fn patch(&self, name: &str, text: &str) -> PathBuf {
        let source = self.write(&format!("{name}.c"), text);
        self.patch_file(&source, name)
    }

    /// The same, with further compiler flags.
    ///
    /// # Panics
    /// When the compiler refuses it.
    pub fn patch_with(&self, name: &str, text: &str, flags: &[&str]) -> PathBuf {
        let source = self.write(&format!("{name}.c"), text);
        self.compile_patch(&source, name, flags)
    }

    /// Compiles a C or C++ file, for instance a sample, into a patch `NAME.so`.
    ///
    /// # Panics
    /// When the compiler refuses it.
    pub fn patch_file(&self, source: &Path, name: &str) -> PathBuf {
        self.compile_patch(source, name, &[])
    }

    fn compile_patch(&self, source: &Path, name: &str, more: &[&str]) -> PathBuf {
        let patch = self.path(&format!("{name}.so"));
        let include = root().join("include").to_string_lossy().into_owned();
        let mut flags = vec!["-O2", "-fPIC", "-shared", "-nostartfiles", "-Wl,--build-id", "-I", &include];
        flags.extend(more);
        compile(source, &patch, &flags);
        patch
    }

    /// A patch of `value`, the function that the targets' `call N` calls (N + 1 unpatched), which
    /// makes it return N + `plus`.
    ///
    /// # Panics
    /// When the compiler refuses it.
    pub fn value_patch(&self, name: &str, plus: i64) -> PathBuf {
        self.patch(name, &replacing(name, "value", &format!("return n + {plus};")))
    }
}

/// Text of a patch that replaces one `long f(long n)` of the main executable.
#[must_use]
pub fn replacing(name: &str, function: &str, body: &str) -> String {
    format!(
        "#include <suture.h>\n\
         static long patched(long n) {{ {body} }}\n\
         SUTURE_PATCH(\"{name}\", SUTURE_OBJECT(SUTURE_MAIN, SUTURE_FUNC(\"{function}\", patched)));\n"
    )
}

/// Text of a patch that replaces several `long f(long n)` of the main executable; the function at
/// position i returns N + 1000 + i.
#[must_use]
pub fn replacing_all(name: &str, functions: &[&str]) -> String {
    let new = |i: usize| format!("static long new_{i}(long n) {{ return n + {}; }}\n", 1000 + i);
    let definitions: String = (0..functions.len()).map(new).collect();
    let rows = functions.iter().enumerate().map(|(i, f)| format!("SUTURE_FUNC(\"{f}\", new_{i})"));
    let rows = rows.collect::<Vec<_>>().join(", ");
    format!(
        "#include <suture.h>\n{definitions}SUTURE_PATCH(\"{name}\", SUTURE_OBJECT(SUTURE_MAIN, {rows}));\n"
    )
}

/// The product's file that targets preload.
#[must_use]
pub fn runtime() -> &'static Path {
    &dist().runtime
}

/// Runs the C or C++ compiler.
///
/// # Panics
/// When it refuses.
pub fn compile(source: &Path, output: &Path, flags: &[&str]) {
    let cxx = source.extension().is_some_and(|e| e == "cpp");
    compile_by(if cxx { "g++" } else { "gcc" }, source, output, flags);
}

fn compile_by(compiler: &str, source: &Path, output: &Path, flags: &[&str]) {
    crate::need(compiler, if compiler == "musl-gcc" { "musl-tools" } else { compiler });
    // Removed first: the program that is there may be running.
    let _ = fs::remove_file(output);
    let done = Command::new(compiler).arg("-o").arg(output).arg(source).args(flags).output();
    let done = done.expect("running the compiler");
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{compiler} {}: {said}", source.display());
}

/// Runs a test on `several.c`, with the runtime preloaded, and without.
pub fn on_several(test: impl Fn(&Lab, Target)) {
    for preload in [true, false] {
        let lab = Lab::new();
        let target = lab.start_several_with(Options { preload, ..Options::default() });
        test(&lab, target);
    }
}
