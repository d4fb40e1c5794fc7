//! Programs that were stripped, and whose symbols are kept elsewhere: in debug files, found by build-id or by
//! link, and compressed inside the program.

use std::fs;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::Command;
use suture_tests::command::{Outcome, apply, disable};
use suture_tests::dist::root;
use suture_tests::lab::replacing;
use suture_tests::target::{NOBODY, Options};
use suture_tests::{Lab, Target, need};

/// Uses a private function and private data of the program, which only its symbol table knows.
const PATCH: &str = "#include <suture.h>\n\
    SUTURE_EXTERN volatile long factor;\n\
    static long dearer(long item) { return item * factor * 2; }\n\
    SUTURE_PATCH(\"dearer\", SUTURE_OBJECT(SUTURE_MAIN, SUTURE_FUNC(\"price\", dearer)));\n";

fn tool(name: &str, args: &[&dyn AsRef<std::ffi::OsStr>]) {
    need(name, if name == "xz" { "xz-utils" } else { "binutils" });
    let done = Command::new(name).args(args.iter().map(|a| a.as_ref())).output().expect("running a tool");
    assert!(done.status.success(), "{name}: {}", String::from_utf8_lossy(&done.stderr));
}

/// `shop.c`, stripped, and its debug file.
struct Shop {
    lab: Lab,
    program: PathBuf,
    debug: PathBuf,
    patch: PathBuf,
}

impl Shop {
    fn new(build_id: &str) -> Self {
        let lab = Lab::new();
        let program = lab.compile_target("shop.c", &[&format!("-Wl,--build-id={build_id}")]);
        let debug = lab.path("shop.debug");
        tool("objcopy", &[&"--only-keep-debug", &program, &debug]);
        tool("objcopy", &[&"--strip-all", &program]);
        let patch = lab.patch("dearer", PATCH);
        Self { lab, program, debug, patch }
    }

    fn start(&self) -> Target {
        Target::start(&self.program, &[], Options::default())
    }

    /// Applies, looks, and takes back.
    fn is_patched(&self) {
        let mut target = self.start();
        assert_eq!(target.ask("price 100"), "price 100 = 9000");
        apply(&self.patch, target.pid()).expect(0);
        assert_eq!(target.ask("price 100"), "price 100 = 18000");
        disable("dearer", target.pid()).expect(0);
        assert_eq!(target.ask("price 100"), "price 100 = 9000");
        assert!(target.finish().success());
    }

    /// Is refused for want of symbols, and says why in these words.
    fn is_refused(&self, words: &[&str]) -> Outcome {
        let mut target = self.start();
        let outcome = apply(&self.patch, target.pid());
        let words: Vec<&str> = [&["price"], words].concat();
        outcome.expect_refused(&words);
        assert_eq!(target.ask("price 100"), "price 100 = 9000");
        outcome
    }
}

/// A debug file where distributions install them; removed when dropped.
struct Installed(PathBuf);

impl Installed {
    fn new(build_id: &str, from: &Path) -> Self {
        let path =
            PathBuf::from(format!("/usr/lib/debug/.build-id/{}/{}.debug", &build_id[..2], &build_id[2..]));
        fs::create_dir_all(path.parent().expect("a folder")).expect("the store of debug files");
        fs::copy(from, &path).expect("room for a debug file");
        Self(path)
    }
}

impl Drop for Installed {
    fn drop(&mut self) {
        // The folder goes with its last file only.
        let _ = fs::remove_file(&self.0);
        let _ = self.0.parent().map(fs::remove_dir);
    }
}

/// A build-id that nobody else has.
fn fresh_id(seed: u8) -> String {
    format!("5075{:08x}{seed:02x}{}", std::process::id(), "c0".repeat(13))
}

#[test]
fn symbols_come_from_the_debug_file_of_the_build_id() {
    let id = fresh_id(1);
    let shop = Shop::new(&format!("0x{id}"));
    let outcome = shop.is_refused(&["stripped", "debug symbols"]);
    assert!(!outcome.stderr.contains("note:"), "{}", outcome.stderr);
    let installed = Installed::new(&id, &shop.debug);
    shop.is_patched();
    // Others could lead root anywhere with it.
    chown(&installed.0, Some(NOBODY), None).expect("chown");
    shop.is_refused(&["note:", ".debug is not used", "belongs to another user"]);
    fs::write(&installed.0, "no object").expect("writing");
    chown(&installed.0, Some(0), None).expect("chown");
    shop.is_refused(&["note:", ".debug is not used", "not an ELF file"]);
    drop(installed);
    shop.is_refused(&["stripped"]);
}

#[test]
fn a_debug_file_of_another_build_is_not_used() {
    let id = fresh_id(2);
    let (shop, other) = (Shop::new(&format!("0x{id}")), Shop::new(&format!("0x{}", fresh_id(3))));
    let installed = Installed::new(&id, &other.debug);
    shop.is_refused(&["note:", ".debug is not used: it belongs to another build", &id, &fresh_id(3)]);
    // One that does not say what it belongs to may be anybody's.
    tool("objcopy", &[&"--remove-section=.note.gnu.build-id", &installed.0]);
    shop.is_refused(&["note:", ".debug is not used: it belongs to another build (build-id none,"]);
    // The right one beside it is found by its link.
    let link = format!("--add-gnu-debuglink={}", shop.debug.display());
    tool("objcopy", &[&link, &shop.program]);
    let mut target = shop.start();
    let outcome = apply(&shop.patch, target.pid());
    outcome.expect(0);
    assert!(outcome.stdout.contains("warning: /usr/lib/debug/.build-id/"), "{}", outcome.stdout);
    assert_eq!(target.ask("price 1"), "price 1 = 180");
}

/// Somebody linked the wrong file, and the checksum is that of the wrong file.
#[test]
fn a_linked_debug_file_of_another_build_is_not_used() {
    let [id, of_other] = [6, 7].map(fresh_id);
    let (shop, other) = (Shop::new(&format!("0x{id}")), Shop::new(&format!("0x{of_other}")));
    fs::copy(&other.debug, &shop.debug).expect("room for a debug file");
    let link = format!("--add-gnu-debuglink={}", shop.debug.display());
    tool("objcopy", &[&link, &shop.program]);
    shop.is_refused(&["note:", "shop.debug is not used: it belongs to another build", &id, &of_other]);
}

#[test]
fn symbols_come_from_the_debug_file_that_is_linked() {
    let shop = Shop::new(&format!("0x{}", fresh_id(4)));
    let link = format!("--add-gnu-debuglink={}", shop.debug.display());
    tool("objcopy", &[&link, &shop.program]);
    shop.is_patched();
    let folder = shop.lab.path(".debug");
    let moved = folder.join("shop.debug");
    fs::create_dir(&folder).expect("a folder");
    fs::rename(&shop.debug, &moved).expect("renaming");
    shop.is_patched();
    // Same build-id, other content: something is wrong with it.
    let mut content = fs::read(&moved).expect("the debug file");
    content.push(0);
    fs::write(&moved, &content).expect("writing");
    shop.is_refused(&["note:", "shop.debug is not used: its checksum is ", "the object's debug link says"]);
    content.pop();
    fs::write(&moved, &content).expect("writing");
    shop.is_patched();
}

/// As Fedora makes it: the symbols that `.dynsym` lacks.
#[test]
fn symbols_come_from_inside_the_program() {
    let shop = Shop::new(&format!("0x{}", fresh_id(5)));
    let mini = shop.lab.path("mini");
    let keep = shop.lab.write("keep", "price\nfactor\n");
    let keep = format!("--keep-symbols={}", keep.display());
    tool("objcopy", &[&"-S", &"--remove-section", &".comment", &keep, &shop.debug, &mini]);
    tool("xz", &[&mini]);
    let packed = shop.lab.path("mini.xz");
    let add = format!("--add-section=.gnu_debugdata={}", packed.display());
    tool("objcopy", &[&add, &shop.program]);
    shop.is_patched();
    // "did you mean" knows them, too.
    let misspelt = shop.lab.patch("misspelt", &PATCH.replace("\"price\"", "\"prise\""));
    let target = shop.start();
    apply(&misspelt, target.pid()).expect_refused(&["no function `prise`", "did you mean `price`?"]);
    let mut content = fs::read(&packed).expect("the packed symbols");
    let middle = content.len() / 2;
    content[middle] ^= 0x55;
    fs::write(&packed, content).expect("writing");
    let update = format!("--update-section=.gnu_debugdata={}", packed.display());
    drop(target);
    tool("objcopy", &[&update, &shop.program]);
    shop.is_refused(&["note:", "[.gnu_debugdata] is damaged: it cannot be unpacked", "not used"]);
}

/// `gold --icf=all` makes one function of two that do the same.
#[test]
fn functions_that_the_linker_folded_are_named() {
    let lab = Lab::new();
    let source = lab.write(
        "folded.c",
        "#include \"line.h\"\n\
         __attribute__((noinline)) long price_of_apples(long n) { return n * 7 + value_step; }\n\
         __attribute__((noinline)) long price_of_pears(long n) { return n * 7 + value_step; }\n\
         int main(void) {\n\
             char line[64]; long n;\n\
             answer(\"ready\");\n\
             while (read_line(line, sizeof line))\n\
                 if (sscanf(line, \"%ld\", &n) == 1) answer(\"%ld %ld\", price_of_apples(n), price_of_pears(n));\n\
             return 0;\n\
         }\n",
    );
    let program = lab.path("folded");
    let include = format!("-I{}", root().join("demo-target/targets").display());
    let flags =
        ["-O2", "-fno-ipa-icf", "-fno-ipa-ra", "-ffunction-sections", "-fuse-ld=gold", "-Wl,--icf=all"];
    suture_tests::lab::compile(&source, &program, &[&flags[..], &[include.as_str()]].concat());
    let mut target = Target::start(&program, &[], Options::default());
    assert_eq!(target.ask("1"), "8 8");
    let patch = lab.patch("apples", &replacing("apples", "price_of_apples", "return n * 100;"));
    let outcome = apply(&patch, target.pid());
    outcome.expect(0);
    let warning = "`price_of_apples` is one function with `price_of_pears` in this program";
    assert!(outcome.stdout.contains(warning), "{}", outcome.stdout);
    assert_eq!(target.ask("1"), "100 100");
    // Both cannot be replaced by two functions.
    let both = "SUTURE_FUNC(\"price_of_apples\", patched), SUTURE_FUNC(\"price_of_pears\", patched)";
    let both = replacing("both", "price_of_apples", "return n;")
        .replace("SUTURE_FUNC(\"price_of_apples\", patched)", both);
    apply(&lab.patch("both", &both), target.pid()).expect_refused(&["are one function"]);
    // An ordinary function has nothing to be said of.
    let plain = Lab::new();
    let mut target = plain.start_several();
    let outcome = apply(&plain.value_patch("fix", 100), target.pid());
    assert!(!outcome.expect(0).stdout.contains("warning"), "{}", outcome.stdout);
    assert_eq!(target.call(1), 101);
}
