//! Functions that are reached by more than their one name: through linkage tables, by aliases, through a choice of the
//! loader, and by names that compiler or linker have made one of.

use std::path::PathBuf;
use std::process::Command;
use suture_tests::command::{Outcome, apply, disable};
use suture_tests::dist::root;
use suture_tests::lab::{compile, replacing};
use suture_tests::target::Options;
use suture_tests::{Lab, Target, need, report};

/// Answers `N` with what each of these expressions in `n` is.
fn asking(head: &str, expressions: &[&str]) -> String {
    let formats = vec!["%ld"; expressions.len()].join(" ");
    let values = expressions.join(", ");
    format!(
        "#include \"line.h\"\n{head}\n\
         int main(void) {{\n\
             char line[64]; long n;\n\
             answer(\"ready\");\n\
             while (read_line(line, sizeof line))\n\
                 if (sscanf(line, \"%ld\", &n) == 1) answer(\"{formats}\", {values});\n\
             return 0;\n\
         }}\n"
    )
}

/// Functions that the compiler leaves alone.
const KEPT: [&str; 4] = ["-O2", "-fno-ipa-ra", "-fno-ipa-cp", "-fno-inline"];

struct Program {
    lab: Lab,
    flags: Vec<String>,
}

impl Program {
    /// Compiles with these flags, too, and finds its libraries where they are made.
    fn new(flags: &[&str]) -> Self {
        let lab = Lab::new();
        let mut all: Vec<String> = [&KEPT[..], flags].concat().into_iter().map(str::to_owned).collect();
        all.push("-Wl,--build-id".into());
        all.push(format!("-Wl,-rpath,{}", lab.path("").display()));
        Self { lab, flags: all }
    }

    fn compile(&self, name: &str, text: &str, more: &[&str]) -> PathBuf {
        let source = self.lab.write(&format!("{name}.c"), text);
        let file = self.lab.path(name);
        let flags: Vec<&str> = self.flags.iter().map(String::as_str).chain(more.iter().copied()).collect();
        compile(&source, &file, &flags);
        file
    }

    fn library(&self, name: &str, text: &str, more: &[&str]) -> String {
        let file = self.compile(name, text, &[&["-shared", "-fPIC"], more].concat());
        file.to_string_lossy().into_owned()
    }

    fn start(&self, text: &str, more: &[&str], preload: bool) -> Target {
        let include = format!("-I{}", root().join("demo-target/targets").display());
        let file = self.compile("program", text, &[&[include.as_str()], more].concat());
        Target::start(&file, &[], Options { preload, ..Options::default() })
    }
}

/// What `readelf` says of a file.
fn readelf(option: &str, file: &str) -> String {
    need("readelf", "binutils");
    let done = Command::new("readelf").args(["-W", option, file]).output().expect("running readelf");
    String::from_utf8_lossy(&done.stdout).into_owned()
}

/// A patch of a function of a library, which then returns what `body` says.
fn replacing_in(library: &str, name: &str, functions: &[&str], body: &str) -> String {
    let rows: Vec<String> = functions.iter().map(|f| format!("SUTURE_FUNC(\"{f}\", patched)")).collect();
    format!(
        "#include <suture.h>\n\
         static long patched(long n) {{ {body} }}\n\
         SUTURE_PATCH(\"{name}\", SUTURE_OBJECT(\"{library}\", {}));\n",
        rows.join(", ")
    )
}

/// The program and two libraries call a function of a third one, each through its own linkage table; a pointer to it
/// is older than the patch.
#[test]
fn a_function_behind_linkage_tables_is_replaced_for_all_its_callers() {
    for (binding, preload) in [("lazy", true), ("lazy", false), ("now", true), ("now", false)] {
        let program = Program::new(&[&format!("-Wl,-z,{binding}")]);
        let price = program.library("libprice.so", "long price(long n) { return n * 2 + (n > 40); }\n", &[]);
        let caller = |name: &str, add: u32| {
            let text = format!("long price(long n);\nlong {name}(long n) {{ return price(n) + {add}; }}\n");
            program.library(&format!("lib{name}.so"), &text, &[&price])
        };
        let (first, second) = (caller("first", 100), caller("second", 200));
        let head = "long price(long n); long first(long n); long second(long n);\n\
            static long (*volatile kept)(long);";
        let text = asking(head, &["price(n)", "first(n)", "second(n)", "kept(n)"])
            .replace("answer(\"ready\");", "kept = price; answer(\"ready\");");
        let mut target = program.start(&text, &[&first, &second, &price], preload);
        for file in [&first, &second] {
            let slot = readelf("-r", file).lines().any(|l| l.contains("JUMP_SLOT") && l.contains("price"));
            assert!(slot, "{file} calls it another way");
            assert_eq!(readelf("-d", file).contains("BIND_NOW"), binding == "now", "{file}");
        }
        let patch =
            program.lab.patch("half", &replacing_in("libprice.so", "half", &["price"], "return n / 2;"));
        let pid = target.pid();
        // Before anybody has called it, so that lazy slots lead to the loader still; then once more when they are
        // bound, to the old entry.
        for _ in 0..2 {
            apply(&patch, pid).expect(0);
            assert_eq!(target.ask("40"), "20 120 220 20", "{binding}");
            disable("half", pid).expect(0);
            assert_eq!(target.ask("40"), "80 180 280 80", "{binding}");
        }
        assert!(target.finish().success());
    }
}

const ALIASES: &str = "\
    __attribute__((noinline, noipa)) long price(long n) { return n * 7 + value_step; }\n\
    extern __typeof__(price) cost __attribute__((alias(\"price\")));\n\
    extern __typeof__(price) __price __attribute__((weak, alias(\"price\")));";

fn refused(outcome: &Outcome, names: [&str; 2]) {
    outcome.expect_refused(&["are one function", names[0], names[1]]);
}

#[test]
fn any_alias_of_a_function_replaces_all_of_them() {
    for preload in [true, false] {
        let program = Program::new(&[]);
        let text = asking(ALIASES, &["price(n)", "cost(n)", "__price(n)"]);
        let mut target = program.start(&text, &[], preload);
        let pid = target.pid();
        assert_eq!(target.ask("1"), "8 8 8");
        for (index, name) in (1..).zip(["price", "cost", "__price"]) {
            let body = format!("return n + {index}000;");
            let patch = program.lab.patch(name, &replacing(name, name, &body));
            let outcome = apply(&patch, pid);
            outcome.expect(0);
            let warning = format!("`{name}` is one function with");
            assert!(outcome.stdout.contains(&warning), "{}", outcome.stdout);
            let all = format!("{index}001");
            assert_eq!(target.ask("1"), [all.as_str(); 3].join(" "));
        }
        // They lie on one another, as patches of one function do.
        disable("cost", pid).expect(0);
        assert_eq!(target.ask("1"), "3001 3001 3001");
        disable("__price", pid).expect(0);
        assert_eq!(target.ask("1"), "1001 1001 1001");
        let both = |first: &str, second: &str| {
            let text = replacing("both", first, "return n;").replace(
                &format!("SUTURE_FUNC(\"{first}\", patched)"),
                &format!("SUTURE_FUNC(\"{first}\", patched), SUTURE_FUNC(\"{second}\", patched)"),
            );
            apply(&program.lab.patch("both", &text), pid)
        };
        refused(&both("price", "cost"), ["price", "cost"]);
        refused(&both("price", "__price"), ["price", "__price"]);
        assert_eq!(target.ask("1"), "1001 1001 1001");
        disable("price", pid).expect(0);
        assert_eq!(target.ask("1"), "8 8 8");
    }
}

/// `-fipa-icf` makes one function of two that do the same, without a linker that knows how.
#[test]
fn functions_that_the_compiler_folded_are_named() {
    let program = Program::new(&["-fipa-icf", "-fno-semantic-interposition"]);
    let head = "\
        __attribute__((noinline)) static long price_of_apples(long n) { return n * 7 + value_step; }\n\
        __attribute__((noinline)) static long price_of_pears(long n) { return n * 7 + value_step; }";
    let mut target = program.start(&asking(head, &["price_of_apples(n)", "price_of_pears(n)"]), &[], true);
    let table = readelf("-s", &target.program().to_string_lossy());
    let entry = |name: &str| {
        let line = table.lines().find(|l| l.split_whitespace().last() == Some(name));
        line.and_then(|l| l.split_whitespace().nth(1)).map(str::to_owned)
    };
    let pears = entry("price_of_pears");
    assert_eq!(target.ask("1"), "8 8");
    let patch = program.lab.patch("apples", &replacing("apples", "price_of_apples", "return n * 100;"));
    let outcome = apply(&patch, target.pid());
    outcome.expect(0);
    assert_eq!(target.ask("1"), "100 100", "both are the one");
    // The compiler may drop the second name altogether; if there are two, the user is told.
    if pears.is_some() {
        assert_eq!(pears, entry("price_of_apples"), "{table}");
        let warning = "`price_of_apples` is one function with `price_of_pears`";
        assert!(outcome.stdout.contains(warning), "{}", outcome.stdout);
    }
    disable("apples", target.pid()).expect(0);
    assert_eq!(target.ask("1"), "8 8");
}

const CHOICE: &str = "\
    static volatile long step = 1;\n\
    __attribute__((noinline, noipa)) static long slow_price(long n) { return n - step; }\n\
    __attribute__((noinline, noipa)) static long fast_price(long n) { return n + step; }\n\
    static void *choose(void) { return fast_price; }\n\
    long price(long n) __attribute__((ifunc(\"choose\")));\n\
    long other_price(long n) { return slow_price(n); }\n";

#[test]
fn an_indirect_function_is_replaced_in_the_body_the_loader_chose() {
    for preload in [true, false] {
        let program = Program::new(&["-Wl,-z,now"]);
        let library = program.library("libchoice.so", CHOICE, &[]);
        let symbols = readelf("-s", &library);
        assert!(symbols.lines().any(|l| l.contains(" IFUNC ") && l.ends_with(" price")), "{symbols}");
        let head = "long price(long n); long other_price(long n);";
        let mut target = program.start(&asking(head, &["price(n)", "other_price(n)"]), &[&library], preload);
        let pid = target.pid();
        assert_eq!(target.ask("10"), "11 9");
        let patch = |name: &str, functions: &[&str]| {
            let text = replacing_in("libchoice.so", name, functions, "return n + 1000;");
            program.lab.patch(name, &text)
        };
        apply(&patch("choice", &["price"]), pid).expect(0);
        let status = report::status(pid);
        assert_eq!(status["patches"][0]["functions"][0]["name"], "fast_price", "{status:#}");
        assert_eq!(target.ask("10"), "1010 9", "the body that was not chosen stays");
        disable("choice", pid).expect(0);
        assert_eq!(target.ask("10"), "11 9");
        // By its own name the body is the same function.
        apply(&patch("body", &["fast_price"]), pid).expect(0);
        assert_eq!(target.ask("10"), "1010 9");
        refused(&apply(&patch("both", &["price", "fast_price"]), pid), ["price", "fast_price"]);
        disable("body", pid).expect(0);
        assert_eq!(target.ask("10"), "11 9");
        assert!(target.finish().success());
    }
}

/// With lazy binding the loader has chosen nothing before the first call.
#[test]
fn an_indirect_function_that_nobody_has_called_is_refused_until_somebody_has() {
    let program = Program::new(&["-Wl,-z,lazy"]);
    let library = program.library("libchoice.so", CHOICE, &[]);
    let head = "long price(long n); long other_price(long n);";
    let mut target = program.start(&asking(head, &["price(n)", "other_price(n)"]), &[&library], true);
    let text = replacing_in("libchoice.so", "choice", &["price"], "return n + 1000;");
    let patch = program.lab.patch("choice", &text);
    apply(&patch, target.pid()).expect_refused(&["price", "indirect function"]);
    assert_eq!(target.ask("10"), "11 9");
    apply(&patch, target.pid()).expect(0);
    assert_eq!(target.ask("10"), "1010 9");
}
