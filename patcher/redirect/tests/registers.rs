//! Rule 4: which values a caller may rely on, and what only looks like one.

mod common;

use common::{build, function};
use suture_elf::{Base, ObjectFile, Vaddr};
use suture_redirect::{LoadedObject, ObjectAnalysis, Options, ProcessView, Replacement, Request, plan_sites};

const LEAF: &str = "lea 1(%rdi),%rax\nnop\nnop\nret";

/// What is said about `leaf` in a library that imports what it lacks; nothing of it is run.
fn judged(source: &str) -> Result<(), String> {
    judged_with(source, None)
}

/// The same, when the function `new` of the library takes its place.
fn judged_with(source: &str, new: Option<&str>) -> Result<(), String> {
    let object = library(source);
    let new = new.map(|new| (&object, new));
    judged_in(&object, new)
}

fn library(source: &str) -> ObjectAnalysis {
    let flags = ["-nostdlib", "-Wl,-Bsymbolic,--unresolved-symbols=ignore-all"];
    let file = build(&format!("{source}.p2align 12\n"), "s", &flags);
    ObjectAnalysis::new(&ObjectFile::open(&file).unwrap())
}

fn entry_of(object: &ObjectAnalysis, name: &str) -> Vaddr {
    object.file().symbols().named(name).next().unwrap().addr
}

/// The same of an analysis, when a function of an analysis takes the place.
fn judged_in(analysis: &ObjectAnalysis, new: Option<(&ObjectAnalysis, &str)>) -> Result<(), String> {
    let entry = entry_of(analysis, "leaf");
    let code = |(new, name): (&ObjectAnalysis, &str)| (new.clone(), entry_of(new, name));
    let replacement = new.map(code).map(|(analysis, entry)| Replacement::Code { analysis, entry });
    let analysis = analysis.clone();
    let object = LoadedObject { analysis, base: Base(0x7f00_0000_0000) };
    let request = Request { object: 0, entry, name: "leaf".into(), replacement };
    let plan = plan_sites(&[object], &[request], &ProcessView::default(), &Options::default());
    plan.map(|_| ()).map_err(|error| error.to_string())
}

fn verdict(leaf: &str, caller: &str) -> Result<(), String> {
    judged(&(function("leaf", leaf) + &function("caller", caller)))
}

#[track_caller]
fn keeps(register: &str, caller: &str) {
    let said = verdict(LEAF, caller).expect_err("it keeps a register");
    assert!(said.contains(&format!("its caller caller keeps {register} across the call")), "{said}");
}

#[track_caller]
fn keeps_nothing(caller: &str) {
    verdict(LEAF, caller).unwrap();
}

/// What an unknown function had the right to change holds nothing, whatever reads it.
#[test]
fn nothing_is_kept_in_what_an_unknown_function_may_have_changed() {
    // A guess: edx is the third argument of `unknown`, so the second must be there too.
    let call = "call leaf\nmov $5,%edi\nmov %rax,%rdx\ncall unknown@PLT\npop %rbx\nret";
    keeps("rsi", &format!("push %rbx\nmov $1,%esi\n{call}"));
    keeps("rsi", &format!("push %rbx\n{call}"));
    keeps_nothing(&format!("push %rbx\ncall unknown@PLT\n{call}"));
    keeps("rsi", &format!("push %rbx\ncall unknown@PLT\nmov $1,%esi\n{call}"));
    keeps("rsi", &format!("push %rbx\ncall unknown@PLT\nmov $1,%sil\n{call}"));
    // On one of two ways there is something in it.
    keeps("rsi", &format!("push %rbx\ncall unknown@PLT\ntest %eax,%eax\nje 1f\nmov $1,%esi\n1:\n{call}"));
    // Round a loop.
    keeps(
        "rsi",
        "push %rbx\ncall unknown@PLT\n1:\ncall leaf\nadd %rsi,%rax\nmov %rax,%rsi\njns 1b\npop %rbx\nret",
    );
    keeps_nothing(
        "push %rbx\n1:\ncall unknown@PLT\ncall leaf\nmov $5,%edi\nmov %rax,%rdx\ncall unknown@PLT\njmp 1b",
    );
}

/// Functions that call nothing unknown may be hand-written, and hand over what they like.
#[test]
fn a_known_function_may_hand_over_anything() {
    let known = function("known", "mov $7,%r9d\nret");
    let unknown = function("known", "push %rbx\nmov $7,%r9d\ncall unknown@PLT\npop %rbx\nret");
    for (callee, refused) in [(known, true), (unknown, false)] {
        let caller = "push %rbx\ncall unknown@PLT\ncall known\ncall leaf\nadd %r9,%rax\npop %rbx\nret";
        let source = function("leaf", LEAF) + &callee + &function("caller", caller);
        assert_eq!(judged(&source).is_err(), refused);
    }
}

/// Code that something may enter in the middle, or that a jump nobody understands leads through.
#[test]
fn where_the_way_to_a_call_is_unknown_everything_may_be_kept() {
    let call = "call leaf\nadd %rsi,%rax\npop %rbx\nret";
    keeps_nothing(&format!("push %rbx\ncall unknown@PLT\nnop\n{call}"));
    keeps(
        "rsi",
        &format!("push %rbx\ncall unknown@PLT\n.globl middle\nmiddle:\n{call}\n.data\n.quad middle\n.text"),
    );
    keeps(
        "rsi",
        &format!(
            "push %rbx\ntest %edi,%edi\nje 2f\ncall unknown@PLT\njmp 1f\n2:\nmov $9,%esi\nadd %rdx,%rax\nimul %rcx,%rax\njmp *%rax\n1:\n{call}"
        ),
    );
    let part = function("part", "mov $9,%esi\njmp middle");
    let source = function("leaf", LEAF)
        + &function("caller", &format!("push %rbx\ncall unknown@PLT\nmiddle:\n{call}"))
        + &part;
    let said = judged(&source).unwrap_err();
    assert!(said.contains("keeps rsi"), "{said}");
}

/// One byte of a register is written and read, the rest is nobody's.
#[test]
fn parts_of_registers_are_told_apart() {
    keeps_nothing("call leaf\ntest %eax,%eax\nsete %r9b\ntest %r9b,%r9b\nje 1f\nxor %eax,%eax\n1:\nret");
    keeps("r9", "call leaf\ntest %eax,%eax\nsete %r9b\nmovzwl %r9w,%eax\nret");
    keeps("r9", "call leaf\nmov $1,%r9w\nmov %r9d,%eax\nret");
    keeps("rcx", "call leaf\nmov $1,%cl\nmov %ch,%al\nret");
    keeps("r9", "call leaf\ntest %r9b,%r9b\nsete %al\nret");
}

/// Instructions whose result does not depend on what they name.
#[test]
fn constants_are_not_read() {
    keeps_nothing("call leaf\nor $-1,%ecx\nmov %ecx,%eax\nret");
    keeps_nothing("call leaf\nor $-1,%rcx\nmov %rcx,%rax\nret");
    keeps("rcx", "call leaf\nor $1,%ecx\nmov %ecx,%eax\nret");
    keeps("rcx", "call leaf\n.byte 0x83,0xe1,0x01\nmov %ecx,%eax\nret");
    keeps_nothing("call leaf\npcmpeqd %xmm3,%xmm3\nmovd %xmm3,%eax\nret");
    keeps("xmm3", "call leaf\npcmpeqd %xmm4,%xmm3\nmovd %xmm3,%eax\nret");
}

/// The kernel takes its fourth argument in another register than functions do.
#[test]
fn system_calls_have_their_own_arguments() {
    let call = |set: &str| {
        format!(
            "call leaf\nmov $1,%edi\nmov $2,%esi\nmov $3,%edx\n{set}\nmov $5,%r8d\nmov $9,%eax\nsyscall\nret"
        )
    };
    keeps_nothing(&call("mov $4,%r10d"));
    keeps("r10", &call("nop"));
}

/// Asking for a thread-local variable by descriptor changes rax and nothing else, though it looks like
/// a call through a pointer.
#[test]
fn descriptors_of_thread_local_variables_keep_registers() {
    let ask = "lea number@tlsdesc(%rip),%rax\ncall *number@tlscall(%rax)";
    let data = ".section .tbss,\"awT\",@nobits\n.globl number\nnumber: .zero 8\n.text\n";
    let caller =
        |ask: &str, rest: &str| format!("push %rbx\ncall leaf\n{ask}\n{rest}\npop %rbx\nret\n{data}");
    keeps("rsi", &caller(ask, "add %rsi,%rax"));
    // Through any other pointer nothing survives.
    keeps_nothing(&caller("call *(%rbx)", "add %rsi,%rax"));
    // A function that only asks for such a variable is still one that leaves registers alone.
    let leaf = format!("push %rbx\n{ask}\npop %rbx\nret\n{data}");
    let said = verdict(&leaf, "call leaf\nadd %rsi,%rax\nret").unwrap_err();
    assert!(said.contains("keeps rsi"), "{said}");
}

/// A push may only align the stack. Where the register is taken from the stack again it is used.
#[test]
fn pushes_that_align_the_stack_take_nothing() {
    let nobody = "ret";
    for register in ["r10", "r11"] {
        verdict(&format!("push %{register}\nlea 1(%rdi),%rax\npop %rdx\nret"), nobody).unwrap();
        let said = verdict(&format!("push %{register}\nlea 1(%rdi),%rax\npop %{register}\nret"), nobody);
        let said = said.expect_err("it gives the register back");
        assert!(said.contains(&format!("it takes {register} from its callers")), "{said}");
    }
}

/// What is said when `new` takes the place of a function whose caller keeps `r9` across the call.
fn replaced_by(new: &str) -> Result<(), String> {
    let called = function("called", "push %r9\nmov $5,%r9d\npop %r9\nret");
    let spoils = function("spoils", "mov $5,%r9d\nret");
    let caller = "mov $7,%r9d\ncall leaf\nadd %r9,%rax\nret";
    let source = [("leaf", LEAF), ("caller", caller), ("new", new)].map(|(name, code)| function(name, code));
    judged_with(&(source.concat() + &called + &spoils), Some("new"))
}

/// A caller's value is safe with new code that leaves the register alone too, or gives it back.
#[test]
fn new_code_may_keep_what_the_old_code_keeps() {
    for new in [
        "lea 2(%rdi),%rax\nret",
        "push %r9\nmov %rdi,%r9\nlea 2(%r9),%rax\npop %r9\nret",
        "push %rbx\npush %r9\nsub $24,%rsp\nmov %rdi,%r9\nmov %r9,8(%rsp)\nadd $24,%rsp\npop %r9\npop %rbx\nret",
        "push %rbp\nmov %rsp,%rbp\nmov %rsp,%rax\npush %r9\nxor %r9d,%r9d\nmov -8(%rbp),%r9\nleave\nret",
        "sub $24,%rsp\nmov %r9,8(%rsp)\nmov $1,%r9d\nmov 8(%rsp),%r9\nadd $24,%rsp\nret",
        "push %r9\ncall spoils\npop %r9\nret",
        "sub $8,%rsp\ncall called\nadd $8,%rsp\nret",
        "push %r9\ntest %edi,%edi\nje 1f\nmov $1,%r9d\n1:\npop %r9\nret",
        "test %edi,%edi\nje 1f\nret\n1:\nmov $1,%r9d\nud2",
        "jmp called",
    ] {
        replaced_by(new).unwrap_or_else(|said| panic!("{new}: {said}"));
    }
}

/// Where it cannot be seen to come back it counts as destroyed.
#[test]
fn new_code_that_destroys_a_kept_register_is_refused() {
    for new in [
        "mov $1,%r9d\nret",
        "mov $1,%r9b\nret",
        "push %r9\nmov $1,%r9d\nadd $8,%rsp\nret",
        // Into another register, from another one's place, after it was changed.
        "push %r9\nmov $1,%r9d\npop %r8\nret",
        "push %r8\npush %r9\nmov $1,%r9d\npop %r8\npop %r9\nret",
        "mov $1,%r9d\npush %r9\npop %r9\nret",
        // The saved value is overwritten, wholly or by one byte, and by way of an index.
        "push %r9\nmov $1,%r9d\nmov %rdi,(%rsp)\npop %r9\nret",
        "push %r9\nmov $1,%r9d\nmovb $1,7(%rsp)\npop %r9\nret",
        "push %r9\nmov $1,%r9d\nmov %rdi,(%rsp,%rdi,8)\npop %r9\nret",
        "sub $24,%rsp\nmov %r9,8(%rsp)\nmov $1,%r9d\nmovups %xmm0,(%rsp)\nmov 8(%rsp),%r9\nadd $24,%rsp\nret",
        // Half of it comes back.
        "push %r9\nmov $1,%r9d\nmov (%rsp),%r9d\nadd $8,%rsp\nret",
        // On one of two ways.
        "push %r9\nmov $1,%r9d\ntest %edi,%edi\nje 1f\npop %r9\nret\n1:\nadd $8,%rsp\nret",
        "test %edi,%edi\nje 1f\nmov $1,%r9d\n1:\nret",
        // Other code does it, known or not.
        "sub $8,%rsp\ncall spoils\nadd $8,%rsp\nret",
        "sub $8,%rsp\ncall unknown@PLT\nadd $8,%rsp\nret",
        "sub $8,%rsp\ncall *%rdi\nadd $8,%rsp\nret",
        "jmp spoils",
        "jmp unknown@PLT",
        "jmp *%rdi",
        // Nobody knows where the stack is.
        "push %rbp\nmov %rsp,%rbp\npush %r9\nand $-32,%rsp\nmov $1,%r9d\npop %r9\nleave\nret",
        // It calls itself, and what it does there is not known yet.
        "push %rbx\nmov $1,%r9d\ncall new\npop %rbx\nret",
    ] {
        let said = replaced_by(new).expect_err(new);
        assert!(said.contains("its caller caller keeps r9 across the call"), "{new}: {said}");
    }
}

/// What an analysis remembers is about one function and one new code.
#[test]
fn a_verdict_is_not_taken_for_that_of_other_new_code() {
    let caller = function("caller", "mov $7,%r9d\ncall leaf\nadd %r9,%rax\nret");
    let keeps = function("keeps", "lea 2(%rdi),%rax\nret");
    let spoils = function("spoils", "mov $5,%r9d\nret");
    let old = library(&(function("leaf", LEAF) + &caller));
    // At one offset in two files.
    let good = library(&(keeps.replace("keeps", "new") + &spoils));
    let bad = library(&(spoils.replace("spoils", "new") + &keeps));
    for _ in 0..2 {
        assert!(judged_in(&old, None).is_err());
        judged_in(&old, Some((&good, "new"))).unwrap();
        assert!(judged_in(&old, Some((&good, "spoils"))).is_err());
        assert!(judged_in(&old, Some((&bad, "new"))).is_err());
        judged_in(&old, Some((&bad, "keeps"))).unwrap();
    }
}
