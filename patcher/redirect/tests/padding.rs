//! Where class S finds five bytes that nothing runs, and where it must not look.

mod common;

use common::{Loaded, build, function, same_behaviour};
use suture_redirect::{Class, Classes, Options, PlanError, RedirectPlan, Refusal};

const SHORT: &str = "lea 3(%rdi),%rax\nadd %rsi,%rax\nret";
/// Nothing behind it is in reach of a short jump at its entry.
const LONG: &str = "lea 3(%rdi),%rax\n.rept 40\nlea (%rax,%rsi),%rax\nxor %rdi,%rax\n.endr\nret";

fn only_s() -> Options {
    Options { classes: Classes::parse("S").unwrap(), ..Options::default() }
}

fn refusal(result: Result<RedirectPlan, PlanError>) -> Refusal {
    match result {
        Err(PlanError::Refused(mut why)) => why.remove(0).1,
        Err(error) => panic!("{error}"),
        Ok(plan) => panic!("planned: {:?}", plan.sites),
    }
}

/// Plans `f` with class S alone and compares how it behaves before, with and after it.
fn works(loaded: &Loaded) -> u64 {
    let plan = loaded.plan(&["f"], &only_s()).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(plan.sites[0].class, Class::S);
    same_behaviour(loaded, &plan, "f").unwrap();
    plan.sites[0].site.pad_addr - loaded.object.base.0
}

/// The last page of an executable segment is mapped whole: a library of one function has room there.
#[test]
fn the_unused_end_of_the_last_page_is_padding() {
    let loaded = Loaded::assembled(&function("f", SHORT));
    let file = loaded.object.analysis.file();
    let code = file.segments().iter().find(|s| s.executable()).unwrap();
    let tail = file.page_tail(code).unwrap();
    let pad = works(&loaded);
    assert!(tail.start.0 <= pad && pad + 5 <= tail.end.0, "{pad:#x} is not in {tail:?}");
    // Every function takes the nearest place that is left; between them there is no room.
    let many: String =
        (0..8).map(|i| function(&format!("f{i}"), &format!("{SHORT}\n.byte 0x0f,0x1f,0x40,{i}"))).collect();
    let loaded = Loaded::assembled(&many);
    let names: Vec<String> = (0..8).map(|i| format!("f{i}")).collect();
    let plan = loaded.plan(&names.iter().map(String::as_str).collect::<Vec<_>>(), &only_s());
    assert_eq!(plan.unwrap_or_else(|e| panic!("{e}")).sites.len(), 8);
}

/// A segment that fills its last page has none, and what the file has there may be used by somebody.
#[test]
fn only_zeros_are_an_unused_end() {
    let path = build(&function("f", SHORT), "s", &["-nostdlib"]);
    let bytes = std::fs::read(&path).unwrap();
    let tail_of = |bytes: Vec<u8>| {
        let file = suture_elf::ObjectFile::from_bytes(bytes, "f".into()).unwrap();
        let code = *file.segments().iter().find(|s| s.executable()).unwrap();
        (file.page_tail(&code), (code.offset + code.filesz) as usize)
    };
    let (tail, end) = tail_of(bytes.clone());
    assert!(tail.is_some());
    let mut used = bytes;
    used[end + 700] = 1;
    assert_eq!(tail_of(used).0, None);
    let full = function("f", ".rept 0x1000 - 1\nnop\n.endr\nret");
    assert_eq!(tail_of(std::fs::read(build(&full, "s", &["-nostdlib"])).unwrap()).0, None);
}

/// Start-up code has no unwind tables; the NOPs that align the first function are behind its end.
#[test]
fn padding_behind_start_up_code_is_found() {
    let loaded = Loaded::open(&build(&function("f", LONG), "s", &["-s"]));
    let entry = loaded.request("f").entry.0;
    let pad = works(&loaded);
    assert!(pad < entry && pad + 5 <= entry && entry - pad < 16, "{pad:#x} {entry:#x}");
}

/// Code without unwind tables in front of `f`, and why what looks like padding there is none.
#[test]
fn what_may_be_run_is_no_padding() {
    let nops = ".byte 0x0f,0x1f,0x80,0,0,0,0\n.byte 0x0f,0x1f,0x44,0,0\n";
    let behind = |code: &str, more: &str| {
        let unaligned = |text: String| text.replace(".p2align 4\n", "");
        let gap = format!(".text\n.p2align 4\n{code}{nops}");
        let source = function("g", LONG) + &gap + &unaligned(function("f", LONG) + more);
        Loaded::assembled(&(source + ".p2align 12\n"))
    };
    // Four bytes, so that f is at a multiple of 16.
    let ends = behind("xor %eax,%eax\nnop\nret\n", "");
    let pad = works(&ends);
    assert!(ends.request("f").entry.0 - pad <= 12);
    for (what, code) in [
        ("falls through", "xor %eax,%eax\nnop\nnop\n"),
        ("a call may return", ".rept 5\nadd $1,%eax\n.endr\n.byte 0xe8\n.long 7\n"),
        ("f is not at a multiple of 16", "ret\n"),
    ] {
        assert_eq!(refusal(behind(code, "").plan(&["f"], &only_s())), Refusal::ClassesOff, "{what}");
    }
    // What arrives at the beginning runs on through all of it, what arrives later only through the rest.
    let entered = |at: &str| {
        let jump = function("h", &format!("jmp f-{at}"));
        behind("xor %eax,%eax\nnop\nret\n", &jump).plan(&["f"], &only_s())
    };
    let why = refusal(entered("12"));
    assert!(matches!(why, Refusal::Arrival { .. }), "{why}");
    let site = entered("5").unwrap_or_else(|e| panic!("{e}")).sites[0].site;
    assert!(site.pad_addr + 5 <= site.entry - 5, "{site:x?}");
}
