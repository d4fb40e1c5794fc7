use super::*;
use suture_abi::batch::{Func, Image, Site};
use suture_abi::block::{
    FuncRow, ImageRow, MappingRow, PATCH_ENABLED, PHASE_RUNNING, PatchRow, RangeRow, SITE_ARMED, SiteRow,
    UNPATCHING,
};

#[test]
fn overlapping_intervals_become_one() {
    let of = |first, last| Interval { first, last };
    let mut found = vec![of(30, 40), of(1, 5), of(4, 9), of(9, 12), of(13, 14), of(31, 33)];
    merge(&mut found);
    assert_eq!(found, [of(1, 12), of(13, 14), of(30, 40)]);
    let mut none = Vec::new();
    merge(&mut none);
    assert!(none.is_empty());
}

/// Each kind of code lies by itself, so that each part of the search is seen by itself.
const PATH: (u64, u64) = (0x1000, 0x1100);
const ARENA: u64 = 0x2000;
const DATA: u64 = 0x3000;
const NEAR: Interval = Interval { first: 0x4000, last: 0x4100 };
/// The old function, and the part that was split off it.
const OLD: u64 = 0x5000;
const COLD: u64 = 0x5800;
const COPY: u64 = 0x6000;
/// The patch's image, and what replaces the function: elsewhere, so that each is seen by itself.
const IMAGE: u64 = 0x7000;
const OWN: u64 = 0xb000;
/// Replacements of the patch below it, and of the one below that.
const BELOW: u64 = 0x8000;
const LOWEST: u64 = 0x9000;
/// A function in an object that came late: offset and load base.
const LATE: u64 = 0x40;
const BASE: u64 = 0x10_0000;
const CONTEXT: u64 = 0xa000;

/// Three patches of one function, the newest of which also replaces one in an object that comes late.
fn books() -> Books {
    let patch = |id| PatchRow {
        id,
        state: PATCH_ENABLED,
        name: [0; 56],
        time_ns: 0,
        description: 0,
        description_len: 0,
        image: id,
        func_count: 1,
        flags: 0,
        reserved: 0,
    };
    let site = |id, plan| SiteRow { id, state: SITE_ARMED, depth: 1, hook: HOOK_NONE, plan, direct: 0 };
    let func = |patch, site| FuncRow { patch, site, plan: Func::default() };
    let range =
        |patch, site, kind, start| RangeRow { patch, site, kind, reserved: 0, start, end: start + 0x20 };
    let image = |patch, start| {
        let plan = Image { start, text_start: start, text_end: start + 0x300, ..Image::default() };
        ImageRow { id: patch, patch, flags: 0, reserved: 0, plan, link_map: 0 }
    };
    let mapping = |addr, prot| MappingRow { patch: 1, role: ROLE_ARENA, addr, len: 0x100, prot, reserved: 0 };
    Books {
        patches: vec![patch(1), patch(2), patch(3)],
        sites: vec![
            site(1, Site { id: 1, entry: OLD, copy: COPY, copy_len: 0x20, ..Site::default() }),
            site(2, Site { id: 2, entry: LATE, late: 1, recipe: 5, ..Site::default() }),
        ],
        funcs: vec![func(1, 1), func(2, 1), func(3, 1), func(3, 2)],
        ranges: vec![
            range(1, 1, RANGE_NEW, LOWEST),
            range(2, 1, RANGE_NEW, BELOW),
            range(3, 1, RANGE_OLD, OLD),
            range(3, 1, RANGE_OLD, COLD),
            range(3, 1, RANGE_NEW, OWN),
            range(3, 1, RANGE_CONTEXT, CONTEXT),
            range(3, 2, RANGE_OLD, LATE),
        ],
        images: vec![image(1, LOWEST), image(2, BELOW), image(3, IMAGE)],
        mappings: vec![mapping(ARENA, 1 | PROT_EXEC), mapping(DATA, 3)],
        ..Books::default()
    }
}

/// What is searched when the newest patch comes, or goes.
fn found(target: u32) -> Vec<Interval> {
    let t = TransitionRow {
        id: 9,
        patch: 3,
        begun: PATCHING,
        target,
        phase: PHASE_RUNNING,
        ..Default::default()
    };
    let late = Late { bases: &[(5, BASE)], code: &[NEAR] };
    searched(&books(), &t, PATH, &late).unwrap()
}

#[track_caller]
fn assert_searched(target: u32, addr: u64, expected: bool) {
    let found = found(target);
    // As a scan has it: an address that is the end is a return address.
    let is_in = found.iter().any(|i| (i.first..=i.last).contains(&addr));
    assert_eq!(is_in, expected, "{addr:#x} in {found:x?}");
}

/// In either direction.
#[track_caller]
fn assert_always(addr: u64, expected: bool) {
    assert_searched(PATCHING, addr, expected);
    assert_searched(UNPATCHING, addr, expected);
}

#[test]
fn the_runtimes_way_into_a_function_is_searched() {
    assert_always(PATH.0 + 0x10, true);
}

#[test]
fn stubs_and_dispatchers_are_searched_and_slots_are_not() {
    assert_always(ARENA + 0x10, true);
    assert_always(DATA + 0x10, false);
}

#[test]
fn what_lies_near_objects_that_came_late_is_searched() {
    assert_always(NEAR.first + 0x10, true);
}

#[test]
fn the_old_function_is_searched_behind_its_hooked_entry() {
    assert_always(OLD + 1, true);
    assert_always(OLD + 0x20, true);
    assert_always(OLD, false);
}

#[test]
fn the_part_that_was_split_off_is_searched_from_its_start() {
    assert_always(COLD, true);
}

#[test]
fn the_copy_is_searched() {
    assert_always(COPY + 0x10, true);
}

#[test]
fn an_old_function_that_came_late_is_searched_where_it_is() {
    assert_always(BASE + LATE + 0x10, true);
    assert_always(LATE + 0x10, false);
}

#[test]
fn towards_the_patch_the_replacement_directly_below_is_searched() {
    assert_searched(PATCHING, BELOW + 0x10, true);
    assert_searched(PATCHING, OWN + 0x10, false);
    assert_always(LOWEST + 0x10, false);
}

#[test]
fn away_from_the_patch_its_own_replacement_is_searched_and_its_whole_image() {
    assert_searched(UNPATCHING, OWN + 0x10, true);
    assert_searched(UNPATCHING, BELOW + 0x10, false);
    assert_searched(UNPATCHING, IMAGE + 0x200, true);
    assert_searched(PATCHING, IMAGE + 0x200, false);
}

#[test]
fn contexts_are_noticed_by_scans_only() {
    let t = TransitionRow { id: 9, patch: 3, begun: PATCHING, target: PATCHING, ..Default::default() };
    let late = Late::default();
    let is_in = |found: Vec<Interval>| found.iter().any(|i| i.first == CONTEXT);
    assert!(is_in(with_contexts(&books(), &t, PATH, &late).unwrap()));
    assert!(!is_in(searched(&books(), &t, PATH, &late).unwrap()));
}
