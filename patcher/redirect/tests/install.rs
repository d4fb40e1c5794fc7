//! Plans that are carried out: calls arrive at the new function, the copy is the old one, and after
//! the store is taken back everything is as before.

mod common;

use common::{Loaded, arm, call, disarm, function, map, set_slot};
use suture_redirect::{Class, Classes, Options};

extern "C" fn replacement(a: u64, b: u64) -> u64 {
    a.wrapping_mul(1_000).wrapping_add(b)
}

/// Redirects `name` of `loaded` and compares; returns class, offset and number of undone steps.
fn round_trip(loaded: &Loaded, name: &str, classes: &str) -> (Class, u64, usize) {
    let options = Options { classes: Classes::parse(classes).unwrap(), ..Options::default() };
    let plan = loaded.plan(&[name], &options).unwrap_or_else(|e| panic!("{e}"));
    // A function that is one `ret` has no result of its own; its caller has.
    let entry = loaded.address(if name == "tiny" { "tiny_caller" } else { name });
    let expected = call(entry, 7, 5);
    map(&plan);
    let planned = &plan.sites[0];
    let old = || if name == "tiny" { call(entry, 7, 5) } else { call(planned.site.copy, 7, 5) };
    assert_eq!(old(), expected, "copy of {name} before the store");
    arm(planned);
    assert_eq!(call(entry, 7, 5), expected, "slot on the copy");
    set_slot(&planned.site, replacement as *const () as u64);
    assert_eq!(call(entry, 7, 5), 7_005, "slot on the new function");
    set_slot(&planned.site, planned.site.copy);
    assert_eq!(old(), expected, "copy of {name} behind the store");
    disarm(planned);
    assert_eq!(call(entry, 7, 5), expected, "store taken back");
    (planned.class, planned.offset, planned.undo)
}

#[test]
fn every_class_redirects() {
    let pushes = "push %rbp\nmov %rsp,%rbp\npush %rbx\nsub $0x18,%rsp\nmov %rdi,%rbx\nlea (%rbx,%rsi),%rax\n\
                  add $0x18,%rsp\npop %rbx\npop %rbp\nret";
    let source = [
        // Punned pages far apart: the four bytes behind the first one differ.
        function("pun_plain", "mov %edi,%eax\nadd %esi,%eax\nadd $77,%eax\nret"),
        function("pun_pushes", pushes),
        function("pun_landing", &format!("endbr64\n{pushes}")),
        function("near_long", "mov $0x11223344,%eax\nadd %edi,%eax\nret"),
        function("near_load", "mov data(%rip),%eax\nadd %edi,%eax\nret\n"),
        function("short_pad", "push %rbx\nmov %rdi,%rbx\nlea 3(%rbx,%rsi),%rax\npop %rbx\nret\n.skip 1"),
        function("tail_branch", "jmp 1f\n.skip 4,0x90\n1: lea 9(%rdi,%rsi),%rax\nret"),
        function("tiny", "ret"),
        function("tiny_caller", "lea 4(%rdi,%rsi),%rax\njmp tiny"),
        ".p2align 4\n.data\ndata: .long 42\n".into(),
    ];
    let loaded = Loaded::assembled(&source.concat());
    assert_eq!(round_trip(&loaded, "pun_plain", "J"), (Class::J, 0, 0));
    assert_eq!(round_trip(&loaded, "pun_pushes", "J").0, Class::J);
    assert_eq!(round_trip(&loaded, "pun_landing", "J").0, Class::J);
    assert_eq!(round_trip(&loaded, "near_long", "A"), (Class::A, 0, 0));
    assert_eq!(round_trip(&loaded, "near_load", "A"), (Class::A, 0, 0));
    assert_eq!(round_trip(&loaded, "tail_branch", "S"), (Class::S, 0, 0));
    assert_eq!(round_trip(&loaded, "short_pad", "S").0, Class::S);
    assert_eq!(round_trip(&loaded, "tiny", "A"), (Class::A, 0, 0));
    // Stored bytes 2, 3, 4, and a long instruction of which three bytes lie in the word.
    let loaded = Loaded::assembled(
        &[
            function("wide_two", "mov %edi,%eax\nadd %esi,%eax\nadd $78,%eax\nret"),
            function("wide_three", "mov %rdi,%rax\nadd %rsi,%rax\nadd $79,%rax\nret"),
            function("wide_four", "lea 7(%rdi),%rax\nadd %rsi,%rax\nadd $80,%rax\nret"),
            function(
                "wide_long",
                &format!(
                    "push %rbp\nmov %rsp,%rbp\nnop\nmov $0x11223344,%eax\nadd %edi,%eax\n{}",
                    "pop %rbp\nret"
                ),
            ),
            function("wide_behind", pushes),
        ]
        .concat(),
    );
    for name in ["wide_two", "wide_three", "wide_four", "wide_long", "wide_behind"] {
        assert_eq!(round_trip(&loaded, name, "W").0, Class::W, "{name}");
    }
    let compiler = common::build(
        "int pad_plain(int a, int b) { return a - b; }\n",
        "c",
        &["-O2", "-fcf-protection=none", "-fpatchable-function-entry=16,14"],
    );
    assert_eq!(round_trip(&Loaded::open(&compiler), "pad_plain", "P"), (Class::P, 0, 0));
    let landing = common::build(
        "int pad_plain(int a, int b) { return a - b; }\n",
        "c",
        &["-O2", "-fcf-protection=branch", "-fpatchable-function-entry=16,14"],
    );
    assert_eq!(round_trip(&Loaded::open(&landing), "pad_plain", "P"), (Class::P, 4, 0));
}
