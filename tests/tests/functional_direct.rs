//! Entries that lead straight to the new function: when they do, and that they are back on their stubs before
//! anything else may happen to them.

use std::path::{Path, PathBuf};
use suture_tests::command::{apply, disable, on};
use suture_tests::killer::{self, Moment};
use suture_tests::lab::{on_several, replacing_all};
use suture_tests::stall::{self, Stall};
use suture_tests::sys::Forbidden;
use suture_tests::target::Options;
use suture_tests::{Lab, Snapshot, Target, code, command, report};

/// The functions of `shapes` below, by what their entries can become.
const SHAPES: [&str; 4] = ["in_place", "padded", "behind_pushes", "punned"];

/// Functions `long f(long n)` that return n + 10: one instruction of five bytes; a short one with padding whose
/// displacement lies in one word; a prologue that the stub has to undo; no padding and no long instruction.
const ASSEMBLY: &str = "
    .text
    .macro begin name
    .globl \\name
    .type \\name, @function
\\name: .cfi_startproc
    .endm
    .macro end name
    .cfi_endproc
    .size \\name, . - \\name
    .endm
    .balign 64, 0xcc
    begin in_place
    mov $10, %eax
    add %rdi, %rax
    ret
    end in_place
    .balign 64, 0xcc
    begin padded
    lea 10(%rdi), %rax
    ret
    end padded
    .balign 64, 0xcc
    begin behind_pushes
    push %rbx
    mov $10, %eax
    add %rdi, %rax
    pop %rbx
    ret
    end behind_pushes
    begin punned
    push %rbx
    push %rbp
    lea 10(%rdi), %rax
    pop %rbp
    pop %rbx
    ret
    end punned
    begin neighbour
    ret
    end neighbour
    .section .note.GNU-stack,\"\",@progbits
";

/// Answers `shapes N` with what the four return.
const PROGRAM: &str = "
#include \"line.h\"
#include <pthread.h>
long in_place(long n), padded(long n), behind_pushes(long n), punned(long n);
static void *wait_for_ever(void *unused)
{
    for (;;)
        pause();
    return unused;
}
int main(void)
{
    char line[128];
    long n;
    pthread_t thread;
    if (pthread_create(&thread, 0, wait_for_ever, 0) != 0)
        return 1;
    answer(\"ready\");
    while (read_line(line, sizeof line)) {
        if (sscanf(line, \"shapes %ld\", &n) == 1)
            answer(\"shapes %ld %ld %ld %ld\", in_place(n), padded(n), behind_pushes(n), punned(n));
        else
            answer_common(line);
    }
    return 0;
}
";

fn start_shapes(lab: &Lab) -> Target {
    let assembly = lab.write("shapes-of-entries.s", ASSEMBLY);
    let source = lab.write("entries.c", PROGRAM);
    let program = lab.compile_target(&source.to_string_lossy(), &[&assembly.to_string_lossy()]);
    Target::start(&program, &[], Options::default())
}

/// Whether each function of a patch leads straight to its new one.
fn direct(pid: i32, patch: &str) -> Vec<bool> {
    let status = report::status(pid);
    assert_eq!(status["sites_lost"], 0, "{status:#}");
    let rows = status["patches"].as_array().cloned().unwrap_or_default();
    let row = rows.iter().find(|p| p["name"] == patch).unwrap_or_else(|| panic!("no {patch} in {status:#}"));
    let functions = row["functions"].as_array().cloned().unwrap_or_default();
    assert!(functions.iter().all(|f| f["site"] == "armed"), "{status:#}");
    functions.iter().map(|f| f["direct"].as_bool().expect("a truth value")).collect()
}

/// Where the jump of `value` in a process leads by its bytes, whatever the books say.
fn lands(pid: i32, program: &Path) -> u64 {
    let entry = code::address(pid, program, "value");
    let step = |at: u64| {
        let bytes = code::read(pid, at, 5);
        match bytes[0] {
            0xeb => Some((at + 2).wrapping_add_signed(i64::from(bytes[1].cast_signed()))),
            0xe9 => {
                let distance = i32::from_le_bytes(bytes[1..].try_into().expect("four bytes"));
                Some((at + 5).wrapping_add_signed(i64::from(distance)))
            }
            _ => None,
        }
    };
    let mut at = entry;
    while let Some(next) = step(at) {
        at = next;
    }
    at
}

/// The new function of `value` that is on top, and whether the entry leads straight to it.
fn value_is_direct(target: &Target, patch: &str) -> bool {
    let status = report::status(target.pid());
    let rows = status["patches"].as_array().cloned().unwrap_or_default();
    let row = rows.iter().find(|p| p["name"] == patch).expect("the patch");
    let says = row["functions"][0]["direct"] == true;
    let new = row["functions"][0]["new"].as_u64().expect("an address");
    assert_eq!(lands(target.pid(), target.program()) == new, says, "{status:#}");
    says
}

fn what_can_lead_straight_does(classes: &str, expected: [bool; 4]) {
    let lab = Lab::new();
    let mut target = start_shapes(&lab);
    let before = Snapshot::of(target.pid());
    let patch = lab.patch("shapes", &replacing_all("shapes", &SHAPES));
    for _ in 0..3 {
        on("apply", &patch.to_string_lossy(), target.pid(), &["--classes", classes]).expect(0);
        assert_eq!(direct(target.pid(), "shapes"), expected);
        assert_eq!(target.ask("shapes 1"), "shapes 1001 1002 1003 1004");
        disable("shapes", target.pid()).expect(0);
        assert_eq!(target.ask("shapes 1"), "shapes 11 11 11 11");
    }
    for function in SHAPES {
        assert_eq!(target.entry(function), target.file_entry(function), "{function}");
    }
    Snapshot::of(target.pid()).assert_same_program(&before);
}

#[test]
fn jumps_in_padding_lead_straight_when_the_transition_is_over() {
    what_can_lead_straight_does("PSAJW", [true, true, false, false]);
}

#[test]
fn jumps_in_place_lead_straight_and_puns_never_do() {
    what_can_lead_straight_does("AJW", [true, false, false, false]);
}

#[test]
fn a_patch_that_is_to_keep_its_stubs_does() {
    let lab = Lab::new();
    let mut target = start_shapes(&lab);
    let patch = lab.patch("shapes", &replacing_all("shapes", &SHAPES));
    on("apply", &patch.to_string_lossy(), target.pid(), &["--no-direct"]).expect(0);
    assert_eq!(direct(target.pid(), "shapes"), [false; 4]);
    // Nor does the next command change that.
    let more = lab.value_patch("more", 100);
    apply(&more, target.pid()).expect(0);
    assert_eq!(direct(target.pid(), "shapes"), [false; 4]);
    assert_eq!(direct(target.pid(), "more"), [true]);
    assert_eq!(target.ask("shapes 1"), "shapes 1001 1002 1003 1004");
}

#[test]
fn stacks_replaces_and_refusals_start_from_stubs() {
    on_several(|lab, mut target| {
        let pid = target.pid();
        let value = |name: &str, plus: i64| lab.value_patch(name, plus);
        apply(&value("a", 100), pid).expect(0);
        assert!(value_is_direct(&target, "a"));
        apply(&value("b", 200), pid).expect(0);
        assert_eq!(target.call(1), 201);
        assert!(value_is_direct(&target, "b") && !value_is_direct_below(&target, "a"));
        disable("b", pid).expect(0);
        assert_eq!(target.call(1), 101);
        assert!(value_is_direct(&target, "a"));
        // Refused: as it was.
        on("apply", &value("a", 100).to_string_lossy(), pid, &[]).expect(1);
        assert!(value_is_direct(&target, "a"));
        let replacing = lab.patch(
            "all",
            "#include <suture.h>\nstatic long patched(long n) { return n + 300; }\n\
             SUTURE_PATCH(\"all\", SUTURE_REPLACE_ALL, SUTURE_OBJECT(SUTURE_MAIN, SUTURE_FUNC(\"alpha\", patched)));\n",
        );
        apply(&replacing, pid).expect(0);
        assert_eq!((target.call(1), target.ask("all 1")), (2, "all 301 21 31".into()));
        assert_eq!((report::patches(pid), direct(pid, "all")), (vec!["all".to_owned()], vec![true]));
        disable("all", pid).expect(0);
        assert_eq!((target.call(1), target.ask("all 1")), (2, "all 11 21 31".into()));
    });
}

/// Whether a patch that is not on top says that its function is reached straight.
fn value_is_direct_below(target: &Target, patch: &str) -> bool {
    let status = report::status(target.pid());
    let rows = status["patches"].as_array().cloned().unwrap_or_default();
    rows.iter().any(|p| p["name"] == patch && p["functions"][0]["direct"] == true)
}

fn stalled_patch(lab: &Lab, name: &str) -> PathBuf {
    stall::patch(lab, name, &["blocker", "f", "g", "pair"])
}

/// While a transition goes on nothing leads past a dispatcher, whichever way it turns.
#[test]
fn a_transition_that_is_held_up_and_turned_round_has_its_dispatchers() {
    let lab = Lab::new();
    let mut stall = Stall::start(&lab);
    let (pid, patch) = (stall.pid(), stalled_patch(&lab, "A"));
    stall.create_all(&["T1", "T2"]);
    apply(&patch, pid).expect(0);
    let straight = direct(pid, "A");
    assert!(straight.contains(&true), "{straight:?}");
    assert_eq!(stall.order("T2", "pair"), 1022);
    // T1 stays in new code: the disable is held up.
    stall.order("T1", "enter");
    on("disable", "A", pid, &["--no-wait"]).expect(3);
    report::held_by_one(pid);
    assert_eq!(direct(pid, "A"), [false; 4]);
    assert_eq!((stall.order("T1", "pair"), stall.order("T2", "pair")), (1022, 11));
    on("reverse", "A", pid, &["--timeout", "30"]).expect(0);
    assert_eq!(stall.order("T2", "pair"), 1022);
    assert_eq!(direct(pid, "A"), straight, "turned round and over: straight again");
    on("disable", "A", pid, &["--no-wait"]).expect(3);
    report::held_by_one(pid);
    on("force", "A", pid, &[]).expect(0);
    assert_eq!((stall.order("T1", "f"), stall.order("T2", "pair")), (1, 11));
    stall.order("T1", "leave");
}

#[test]
fn nothing_leads_straight_after_a_forced_transition() {
    let lab = Lab::new();
    let mut stall = Stall::start(&lab);
    let (pid, patch) = (stall.pid(), stalled_patch(&lab, "A"));
    stall.create_all(&["T1"]);
    stall.order("T1", "enter");
    on("apply", &patch.to_string_lossy(), pid, &["--no-wait"]).expect(3);
    on("force", "A", pid, &[]).expect(0);
    stall.order("T1", "leave");
    assert_eq!(direct(pid, "A"), [false; 4]);
    disable("A", pid).expect(0);
    apply(&patch, pid).expect(0);
    assert!(direct(pid, "A").contains(&true), "a patch that came after it");
}

#[test]
fn a_child_has_straight_entries_of_its_own() {
    let lab = Lab::new();
    let mut target = lab.start("forks.c", &[]);
    apply(&lab.value_patch("fix", 100), target.pid()).expect(0);
    assert!(value_is_direct(&target, "fix"));
    let child = i32::try_from(Target::number(&target.ask("stay"), "stay")).expect("a process id");
    assert_eq!(target.ask("stayed 1"), "stayed 1 = 101");
    assert_eq!(direct(child, "fix"), [true]);
    apply(&lab.value_patch("more", 200), child).expect(0);
    assert_eq!((target.ask("stayed 1").as_str(), target.call(1)), ("stayed 1 = 201", 101));
    disable("more", child).expect(0);
    disable("fix", child).expect(0);
    assert_eq!((target.ask("stayed 1").as_str(), target.call(1)), ("stayed 1 = 2", 101));
    assert!(value_is_direct(&target, "fix"));
}

/// Bytes that are not ours in a straight jump keep a patch from going; its being undone does not.
#[test]
fn somebody_elses_bytes_in_a_straight_jump_are_left_alone() {
    let lab = Lab::new();
    let mut target = start_shapes(&lab);
    let (pid, patch) = (target.pid(), lab.patch("shapes", &replacing_all("shapes", &SHAPES)));
    on("apply", &patch.to_string_lossy(), pid, &["--classes", "AJW"]).expect(0);
    let entry = code::address(pid, target.program(), "in_place");
    let jump = code::read(pid, entry, 5);
    code::write(pid, entry + 3, &[0xcc]);
    let refused = on("disable", "shapes", pid, &[]);
    refused.expect(1);
    assert!(refused.stderr.contains("in_place"), "{}", refused.stderr);
    assert_eq!(code::read(pid, entry + 3, 1), [0xcc]);
    code::write(pid, entry, &jump);
    assert_eq!(target.ask("shapes 1"), "shapes 1001 1002 1003 1004");
    // The file's bytes, as after a page of text was dropped.
    code::write(pid, entry, &target.file_entry("in_place")[..5]);
    assert_eq!(report::status(pid)["sites_lost"], 1);
    disable("shapes", pid).expect(0);
    assert_eq!(target.ask("shapes 1"), "shapes 11 11 11 11");
    apply(&patch, pid).expect(0);
    assert_eq!(direct(pid, "shapes"), [true, false, false, false]);
}

/// The three ways of making a store.
#[test]
fn every_way_of_storing_serves() {
    let lab = Lab::new();
    // From outside through the memory file; by the worker; through ptrace on the worker.
    for (what, mdwe) in [(Forbidden::MemAndPoke, false), (Forbidden::Mem, true)] {
        let mut target = lab.start_several_with(Options { mdwe, ..Options::default() });
        let (pid, patch) = (target.pid().to_string(), lab.value_patch("fix", 100));
        let with = |args: &[&str]| command::suture_without(what, &[args, &["--pid", &pid]].concat());
        with(&["apply", &patch.to_string_lossy()]).expect(0);
        assert!(value_is_direct(&target, "fix"), "{what:?}");
        assert_eq!(target.call(1), 101);
        with(&["disable", "fix"]).expect(0);
        assert_eq!(target.call(1), 2);
    }
}

/// A command that is killed between mark and store, or store and mark, leaves nothing that the next one trips over.
#[test]
fn commands_killed_around_every_store_leave_it_whole() {
    let lab = Lab::new();
    let mut target = lab.start_several();
    let pid = target.pid();
    let pid_text = target.pid_text();
    let (fix, more) = (lab.value_patch("fix", 100), lab.value_patch("more", 200));
    let more_file = more.to_string_lossy().into_owned();
    apply(&fix, pid).expect(0);
    // On top of a straight entry: down, up again.
    let args = ["apply", more_file.as_str(), "--pid", &pid_text];
    let acts = killer::acts(&args);
    disable("more", pid).expect(0);
    let moments = (0..acts.len()).filter(|at| acts[*at] == killer::PWRITE);
    let moments: Vec<Moment> = moments.flat_map(|at| [Moment::Before(at), Moment::After(at)]).collect();
    assert!(moments.len() >= 4, "{acts:?}");
    for moment in moments {
        let killed = killer::run(&args, moment);
        let there = report::patched_at_last(pid, "more");
        assert_eq!(target.call(1), if there { 201 } else { 101 }, "{moment:?} of {:?}", killed.acts);
        value_is_direct(&target, if there { "more" } else { "fix" });
        if there {
            disable("more", pid).expect(0);
        }
        assert_eq!(target.call(1), 101, "{moment:?}");
        apply(&more, pid).expect(0);
        assert!(value_is_direct(&target, "more"), "{moment:?}");
        disable("more", pid).expect(0);
        assert!(value_is_direct(&target, "fix"), "{moment:?}");
    }
    disable("fix", pid).expect(0);
    assert_eq!(target.call(1), 2);
    assert_eq!(target.entry("value"), target.file_entry("value"));
}
