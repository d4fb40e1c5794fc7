//! The cases every redirect engine has to handle or to refuse, from the test suites and bug lists of
//! the known ones. Each is assembled, planned with every class that is possible, and carried out in
//! a child process; or it has to be refused for the stated reason.

mod common;

use common::{Loaded, function, same_behaviour};
use suture_redirect::{Class, Classes, Options, PlanError};

/// What has to come of a case.
enum Expect {
    /// At least these classes work alone; every class that is offered must behave.
    Handled(&'static str),
    /// These classes and no others, all at the entry itself: something continues inside the bytes the
    /// others would change, or behind the first instruction.
    Entry(&'static str),
    /// Refused by the rule of that name.
    Refused(&'static str),
}
use Expect::{Entry, Handled, Refused};

struct Case {
    name: &'static str,
    /// The function, with whatever follows it.
    source: String,
    expect: Expect,
}

/// A function followed by ordinary padding.
fn case(name: &'static str, body: &str, expect: Expect) -> Case {
    Case { name, source: function(name, body) + ".p2align 5\n", expect }
}

fn raw(name: &'static str, source: String, expect: Expect) -> Case {
    Case { name, source, expect }
}

const FRAME: &str =
    "push %rbp\nmov %rsp,%rbp\npush %rbx\nmov (%rdi),%rbx\nlea (%rbx,%rsi),%rax\npop %rbx\npop %rbp\nret";

fn cases() -> Vec<Case> {
    vec![
        case("c01_landing_pad", &format!("endbr64\n{FRAME}"), Handled("SJ")),
        case("c02_tiny_with_padding", "xor %eax,%eax\nret", Handled("S")),
        raw(
            "c03_ret_before_code",
            function("c03_ret_before_code", "ret") + "inc %eax\nret\n" + &function("c03_next", "ret"),
            Refused("too short"),
        ),
        case("c04_jump_short", "jmp 1f\n.skip 8,0x90\n1: lea 1(%rsi),%rax\nret", Handled("SJ")),
        case("c04_jump_near", "jmp 1f\n.skip 200,0x90\n1: lea 1(%rsi),%rax\nret", Handled("A")),
        case("c05_branch_inside", "test %esi,%esi\nje 1f\n1: lea 2(%rsi),%rax\nret", Handled("SJ")),
        case("c05_branch_outside", "test %esi,%esi\nje 1f\nmov $7,%eax\nret\n1: mov $9,%eax\nret", Handled("SJ")),
        case(
            "c06_loop_into_window",
            "mov %esi,%ecx\nand $7,%ecx\ninc %ecx\nxor %eax,%eax\n1: add %ecx,%eax\ndec %ecx\njnz 1b\nret",
            Handled("SJ"),
        ),
        case("c06_loop_at_second_byte", "and $7,%esi\n1: dec %esi\nlea (%rsi,%rdx),%rax\njns 1b\nret", Handled("SJ")),
        // The branch skips the prefix: the instruction has a second beginning. Only the class whose bytes
        // stay may stand there.
        case(
            "c06_branch_past_a_prefix",
            "lock\n1: addl $5,(%rdi)\nsub $0x10000000,%esi\nja 1b\nmov (%rdi),%eax\nret",
            Entry("J"),
        ),
        case("c07_entry_is_loop_head", "dec %rsi\nand $63,%rsi\njnz c07_entry_is_loop_head\nmov %rdx,%rax\nret", Handled("SJ")),
        case("c08_jrcxz_out", "jrcxz 1f\nlea (%rsi,%rdx),%rax\nret\n1: mov $3,%eax\nret", Handled("S")),
        case("c08_loop_out", "loop 1f\nlea (%rsi,%rdx),%rax\nret\n1: lea (%rcx,%rdx),%rax\nret", Handled("S")),
        case("c09_load", "mov cell(%rip),%rax\nadd %rsi,%rax\nret", Handled("A")),
        case("c09_compare_immediate", "cmpb $5,cell(%rip)\nsete %al\nmovzbl %al,%eax\nret", Handled("A")),
        case("c09_address", "lea cell(%rip),%rax\nmov (%rax),%rax\nret", Handled("A")),
        case("c09_store_immediate", "movl $0x11223344,cell2(%rip)\nmov cell2(%rip),%eax\nret", Handled("S")),
        case("c09_jump_indirect", "jmp *vector(%rip)", Handled("A")),
        case("c09_call_indirect", "call *vector(%rip)\nret", Refused("instruction")),
        case("c10_call_first", "call helper\nadd $1,%rax\nret", Refused("instruction")),
        case("c11_call_register_inside", "lea helper(%rip),%rax\nsub $8,%rsp\ncall *%rax\nadd $8,%rsp\nret", Handled("AS")),
        case("c11_call_in_pun", "push %rbx\npush %r12\ncall helper\npop %r12\npop %rbx\nret", Handled("SJ")),
        case("c12_syscall_inside", "push %rbx\nmov $39,%al\nsyscall\npop %rbx\nxor %eax,%eax\nxor %ecx,%ecx\nxor %r11d,%r11d\nret", Handled("J")),
        case("c12_syscall_first", "syscall\nret", Refused("instruction")),
        case("c13_push_rsp", "push %rsp\npop %rax\nsub %rsp,%rax\nret", Handled("J")),
        case("c13_red_zone", "mov %rsi,-8(%rsp)\nmov %rdx,-16(%rsp)\nmov -8(%rsp),%rax\nadd -16(%rsp),%rax\nret", Handled("AS")),
        case("c14_lock", "lock addl $5,(%rdi)\nmov (%rdi),%eax\nret", Handled("S")),
        case("c14_rep", "xor %eax,%eax\nmov $4,%ecx\nrep stosb\nret", Handled("S")),
        case("c14_operand_size", "movw $0x1234,(%rdi)\nmov (%rdi),%eax\nret", Handled("AS")),
        case("c14_address_size", "mov 4(%edi),%eax\nnop\nlea (%rsi),%eax\nret", Handled("S")),
        case("c14_vex", "vpaddd %xmm1,%xmm0,%xmm2\nvmovd %xmm2,%eax\nret", Handled("S")),
        case("c14_evex", "vpaddd %zmm1,%zmm0,%zmm2\nvmovd %xmm2,%eax\nret", Handled("S")),
        case("c14_rex_only", ".byte 0x40\nlea 1(%rsi),%eax\nret", Handled("S")),
        case("c14_long", "movabs $0x1122334455667788,%rax\nadd %rsi,%rax\nret", Handled("S")),
        case("c14_fifteen_bytes", "lock addl $0x12345678,%fs:0x10(%rdi,%rsi,1)\nret", Handled("S")),
        case("c14_prefixed_nop", "nopw %cs:0x0(%rax,%rax,1)\nlea (%rsi,%rdx),%rax\nret", Handled("S")),
        case("c15_breakpoint_in_file", "int3\nret", Refused("instruction")),
        case("c15_undefined", "ud2", Handled("S")),
        case("c15_halt", "hlt", Handled("A")),
        raw(
            "c16_across_a_line",
            ".text\n.p2align 6\n.skip 61,0xcc\n".to_owned() + &unaligned("c16_across_a_line", FRAME),
            Handled("J"),
        ),
        raw(
            "c16_across_a_page",
            ".text\n.p2align 12\n.skip 4093,0xcc\n".to_owned() + &unaligned("c16_across_a_page", FRAME),
            Handled("J"),
        ),
        // Nothing of the file follows: not a byte behind it may be read.
        raw(
            "c16_end_of_code",
            unaligned("c16_end_of_code", FRAME).replace(".text\n", ".section last_of_all,\"ax\"\n"),
            Handled("J"),
        ),
        raw(
            "c17_odd_address",
            ".text\n.p2align 4\n.skip 7,0xcc\n".to_owned() + &unaligned("c17_odd_address", FRAME),
            Handled("J"),
        ),
        raw(
            "c18_two_names",
            ".globl c18_alias\n.set c18_alias,c18_two_names\n".to_owned() + &function("c18_two_names", FRAME),
            Handled("J"),
        ),
        case("c18_entry_inside", "mov $0x90909090,%eax\n.globl c18_inner\n.set c18_inner,.-3\nret", Entry("J")),
        // The table leads behind the first instruction of the prologue: a stub there would undo a push
        // that was never made a second time.
        case(
            "c19_table_into_window",
            "push %rbp\n1: mov %rsi,%rax\nand $1,%eax\nlea 9f(%rip),%rcx\nshr $8,%rsi\njz 2f\n\
             cmp $1,%eax\nja 2f\nmovslq (%rcx,%rax,4),%rax\nadd %rcx,%rax\njmp *%rax\n2: mov $5,%eax\nxor %ecx,%ecx\npop %rbp\nret\n\
             .section .rodata\n.p2align 2\n9: .long 1b-9b,1b-9b\n.text",
            Entry("J"),
        ),
        raw(
            "c20_resolver",
            ".text\n.p2align 4\n.globl c20_resolver\n.type c20_resolver,@gnu_indirect_function\nc20_resolver:\n.cfi_startproc\n\
             lea helper(%rip),%rax\nret\n.cfi_endproc\n.size c20_resolver,.-c20_resolver\n"
                .into(),
            Refused("nature"),
        ),
        case("longjmp", FRAME, Refused("nature")),
        case("vfork", FRAME, Refused("nature")),
        case("__sigsetjmp", FRAME, Refused("nature")),
        case("_dl_runtime_resolve_xsave", FRAME, Refused("nature")),
        case("c23_two_nops", ".byte 0x66,0x90\nlea (%rsi,%rdx),%rax\nret", Handled("S")),
        case("c23_five_byte_nop", ".byte 0x0f,0x1f,0x44,0,0\nlea (%rsi,%rdx),%rax\nret", Handled("A")),
        case("c23_sled", "jmp 1f\n.skip 9,0x90\n1: lea (%rsi,%rdx),%rax\nret", Handled("S")),
        case("c24_stack_protector", "mov %fs:0x28,%rax\nxor %fs:0x28,%rax\nadd %rsi,%rax\nret", Handled("S")),
        case("c26_call_behind_prologue", "push %rbx\nmov %rsi,%rbx\ncall helper\nadd %rbx,%rax\npop %rbx\nret", Handled("SJ")),
        case(
            "restartable_sequence",
            "1: mov %rsi,%rax\nadd %rdx,%rax\nnop\n2: ret\n3: mov $1,%eax\nret\n\
             .section __rseq_cs,\"aw\"\n.p2align 5\n.long 0,0\n.quad 1b,2b-1b,3b\n.text",
            Refused("instruction"),
        ),
        case("flags_taken", "jc 1f\nmov $1,%eax\nret\n1: mov $2,%eax\nret", Refused("registers at entry")),
        case("r11_taken", "lea (%r11,%rsi),%rax\nret", Refused("registers at entry")),
        case("r10_static_chain", "mov 8(%r10),%rax\nadd %rsi,%rax\nret", Handled("S")),
        case("r10_taken", "add %r10,%rsi\nmov %rsi,%rax\nret", Refused("registers at entry")),
    ]
}

/// A function that is not aligned.
fn unaligned(name: &str, body: &str) -> String {
    function(name, body).replace(".p2align 4\n", "")
}

fn common_code() -> String {
    function("helper", "lea 3(%rsi),%rax\nret")
        + ".data\n.p2align 4\ncell: .quad 0x1122334455667705\ncell2: .quad 0\nvector: .quad helper\n.text\n.p2align 12\n"
}

/// Cases whose code is not run: it would need more than a call.
const NOT_RUN: &[&str] = &[
    "c15_undefined",
    "c15_halt",
    "c14_fifteen_bytes",
    "r10_static_chain",
    "c14_address_size",
    "c18_entry_inside",
];

/// Whether this machine can run the case.
fn is_run(name: &str) -> bool {
    let evex = name == "c14_evex" && !std::arch::is_x86_feature_detected!("avx512f");
    !evex && !NOT_RUN.contains(&name)
}

#[test]
fn every_case_is_handled_or_refused() {
    let mut wrong = Vec::new();
    for case in cases() {
        // Each in an object of its own: what one leaves in the padding is no business of another.
        let loaded = Loaded::assembled(&(case.source.clone() + &common_code()));
        let (mut worked, mut at_entry) = (String::new(), true);
        let mut refusals = Vec::new();
        for class in Class::ALL {
            let classes = Classes::parse(&class.to_string()).unwrap();
            match loaded.plan(&[case.name], &Options { classes, ..Options::default() }) {
                Ok(plan) => {
                    worked.push(char::from(class.letter()));
                    at_entry &= plan.sites[0].offset == 0;
                    if is_run(case.name)
                        && let Err(why) = same_behaviour(&loaded, &plan, case.name)
                    {
                        wrong.push(format!("{} class {class}: {why}", case.name));
                    }
                }
                Err(PlanError::Refused(why)) => refusals.push(format!("{class}: {}", why[0].1)),
                Err(other) => wrong.push(format!("{} class {class}: {other}", case.name)),
            }
        }
        match case.expect {
            Entry(classes) if worked == classes && at_entry => {}
            Entry(classes) => {
                wrong.push(format!(
                    "{}: {worked:?} at the entry {at_entry}, not {classes:?}: {refusals:?}",
                    case.name
                ));
            }
            Handled(classes) => {
                if !classes.chars().all(|c| worked.contains(c)) {
                    wrong.push(format!("{}: only {worked:?} of {classes:?} work: {refusals:?}", case.name));
                }
            }
            Refused(rule) => match loaded.plan(&[case.name], &Options::default()) {
                Err(PlanError::Refused(why)) if why[0].1.rule() == rule => {}
                other => {
                    wrong.push(format!("{}: {rule} expected, found {:?}", case.name, other.map(|p| p.sites)))
                }
            },
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
