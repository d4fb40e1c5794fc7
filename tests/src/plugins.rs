//! A program that loads and unloads a library.

use crate::command::{Outcome, disable, suture};
use crate::dist::root;
use crate::lab::compile;
use crate::target::Options;
use crate::{Lab, Target, report};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Compiles the library, with a level of optimization.
pub fn build(file: &Path, level: &str) {
    let flags = [level, "-fPIC", "-shared", "-Wl,--build-id", "-Wl,-Bsymbolic"];
    compile(&root().join("tests/targets/plugin.c"), file, &flags);
}

/// A library with `answer`, under several names.
#[derive(Debug)]
pub struct Plugins {
    /// Where its files are.
    pub lab: Lab,
    /// The program.
    pub target: Target,
    /// The file that patches name.
    pub file: PathBuf,
}

impl Plugins {
    /// Starts the program that loads it, which may be a file of any name.
    #[must_use]
    pub fn start(name: &str, options: Options) -> Self {
        let lab = Lab::new();
        let file = lab.path(name);
        build(&file, "-O2");
        let target = lab.start_with("plugins.c", &[], options);
        Self { lab, target, file }
    }

    /// Preloaded, and to be injected into.
    pub fn both(test: impl Fn(Self)) {
        for preload in [true, false] {
            test(Self::start("plugin.so", Options { preload, ..Options::default() }));
        }
    }

    /// A patch that makes `answer(n)` return n + `plus`; `items` are further items of the patch.
    pub fn patch(&self, name: &str, plus: i64, items: &str) -> PathBuf {
        let object = self.file.file_name().expect("a name").display();
        let text = format!(
            "#include <suture.h>\nstatic long new_answer(long n) {{ return n + {plus}; }}\n\
             SUTURE_PATCH(\"{name}\", SUTURE_OBJECT(\"{object}\", SUTURE_FUNC(\"answer\", new_answer)){items});\n"
        );
        self.lab.patch(name, &text)
    }

    /// Applies with the file named, and more options.
    pub fn apply_with(&self, patch: &Path, more: &[&str]) -> Outcome {
        let (patch, file) = (patch.to_string_lossy(), self.file.to_string_lossy());
        let pid = self.target.pid_text();
        let args = ["apply", &patch, "--json", "--pid", &pid, "--object-file", &file];
        suture(&[&args, more].concat())
    }

    /// Applies, which must work.
    pub fn apply(&self, patch: &Path) {
        self.apply_with(patch, &[]).expect(0);
    }

    /// Disables, which must work.
    pub fn disable(&self, name: &str) {
        disable(name, self.target.pid()).expect(0);
    }

    /// Has it loaded into a place.
    pub fn load(&mut self, place: u32, file: &str) {
        let path = self.lab.path(file);
        let order = format!("load {place}");
        assert_eq!(self.target.ask(&format!("{order} {}", path.display())), format!("{order} 0"));
    }

    /// Has it unloaded.
    pub fn unload(&mut self, place: u32) {
        assert_eq!(self.target.ask(&format!("unload {place}")), format!("unload {place} 0"));
    }

    /// Has it unloaded, and its addresses kept in use, so that it comes elsewhere the next time.
    pub fn drop_place(&mut self, place: u32) {
        assert_eq!(self.target.ask(&format!("drop {place}")), format!("drop {place} 0"));
    }

    /// Copies the file under another name.
    pub fn copy(&self, name: &str) {
        std::fs::copy(&self.file, self.lab.path(name)).expect("a copy of the library");
    }

    /// What `answer(1)` returns now, and what it returned to the constructor.
    pub fn values(&mut self, place: u32) -> (i64, i64) {
        let mut of = |word: &str| {
            let answer = self.target.ask(&format!("{word} {place}"));
            Target::number(&answer, &place.to_string())
        };
        (of("ask"), of("birth"))
    }

    /// What the program's own `wait_here` returns.
    pub fn waited(&mut self) -> i64 {
        assert_eq!(self.target.ask("park"), "park 0");
        Target::number(&self.target.ask("unpark"), "unpark")
    }

    /// What status says of a patch.
    #[must_use]
    pub fn status(&self, patch: &str) -> Value {
        let status = report::status(self.target.pid());
        let patches = status["patches"].as_array().cloned().unwrap_or_default();
        patches.into_iter().find(|p| p["name"] == patch).unwrap_or_default()
    }

    /// Whether the library is patched by it.
    #[must_use]
    pub fn patched(&self, patch: &str) -> bool {
        self.status(patch)["objects"][0]["patched"] == true
    }
}
