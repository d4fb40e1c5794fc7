//! Random functions: whatever is planned must behave like the original.
//!
//! Short by default; `SUTURE_FUZZ_SECONDS` makes it as long as wanted.

mod common;

use common::{Loaded, same_behaviour};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, TestRunner};
use std::time::{Duration, Instant};
use suture_redirect::{Class, Classes, Options, PlanError};

const SAVED: [&str; 6] = ["%rbx", "%rbp", "%r12", "%r13", "%r14", "%r15"];

/// Instructions a body is made of; labels are filled in.
const BODY: [&str; 40] = [
    "mov %rsi,%rax",
    "add %rdx,%rax",
    "xor %ecx,%ecx",
    "lea 5(%rsi,%rdx,2),%rcx",
    "mov (%rdi),%rax",
    "mov %rsi,16(%rdi)",
    "add cell(%rip),%rax",
    "movl $0x1234,8(%rdi)",
    "cmpl $7,cell(%rip)",
    "lock xadd %rsi,24(%rdi)",
    "movabs $0x1122334455667788,%r9",
    "mov $0x5566,%r10d",
    "imul $0x77777,%rsi,%rax",
    "shl $3,%rdx",
    "movaps %xmm0,%xmm3",
    "paddd %xmm1,%xmm2",
    "mov %fs:0,%r11",
    "movzbl %sil,%esi",
    "not %r8",
    "bswap %rdx",
    "test %esi,%esi\nje 7f\nadd $9,%rax\n7:",
    "cmp %rsi,%rdx\njb 7f\n.skip 130,0x90\n7:",
    "jmp 7f\n.skip 3,0xcc\n7:",
    "mov $3,%ecx\n8: add %rcx,%rax\ndec %ecx\njnz 8b",
    "mov %rsi,-8(%rsp)\nadd -8(%rsp),%rax",
    "jrcxz 7f\nadd $1,%rax\n7:",
    "loop 7f\nadd $2,%rax\n7:",
    "lea cell(%rip),%r9\nmov (%r9),%r9",
    "cmpb $5,cell(%rip)\nsetb %al",
    "movw $0x1234,8(%rdi)",
    "lock cmpxchg %rsi,32(%rdi)",
    "xchg %rsi,%rdx",
    "push %rsi\npop %rax",
    "cmp %rsi,%rdx\npushfq\npop %rcx\nand $0x8c5,%ecx",
    "nopw %cs:0x0(%rax,%rax,1)",
    "nopl 0(%rax)",
    "shld $7,%rsi,%rdx",
    "movd %esi,%xmm4\npshufd $0,%xmm4,%xmm5",
    "1: add $1,%rax\nsub $0x20000000,%edx\njnc 1b",
    "push %rsp\npop %rcx\nsub %rsp,%rcx",
];

#[derive(Clone, Debug)]
struct Spec {
    landing: bool,
    pushes: Vec<usize>,
    frame: bool,
    room: u32,
    body: Vec<usize>,
    shift: usize,
    pad: usize,
}

fn spec() -> impl Strategy<Value = Spec> {
    let pushes = Just((0..SAVED.len()).collect::<Vec<_>>()).prop_shuffle();
    let room = prop_oneof![Just(0u32), Just(8), Just(0x20), Just(0x188)];
    let body = prop::collection::vec(0..BODY.len(), 1..6);
    (any::<bool>(), (pushes, 0usize..6), any::<bool>(), room, body, 0usize..16, 0usize..24).prop_map(
        |(landing, (pushes, count), frame, room, body, shift, pad)| Spec {
            landing,
            pushes: pushes[..count].to_vec(),
            frame,
            room,
            body,
            shift,
            pad,
        },
    )
}

fn source(name: &str, spec: &Spec) -> String {
    let mut lines: Vec<String> = Vec::new();
    if spec.landing {
        lines.push("endbr64".into());
    }
    let mut pushed = spec.pushes.clone();
    if spec.frame {
        pushed.retain(|r| *r != 1);
        lines.push("push %rbp\nmov %rsp,%rbp".into());
    }
    lines.extend(pushed.iter().map(|r| format!("push {}", SAVED[*r])));
    if spec.room > 0 {
        lines.push(format!("sub ${},%rsp", spec.room));
    }
    lines.extend(spec.body.iter().map(|i| BODY[*i].to_owned()));
    // Thread pointers differ from nothing, they only must not be compared.
    lines.push("xor %r11d,%r11d".into());
    if spec.room > 0 {
        lines.push(format!("add ${},%rsp", spec.room));
    }
    lines.extend(pushed.iter().rev().map(|r| format!("pop {}", SAVED[*r])));
    if spec.frame {
        lines.push("pop %rbp".into());
    }
    lines.push("test %eax,%eax\nret".into());
    format!(
        ".p2align 4\n.skip {},0xcc\n.globl {name}\n.type {name},@function\n{name}:\n.cfi_startproc\n{}\n.cfi_endproc\n\
         .size {name},.-{name}\n.skip {},0x90\n",
        spec.shift,
        lines.join("\n"),
        spec.pad
    )
}

/// Plans and carries out every function with every class; returns how many plans were carried out.
fn batch(specs: &[Spec]) -> usize {
    let code: String = specs.iter().enumerate().map(|(i, s)| source(&format!("f{i}"), s)).collect();
    let loaded = Loaded::assembled(&format!(
        ".text\n{code}.p2align 12\n.data\n.p2align 4\ncell: .quad 0x0102030405060707\n.text\n"
    ));
    let mut carried_out = 0;
    for (i, spec) in specs.iter().enumerate() {
        let name = format!("f{i}");
        for class in Class::ALL {
            let classes = Classes::parse(&class.to_string()).unwrap();
            match loaded.plan(&[&name], &Options { classes, ..Options::default() }) {
                Ok(plan) => {
                    carried_out += 1;
                    if let Err(why) = same_behaviour(&loaded, &plan, &name) {
                        panic!(
                            "{spec:?}\n{}\nclass {class}: {why}\n{:x?}",
                            source(&name, spec),
                            plan.sites[0]
                        );
                    }
                }
                Err(PlanError::Refused(_)) => {}
                Err(other) => panic!("{other}"),
            }
        }
    }
    carried_out
}

#[test]
fn random_functions_behave_like_their_originals() {
    let seconds = std::env::var("SUTURE_FUZZ_SECONDS").ok().and_then(|s| s.parse().ok());
    let until = Instant::now() + Duration::from_secs(seconds.unwrap_or(2));
    let mut runner = match seconds {
        // The same functions each time in CI.
        None => TestRunner::deterministic(),
        Some(_) => TestRunner::new(Config::default()),
    };
    let specs = prop::collection::vec(spec(), 24);
    let (mut carried_out, mut functions) = (0, 0);
    while Instant::now() < until || functions == 0 {
        let specs = specs.new_tree(&mut runner).unwrap().current();
        functions += specs.len();
        carried_out += batch(&specs);
    }
    println!("{functions} functions, {carried_out} plans carried out");
    assert!(carried_out > functions / 2, "{carried_out} of {functions}");
}
