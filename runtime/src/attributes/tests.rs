use super::callback::How;
use super::*;
use crate::books::{NameRow, NamedRow};
use crate::held::Why;
use suture_abi::batch::{NamedObject, State};
use suture_abi::block::{PATCHING, PHASE_INIT, PHASE_RUNNING, RangeRow, SiteRow, TransitionRow, UNPATCHING};
use suture_abi::event::{Event, word};

/// A process in whose transitions two threads are pending.
struct Lab;

impl Process for Lab {
    fn hooking(&self) -> bool {
        true
    }

    fn tick_ms(&self) -> u32 {
        1000
    }

    fn last_callback(&self, patch: u32) -> Option<LastCallback> {
        let how = How::Returned(19);
        (patch == 4).then_some(LastCallback { callback: word::PRE_PATCH, state: 10, how, since_ns: 0 })
    }

    fn pending(&self, _: &TransitionRow, mut each: impl FnMut(Pending)) {
        let mut name = [0; 16];
        name[..3].copy_from_slice(b"a b");
        each(Pending { tid: 70, name, why: Why::Running });
        each(Pending { tid: 71, name: [0; 16], why: Why::On(0x123) });
    }
}

/// Grows.
impl Out for Vec<u8> {
    fn put(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}

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

fn names(patch: u32, object: u32, function: &str) -> Vec<NameRow> {
    let pieces = function.as_bytes().chunks(48);
    let last = pieces.len() - 1;
    let row = |(at, piece): (usize, &[u8])| {
        let mut part = NamePart { object, more: u32::from(at < last), ..NamePart::default() };
        part.text.as_flattened_mut()[..piece.len()].copy_from_slice(piece);
        NameRow { patch, part }
    };
    pieces.enumerate().map(row).collect()
}

/// Longer than one row, and than two.
fn long(tail: &str) -> String {
    "ab".repeat(60) + tail
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
        names: [names(1, 0, "f,1"), names(1, 0, &long(",2")), names(1, 1, "a/b,1"), names(4, 0, "g,1")]
            .concat(),
        ..Books::default()
    }
}

fn number(books: &Books, path: &str) -> Result<i64, u32> {
    get(books, &Lab, path.as_bytes()).map_err(|e| e.0)
}

fn shown(books: &Books, path: &str) -> Result<String, u32> {
    let mut text = Vec::new();
    super::read(books, &Lab, path.as_bytes(), &mut text).map_err(|e| e.0)?;
    Ok(String::from_utf8(text).unwrap())
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
        ("a/main/f,1", Err(21)),
        ("a/main/f,1/", Err(21)),
        ("a//opt/x y/libz.so/a/b,1", Err(21)),
        ("b.c/main/g,1", Err(21)),
        ("a/main/g,1", Err(2)),
        ("a/main/f,", Err(2)),
        ("a/main/f,12", Err(2)),
        ("a/main/f,1/patched", Err(2)),
        ("a//opt/x y/libz.so/f,1", Err(2)),
        ("a/main/", Err(21)),
        ("a/main//", Err(21)),
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
        assert_eq!(number(&books, path), value, "{path}");
    }
    let path = |tail: &str| format!("a/main/{}", long(tail));
    assert_eq!((number(&books, &path(",2")), number(&books, &path(",1"))), (Err(21), Err(2)));
    assert_eq!(number(&books, &path("")), Err(2), "a part of a name is none");
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
        assert_eq!((number(&books, "b.c/enabled"), number(&books, "b.c/transition")), (Ok(enabled), Ok(1)));
        assert_eq!((number(&books, "a/enabled"), number(&books, "a/transition")), (Ok(1), Ok(0)));
    }
}

#[test]
fn writes_are_judged_as_the_command_would() {
    let books = books();
    let write =
        |path: &str, value: &str| would_set(&books, &Lab, path.as_bytes(), value.as_bytes()).map_err(|e| e.0);
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
        let _ = get(&books(), &Lab, &path);
        let _ = would_set(&books(), &Lab, &path, b"1");
    }
}

#[test]
fn texts_are_those_of_the_command() {
    let mut books = books();
    for (path, text) in [
        ("hooking", Ok("1")),
        ("tick_ms", Ok("1000")),
        ("b.c/stack_order", Ok("2")),
        ("a/states/10/holders", Ok("a b.c")),
        ("b.c/states/11/holders", Ok("b.c")),
        ("a/states/10/callbacks", Ok("pre_patch shadow_dtor")),
        ("a/last_callback", Ok("")),
        ("b.c/last_callback", Ok("pre_patch(10) failed: ENODEV")),
        ("a/pending", Ok("")),
        ("a/force", Err(13)),
        ("a/main/f,1", Err(21)),
        ("a/x", Err(2)),
    ] {
        assert_eq!(shown(&books, path), text.map(str::to_owned), "{path}");
    }
    books.transition = vec![TransitionRow { id: 1, patch: 4, phase: PHASE_RUNNING, ..Default::default() }];
    assert_eq!(shown(&books, "b.c/pending").as_deref(), Ok("70 a b: running\n71: on function 0x123"));
    assert_eq!((number(&books, "b.c/pending"), number(&books, "a/pending")), (Ok(2), Ok(0)));
    assert_eq!(shown(&books, "a/pending").as_deref(), Ok(""), "another one is in transition");
}

#[test]
fn functions_are_named_by_what_lies_at_their_addresses() {
    let mut books = books();
    let mut names = names(1, 0, "f,g,1");
    names[0].part.entry = 0x100;
    books.names = names;
    let plan =
        suture_abi::batch::Site { id: 1, entry: 0x100, copy: 0x900, copy_len: 0x10, ..Default::default() };
    books.sites = vec![SiteRow { id: 1, state: 0, depth: 0, hook: 0, plan, direct: 0 }];
    let range = |kind, start, end| RangeRow { patch: 1, site: 1, kind, reserved: 0, start, end };
    books.ranges = vec![
        range(suture_abi::batch::RANGE_OLD, 0x100, 0x140),
        range(suture_abi::batch::RANGE_NEW, 0x500, 0x540),
    ];
    for (at, name) in [
        // A return address may be the end.
        (0x101, "f,g"),
        (0x140, "f,g"),
        (0x100, "0x100"),
        (0x141, "0x141"),
        (0x510, "f,g [a]"),
        (0x905, "f,g"),
        (0x7fff_ffff_f123, "0x7ffffffff123"),
    ] {
        let (mut text, mut tid) = (Vec::new(), Vec::new());
        text::pending(&mut text, &books, &Pending { tid: 4_194_303, name: [0; 16], why: Why::On(at) });
        text::number(&mut tid, 4_194_303);
        assert_eq!(String::from_utf8(text).unwrap(), format!("4194303: on function {name}"));
        assert_eq!(tid, b"4194303");
    }
    let last = |value| {
        let mut text = Vec::new();
        text::number(&mut text, value);
        String::from_utf8(text).unwrap()
    };
    assert_eq!((last(0), last(u64::MAX)), ("0".to_owned(), u64::MAX.to_string()));
}

#[test]
fn a_text_is_cut_where_its_room_ends() {
    for size in 0..12 {
        let mut room = vec![7; size + 1];
        let mut cut = text::Cut::new(&mut room[..size]);
        cut.put(b"pre_");
        cut.put(b"patch");
        assert_eq!((cut.len(), cut.is_empty()), (9, false));
        let mut expected = b"pre_patch"[..size.saturating_sub(1).min(9)].to_vec();
        expected.extend((size > 0).then_some(0));
        assert_eq!(room[..expected.len()], expected);
        assert!(room[expected.len()..].iter().all(|b| *b == 7), "{size}: {room:?}");
    }
}

#[test]
fn the_last_callback_is_the_newest_of_its_kind() {
    let event = |word, subject, value| Event {
        number: 1,
        time_ns: 5,
        word,
        tid: 0,
        patch: 1,
        reserved: 0,
        subject,
        value,
        name: [0; 56],
    };
    let said = |events: Vec<Event>| {
        let mut text = Vec::new();
        LastCallback::newest(events.into_iter(), LastCallback::is_one)?.show(&mut text);
        Some(String::from_utf8(text).unwrap())
    };
    assert_eq!(said(vec![event(word::DONE_PATCH, 0, 0)]), None);
    let odd = event(word::POST_PATCH, 12, 999);
    assert_eq!(said(vec![event(word::FAIL, 0, 0), odd]).as_deref(), Some("post_patch(12) failed: errno 999"));
    let crash =
        |subject, value| vec![event(word::POST_PATCH, 12, 14), event(word::CALLBACK_CRASHED, subject, value)];
    assert_eq!(said(crash(12, 11)).as_deref(), Some("post_patch(12) was ended by signal 11"));
    assert_eq!(said(crash(13, 11)).as_deref(), Some("post_patch(12) failed: EFAULT"), "of another state");
}
