use super::*;
use crate::books::NamedRow;
use suture_abi::batch::{NamedObject, State};
use suture_abi::block::{PATCHING, PHASE_INIT, PHASE_RUNNING, TransitionRow, UNPATCHING};

const SET: Settings = Settings { hooking: true, tick_ms: 1000 };

fn patch(id: u32, name: &str, state: u32, flags: u32) -> PatchRow {
    let mut field = [0; 56];
    field[..name.len()].copy_from_slice(name.as_bytes());
    PatchRow {
        id,
        state,
        name: field,
        time_ns: 0,
        description: 0,
        description_len: 0,
        image: 0,
        func_count: 0,
        flags,
        reserved: 0,
    }
}

fn named(patch: u32, name: &str, stays: u32) -> NamedRow {
    let mut row = NamedObject { stays, ..NamedObject::default() };
    row.name.as_flattened_mut()[..name.len()].copy_from_slice(name.as_bytes());
    NamedRow { patch, row }
}

fn state(patch: u32, id: u64, flags: u32) -> StateRow {
    let plan = State { id, flags, pre_patch: 1, shadow_dtor: 1, ..State::default() };
    StateRow { patch, marks: 0, plan }
}

fn books() -> Books {
    Books {
        patches: vec![patch(1, "a", PATCH_ENABLED, 0), patch(4, "b.c", PATCH_ENABLED, PATCH_REPLACE)],
        states: vec![state(1, 10, STATE_IS_SHADOW), state(4, 10, STATE_BLOCK_DISABLE), state(4, 11, 0)],
        named: vec![named(1, "main", 1), named(1, "/opt/x y/libz.so", 0), named(4, "main", 1)],
        ..Books::default()
    }
}

fn read(books: &Books, path: &str) -> Result<i64, u32> {
    get(books, SET, path.as_bytes()).map_err(|e| e.0)
}

#[test]
fn every_attribute_has_its_value_or_its_error() {
    let books = books();
    for (path, value) in [
        ("hooking", Ok(1)),
        ("tick_ms", Ok(1000)),
        ("a/enabled", Ok(1)),
        ("a/enabled//", Ok(1)),
        ("a/transition", Ok(0)),
        ("a/replace", Ok(0)),
        ("b.c/replace", Ok(1)),
        ("a/stack_order", Ok(1)),
        ("b.c/stack_order", Ok(2)),
        ("a/states/10/holders", Ok(2)),
        ("b.c/states/11/holders", Ok(1)),
        ("a/states/10/is_shadow", Ok(1)),
        ("b.c/states/10/is_shadow", Ok(0)),
        ("b.c/states/10/block_disable", Ok(1)),
        ("a/states/10/callbacks", Ok(0b10001)),
        ("a/main/patched", Ok(1)),
        ("a//opt/x y/libz.so/patched", Ok(0)),
        ("", Err(21)),
        ("/", Err(21)),
        ("a", Err(21)),
        ("a/", Err(21)),
        ("a/states", Err(21)),
        ("a/states/10", Err(21)),
        ("a/main", Err(21)),
        ("a/force", Err(13)),
        ("a/last_callback", Err(95)),
        ("aa/enabled", Err(2)),
        ("a/nothing", Err(2)),
        ("a/states/11", Err(2)),
        ("a/states/10/nothing", Err(2)),
        ("a/states/18446744073709551626/holders", Err(2)),
        ("a/states/x", Err(2)),
        ("a/other/patched", Err(2)),
        ("b/enabled", Err(2)),
    ] {
        assert_eq!(read(&books, path), value, "{path}");
    }
}

#[test]
fn enabled_and_transition_follow_the_transition() {
    let mut books = books();
    let at =
        |begun, target, phase| TransitionRow { id: 1, patch: 4, begun, target, phase, ..Default::default() };
    for (row, enabled) in [
        (at(PATCHING, PATCHING, PHASE_INIT), 0),
        (at(PATCHING, PATCHING, PHASE_RUNNING), 1),
        (at(PATCHING, UNPATCHING, PHASE_RUNNING), 0),
        (at(UNPATCHING, UNPATCHING, PHASE_INIT), 1),
        (at(UNPATCHING, UNPATCHING, PHASE_RUNNING), 0),
    ] {
        books.transition = vec![row];
        assert_eq!((read(&books, "b.c/enabled"), read(&books, "b.c/transition")), (Ok(enabled), Ok(1)));
        assert_eq!((read(&books, "a/enabled"), read(&books, "a/transition")), (Ok(1), Ok(0)));
    }
}

#[test]
fn writes_are_judged_as_the_command_would() {
    let books = books();
    let write =
        |path: &str, value: &str| would_set(&books, SET, path.as_bytes(), value.as_bytes()).map_err(|e| e.0);
    assert_eq!(write("a/enabled", "0"), Ok(true));
    assert_eq!(write("a/enabled", "oFf\n"), Ok(true));
    assert_eq!(write("a/enabled", "0\n\n"), Ok(true));
    assert_eq!(write("a/enabled", "1"), Err(22), "it is");
    for wrong in ["maybe", "2", ""] {
        assert_eq!(write("a/enabled", wrong), Err(22));
    }
    assert_eq!(
        (write("a/force", "1"), write("a/force", "n"), write("a/force", "x")),
        (Ok(true), Ok(false), Err(22))
    );
    assert_eq!((write("nobody/enabled", "0"), write("a/nothing", "0")), (Err(2), Err(2)));
    for read_only in ["a/transition", "a", "a/states/10/holders", "a/main/patched", "a/pending"] {
        assert_eq!(write(read_only, "0"), Err(13), "{read_only}");
    }
    assert_eq!((write("hooking", "0"), write("tick_ms", "5")), (Ok(true), Ok(true)));
}

proptest::proptest! {
    #[test]
    fn no_path_panics(path in proptest::collection::vec(0u8..=255, 0..40), known: bool) {
        let path = if known { [b"a/states/", &path[..]].concat() } else { path };
        let _ = get(&books(), SET, &path);
        let _ = would_set(&books(), SET, &path, b"1");
    }
}
