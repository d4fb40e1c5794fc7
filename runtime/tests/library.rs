//! What `libsuture.so` is as a file: what it needs, what it exports, what it costs.

mod common;

use common::target::Target;
use std::process::Command;

fn readelf(args: &[&str]) -> String {
    let out = Command::new("readelf").args(args).arg("-W").arg(common::library()).output().unwrap();
    assert!(out.status.success());
    String::from_utf8(out.stdout).unwrap()
}

#[test]
fn it_needs_nothing_and_stays() {
    let dynamic = readelf(&["-d"]);
    assert!(!dynamic.contains("(NEEDED)"), "{dynamic}");
    assert!(!dynamic.contains("(TEXTREL)"), "{dynamic}");
    assert!(dynamic.contains("Library soname: [libsuture.so]"), "{dynamic}");
    let flags = dynamic.lines().find(|l| l.contains("(FLAGS_1)")).unwrap();
    assert!(flags.contains("NODELETE") && flags.contains("NOW"), "{flags}");
    let segments = readelf(&["-l"]);
    assert!(!segments.lines().any(|l| l.trim_start().starts_with("TLS")), "{segments}");
    assert!(segments.contains("GNU_EH_FRAME"), "exceptions must pass through the handlers");
    let stack = segments.lines().find(|l| l.contains("GNU_STACK")).unwrap();
    assert!(stack.contains("RW ") && !stack.contains("RWE"), "{stack}");
    assert!(readelf(&["-n"]).contains("Build ID"));
}

#[test]
fn it_exports_the_block_what_patches_call_and_nothing_else() {
    let mut symbols: Vec<String> = readelf(&["--dyn-syms"])
        .lines()
        .filter_map(|l| l.split_whitespace().nth(7).map(str::to_owned))
        .filter(|name| name != "Name")
        .collect();
    symbols.sort();
    let mut allowed: Vec<&str> = suture_abi::shadow::FUNCTIONS.to_vec();
    allowed.extend(suture_abi::attributes::FUNCTIONS);
    allowed.push(suture_abi::BLOCK_SYMBOL);
    allowed.extend(["suture_stack_register", "suture_stack_unregister"]);
    allowed.sort();
    assert_eq!(symbols, allowed, "undefined ones would be listed too");
}

#[test]
fn gdb_finds_its_symbols() {
    let symbols = readelf(&["--symbols"]);
    for name in ["__jit_debug_descriptor", "__jit_debug_register_code"] {
        assert!(symbols.lines().any(|l| l.ends_with(name) && l.contains("LOCAL")), "{name}");
    }
}

#[test]
fn it_has_no_code_that_panics() {
    // The panic handler cannot do better than end the worker: that no call of it survived the
    // optimiser says that no path leads there.
    let symbols = readelf(&["--symbols"]);
    let found: Vec<&str> =
        symbols.lines().filter(|l| l.contains("panicking") || l.contains("handle_alloc_error")).collect();
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn it_costs_little_memory_before_the_first_patch() {
    let target = Target::start();
    let smaps = std::fs::read_to_string(format!("/proc/{}/smaps", target.pid)).unwrap();
    let block = target.at("block");
    let library = target.maps().into_iter().find(|(from, to, _)| (*from..*to).contains(&block)).unwrap();
    // Pages of the file itself are not counted: fresh from the compiler they are "dirty" as well.
    // The mappings of the library and the anonymous rest of its `.bss`, to which the block belongs.
    let mut ours = false;
    let mut private = 0;
    for line in smaps.lines() {
        let first = line.split(' ').next().unwrap();
        if let Some((from, _)) = first.split_once('-') {
            let from = u64::from_str_radix(from, 16).unwrap();
            ours = line.contains("libsuture.so") || from == library.0;
        } else if ours && line.starts_with("Anonymous:") {
            private += line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap();
        }
    }
    println!("{private} KiB");
    assert!((4..=64).contains(&private), "{private} KiB of private memory");
}
