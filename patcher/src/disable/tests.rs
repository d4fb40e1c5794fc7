//! What is refused in which order, and which entries count as forgotten.

use super::*;
use crate::target::books::PatchEntry;
use suture_abi::batch::{Func, Site, State as PlannedState};
use suture_abi::block::{FuncRow, PATCH_ENABLED, PATCH_PREPARED, PHASE_RUNNING, PatchRow, StateRow};
use suture_abi::block::{SITE_RETIRED, TransitionRow};
use suture_abi::descriptor::STATE_BLOCK_DISABLE;

fn patch(id: u32, name: &str, state: u32) -> PatchEntry {
    let (flags, func_count, image) = (0, 0, 0);
    let row = PatchRow {
        id,
        state,
        name: [0; 56],
        time_ns: 0,
        description: 0,
        description_len: 0,
        image,
        func_count,
        flags,
        reserved: 0,
    };
    PatchEntry { row, name: name.into(), description: Vec::new() }
}

fn site(id: u32, state: u32, depth: u32, hook: u32) -> SiteRow {
    SiteRow { id, state, depth, hook, plan: Site::default(), direct: 0 }
}

/// `a` can be given up, `b` cannot; `t` is `a`'s or `b`'s transition.
fn books(t: Option<TransitionRow>) -> Books {
    let plan = PlannedState { id: 10, flags: STATE_BLOCK_DISABLE, ..PlannedState::default() };
    Books {
        patches: vec![patch(1, "a", PATCH_ENABLED), patch(2, "b", PATCH_ENABLED)],
        states: vec![StateRow { patch: 2, marks: 0, plan }],
        transition: t,
        ..Books::default()
    }
}

fn transition(patch: u32, begun: u32, target: u32, phase: u32) -> Option<TransitionRow> {
    Some(TransitionRow { id: 1, patch, begun, target, phase, ..TransitionRow::default() })
}

/// The operation, or the errno of the refusal with the first word that tells refusals of that errno apart.
fn judged(t: Option<TransitionRow>, name: &str, action: Action) -> Result<u32, (&'static str, String)> {
    let word = |e: &Error| format!("{e:?}").split([' ', '{']).next().unwrap_or_default().to_owned();
    check(&books(t), 7, name, action).map(|(_, op)| op).map_err(|e| (e.errno(), word(&e)))
}

fn refused(errno: &'static str, word: &str) -> Result<u32, (&'static str, String)> {
    Err((errno, word.to_owned()))
}

#[test]
fn what_never_fits_is_said_before_what_does_not_fit_now() {
    use Action::{Disable, Force, Reverse, Wait};
    assert_eq!(judged(None, "a", Disable), Ok(op::DISABLE));
    assert_eq!(judged(None, "b", Disable), refused("EINVAL", "Blocked"));
    assert_eq!(judged(None, "c", Disable), refused("ENOENT", "NotEnabled"));
    for action in [Reverse, Force, Wait] {
        assert_eq!(judged(None, "a", action), refused("EINVAL", "NotInTransition"), "{action:?}");
    }
    let of_a = transition(1, PATCHING, PATCHING, PHASE_RUNNING);
    assert_eq!(judged(of_a, "b", Disable), refused("EINVAL", "Blocked"), "also while another moves");
    let of_b = transition(2, PATCHING, PATCHING, PHASE_RUNNING);
    assert_eq!(judged(of_b, "a", Disable), refused("EBUSY", "InTransition"));
    assert_eq!(judged(of_b, "b", Disable), refused("EINVAL", "Blocked"));
    assert_eq!(judged(of_b, "b", Reverse), refused("EINVAL", "Blocked"));
    assert_eq!(judged(of_b, "b", Force), Ok(op::FORCE));
}

#[test]
fn a_transition_is_turned_round_joined_or_at_its_callbacks() {
    use Action::{Disable, Force, Reverse, Wait};
    let coming = transition(1, PATCHING, PATCHING, PHASE_RUNNING);
    assert_eq!(judged(coming, "a", Disable), Ok(op::REVERSE));
    assert_eq!(judged(coming, "a", Reverse), Ok(op::REVERSE));
    let going = transition(1, UNPATCHING, UNPATCHING, PHASE_RUNNING);
    assert_eq!(judged(going, "a", Disable), Ok(op::ADVANCE));
    assert_eq!(judged(going, "a", Reverse), Ok(op::REVERSE));
    for completing in [
        transition(1, PATCHING, PATCHING, PHASE_COMPLETING),
        transition(1, UNPATCHING, PATCHING, PHASE_COMPLETING),
    ] {
        for action in [Disable, Reverse, Force] {
            assert_eq!(judged(completing, "a", action), refused("EBUSY", "AtCallbacks"), "{action:?}");
        }
        assert_eq!(judged(completing, "a", Wait), Ok(op::ADVANCE));
    }
    let gone_soon = transition(1, UNPATCHING, UNPATCHING, PHASE_COMPLETING);
    assert_eq!(judged(gone_soon, "a", Disable), Ok(op::ADVANCE));
}

#[test]
fn entries_of_a_patch_that_is_about_to_start_are_not_forgotten() {
    let func = |patch, site| FuncRow { patch, site, plan: Func::default() };
    let sites = vec![
        site(1, SITE_ARMED, 1, 0),
        site(2, SITE_ARMED, 0, 0),
        site(3, SITE_ARMED, 0, 0),
        site(4, SITE_RETIRED, 0, 0),
        site(5, SITE_ARMED, 0, 3),
    ];
    let books = |t| Books {
        patches: vec![patch(1, "a", PATCH_ENABLED), patch(2, "b", PATCH_PREPARED)],
        sites: sites.clone(),
        funcs: vec![func(1, 1), func(2, 2)],
        transition: t,
        ..Books::default()
    };
    let ids = |t| idle(&books(t)).map(|s| s.id).collect::<Vec<_>>();
    assert_eq!(ids(None), [2, 3], "what a command that died has left");
    assert_eq!(ids(transition(2, PATCHING, PATCHING, PHASE_INIT)), [3], "its callbacks run");
    assert_eq!(ids(transition(2, PATCHING, UNPATCHING, PHASE_COMPLETING)), [2, 3], "cancelled");
}
