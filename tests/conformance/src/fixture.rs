//! Rows' patches as C, and the compiler.

use crate::scn::{Broken, Code, Fails, Function, Kind, Patch, State};
use std::collections::HashMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use suture_tests::dist::root;
use suture_tests::{Lab, lab};

/// Everything compiled, each once.
#[derive(Debug)]
pub struct Fixture {
    lab: Lab,
    /// The program.
    pub program: PathBuf,
    made: Mutex<HashMap<String, PathBuf>>,
}

const PROGRAM: [&str; 7] = [
    "-O2",
    "-g",
    "-pthread",
    "-fno-optimize-sibling-calls",
    "-fvisibility=hidden",
    "-rdynamic",
    "-Wl,--build-id",
];
const LIBRARY: [&str; 9] = [
    "-O2",
    "-g",
    "-fno-optimize-sibling-calls",
    "-fvisibility=hidden",
    "-fPIC",
    "-shared",
    // Its own `welcome` is called, whatever the program has.
    "-Wl,-Bsymbolic",
    "-Wl,--build-id",
    "-Wl,-z,now",
];
const PATCH: [&str; 7] = [
    "-O2",
    "-fPIC",
    "-shared",
    "-nostartfiles",
    "-fno-optimize-sibling-calls",
    "-Wl,--build-id",
    "-Werror=incompatible-pointer-types",
];

fn folder() -> PathBuf {
    root().join("tests/conformance/fixture")
}

impl Fixture {
    /// Compiles the program.
    ///
    /// # Panics
    /// When the compiler refuses it.
    #[must_use]
    pub fn new() -> Self {
        let lab = Lab::new();
        let program = lab.path("demo");
        let twin = folder().join("twin.c").display().to_string();
        lab::compile(&folder().join("demo.c"), &program, &[&PROGRAM[..], &[&twin]].concat());
        Self { lab, program, made: Mutex::default() }
    }

    /// Folder with the libraries.
    #[must_use]
    pub fn libraries(&self) -> PathBuf {
        self.lab.path("")
    }

    /// Compiles a library.
    ///
    /// # Panics
    /// When the compiler refuses it.
    pub fn library(&self, name: &str) {
        let library = self.lab.path(&format!("lib{name}.so"));
        let flags = [format!("-DLIBRARY=\"{name}\""), format!("-Wl,-soname,lib{name}.so")];
        let flags: Vec<&str> = LIBRARY.into_iter().chain(flags.iter().map(String::as_str)).collect();
        self.once(&format!("library {name}"), &library, || {
            lab::compile(&folder().join("library.c"), &library, &flags);
        });
    }

    /// Compiles a patch of a row.
    ///
    /// # Panics
    /// When the compiler refuses it.
    pub fn patch(&self, row: &str, patch: &Patch) -> PathBuf {
        let text = source(row, patch);
        let file = self.lab.path(&file_name(row, &patch.label));
        let include = [root().join("include"), folder()].map(|f| f.display().to_string());
        let mut flags = PATCH.to_vec();
        flags.extend(["-I", &include[0], "-I", &include[1]]);
        self.once(&format!("{row}\n{text}"), &file, || {
            let source = self.lab.write(&format!("{row}-{}.c", patch.label), &text);
            lab::compile(&source, &file, &flags);
        })
    }

    fn once(&self, key: &str, file: &Path, make: impl FnOnce()) -> PathBuf {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if !made.contains_key(key) {
            make();
            made.insert(key.to_owned(), file.to_owned());
        }
        file.to_owned()
    }
}

impl Default for Fixture {
    fn default() -> Self {
        Self::new()
    }
}

/// What every patch begins with.
const PRELUDE: &str = "\
#include <stdio.h>
#include \"demo.h\"
#include <suture.h>
#define ALLOC(obj, id) suture_shadow_alloc(obj, id, 32, 0, 0)
#define GET(obj, id) suture_shadow_get(obj, id)
#define FREE(obj, id) suture_shadow_free(obj, id, 0)
#define ONE ((void *)16)
#define TWO ((void *)32)
#define UNUSED (void)patch, (void)state
";

/// Name of a row's patch file.
fn file_name(row: &str, label: &str) -> String {
    format!("{row}-{label}.so")
}

/// C text of a patch of a row.
#[must_use]
pub fn source(row: &str, patch: &Patch) -> String {
    let mut text = String::from(PRELUDE);
    if patch.functions.iter().any(|f| f.name == "blocker") {
        text += "SUTURE_FUNCTION(const char *, welcome, (struct thread *));\n";
    }
    for (index, function) in patch.functions.iter().enumerate() {
        new_function(&mut text, patch, index, function);
    }
    for state in distinct(&patch.states) {
        callbacks(&mut text, row, patch, state);
    }
    if let Some(how) = patch.broken {
        broken(&mut text, patch, how);
        return text;
    }
    if patch.functions.is_empty() && patch.states.is_empty() {
        nothing(&mut text, patch);
        return text;
    }
    let mut items = objects(patch);
    items.extend(patch.states.iter().map(state_item));
    if patch.replace {
        items.push("SUTURE_REPLACE_ALL".into());
    }
    let _ = writeln!(text, "SUTURE_PATCH(\"{}\",\n    {});", patch.name, items.join(",\n    "));
    text
}

fn distinct(states: &[State]) -> impl Iterator<Item = &State> {
    let first = move |id: u64| states.iter().position(|s| s.id == id);
    states.iter().enumerate().filter(move |(i, s)| first(s.id) == Some(*i)).map(|(_, s)| s)
}

fn new_function(text: &mut String, patch: &Patch, index: usize, function: &Function) {
    let mut inside = String::from("dive(self);");
    if function.name == "blocker" {
        inside += " keep(self, welcome(0));";
    }
    let mut lines = format!("    if (self) {{ {inside} }}\n");
    for (_, code) in patch.code.iter().filter(|(f, _)| *f == function.path()) {
        let _ = match code {
            Code::Allocates(id) => writeln!(lines, "    ALLOC(ONE, {id}), ALLOC(TWO, {id});"),
            Code::Lends => writeln!(
                lines,
                "    lend((struct shadow_functions){{suture_shadow_get, suture_shadow_alloc, suture_shadow_get_or_alloc, \
                 suture_shadow_free, suture_shadow_free_all, suture_shadow_enter, suture_shadow_leave}});"
            ),
            Code::Asks(path) => writeln!(
                lines,
                "    static char value[24]; snprintf(value, sizeof value, \"%ld\", (long)suture_attribute_get(\"{path}\")); \
                 return value;"
            ),
            Code::Finds(id) => writeln!(
                lines,
                "    return GET(ONE, {id}) ? GET(TWO, {id}) ? \"both\" : \"one\" : GET(TWO, {id}) ? \"two\" : \"none\";"
            ),
        };
    }
    let said = format!("{}:{}", patch.name, function.name);
    let _ = writeln!(
        text,
        "static const char *new_{index}(struct thread *self)\n{{\n{lines}    return \"{said}\";\n}}"
    );
}

/// The object's name as C.
fn object_name(library: Option<&str>) -> String {
    library.map_or_else(|| "SUTURE_MAIN".into(), |name| format!("\"lib{name}.so\""))
}

fn objects(patch: &Patch) -> Vec<String> {
    let mut names: Vec<Option<&str>> = Vec::new();
    for function in &patch.functions {
        let library = function.library.as_deref();
        if !names.contains(&library) {
            names.push(library);
        }
    }
    let mut items = Vec::new();
    for library in names {
        let of_it = patch.functions.iter().enumerate().filter(|(_, f)| f.library.as_deref() == library);
        let functions: Vec<String> = of_it
            .map(|(i, f)| match f.sympos {
                0 => format!("SUTURE_FUNC(\"{}\", new_{i})", f.name),
                n => format!("SUTURE_FUNC_AT(\"{}\", {n}, new_{i})", f.name),
            })
            .collect();
        items.push(format!("SUTURE_OBJECT({}, {})", object_name(library), functions.join(", ")));
    }
    // A blocker calls the `welcome` of its own object.
    if let Some(blocker) = patch.functions.iter().find(|f| f.name == "blocker") {
        let object = object_name(blocker.library.as_deref());
        items.push(format!("SUTURE_SYMBOL(welcome, {object}, \"welcome\", 0)"));
    }
    items
}

fn state_item(state: &State) -> String {
    let id = state.id;
    let shadow = if state.is_shadow { "SUTURE_IS_SHADOW" } else { "0" };
    let block = if state.block_disable { " | SUTURE_BLOCK_DISABLE" } else { "" };
    let calls = match state.kind {
        Kind::Bare => "0, 0, 0, 0, 0".to_owned(),
        _ => format!("pre_patch_{id}, post_patch_{id}, pre_unpatch_{id}, post_unpatch_{id}, dtor_{id}"),
    };
    format!("SUTURE_STATE({id}, {shadow}{block}, {calls})")
}

fn callbacks(text: &mut String, row: &str, patch: &Patch, state: &State) {
    let (name, id) = (&patch.name, state.id);
    if state.kind == Kind::Bare {
        return;
    }
    let key = if state.kind == Kind::Level { "&level" } else { "0" };
    let begin = |kind: &str| {
        let hold = if state.holds { format!(" hold(\"{kind}\", \"{name}\", {id});") } else { String::new() };
        format!("UNUSED; journal(\"{kind}\", \"{name}\", {id}, \"\");{hold}")
    };
    // A variable that is not there shows as a callback that nobody expects.
    let variable = format!(
        "char *v = GET({key}, {id}); if (!v) {{ journal(\"no-variable\", \"{name}\", {id}, \"\"); return; }}"
    );
    let write = |content: &str| format!("{variable} write_text(v, \"{content}\");");
    let (pre_patch, post_patch, pre_unpatch) = match state.kind {
        Kind::Level => (
            "return 0;".to_owned(),
            format!(
                "char *v = ALLOC({key}, {id}); if (v) {{ v[0] = '0' + level; mirror({id}, v); }} level = 15;"
            ),
            format!("{variable} level = v[0] - '0';"),
        ),
        _ => (pre_patch(row, patch, state), write("[ON]"), write("[]")),
    };
    let args = "(struct suture_patch *patch, struct suture_state *state)";
    let _ = write!(
        text,
        "static int pre_patch_{id}{args}\n{{\n    {}\n    {pre_patch}\n}}\n\
         static void post_patch_{id}{args}\n{{\n    {}\n    {post_patch}\n}}\n\
         static void pre_unpatch_{id}{args}\n{{\n    {}\n    {pre_unpatch}\n}}\n\
         static void post_unpatch_{id}{args}\n{{\n    {}\n    {variable}\n    (void)v;\n}}\n\
         static void dtor_{id}(void *obj, void *data)\n{{\n    (void)obj; journal(\"dtor\", \"{name}\", {id}, data); \
         mirror({id}, 0);\n}}\n",
        begin("pre_patch"),
        begin("post_patch"),
        begin("pre_unpatch"),
        begin("post_unpatch"),
    );
}

/// `pre_patch` of the applause.
fn pre_patch(row: &str, patch: &Patch, state: &State) -> String {
    let id = state.id;
    let meddle = state.meddles.as_ref().map_or_else(String::new, |other| {
        format!("meddle(\"{}\", \"{}\"); ", file_name(row, other), patch.name)
    });
    let hook = state.hooks.as_ref().map_or_else(String::new, |f| format!("hook_entry(\"{f}\"); "));
    let alloc = format!(
        "{hook}{meddle}char *v = ALLOC(0, {id}); if (!v) return -17; write_text(v, \"[]\"); mirror({id}, v);"
    );
    match state.fails {
        None => format!("{alloc} return 0;"),
        Some(Fails::Early(errno)) => format!("return {errno};"),
        Some(Fails::AfterFreeing(errno)) => {
            format!("{alloc} FREE(0, {id}); mirror({id}, 0); return {errno};")
        }
        // The runtime frees it with the state.
        Some(Fails::Keeping(errno)) => format!("{alloc} return {errno};"),
    }
}

/// A patch that names the program and none of its functions, which the macros cannot say.
fn nothing(text: &mut String, patch: &Patch) {
    let flags = if patch.replace { "SUTURE_REPLACE" } else { "0" };
    let _ = writeln!(
        text,
        "static const struct suture_func functions[] = {{{{0, 0, 0}}}};\n\
         static const struct suture_object objects[] = {{{{0, 0, functions}}, {{0, 0, 0}}}};\n\
         extern __attribute__((visibility(\"default\"))) struct suture_patch suture_patch;\n\
         struct suture_patch suture_patch = {{SUTURE_ABI, sizeof(struct suture_patch), \"{}\", {flags}, objects, 0, 0}};",
        patch.name
    );
}

/// A descriptor that must be refused.
fn broken(text: &mut String, patch: &Patch, how: Broken) {
    let (object, objects) = match how {
        Broken::NoFunctions => ("{\"libspk.so\", 0, 0}", "objects"),
        Broken::NoObjects => ("{0, 0, functions}", "0"),
        Broken::NoName | Broken::NoNew | Broken::NoId => ("{0, 0, functions}", "objects"),
    };
    let function = match how {
        Broken::NoName => "{0, new_0, 0}",
        Broken::NoNew => "{\"f\", 0, 0}",
        Broken::NoObjects | Broken::NoFunctions | Broken::NoId => "{\"f\", new_0, 0}",
    };
    let states = if how == Broken::NoId { "states" } else { "0" };
    let flags = if patch.replace { "SUTURE_REPLACE" } else { "0" };
    let _ = writeln!(
        text,
        "__attribute__((used)) static const struct suture_func functions[] = {{{function}, {{0, 0, 0}}}};\n\
         __attribute__((used)) static const struct suture_object objects[] = {{{object}, {{0, 0, 0}}}};\n\
         __attribute__((used)) static const struct suture_state states[] = {{{{0, SUTURE_IS_SHADOW, 0, {{0, 0, 0, 0, 0}}}}, {{0, 0, 0, {{0, 0, 0, 0, 0}}}}}};\n\
         __attribute__((used)) static const void *keep_new = new_0;\n\
         extern __attribute__((visibility(\"default\"))) struct suture_patch suture_patch;\n\
         struct suture_patch suture_patch = {{SUTURE_ABI, sizeof(struct suture_patch), \"{}\", {flags}, {objects}, {states}, 0}};",
        patch.name
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_grouped_and_positions_kept() {
        let patch = Patch::parse("A!{f, spk.welcome, dup@2; 10!}").unwrap();
        let text = source("X-1", &patch);
        for part in [
            "SUTURE_OBJECT(SUTURE_MAIN, SUTURE_FUNC(\"f\", new_0), SUTURE_FUNC_AT(\"dup\", 2, new_2))",
            "SUTURE_OBJECT(\"libspk.so\", SUTURE_FUNC(\"welcome\", new_1))",
            "SUTURE_STATE(10, SUTURE_IS_SHADOW | SUTURE_BLOCK_DISABLE, pre_patch_10,",
            "SUTURE_REPLACE_ALL",
        ] {
            assert!(text.contains(part), "{part} is not in:\n{text}");
        }
    }

    #[test]
    fn a_state_that_is_listed_twice_has_one_set_of_callbacks() {
        let text = source("X-1", &Patch::parse("A{f; 10,10}").unwrap());
        assert_eq!(text.matches("static int pre_patch_10").count(), 1);
        assert_eq!(text.matches("SUTURE_STATE(10").count(), 2);
    }
}
