//! Whatever a thread has in registers, flags, its red zone and errno survives every apply.

use suture_tests::command::{apply, disable};
use suture_tests::{Lab, Target, poll, repeat};

#[test]
fn registers_survive_every_apply() {
    let lab = Lab::new();
    let mut target = lab.start("regs.c", &["4"]);
    let patch = lab.value_patch("fix", 100);
    let cycles = repeat(100, 1000);
    for cycle in 0..cycles {
        apply(&patch, target.pid()).expect(0);
        assert_eq!(target.call(1), 101, "cycle {cycle}");
        disable("fix", target.pid()).expect(0);
        assert_eq!(target.call(1), 2, "cycle {cycle}");
    }
    let rounds = |target: &mut Target| Target::number(&target.ask("report"), "rounds");
    let so_far = rounds(&mut target);
    poll::until_true("every thread to compare once more", || rounds(&mut target) > so_far + 8);
    let report = target.ask("report");
    assert_eq!(Target::number(&report, "wrong"), 0, "{report}");
}

#[test]
fn registers_of_the_only_thread_that_can_be_borrowed_survive() {
    // One thread that spins with loaded registers; the other waits for commands, and is borrowed
    // first, so that both kinds are hit over the cycles.
    let lab = Lab::new();
    let mut target = lab.start("regs.c", &["1"]);
    let patch = lab.value_patch("fix", 100);
    for _ in 0..repeat(20, 300) {
        apply(&patch, target.pid()).expect(0);
        disable("fix", target.pid()).expect(0);
    }
    let report = target.ask("report");
    assert_eq!(Target::number(&report, "wrong"), 0, "{report}");
}

/// Text of a patch whose new `known` spoils every register that a function may spoil.
fn spoiling(name: &str, attribute: &str) -> String {
    format!(
        "#include <suture.h>\n\
         {attribute} static long patched(long n) {{\n\
             long result = n + 100;\n\
             __asm__ volatile(\"xor %%ecx,%%ecx; mov %%rcx,%%rdx; mov %%rcx,%%rsi; mov %%rcx,%%rdi;\"\n\
                 \"mov %%rcx,%%r8; mov %%rcx,%%r9; mov %%rcx,%%r10; mov %%rcx,%%r11\"\n\
                 ::: \"rcx\", \"rdx\", \"rsi\", \"rdi\", \"r8\", \"r9\", \"r10\", \"r11\");\n\
             return result;\n\
         }}\n\
         SUTURE_PATCH(\"{name}\", SUTURE_OBJECT(SUTURE_MAIN, SUTURE_FUNC(\"known\", patched)));\n"
    )
}

#[test]
fn what_a_caller_keeps_in_a_register_survives_new_code_that_preserves_it() {
    let lab = Lab::new();
    let mut target = lab.start("keeps.c", &[]);
    assert_eq!(target.call(5), 21);
    // The caller would read a register that this one spoils.
    let careless = lab.patch("careless", &spoiling("careless", ""));
    apply(&careless, target.pid()).expect_refused_with_hint(&[
        "known",
        "caller keeping keeps rdi",
        "SUTURE_PRESERVE",
    ]);
    assert_eq!(target.call(5), 21);
    // What it says to do helps.
    let careful = lab.patch("careful", &spoiling("careful", "SUTURE_PRESERVE"));
    for _ in 0..3 {
        apply(&careful, target.pid()).expect(0);
        assert_eq!(target.call(5), 120);
        // Over the redirection that is there now, too.
        apply(&careless, target.pid()).expect_refused(&["caller keeping keeps rdi"]);
        assert_eq!(target.call(5), 120);
        disable("careful", target.pid()).expect(0);
        assert_eq!(target.call(5), 21);
    }
}
