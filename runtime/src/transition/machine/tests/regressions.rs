//! Sequences in which the machine once did something else than the model, as short as they were found.
//!
//! Each step compares everything; what is asserted besides is the point of the sequence.

use super::Host;
use super::lab::Step;
use super::scenarios::{Script, patch};

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
