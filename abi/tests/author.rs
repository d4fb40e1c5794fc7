//! The author's macros of `include/suture.h`, compiled as C and as C++ and looked at from a program.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const STRICT: [&str; 5] = ["-Wall", "-Wextra", "-pedantic", "-Werror", "-I"];

const LANGUAGES: [(&str, &[&str]); 4] = [
    ("cc", &["-std=c99", "-O0"]),
    ("cc", &["-std=gnu17", "-O2", "-flto"]),
    ("c++", &["-xc++", "-std=c++11", "-O0"]),
    ("c++", &["-xc++", "-std=gnu++17", "-O2", "-flto"]),
];

fn here() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/author")
}

fn compile(compiler: &str, options: &[&str], sources: &[&Path], out: &Path) -> Output {
    Command::new(compiler)
        .args(options)
        .args(STRICT)
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("../include"))
        .args(sources)
        .arg("-o")
        .arg(out)
        .output()
        .unwrap_or_else(|error| panic!("cannot run {compiler}: {error}"))
}

fn out(name: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(name)
}

fn assert_succeeded(output: &Output, what: &str) {
    assert!(output.status.success(), "{what}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn tables_are_what_the_macros_say() {
    let (patch, main) = (here().join("patch.c"), here().join("main.c"));
    for (index, (compiler, options)) in LANGUAGES.iter().enumerate() {
        let program = out(&format!("author-{index}"));
        assert_succeeded(&compile(compiler, options, &[&patch, &main], &program), "compiling");
        let ran = Command::new(&program).output().expect("the program was just made");
        assert_succeeded(&ran, &format!("{compiler} {options:?}"));
    }
}

#[test]
fn only_the_descriptor_is_exported() {
    let object = out("author-patch.so");
    for (compiler, options) in LANGUAGES {
        let shared = [options, &["-fPIC", "-shared", "-nostartfiles"]].concat();
        assert_succeeded(&compile(compiler, &shared, &[&here().join("patch.c")], &object), "compiling");
        let symbols =
            Command::new("nm").args(["-D", "--defined-only"]).arg(&object).output().expect("nm runs");
        let symbols = String::from_utf8_lossy(&symbols.stdout).into_owned();
        let names: Vec<&str> = symbols.lines().filter_map(|line| line.split_whitespace().last()).collect();
        assert_eq!(names, ["suture_patch"], "{compiler} {options:?}");
    }
}

/// What an author forgets must not become a null pointer in somebody's process.
#[test]
fn what_is_forgotten_does_not_link() {
    let cases = [
        (
            "slot",
            "SUTURE_OLD(int, old_f, (int));\nstatic int f(int n) { return old_f(n); }\n",
            "suture_slot_old_f",
        ),
        ("extern", "extern int counter;\nstatic int f(int n) { return n + counter; }\n", "counter"),
    ];
    for (name, body, culprit) in cases {
        let source = out(&format!("author-forgotten-{name}.c"));
        let patch = "SUTURE_PATCH(\"forgotten\", SUTURE_OBJECT(SUTURE_MAIN, SUTURE_FUNC(\"f\", f)));\n";
        fs::write(&source, format!("#include <suture.h>\n{body}{patch}")).expect("the directory is ours");
        let output =
            compile("cc", &["-O2", "-fPIC", "-shared", "-nostartfiles"], &[&source], &out("author-x.so"));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(culprit), "{name}: {said}");
    }
}

/// Id 0 ends the table: the state, and those behind it, would be lost without a word.
#[test]
fn a_state_without_an_id_does_not_compile() {
    for (compiler, options) in LANGUAGES {
        for (id, compiles) in [("7", true), ("0", false)] {
            let source = out("author-state.c");
            let patch = format!("SUTURE_PATCH(\"state\", SUTURE_STATE({id}, 0, 0, 0, 0, 0, 0));\n");
            fs::write(&source, format!("#include <suture.h>\n{patch}")).expect("the directory is ours");
            let shared = [options, &["-fPIC", "-shared", "-nostartfiles"]].concat();
            let output = compile(compiler, &shared, &[&source], &out("author-state.so"));
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.success(), compiles, "{compiler} {options:?}, id {id}: {said}");
        }
    }
}
