//! The catalogue holds what it promises.

use std::collections::BTreeSet;

use suture_stress::board::MAX_CASES;
use suture_stress::shape::{Class, SHAPES, cases};

#[test]
fn every_accepted_alignment_has_cases_at_the_entry_and_behind_a_prologue() {
    for (class, accepted) in [(Class::P, 7), (Class::S, 7), (Class::A, 4), (Class::J, 8)] {
        let all = cases(class);
        assert!(all.len() <= MAX_CASES);
        let offsets = |behind: bool| -> BTreeSet<u64> {
            let there = all.iter().filter(|case| case.shape.before.is_empty() != behind);
            there.map(|case| case.offset % 8).collect()
        };
        assert_eq!(offsets(false).len(), accepted, "{class} at the entry");
        assert_eq!(offsets(true).len(), accepted, "{class} behind a prologue");
        let last = all.iter().map(|c| c.offset + class.width()).max();
        assert_eq!(last, Some(4096), "{class} reaches the end of a page");
    }
}

#[test]
fn only_undoable_steps_stand_before_a_site() {
    for shape in SHAPES {
        assert!(shape.before.iter().all(|op| op.is_undoable()), "{}", shape.name);
    }
}
