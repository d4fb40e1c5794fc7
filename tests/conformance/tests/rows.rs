//! The rows of the project, and that the runner goes red when it should.

use suture_conformance::report::{self, Ending, Mode, Outcome};
use suture_conformance::run::Runner;
use suture_conformance::scn;

const MODES: [Mode; 2] = [Mode::Preloaded, Mode::Injected];

#[test]
fn every_row_is_as_the_tables_say() {
    let mut rows = Vec::new();
    for file in scn::all().expect("the folder of the rows") {
        rows.extend(scn::read(&file).unwrap_or_else(|mistake| panic!("{mistake}")));
    }
    // The slowest row waits for 32 attempts: others fill its time.
    let outcomes = Runner::new().run(&rows, &MODES, 4, |outcome| print!("{}", report::line(outcome)));
    print!("{}", report::summary(&outcomes));
    assert_eq!(outcomes.len(), 2 * rows.len());
    let failed: Vec<&Outcome> = outcomes.iter().filter(|o| matches!(o.ending, Ending::Fail(_))).collect();
    assert!(failed.is_empty(), "{}", failed.iter().map(|o| report::line(o)).collect::<String>());
}

fn play(text: &str) -> Ending {
    let rows = scn::rows("scratch.scn", text).unwrap_or_else(|mistake| panic!("{mistake}"));
    Runner::new().one(&rows[0], Mode::Preloaded).ending
}

fn why(text: &str) -> String {
    match play(text) {
        Ending::Fail(why) => why,
        other => panic!("the row did not fail: {other:?}"),
    }
}

const TWO: &str = "row X-1\n  patch A{f}\n  patch B{g}\n  steps\n    enable A = 0\n    enable B = 0\n";

#[test]
fn a_row_with_swapped_events_fails_and_shows_the_place() {
    assert_eq!(play(&format!("{TWO}  events UP(A;–;–) · UP(B;–;–)\n")), Ending::Pass);
    let why = why(&format!("{TWO}  events UP(B;–;–) · UP(A;–;–)\n"));
    assert!(why.starts_with("scratch.scn:1: the events differ"), "{why}");
    assert!(why.contains("> enable B      │ enable A"), "{why}");
}

#[test]
fn a_row_with_an_event_too_few_or_in_the_wrong_stall_fails() {
    let few = why(&format!("{TWO}  events UP(A;–;–)\n"));
    assert!(few.contains(">               │ enable B"), "{few}");
    let late = why(
        "row X-1\n  patch A{f}\n  steps\n    stall\n    enable A = 0\n  events enable A │ init+ A · start+ A\n",
    );
    assert!(late.starts_with("scratch.scn:4: stall: events are missing"), "{late}");
}

#[test]
fn a_wrong_value_or_end_fails_with_its_line() {
    let value = why("row X-1\n  patch A{f}\n  steps\n    call f = A:f\n  events –\n");
    assert!(value.starts_with("scratch.scn:4: call f = A:f: wanted \"A:f\", got \"orig:f\""), "{value}");
    let end = why("row X-1\n  patch A{f}\n  steps\n    disable A = 0\n  events –\n");
    assert!(end.starts_with("scratch.scn:4: disable A = 0: wanted 0, got exit 1"), "{end}");
}

#[test]
fn a_row_that_passes_though_it_awaits_something_fails() {
    let row = |call: &str| format!("row X-1\n  awaits rain\n  steps\n    call f = {call}\n  events –\n");
    assert!(why(&row("orig:f")).contains("passes, though it awaits: rain"));
    assert!(matches!(play(&row("A:f")), Ending::Skip(why) if why.starts_with("rain; today: ")));
}

#[test]
fn a_product_that_swaps_two_callbacks_is_found_out() {
    // States are visited in the order of the array. A product that took the other order would look like one that
    // does it right with the array turned round.
    let row = |states: &str| {
        format!(
            "row X-1\n  patch A{{f; {states}}}\n  threads T1\n  steps\n    enable A = 0\n  \
             events UP(A; pre_patch(A,10) · pre_patch(A,11); post_patch(A,10) · post_patch(A,11))\n"
        )
    };
    assert_eq!(play(&row("10,11")), Ending::Pass);
    let why = why(&row("11,10"));
    assert!(why.starts_with("scratch.scn:1: the events differ"), "{why}");
    assert!(why.contains("> pre_patch(A,10)  │ pre_patch(A,11)"), "{why}");
}
