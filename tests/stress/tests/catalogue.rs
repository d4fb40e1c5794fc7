//! The catalogue holds what it promises.

use std::collections::BTreeSet;

use suture_stress::board::MAX_CASES;
use suture_stress::shape::{Class, SHAPES, cases};
use suture_stress::straight::{as_planned, straight_cases};
use suture_stress::suite::Suite;

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

/// The harness and the product mean the same word, and the same jump in it.
#[test]
fn straight_jumps_are_the_products() {
    let cases = straight_cases();
    let world = Suite::Straight.world("").expect("a world");
    assert!(cases.len() > 50 && world.targets.len() == cases.len(), "{}", cases.len());
    for target in &world.targets {
        let straight = target.straight.expect("a straight jump");
        let word = 0x1122_3344_5566_7788_u64;
        let shift = straight.place % 8 * 8;
        let with = word & !(u64::from(u32::MAX) << shift) | u64::from(straight.new) << shift;
        assert_eq!(as_planned(target, word), Some((straight.place & !7, with)), "{}", target.name);
    }
}

#[test]
fn only_undoable_steps_stand_before_a_site() {
    for shape in SHAPES {
        assert!(shape.before.iter().all(|op| op.is_undoable()), "{}", shape.name);
    }
}
