//! Nops and refusals against small books.

use super::*;
use suture_abi::batch::{HOOK_PTHREAD_CREATE, RANGE_NEW, Site, State};
use suture_abi::block::{FuncRow, PATCH_ENABLED, PatchRow, RangeRow, SITE_ARMED, SiteRow};
use suture_elf::Vaddr;

fn patch(id: u32, name: &str, state: u32) -> PatchEntry {
    let row = PatchRow {
        id,
        state,
        name: [0; 56],
        time_ns: 0,
        description: 0,
        description_len: 0,
        image: 0,
        func_count: 0,
        flags: 0,
        reserved: 0,
    };
    PatchEntry { row, name: name.into(), description: Vec::new() }
}

fn site(id: u32, entry: u64) -> SiteRow {
    let plan = Site { id, entry, copy: entry + 0x1000, copy_len: 9, ..Site::default() };
    SiteRow { id, state: SITE_ARMED, depth: 1, hook: 0, plan, direct: 0 }
}

fn func(patch: u32, site: u32) -> FuncRow {
    FuncRow { patch, site, plan: Func { new_func: 0x9000, old_size: 32, ..Func::default() } }
}

fn range(patch: u32, site: u32, kind: u32, start: u64) -> RangeRow {
    RangeRow { patch, site, kind, reserved: 0, start, end: start + 32 }
}

fn state(patch: u32, id: u64, flags: u32) -> StateRow {
    StateRow { patch, marks: 0, plan: State { id, flags, ..State::default() } }
}

/// Patch 1 replaces the functions at 0x100 and 0x200, patch 2 those at 0x200 and 0x300; what patch 3 has is
/// only prepared.
fn books() -> Books {
    let mut books = Books {
        patches: vec![
            patch(1, "a", PATCH_ENABLED),
            patch(2, "b", PATCH_ENABLED),
            patch(3, "c", PATCH_PREPARED),
        ],
        sites: vec![site(1, 0x100), site(2, 0x200), site(3, 0x300), site(4, 0x400)],
        funcs: vec![func(1, 1), func(1, 2), func(2, 2), func(2, 3), func(3, 4)],
        ranges: vec![
            range(1, 1, RANGE_OLD, 0x100),
            range(1, 1, RANGE_OLD, 0x700),
            range(1, 1, RANGE_NEW, 0x9000),
            range(1, 2, RANGE_OLD, 0x200),
            range(2, 2, RANGE_OLD, 0x200),
            range(2, 3, RANGE_OLD, 0x300),
            range(3, 4, RANGE_OLD, 0x400),
        ],
        states: vec![
            state(1, 10, STATE_IS_SHADOW),
            state(2, 11, STATE_BLOCK_DISABLE),
            state(3, 12, STATE_BLOCK_DISABLE),
        ],
        ..Books::default()
    };
    books.relative_ranges.clone_from(&books.ranges);
    books
}

fn descriptor(replace: bool, states: &[(u64, bool, bool)]) -> PatchDescriptor {
    let state = |&(id, is_shadow, block_disable): &(u64, bool, bool)| StateDescriptor {
        at: Vaddr(0),
        id,
        is_shadow,
        block_disable,
        callbacks: [None; 5],
    };
    PatchDescriptor {
        name: "r".into(),
        replace,
        needs_loader: false,
        objects: Vec::new(),
        states: states.iter().map(state).collect(),
        references: Vec::new(),
    }
}

#[test]
fn what_only_others_replace_gets_a_nop_each_with_the_old_code_searched() {
    let books = books();
    let own = Func { site: 0, new_func: 0xa000, ..Func::default() };
    let mut batch = Batch { sites: vec![books.sites[1].plan], funcs: vec![own], ..Batch::default() };
    add_nops(&mut batch, &books);
    assert_eq!(batch.sites.iter().map(|s| s.id).collect::<Vec<_>>(), [2, 1, 3]);
    let nops: Vec<_> = batch.funcs[1..].iter().map(|f| (f.site, f.new_func, f.flags, f.old_size)).collect();
    assert_eq!(nops, [(1, 0x1100, FUNC_NOP, 32), (2, 0x1300, FUNC_NOP, 32)]);
    let old = |func, start| Range { func, kind: RANGE_OLD, start, end: start + 32 };
    assert_eq!(batch.ranges, [old(1, 0x100), old(1, 0x700), old(2, 0x300)]);
}

#[test]
fn a_hook_at_the_same_entry_is_no_replacement() {
    let books = books();
    let hook = Func { site: 0, hook: HOOK_PTHREAD_CREATE, ..Func::default() };
    let mut batch = Batch { sites: vec![books.sites[0].plan], funcs: vec![hook], ..Batch::default() };
    add_nops(&mut batch, &books);
    assert_eq!(batch.sites.iter().map(|s| s.id).collect::<Vec<_>>(), [1, 2, 3], "the site is there once");
    assert_eq!(batch.funcs[1..].iter().map(|f| f.site).collect::<Vec<_>>(), [0, 1, 2]);
}

#[test]
fn a_state_that_cannot_be_given_up_must_be_taken_over() {
    let refused = |patch| check(7, &patch, &books()).err();
    match refused(descriptor(true, &[(10, true, false)])) {
        Some(Error::Incompatible { holder, state, .. }) => assert_eq!((holder.as_str(), state), ("b", 11)),
        other => panic!("{other:?}"),
    }
    assert!(refused(descriptor(true, &[(11, false, false)])).is_none(), "whatever its own flag says");
    assert!(refused(descriptor(false, &[])).is_none(), "patches beside each other are not asked");
}

#[test]
fn patches_that_disagree_on_a_state_are_told() {
    let lines = |states: &[_]| disagreements(&descriptor(false, states), &books());
    assert_eq!(lines(&[(10, true, false), (11, false, true), (12, true, false), (13, true, true)]), [""; 0]);
    let said = lines(&[(10, false, true)]);
    assert_eq!(said.len(), 2, "{said:?}");
    assert!(said[0].contains("state 10: r and a disagree on is_shadow"), "{said:?}");
    assert!(said[1].contains("block_disable"), "{said:?}");
}
