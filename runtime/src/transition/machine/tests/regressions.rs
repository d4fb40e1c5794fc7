//! Sequences in which the machine once did something else than the model, as short as they were found.
//!
//! Each step compares everything; what is asserted besides is the point of the sequence.

use super::lab::Step;
use super::scenarios::{Script, patch};
use super::{EINVAL, Host};

/// A thread that holds a transition up.
const T1: u32 = 1;
const BLOCKER: usize = 3;

/// A command died before it enabled: its patch took the last callbacks from the one that was leaving.
#[test]
fn a_prepared_patch_holds_no_state() {
    let mut s = Script::new();
    s.enable("A{f; 10}");
    s.step(Step::Host(Host::Slow));
    s.disable('A');
    s.step(Step::Prepare(patch("B{f; 10}")));
    for _ in 0..3 {
        s.step(Step::CallbackReturns);
        s.tick();
    }
    assert_eq!((s.count("> post_unpatch(A,10)"), s.count("> dtor(A,10)")), (1, 1));
}

/// It was also taken off a list it was not on, with its states' callbacks, by a patch that replaces all.
#[test]
fn a_prepared_patch_is_not_replaced() {
    let mut s = Script::new();
    s.enable("A{f;}");
    s.step(Step::Call(T1, BLOCKER));
    s.enable("R!{blocker;}");
    s.step(Step::Prepare(patch("B{g; 11}")));
    s.step(Step::Force('R'));
    s.tick();
    assert_eq!((s.count("gone A"), s.count("gone B"), s.count("(B,11)")), (1, 0, 0));
    assert_eq!(s.step(Step::EnablePrepared), 0);
}

/// A thread that was forced out of the patch may still use its variables.
#[test]
fn variables_of_a_forced_transition_stay() {
    let mut s = Script::new();
    s.enable("A{blocker; 10}");
    s.step(Step::Call(T1, BLOCKER));
    s.disable('A');
    s.step(Step::Force('A'));
    s.tick();
    assert_eq!((s.count("> post_unpatch(A,10)"), s.count("dtor(A,10)")), (1, 0));
}

/// The callback had returned and nobody had asked: its effect was never undone.
#[test]
fn a_reverse_hears_of_callbacks_that_have_returned() {
    let mut s = Script::new();
    s.step(Step::Host(Host::Slow));
    s.step(Step::Apply(patch("A{f; 10,11}"), None));
    s.step(Step::CallbackReturns);
    s.step(Step::Host(Host::Away));
    assert_eq!(s.step(Step::Reverse('A')), 0);
    s.step(Step::Host(Host::Quick));
    s.tick();
    assert_eq!((s.count("> post_unpatch(A,10)"), s.count("(A,11)")), (1, 0));
}

/// There was no memory for the second step after a failure: the patch was enabled in spite of it.
#[test]
fn a_failure_is_not_forgotten_for_want_of_memory() {
    let mut s = Script::new();
    let mut a = patch("A{f; 10}");
    a.states[0].fails = 19;
    s.step(Step::Starve(2, 1));
    s.step(Step::Apply(a, None));
    assert_eq!((s.count("fail A"), s.count("start+ A")), (1, 0));
}

/// There was no memory to note that variables were freed: they were freed twice.
#[test]
fn variables_are_freed_once_for_want_of_memory() {
    let mut s = Script::new();
    let mut a = patch("A{f; 10}");
    a.states[0].has_dtor = false;
    s.step(Step::Apply(a, None));
    s.step(Step::Starve(5, 1));
    s.disable('A');
    assert_eq!(s.count("freed(10)"), 1);
}

/// "Busy" makes its caller try again; a patch that may not go never will.
#[test]
fn a_patch_that_may_not_go_says_so_while_its_callbacks_run() {
    let mut s = Script::new();
    s.step(Step::Host(Host::Slow));
    s.enable("A{f; 10!}");
    s.step(Step::CallbackReturns);
    s.tick();
    assert_eq!(s.count("> post_patch(A,10)"), 1);
    assert_eq!(s.step(Step::Write('A', false)), EINVAL);
}
