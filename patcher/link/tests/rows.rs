//! What a patch may do, one row per feature: each is built, linked into a running program, and run
//! there.

mod common;

use common::{Host, host, patch};

/// The plainest program: exports nothing.
const HOST: &str = r#"
#include <stdio.h>
__attribute__((noinline)) long target(long x) { return x; }
int counter = 5;
static int hidden_counter = 6;
static __attribute__((noinline)) int hidden_twice(int x) { hidden_counter++; return 2 * x; }
__thread int per_thread = 40;
static __thread int hidden_per_thread = 50;
void host_start(void) { printf("%d", (int)target(hidden_twice(hidden_per_thread)) * 0 + per_thread * 0); }
"#;

struct Row {
    name: &'static str,
    host: &'static [&'static str],
    flags: &'static [&'static str],
    /// Declarations before `suture.h`, then the body of `long fixed(long x)`.
    before: &'static str,
    body: &'static str,
    result: i64,
    /// Part of what the program prints.
    prints: &'static str,
}

const PIE: &[&str] = &["-fPIE", "-pie"];
const NOPIE: &[&str] = &["-fno-pie", "-no-pie"];

impl Row {
    const fn new(name: &'static str, before: &'static str, body: &'static str, result: i64) -> Self {
        Self { name, host: PIE, flags: &[], before, body, result, prints: "" }
    }
    const fn host(mut self, host: &'static [&'static str]) -> Self {
        self.host = host;
        self
    }
    const fn flags(mut self, flags: &'static [&'static str]) -> Self {
        self.flags = flags;
        self
    }
    const fn prints(mut self, prints: &'static str) -> Self {
        self.prints = prints;
        self
    }

    fn run(&self) -> Result<(), String> {
        let program = host(&format!("host-{}", self.name), "gcc", HOST, self.host);
        let source = format!(
            "{}\n#include <suture.h>\n{}\nstatic long fixed(long x) {{ {} }}\n\
             SUTURE_PATCH(\"row\", SUTURE_OBJECT(SUTURE_MAIN, SUTURE_FUNC(\"target\", fixed)));\n",
            self.before.split("---").next().unwrap_or(""),
            self.before.split("---").nth(1).unwrap_or(""),
            self.body,
        );
        let file = patch(&format!("patch-{}", self.name), "gcc", &source, self.flags);
        let process = Host::start(&program, &[]);
        let plan = process.link(&file).map_err(|e| e.to_string())?;
        let (answer, output) = process.run(&plan, 7);
        if answer != format!("result {}", self.result) || !output.contains(self.prints) {
            return Err(format!("{answer}, printed {output:?}"));
        }
        Ok(())
    }
}

fn run(rows: &[Row]) {
    let failures: Vec<String> =
        rows.iter().filter_map(|row| row.run().err().map(|why| format!("{}: {why}", row.name))).collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

const STDIO: &str =
    "#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\n#include <errno.h>\n#include <unistd.h>";

#[test]
fn ordinary_imports() {
    run(&[
        Row::new("plain", "", "return x * 100;", 700),
        Row::new("printf", STDIO, "printf(\"hello %ld\\n\", x); return 1;", 1).prints("hello 7"),
        Row::new("printf-nopie", STDIO, "printf(\"hello %ld\\n\", x); return 1;", 1)
            .host(NOPIE)
            .prints("hello 7"),
        Row::new("stdout-copy", STDIO, "fputs(\"through stdout\\n\", stdout); return 2;", 2)
            .host(NOPIE)
            .prints("through stdout"),
    ]);
}
